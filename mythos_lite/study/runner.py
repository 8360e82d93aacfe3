"""Train and measure the runs of a plan, several at once, one file each; a run whose file is there is not run again.

A *record* is what such a file holds: study, rung, seed, the three configurations, ``counts`` (rows of
``[n_digits, n_loops, n_chains, n_correct]``), the training curve, what the loop does at rest, provenance.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm.auto import tqdm

from mythos_lite.baselines import build_baseline, count_correct, train_baseline
from mythos_lite.checkpoint import make_folder, write_files
from mythos_lite.config import ModelConfig, check_choice, check_int
from mythos_lite.data import Task
from mythos_lite.evaluation import evaluation_chains, expert_shares, make_row, sweep, wilson_interval
from mythos_lite.model import RecurrentDepthTransformer
from mythos_lite.provenance import provenance, source_hash
from mythos_lite.spectral import gains_along_chain, loop_radii, make_loop_map
from mythos_lite.study.plan import OTHER_SEEDS, STUDIES, TRAINED_LOOPS, Run, Sweep
from mythos_lite.training import NonFiniteError, build_model, train

RESULTS = Path("results") / "study"
CHAINS_SEED = 1
"""Seed of the evaluation chains: not those that the main job, and whoever tunes with it, looks at."""
_REST_LOOPS = (4, 8, 16, 32, 64)
_GAIN_DISTANCES = (1, 2, 4, 8)
_CURVE = ("step", "loss", "accuracy", "grad_norm")


def describe(run: Run) -> dict:
    """What identifies a run, as plain values."""
    task = {"kind": type(run.task).__name__, **dataclasses.asdict(run.task)}
    described = {
        "study": run.study, "rung": run.rung, "seed": run.seed, "task": task,
        "model": run.model.to_dict(), "train": run.train.to_dict(),
        "sweeps": [dataclasses.asdict(s) for s in run.sweeps],
    }  # fmt: skip
    if run.before:
        described["before"] = [config.to_dict() for config in run.before]
    return json.loads(json.dumps(described))


def is_record_of(run: Run, record: dict) -> bool:
    """Does the record hold this run, with the configurations that the run has now?"""
    described = describe(run)
    return all(record.get(key) == described.get(key) for key in {*described, "before"})


def execute(run: Run, weights: Path | None = None) -> dict:
    """Train and measure one run on the CPU. A run that blows up is a record too, with what was said as ``error``.

    With ``weights``, a looped model is saved in a folder there.
    """
    source, started, cpu_started = source_hash(), time.perf_counter(), time.process_time()
    looped = isinstance(run.model, ModelConfig)
    model = build_model(run.model, run.seed) if looped else build_baseline(run.model, run.seed)
    record = {**describe(run), "n_parameters": sum(p.numel() for p in model.parameters())}
    try:
        history = []
        for config in (*run.before, run.train):
            history += (
                train(model, run.task, config, progress=False) if looped else train_baseline(model, run.task, config)
            )
    except NonFiniteError as error:
        counts = [[n, t, len(_chains(run.task, n, s)), 0] for s in run.sweeps for n in s.lengths for t in s.loops]
        record |= {"error": str(error), "curve": [], "counts": counts}
        trained, cpu_trained = time.perf_counter(), time.process_time()
    else:
        trained, cpu_trained = time.perf_counter(), time.process_time()
        record["curve"] = [[_rounded(point[key]) for key in _CURVE if key in point] for point in history]
        record["counts"] = [row for s in run.sweeps for row in _count(model, run.task, s)]
        if looped:
            record |= _at_rest(model, run.task)
            if weights is not None:
                model.save_pretrained(weights / run.name, **describe(run))
    command = [Path(sys.executable).name, "-m", "mythos_lite", "study", run.study]
    command += ["--rungs", run.rung, "--seeds", str(run.seed)]
    seconds = {
        "training": trained - started,
        "training, CPU": cpu_trained - cpu_started,
        "sweep": time.perf_counter() - trained,
    }
    return {**record, "provenance": provenance(command, source, torch.device("cpu"), seconds)}


def _count(model: torch.nn.Module, task: Task, asked: Sweep) -> list[list[int]]:
    """Rows of counts for one sweep. A loop count at which the logits are not finite answers nothing."""
    if not isinstance(model, RecurrentDepthTransformer):
        chains = [_chains(task, n, asked) for n in asked.lengths]
        return [[c.shape[1], 1, len(c), count_correct(model, task, c)] for c in chains]
    rows = []
    for n in asked.lengths:
        loops = list(asked.loops)
        while loops:
            try:
                found = sweep(model, task, [n], loops, n_chains=asked.n_chains, seed=CHAINS_SEED)
            except NonFiniteError:
                loops.pop()
                continue
            rows += [[n, row["n_loops"], row["n_chains"], row["n_correct"]] for row in found]
            break
        rows += [[n, t, len(_chains(task, n, asked)), 0] for t in asked.loops if t not in loops]
    return rows


def _chains(task: Task, n_digits: int, asked: Sweep) -> torch.Tensor:
    return evaluation_chains(task, n_digits, asked.n_chains, CHAINS_SEED)


@torch.no_grad()
def _at_rest(model: RecurrentDepthTransformer, task: Task) -> dict:
    """What the loop does when it is left running, on held-out chains.

    At several loop counts ρ(J) of one chain's map, and the median residual at EQ of a hundred. Where it comes to rest,
    what is left of a small error 1, 2, 4 and 8 digits further on: median and highest gain of four chains.
    """
    batch = task.encode(evaluation_chains(task, 8, 100, CHAINS_SEED))
    residual = {
        step.loop: step.residual()[:, -1].median().item()
        for step in model.loop(batch.token_ids, _REST_LOOPS[-1])
        if step.loop in _REST_LOOPS
    }
    found = {"residuals": [[t, _rounded(residual[t]) if math.isfinite(residual[t]) else None] for t in _REST_LOOPS]}
    if all(map(math.isfinite, residual.values())):
        radii = loop_radii(model, batch.token_ids[:1], _REST_LOOPS)
        found["radii"] = [[t, round(r, 4)] for t, r in zip(_REST_LOOPS, radii, strict=True)]
        if radii[-1] < 1:
            found["gains"] = _gains(model, task)
    if model.config.n_experts:
        shares = expert_shares(model, task, [5], TRAINED_LOOPS, seed=CHAINS_SEED)
        found["expert_shares"] = [[round(share, 3) for share in row] for row in shares]
    return found


def _gains(model: RecurrentDepthTransformer, task: Task) -> list[list]:
    """``[distance, median, highest]`` of ``gains_along_chain`` from the second digit of four chains of 12 on."""
    batch = task.encode(evaluation_chains(task, 12, 4, CHAINS_SEED))
    *_, last = model.loop(batch.token_ids, _REST_LOOPS[-1])
    maps = [make_loop_map(model, ids, _REST_LOOPS[-1] - 1)[0] for ids in batch.token_ids.split(1)]
    gains = [gains_along_chain(*pair, 2) for pair in zip(maps, last.state.split(1), strict=True)]
    columns = list(zip(*gains, strict=True))
    return [[k, *map(_rounded, (statistics.median(columns[k - 1]), max(columns[k - 1])))] for k in _GAIN_DISTANCES]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def chosen_runs(studies: Sequence[str], rungs: Sequence[str] = (), seeds: Iterable[int] | None = None) -> list[Run]:
    """The plan's runs of these studies, seed by seed, so that each rung has one seed before any has two.

    Without ``seeds`` each rung has those that the plan gives it.

    Raises:
        ValueError: for a study that does not exist, a rung that none of them has, or a seed that is not one.
    """
    studies, seeds = list(dict.fromkeys(studies)), None if seeds is None else list(dict.fromkeys(seeds))
    for study in studies:
        check_choice("study", study, tuple(STUDIES))
    for seed in seeds or []:
        check_int("seed", seed, 0, 2**32 - 1)
    planned = sorted({seed for _, usual in STUDIES.values() for seed in usual})
    runs = [
        run
        for seed in (planned if seeds is None else seeds)
        for study in studies
        for run in STUDIES[study][0](seed)
        if seeds is not None or seed in OTHER_SEEDS.get((study, run.rung), STUDIES[study][1])
    ]
    known = list(dict.fromkeys(run.rung for run in runs))
    for rung in rungs:
        check_choice("rung", rung, tuple(known))
    return [run for run in runs if not rungs or run.rung in rungs]


def read_record(path: Path) -> dict:
    """A record; ``ValueError`` for a file that holds none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows_of(record)
        record["study"], record["rung"], record["seed"], record["provenance"]["seconds"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is not the record of a run") from error
    return record


def rows_of(record: dict) -> list[dict]:
    """The counts as rows with accuracy and 95 % interval."""
    return [
        make_row(n_digits, n_loops, n_correct, n_chains) for n_digits, n_loops, n_chains, n_correct in record["counts"]
    ]


def find_record(run: Run, results: Path) -> dict | None:
    """The run's record in ``results``, if it is there; ``ValueError`` if that is one of another configuration."""
    path = results / f"{run.name}.json"
    if not path.exists():
        return None
    record = read_record(path)
    if not is_record_of(run, record):
        raise ValueError(f"{path} holds this run with another configuration; remove the file, or choose another folder")
    return record


def run_study(runs: Sequence[Run], results: Path = RESULTS, weights: Path | None = None, jobs: int = 2) -> list[dict]:
    """Run what is not in ``results`` yet, ``jobs`` processes of one thread each; the records of all ``runs``.

    Each record is written when its run ends, so that an interruption loses only the runs under way. With ``weights``,
    looped models are saved there.

    Raises:
        ValueError: if ``results`` holds a run of the same name with another configuration.
        OSError: for a folder that cannot be written, before anything is trained, or when a process was killed.
    """
    check_int("jobs", jobs, 1)
    records = {run.name: record for run in runs if (record := find_record(run, results))}
    waiting = [run for run in runs if run.name not in records]
    for folder in (results, weights):
        if waiting and folder is not None:
            make_folder(folder)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the new processes: two of two threads each are slower than one
    hidden = bool(os.environ.get("CI"))
    with (
        concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _end_with_parent) as pool,
        tqdm(total=len(waiting), desc="runs", unit="run", disable=hidden) as bar,
    ):
        rest, running = iter(waiting), {}
        try:
            while True:
                for run in itertools.islice(rest, jobs - len(running)):  # no more, or an end would have to wait for it
                    running[pool.submit(_execute_and_write, run, results, weights)] = run
                if not running:
                    break
                for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                    name = running.pop(future).name
                    records[name] = future.result()
                    bar.set_postfix_str(name)
                    bar.update()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process was killed, perhaps for want of memory; the same command runs what is missing"
            ) from error
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return [records[run.name] for run in runs]


