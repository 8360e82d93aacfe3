"""The main job: train on short chains, sweep the loop count on longer ones, write what came out.

Each recipe has its plan of lengths and loop counts. The run's folder ends with ``config.json``,
``model.safetensors``, ``metrics.jsonl``, ``sweep.json`` and ``loop_scaling.png``; until then it also
holds the state from which the same call goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mythos_lite import plots
from mythos_lite.checkpoint import CONFIG_FILE, CheckpointError, make_folder, read_checkpoint, write_bytes
from mythos_lite.config import recipe
from mythos_lite.data import ChainTask
from mythos_lite.evaluation import pool, sweep
from mythos_lite.provenance import provenance
from mythos_lite.training import METRICS_FILE, STATE_FILE, build_model, default_device, train

SWEEP_FILE = "sweep.json"
FIGURE_FILE = "loop_scaling.png"
QUICK_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a recipe's model is asked. The first group are the trained lengths."""

    loops: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    n_chains: int = 1000


PLANS = {
    "fixed": SweepPlan(loops=(1, 2, 4, 6, 8, 12, 16, 24, 32), groups=((2, 3, 4, 5), (6, 7, 8))),
    "hold": SweepPlan(loops=(1, 2, 4, 6, 8, 16, 32, 64, 128), groups=((2, 3, 4, 5), (6, 7, 8), (16,), (32,))),
    "published": SweepPlan(loops=(1, 2, 4, 6, 8), groups=((2, 3, 4, 5), (6, 7, 8))),
}


