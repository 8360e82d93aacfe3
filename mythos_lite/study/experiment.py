"""The main job, a study of one run: train on short chains, sweep the loop count on longer ones, draw what came out.

The run's folder ends with ``config.json``, ``model.safetensors``, ``metrics.jsonl``, the record as ``sweep.json`` and
three figures; until then it also holds the state from which the same call goes on after an interruption.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from mythos_lite.checks import NonFiniteError
from mythos_lite.files.atomic import make_folder, only_writer, write_files
from mythos_lite.files.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError, open_checkpoint
from mythos_lite.study.report import figures, format_chart, format_table
from mythos_lite.study.run import Run, execute
from mythos_lite.training.parallel import is_first
from mythos_lite.training.state import METRICS_FILE, STATE_FILE
from mythos_lite.training.trainer import build_model, find_device

SWEEP_FILE = "sweep.json"


def run_experiment(
    run: Run, out: str | os.PathLike | None = None, device: str = "auto", say: Callable[[str], None] = print
) -> dict:
    """Train, sweep and write into ``out`` (see ``run_folder``); return the record, which ``sweep.json`` holds.

    Raises:
        ValueError: for an unknown device, or a folder that holds another run or has no name.
        OSError: for a folder that cannot be written, or into which another run is writing.
        NonFiniteError: when training blows up.
    """
    device = find_device(device)
    folder = run_folder(run, out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file; choose a folder")
    with only_writer(make_folder(folder)) if is_first() else contextlib.nullcontext():
        _refuse_other_run(folder, run)
        if (folder / CONFIG_FILE).exists() and not (folder / STATE_FILE).exists():
            say(f"{folder} holds this run, finished; it is trained again and replaced")
        size = build_model(run.model, run.seed).n_parameters()
        say(f"recipe {run.rung}, seed {run.seed}: {size:,} parameters, {run.train.steps} steps on {device}")
        if run.rung.endswith("(quick)"):
            say("quick: a check that everything runs; its accuracy means nothing")
        record, model, history = execute(run, _command(run, device), folder=folder, device=device, progress=None)
        if not is_first():
            return record
        if "error" in record:
            raise NonFiniteError(record["error"])
        model.save_pretrained(folder, **run.to_dict())
        write_files({folder / SWEEP_FILE: (json.dumps(record) + "\n").encode()})
        took = record["provenance"]["seconds"]
        say(format_table(record))
        say(format_chart(record))
        say(f"final loss {history[-1]['loss']:.4f}; training {took['training']:.0f} s, sweep {took['sweep']:.0f} s")
        pictures = figures(record, history)  # last: one that cannot be drawn takes no number with it
        write_files({folder / name: png for name, png in pictures.items()})
        (folder / STATE_FILE).unlink(missing_ok=True)
        say(f"written to {folder}: {', '.join((WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE, SWEEP_FILE, *pictures))}")
    return record


def run_folder(run: Run, out: str | os.PathLike | None = None) -> Path:
    """Where ``run_experiment`` writes: ``out``, or a folder in ``runs`` that is named after the run."""
    if out is not None and not os.fspath(out):
        raise ValueError(f"out={out!r} is not possible: name a folder, or leave it out for one in runs/")
    return Path("runs") / Path(run.name).name if out is None else Path(out)


def _command(run: Run, device: torch.device) -> list[str]:
    """What to type to get this run again, thread count and device spelt out."""
    name, *rest = run.rung.split()
    flags = [flag for flag, word in (("--experts", "experts"), ("--quick", "(quick)")) if word in rest]
    machine = ["--threads", str(torch.get_num_threads()), "--device", str(device)]
    return ["experiment", "--recipe", name, "--seed", str(run.seed), *flags, *machine]


def _refuse_other_run(folder: Path, run: Run) -> None:
    """``ValueError`` if ``folder`` holds the finished run of another recipe, seed, model or training."""
    if not (folder / CONFIG_FILE).exists():
        return
    try:
        found = open_checkpoint(folder).notes
        other = Run.from_dict(found)
    except (CheckpointError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds files that are not a finished run ({error}); choose another folder with --out"
        ) from error
    if other != run:
        wanted = run.to_dict()
        key = next(key for key in wanted if found.get(key) != wanted[key])
        raise ValueError(
            f"{folder} holds another run (recipe {other.rung}, seed {other.seed}): "
            f"its {key} is {found.get(key)!r}, not {wanted[key]!r}; choose another folder with --out"
        )
