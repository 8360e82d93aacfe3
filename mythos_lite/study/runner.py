"""Train and measure the runs of a plan, several at once, one file each; a run whose file is there is not run again.

A *record* is what such a file holds: study, rung, seed, the three configurations, ``counts`` (rows of
``[n_digits, n_loops, n_chains, n_correct]``), the training curve, what the loop does at rest, provenance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from mythos_lite.checks import NonFiniteError, check_choice, check_int, check_number
from mythos_lite.config import ModelConfig
from mythos_lite.files.checkpoint import make_folder, write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.spectral import gains_along_chain, loop_radii, make_loop_map
from mythos_lite.measure.sweep import evaluation_chains, expert_shares, make_row, sweep, wilson_interval
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.study.baselines import build_baseline, count_correct, train_baseline
from mythos_lite.study.plan import OTHER_SEEDS, STUDIES, TRAINED_LOOPS, Run, Sweep
from mythos_lite.task.chains import Task
from mythos_lite.training.trainer import build_model, can_show_progress, train

RESULTS = Path("results") / "study"
MOST_AT_ONCE = max(2, os.cpu_count() or 1)
"""Threads, or processes of one thread each, beyond which nothing gets faster. Two are accepted on any machine, since
recorded commands ask for them."""
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


def execute(run: Run) -> tuple[dict, torch.nn.Module]:
    """Train and measure one run on the CPU: its record, and the model.

    A run that blows up is a record too, with what was said as ``error``.
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
    command = [Path(sys.executable).name, "-m", "mythos_lite", "study", run.study]
    command += ["--rungs", run.rung, "--seeds", str(run.seed)]
    seconds = {
        "training": trained - started,
        "training, CPU": cpu_trained - cpu_started,
        "sweep": time.perf_counter() - trained,
    }
    return {**record, "provenance": provenance(command, source, torch.device("cpu"), seconds)}, model


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
    found = {"residuals": [[t, _rounded(residual[t])] for t in _REST_LOOPS]}
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


def _rounded(value: float) -> float | None:
    """To four digits; ``None`` for what JSON has no number for."""
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def chosen_runs(studies: Iterable[str], rungs: Iterable[str] = (), seeds: Iterable[int] | None = None) -> list[Run]:
    """The plan's runs of these studies, seed by seed, so that each rung has one seed before any has two.

    Without ``seeds`` each rung has those that the plan gives it.

    Raises:
        ValueError: for a study that does not exist, a rung that none of them has, or a seed that is not one.
    """
    studies, rungs = list(dict.fromkeys(studies)), list(rungs)
    for study in studies:
        check_choice("study", study, tuple(STUDIES))
    if seeds is not None:
        seeds = list(dict.fromkeys(check_int("seed", seed, 0, 2**32 - 1) for seed in seeds))
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