def _end_with_parent() -> None:
    """A worker whose parent is killed would train on unseen; let it end too. Ctrl-C is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # tidily, which the default is not
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _execute_and_write(run: Run, results: Path, weights: Path | None) -> dict:
    """In a process of its own, so that what is finished is written whatever becomes of the others."""
    record = execute(run, weights)
    path = results / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_files({path: (json.dumps(record) + "\n").encode()})
    return record


def disagreements(record: dict, other: dict) -> list[str]:
    """Where the intervals of two records of the same run do not overlap, in words.

    The intervals are so wide that all of a record's hold its true values with a chance of 95 % (Bonferroni):
    two honest runs would else disagree somewhere among dozens of rows.
    """
    found = []
    pairs = list(zip(rows_of(record), rows_of(other), strict=True))
    confidence = 1 - 0.05 / len(pairs)
    for a, b in pairs:
        (low, high), (other_low, other_high) = (
            wilson_interval(row["n_correct"], row["n_chains"], confidence) for row in (a, b)
        )
        if low > other_high or other_low > high:
            where = f"{a['n_digits']} digits at {a['n_loops']} loops"
            found.append(f"{record['rung']}, seed {record['seed']}, {where}: {a['accuracy']:.3f}, {b['accuracy']:.3f}")
    return found
