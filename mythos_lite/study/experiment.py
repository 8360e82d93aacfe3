"""The main job: train on short chains, sweep the loop count on longer ones, write what came out.

Each recipe has its plan of lengths and loop counts. The run's folder ends with ``config.json``,
``model.safetensors``, ``metrics.jsonl``, ``sweep.json`` and three figures; until then it also
holds the state from which the same call goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.files.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    make_folder,
    only_writer,
    open_checkpoint,
    write_files,
)
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.spectral import loop_radii
from mythos_lite.measure.sweep import evaluation_chains, expert_shares, sweep
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.study.report import figures, format_chart, format_table
from mythos_lite.task.chains import ChainTask, Task
from mythos_lite.training.recipes import mod7_moe_model, recipe
from mythos_lite.training.trainer import METRICS_FILE, STATE_FILE, build_model, default_device, train

SWEEP_FILE = "sweep.json"
QUICK_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a recipe's model is asked.

    The first group are the trained lengths, the second the longer ones that chart and title speak of.
    """

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
    experts: bool = False,
    quick: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict:
    """Train, sweep and write; return what ``sweep.json`` holds.

    ``experts`` trains the model with latent attention and sparse experts in place of the dense one.

    Raises:
        ValueError: for an unknown recipe or device, or a folder that holds another run or has no name.
        OSError: for a folder that cannot be written, or into which another run is writing.
        NonFiniteError: when training blows up.
    """
    model_config, train_config = recipe(recipe_name, seed)
    if experts:
        if model_config.n_experts:
            raise ValueError(f"recipe={recipe_name!r} already has experts; leave out --experts")
        model_config = mod7_moe_model()
    plan = PLANS[recipe_name]
    if quick:
        train_config = _shorten(train_config)
        plan = dataclasses.replace(plan, n_chains=100)
    device = _find_device(device)
    notes = {
        "recipe": recipe_name, "experts": experts, "seed": seed, "quick": quick,
        "model": model_config.to_dict(), "train": train_config.to_dict(),
    }  # fmt: skip
    folder = run_folder(recipe_name, seed, out=out, experts=experts, quick=quick)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file; choose a folder")
    with only_writer(make_folder(folder)):
        _refuse_other_run(folder, notes)
        return _run(folder, notes, model_config, train_config, plan, device, say)


def _run(
    folder: Path,
    notes: dict,
    model_config: ModelConfig,
    train_config: TrainConfig,
    plan: SweepPlan,
    device: torch.device,
    say: Callable[[str], None],
) -> dict:
    """``run_experiment`` in a folder that is this run's own."""
    source = source_hash()
    resumed = (folder / STATE_FILE).exists()
    if not resumed and (folder / CONFIG_FILE).exists():
        say(f"{folder} holds this run, finished; it is trained again and replaced")

    task = ChainTask()
    model = build_model(model_config, notes["seed"], device)
    size = f"{model.n_parameters():,} parameters, {train_config.steps} steps"
    say(f"recipe {notes['recipe']}, seed {notes['seed']}: {size} on {device}")
    if notes["quick"]:
        say("quick: a check that everything runs; its accuracy means nothing")
    started = time.perf_counter()
    history = train(model, task, train_config, folder=folder)
    trained = time.perf_counter()
    measured = _measure(model, task, plan, train_config.max_loops)
    swept = time.perf_counter()

    seconds = {"training": trained - started, "sweep": swept - trained}
    result = {
        **notes,
        "final_loss": history[-1]["loss"],
        "trained_loops": [train_config.min_loops, train_config.max_loops],
        "chance": 1 / task.modulus,
        "groups": [list(group) for group in plan.groups],
        **measured,
        "resumed": resumed,
        "provenance": provenance(_command(notes, device), source, device, seconds),
    }
    model.save_pretrained(folder, **notes)
    write_files({folder / SWEEP_FILE: (json.dumps(result, indent=1) + "\n").encode()})
    say(format_table(result))
    say(format_chart(result))
    say(f"final loss {result['final_loss']:.4f}; training {seconds['training']:.0f} s, sweep {seconds['sweep']:.0f} s")
    pictures = figures(result, history, model_config)  # last: one that cannot be drawn takes no number with it
    write_files({folder / name: png for name, png in pictures.items()})
    (folder / STATE_FILE).unlink(missing_ok=True)
    say(f"written to {folder}: {', '.join((WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE, SWEEP_FILE, *pictures))}")
    return result


def run_folder(
    recipe_name: str, seed: int, *, out: str | os.PathLike | None = None, experts: bool = False, quick: bool = False
) -> Path:
    """Where ``run_experiment`` writes: ``out``, or a folder in ``runs`` that is named after the run."""
    if out is not None and not os.fspath(out):
        raise ValueError(f"out={out!r} is not possible: name a folder, or leave it out for one in runs/")
    name = f"{recipe_name}{'-experts' if experts else ''}-seed{seed}{'-quick' if quick else ''}"
    return Path("runs") / name if out is None else Path(out)


def _shorten(config: TrainConfig) -> TrainConfig:
    """The same training in ``QUICK_STEPS`` steps; warm-up and checkpoint interval shrink in proportion."""
    share = QUICK_STEPS / config.steps
    return dataclasses.replace(
        config, steps=QUICK_STEPS, warmup_steps=round(share * config.warmup_steps), log_every=QUICK_STEPS // 2,
        checkpoint_every=max(1, round(share * config.checkpoint_every)),
    )  # fmt: skip


def _measure(model: RecurrentDepthTransformer, task: Task, plan: SweepPlan, n_loops: int) -> dict:
    """The sweep's rows, ρ(J) over twice the loops of training and, with experts, the share of tokens each gets."""
    lengths = [n for group in plan.groups for n in group]
    chain = task.encode(evaluation_chains(task, plan.groups[0][-1], plan.n_chains)[-1:]).token_ids
    measured: dict = {
        "rows": sweep(model, task, lengths, plan.loops, n_chains=plan.n_chains),
        "jacobian_radii": loop_radii(model, chain.to(model.embedding.weight.device), range(1, 2 * n_loops + 1)),
    }
    if model.config.n_experts:
        measured["expert_shares"] = expert_shares(model, task, plan.groups[0], n_loops, n_chains=plan.n_chains)
    return measured


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not known; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use auto or cpu"
        )
    return device


def _command(notes: dict, device: torch.device) -> list[str]:
    """What to type to get this run again, thread count and device spelt out."""
    flags = [f"--{flag}" for flag in ("experts", "quick") if notes[flag]]
    machine = ["--threads", str(torch.get_num_threads()), "--device", str(device)]
    run = ["experiment", "--recipe", notes["recipe"], "--seed", str(notes["seed"])]
    return [Path(sys.executable).name, "-m", "mythos_lite", *run, *flags, *machine]


def _refuse_other_run(folder: Path, notes: dict) -> None:
    """``ValueError`` if ``folder`` holds the finished run of another recipe, seed, model or training."""
    if not (folder / CONFIG_FILE).exists():
        return
    try:
        found = open_checkpoint(folder).notes
    except CheckpointError as error:
        raise ValueError(
            f"{folder} holds files that are not a finished run ({error}); choose another folder with --out"
        ) from error
    if different := [key for key in notes if found.get(key) != notes[key]]:
        key = different[0]
        raise ValueError(
            f"{folder} holds another run (recipe {found.get('recipe')}, seed {found.get('seed')}): "
            f"its {key} is {found.get(key)!r}, not {notes[key]!r}; choose another folder with --out"
        )