def read_json(path: Path, what: str, check: Callable[[Any], None]) -> Any:
    """The JSON value in ``path``.

    Raises:
        ValueError: in a sentence with the file's name, if it is not ``what``: not JSON, or refused by ``check``.
        OSError: with the file's name, if it cannot be read.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}, which is no number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        check(value)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    except KeyError as error:
        flaw, cause = f"{error} is missing", error
    except ValueError as error:
        flaw, cause = str(error), error
    except RecursionError as error:
        flaw, cause = "it is nested too deeply", error
    except (TypeError, AttributeError, ArithmeticError) as error:
        flaw, cause = "its values are laid out in another way", error
    else:
        return value
    raise ValueError(f"{path} is not {what}: {flaw}") from cause


def read_record(path: Path) -> dict:
    """A record; errors are those of ``read_json``, for a record that ``check_record`` refuses too."""
    return read_json(path, "the record of a run", check_record)


def check_record(record: dict) -> None:
    """Refuse what ``execute`` does not write; the rows of counts are those that the record's own sweeps ask for.

    Raises:
        ValueError: for values that cannot be.
        KeyError, TypeError: for values that are missing, or laid out in another way.
    """
    check_choice("study", record["study"], tuple(STUDIES))
    check_int("seed", record["seed"], 0, 2**32 - 1)
    check_int("n_parameters", record["n_parameters"], 1)
    for name in ("rung", "task", "model", "train"):
        record[name]
    asked = [(n, t, s["n_chains"]) for s in record["sweeps"] for n in s["lengths"] for t in s["loops"]]
    if not asked or len(record["counts"]) != len(asked):
        raise ValueError(f"its sweeps ask for {len(asked)} rows of counts, and it has {len(record['counts'])}")
    for (n_digits, n_loops, n_chains, n_correct), (n, t, most) in zip(record["counts"], asked, strict=True):
        check_int("n_digits", n_digits, 1)
        check_int("n_loops", n_loops, 1)
        if (n_digits, n_loops) != (n, t):
            raise ValueError(f"its sweeps ask for {n} digits at {t} loops where it has {n_digits} at {n_loops}")
        check_int("n_chains", n_chains, 1, most)
        check_int("n_correct", n_correct, 0, n_chains)
    rows_of(record)
    for name, columns in (("radii", 1), ("residuals", 1), ("gains", 2)):
        for at, *measured in record.get(name, []):
            check_int(name, at, 1)
            check_int(f"columns of {name}", len(measured), columns, columns)
            for value in measured:
                if value is not None:
                    check_number(name, value, 0.0)
    took = record["provenance"]["seconds"]
    for name in {"training", "sweep", *took}:
        check_number(name, took[name], 0.0)


def rows_of(record: dict) -> list[dict]:
    """The counts as rows with accuracy and 95 % interval."""
    return [
        make_row(n_digits, n_loops, n_correct, n_chains) for n_digits, n_loops, n_chains, n_correct in record["counts"]
    ]


def find_record(run: Run, results: Path) -> dict | None:
    """The run's record in ``results``, if it is there; ``ValueError`` if it is damaged, or of another configuration."""
    path = results / f"{run.name}.json"
    what_now = "remove the file, or choose another folder"
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        raise ValueError(f"{error}; {what_now}") from error
    if not is_record_of(run, record):
        raise ValueError(f"{path} holds this run with another configuration; {what_now}")
    return record


def run_study(
    runs: Iterable[Run], results: str | os.PathLike = RESULTS, weights: str | os.PathLike | None = None, jobs: int = 2
) -> list[dict]:
    """Run what is not in ``results`` yet, ``jobs`` at a time, each in a process of one thread; the records of all.

    Each record is written when its run ends, so that an interruption loses only the runs under way. With ``weights``,
    looped models are saved there.

    Raises:
        ValueError: if ``results`` holds a run of the same name with another configuration, or a damaged one.
        OSError: for a folder that cannot be written, before anything is trained, or when a run failed or was ended;
            the others are then ended too.
    """
    jobs, results, runs = check_int("jobs", jobs, 1, MOST_AT_ONCE), Path(results), list(runs)
    records = {run.name: record for run in runs if (record := find_record(run, results))}
    waiting = [run for run in runs if run.name not in records]
    weights = None if weights is None else Path(weights)
    bases = [base for base in (results, weights) if base is not None]
    for folder in dict.fromkeys((base / run.name).parent for base in bases for run in waiting):
        make_folder(folder)
    hidden = bool(os.environ.get("CI")) or not can_show_progress()
    running: dict[Connection, tuple[Run, multiprocessing.Process]] = {}
    with tqdm(total=len(waiting), desc="runs", unit="run", disable=hidden) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    _start(waiting.pop(0), results, weights, running)
                for answers in multiprocessing.connection.wait(running):
                    run, process = running[answers]
                    records[run.name] = _outcome(answers, process, results / run.name)
                    del running[answers]
                    bar.set_postfix_str(run.name)
                    bar.update()
        finally:
            left = [process for _, process in running.values() if process.is_alive()]
            for process in left:
                process.kill()  # not terminated: what a signal raises in the midst of a training can get lost
            for process in left:
                process.join()
    return [records[run.name] for run in runs]