def run_experiment(
    recipe_name: str,
    seed: int,
    *,
    out: str | os.PathLike | None = None,
    quick: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict:
    """Train, sweep and write; return what ``sweep.json`` holds.

    Raises:
        ValueError: for an unknown recipe or device, or a folder that holds another run.
        OSError: for a folder that cannot be written.
        NonFiniteError: when training blows up.
    """
    model_config, train_config = recipe(recipe_name, seed)
    plan = PLANS[recipe_name]
    if quick:
        train_config = dataclasses.replace(train_config, steps=QUICK_STEPS, log_every=QUICK_STEPS // 2)
        plan = dataclasses.replace(plan, n_chains=100)
    device = _find_device(device)
    notes = {"recipe": recipe_name, "seed": seed, "quick": quick, "train": train_config.to_dict()}
    folder = Path(out if out is not None else Path("runs") / f"{recipe_name}-seed{seed}{'-quick' if quick else ''}")
    _refuse_other_run(folder, notes)
    make_folder(folder)

    task = ChainTask()
    model = build_model(model_config, seed, device)
    size = f"{model.n_parameters():,} parameters, {train_config.steps} steps"
    say(f"recipe {recipe_name}, seed {seed}: {size} on {device}")
    if quick:
        say("quick: a check that everything runs; its accuracy means nothing")
    started = time.perf_counter()
    history = train(model, task, train_config, folder=folder)
    trained = time.perf_counter()
    lengths = [n for group in plan.groups for n in group]
    rows = sweep(model, task, lengths, plan.loops, n_chains=plan.n_chains)
    swept = time.perf_counter()

    seconds = {"training": trained - started, "sweep": swept - trained}
    result = {
        **notes,
        "final_loss": history[-1]["loss"],
        "trained_loops": [train_config.min_loops, train_config.max_loops],
        "chance": 1 / task.modulus,
        "groups": [list(group) for group in plan.groups],
        "rows": rows,
        "provenance": provenance(
            [Path(sys.executable).name, "-m", "mythos_lite", *_command(recipe_name, seed, quick)], device, seconds
        ),
    }
    model.save_pretrained(folder, **notes)
    write_bytes(folder / SWEEP_FILE, (json.dumps(result, indent=1) + "\n").encode())
    write_bytes(folder / FIGURE_FILE, figure_png(result))
    (folder / STATE_FILE).unlink(missing_ok=True)

    say(format_table(result))
    say(format_chart(result))
    say(f"final loss {result['final_loss']:.4f}; training {seconds['training']:.0f} s, sweep {seconds['sweep']:.0f} s")
    say(f"written to {folder}: model.safetensors, {CONFIG_FILE}, {METRICS_FILE}, {SWEEP_FILE}, {FIGURE_FILE}")
    return result


def grouped_rows(result: dict) -> dict[str, list[dict]]:
    """Rows pooled by group of lengths, with the name that tables and figures use."""
    pooled = [pool(result["rows"], group) for group in result["groups"]]
    return {f"{rows[0]['n_digits']} digits": rows for rows in pooled}


def figure_png(result: dict) -> bytes:
    """The figure of loop count against accuracy."""
    groups = grouped_rows(result)
    out_of_distribution = list(groups)[1]
    figure = plots.loop_scaling(
        groups, trained_loops=tuple(result["trained_loops"]), chance=result["chance"],
        title=plots.describe_scaling(groups[out_of_distribution], out_of_distribution, result["chance"]),
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def format_table(result: dict) -> str:
    """Accuracy by group and loop count, as text."""
    groups = grouped_rows(result)
    counts = [row["n_loops"] for row in next(iter(groups.values()))]
    width = max(map(len, groups)) + 2
    lines = ["", f"{'loops':<{width}}" + "".join(f"{count:>7}" for count in counts)]
    for name, rows in groups.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row['accuracy']:>7.3f}" for row in rows))
    return "\n".join([*lines, f"chance {result['chance']:.3f}"])


def format_chart(result: dict, width: int = 50) -> str:
    """Bars of accuracy against loops on the first group that is longer than training."""
    name, rows = list(grouped_rows(result).items())[1]
    low, high = result["trained_loops"]
    lines = ["", f"accuracy on {name} by loops"]
    for row in rows:
        bar = "█" * round(row["accuracy"] * width)
        mark = "  ← loops in training" if low <= row["n_loops"] <= high else ""
        lines.append(f"{row['n_loops']:>4} {bar:<{width}} {row['accuracy']:.3f}{mark}")
    return "\n".join([*lines, ""])


def markdown_table(results: Sequence[dict]) -> str:
    """One line per result: the longer-than-trained groups at each loop count, and what it took."""
    results = sorted(results, key=lambda r: (list(PLANS).index(r["recipe"]), r["seed"]))
    lines = []
    for name in dict.fromkeys(result["recipe"] for result in results):
        same = [result for result in results if result["recipe"] == name]
        counts = [row["n_loops"] for row in next(iter(grouped_rows(same[0]).values()))]
        header = ["recipe", "seed", "digits", *map(str, counts), "training, s"]
        lines += ["", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        for result in same:
            for group, rows in grouped_rows(result).items():
                values = [f"{row['accuracy']:.3f}" for row in rows]
                cells = [
                    name,
                    str(result["seed"]),
                    group.removesuffix(" digits"),
                    *values,
                    f"{result['provenance']['seconds']['training']:.0f}",
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).strip() + "\n"


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not known; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name!r} is not there: torch {torch.__version__} sees no CUDA device; use auto or cpu"
        )
    return device


def _command(recipe_name: str, seed: int, quick: bool) -> list[str]:
    return ["experiment", "--recipe", recipe_name, "--seed", str(seed), *(["--quick"] if quick else [])]


def _refuse_other_run(folder: Path, notes: dict) -> None:
    """``ValueError`` if ``folder`` holds the finished run of another recipe, seed or training."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file; choose a folder")
    if not (folder / CONFIG_FILE).exists():
        return
    try:
        found = read_checkpoint(folder)[2]
    except CheckpointError as error:
        raise ValueError(
            f"{folder} holds files that are not a finished run ({error}); choose another folder with --out"
        ) from error
    if found != notes:
        raise ValueError(
            f"{folder} holds another run (recipe {found.get('recipe')}, seed {found.get('seed')}); "
            "choose another folder with --out"
        )
