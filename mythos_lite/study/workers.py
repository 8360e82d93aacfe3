"""Run what a study still lacks, several runs at once, each in a process of its own and of one thread.

A process is told its run in one line of JSON on its standard input, writes its record when it is done, and ends by
itself when that input closes: then whoever started it is gone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm.auto import tqdm

from mythos_lite.checks import check_int
from mythos_lite.config import ModelConfig
from mythos_lite.files.atomic import make_folder, only_writer, write_files
from mythos_lite.study.records import find_record
from mythos_lite.study.run import Run, execute
from mythos_lite.training.parallel import is_first, process_count, wait_for_all
from mythos_lite.training.state import STATE_FILE
from mythos_lite.training.trainer import can_show_progress, find_device

RESULTS = Path("results") / "study"
MOST_AT_ONCE = max(2, os.cpu_count() or 1)
"""Threads, or processes of one thread each, beyond which nothing gets faster. Two are accepted on any machine, since
recorded commands ask for them."""


def run_study(
    runs: Iterable[Run],
    results: str | os.PathLike = RESULTS,
    folders: str | os.PathLike | None = None,
    jobs: int = 2,
    device: str = "cpu",
) -> list[dict]:
    """Run what is not in ``results`` yet, ``jobs`` at a time; the records of all.

    Within a ``process_group`` they run one after the other, each on all of its processes, and ``jobs`` is not read.
    Each record is written when its run ends. Weights, and the state from which an interrupted training goes on, are in
    ``folders``, by default where the records are.

    Raises:
        ValueError: if ``results`` holds a run of the same name with another configuration, or a damaged one; for a
            device that is not there.
        OSError: for a folder that cannot be written, before anything is trained, or when a run failed or was ended;
            the others are then ended too.
    """
    jobs, results, runs = check_int("jobs", jobs, 1, MOST_AT_ONCE), Path(results), list(runs)
    find_device(device)  # before anything is trained
    folders = results if folders is None else Path(folders)
    records = {run.name: record for run in runs if (record := find_record(run, results))}
    waiting = [run for run in runs if run.name not in records]
    for folder in dict.fromkeys((base / run.name).parent for base in (results, folders) for run in waiting):
        make_folder(folder)
    hidden = bool(os.environ.get("CI")) or not can_show_progress() or not is_first()
    if process_count() > 1:
        for run in tqdm(waiting, desc="runs", unit="run", disable=hidden):
            carry_out(run, results, folders, device)
        wait_for_all()  # till the first process has written the last record
        return [find_record(run, results) for run in runs]
    working: list[_Worker] = []
    with tqdm(total=len(waiting), desc="runs", unit="run", disable=hidden) as bar:
        try:
            while waiting or working:
                while waiting and len(working) < jobs:
                    working.append(_Worker(waiting.pop(0), results, folders, device))
                time.sleep(0.1)
                for worker in [worker for worker in working if worker.process.poll() is not None]:
                    records[worker.run.name] = worker.record()
                    working.remove(worker)
                    bar.set_postfix_str(worker.run.name)
                    bar.update()
        finally:
            for worker in working:
                worker.process.kill()
                worker.process.wait()
    return [records[run.name] for run in runs]


class _Worker:
    """The process of one run."""

    def __init__(self, run: Run, results: Path, folders: Path, device: str = "cpu") -> None:
        self.run, self.results = run, results
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs; a pipe could fill up)
        package = str(Path(__file__).parents[2])  # first, so that no other copy of it is taken
        start = f"import sys; sys.path.insert(0, {package!r}); from mythos_lite.study.workers import _main; _main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE, stdout=self.said, stderr=self.said,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent to answer
        )  # fmt: skip
        told = {"run": run.to_dict(), "results": os.fspath(results), "folders": os.fspath(folders), "device": device}
        with contextlib.suppress(BrokenPipeError):  # it has ended already; ``record`` says how
            self.process.stdin.write(json.dumps(told).encode() + b"\n")
            self.process.stdin.flush()

    def record(self) -> dict:
        """What the process wrote; ``ChildProcessError`` if it ended without."""
        code = self.process.returncode
        self.said.seek(0)
        *_, last = self.said.read().decode(errors="replace").splitlines() or [""]
        if code == 0:
            return find_record(self.run, self.results)
        if code < 0:
            what = f"was ended by signal {-code} ({signal.strsignal(-code)})"
            what += ", perhaps for want of memory" if code == -9 else ""
        else:
            what = f"failed: {last}"
        raise ChildProcessError(f"{self.results / self.run.name} {what}; the same command runs what is missing")


def carry_out(run: Run, results: Path, folders: Path, device: str = "cpu") -> None:
    """Execute a run, or what is left of it, and write its weights and its record, unless another study just did."""
    folder = make_folder(folders / run.name)
    make_folder((results / run.name).parent)
    with only_writer(folder) if is_first() else contextlib.nullcontext():
        if find_record(run, results):
            return
        command = ["study", run.study, "--rungs", run.rung, "--seeds", str(run.seed)]
        command += [] if device == "cpu" else ["--device", device]
        record, model, _ = execute(run, command, folder=folder, device=device)
        if not is_first():
            return
        try:
            if isinstance(run.model, ModelConfig) and "error" not in record:
                model.save_pretrained(folder, **run.to_dict())
        except OSError as error:
            what = "only the record could be written, not the weights"
            raise OSError(f"{what} ({error}); to have both, remove it") from error
        finally:
            write_files({results / f"{run.name}.json": (json.dumps(record) + "\n").encode()})
        for state in folder.rglob(STATE_FILE):
            state.unlink()


def _main() -> None:
    """In the process of one run."""
    told = json.loads(sys.stdin.readline())

    def end_with_parent() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the parent's end is closed, as when it was killed
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # two processes of two threads each are slower than two of one
    try:
        carry_out(Run.from_dict(told["run"]), Path(told["results"]), Path(told["folders"]), told["device"])
    except (OSError, ValueError) as error:
        sys.exit(str(error))