def _start(run: Run, results: Path, weights: Path | None, running: dict) -> None:
    """Let a process of its own do ``run``; it is entered into ``running`` before it starts, so that none is lost."""
    context = multiprocessing.get_context("spawn")
    answers, other_end = context.Pipe(duplex=False)
    process = context.Process(target=_work, name=run.name, args=(run, results, weights, other_end), daemon=True)
    running[answers] = run, process
    try:
        with _interrupts_held_back():
            process.start()
    except OSError as error:
        raise ChildProcessError(f"no process could be started for {results / run.name}: {error.strerror}") from error
    finally:
        other_end.close()


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process that is started meanwhile holds Ctrl-C back from its first moment: it is for the parent to answer."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows a process can refuse it only once it runs
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # else it would start now, and end the holding back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(run: Run, results: Path, weights: Path | None, answers: Connection) -> None:
    """In a process of its own: send the record, or in a sentence why there is none."""
    _end_with_parent()
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a killed process leaves behind
    torch.set_num_threads(1)  # two processes of two threads each are slower than two of one
    try:
        outcome = _execute_and_write(run, results, weights)
    except (OSError, ValueError) as error:
        outcome = str(error)
    answers.send(outcome)


def _outcome(answers: Connection, process: multiprocessing.Process, name: Path) -> dict:
    """The record that ``process`` sent; ``ChildProcessError`` if it ended without one, or sent why."""
    try:
        outcome = answers.recv()
    except (EOFError, OSError):
        outcome = None
    process.join()
    if isinstance(outcome, dict):
        return outcome
    if outcome is not None:
        what = f"failed: {outcome}"
    elif process.exitcode < 0:
        what = f"was ended by signal {-process.exitcode} ({signal.strsignal(-process.exitcode)})"
    else:
        what = f"ended with code {process.exitcode}"
    hint = ", perhaps for want of memory" if process.exitcode == -9 else ""
    raise ChildProcessError(f"{name} {what}{hint}; the same command runs what is missing")


def _end_with_parent() -> None:
    """A worker whose parent is killed would train on unseen; let it end too. Ctrl-C is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _execute_and_write(run: Run, results: Path, weights: Path | None) -> dict:
    """In a process of its own, so that what is finished is written whatever becomes of the others."""
    record, model = execute(run)
    path = results / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if weights is not None and isinstance(run.model, ModelConfig) and "error" not in record:
            model.save_pretrained(weights / run.name, **describe(run))
    except OSError as error:
        raise OSError(
            f"only the record could be written, not the weights ({error}); to have both, remove it"
        ) from error
    finally:
        write_files({path: (json.dumps(record) + "\n").encode()})
    return record


def disagreements(record: dict, other: dict) -> list[str]:
    """Where two records of a run were not asked the same, or their intervals do not overlap, in words.

    The intervals are so wide that all of a record's hold its true values with a chance of 95 % (Bonferroni):
    two honest runs would else disagree somewhere among dozens of rows.
    """
    ours, theirs = (
        {(row["n_digits"], row["n_loops"], row["n_chains"]): row for row in rows_of(one)} for one in (record, other)
    )
    confidence = 1 - 0.05 / max(1, len(ours.keys() & theirs.keys()))
    found = []
    for question in sorted(ours.keys() | theirs.keys()):
        n_digits, n_loops, n_chains = question
        where = f"{record['rung']}, seed {record['seed']}, {n_digits} digits at {n_loops} loops"
        if question not in ours or question not in theirs:
            found.append(f"{where}: only one of the two was asked {n_chains} chains")
            continue
        a, b = ours[question], theirs[question]
        (low, high), (other_low, other_high) = (
            wilson_interval(row["n_correct"], row["n_chains"], confidence) for row in (a, b)
        )
        if low > other_high or other_low > high:
            found.append(f"{where}: {a['accuracy']:.3f}, {b['accuracy']:.3f}")
    return found
