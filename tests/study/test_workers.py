"""Running a study: what is written, what is not run again, and how processes end."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import ENDLESS, GRU, LOOPED, TINY, TRAIN, named, put

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.__main__ import main
from mythos_lite.study import plan, workers
from mythos_lite.study.records import find_record, read_record
from mythos_lite.study.workers import carry_out, run_study


def test_weights_of_looped_models_are_kept_and_nothing_else(tmp_path):
    carry_out(LOOPED, tmp_path / "records", tmp_path)
    assert RecurrentDepthTransformer.from_pretrained(tmp_path / LOOPED.name).config == TINY
    assert find_record(LOOPED, tmp_path / "records")
    files = sorted(path.name for path in (tmp_path / LOOPED.name).iterdir())
    assert files == ["config.json", "metrics.jsonl", "model.safetensors"]


def test_numbers_are_kept_where_weights_cannot_be_written(tmp_path):
    (tmp_path / "weights" / LOOPED.name / "model.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match=r"^only the record could be written, not the weights .*model.safetensors"):
        carry_out(LOOPED, tmp_path, tmp_path / "weights")
    assert find_record(LOOPED, tmp_path)["n_parameters"] > 0


def test_run_that_another_study_has_just_finished_is_not_done_again(tmp_path, record, monkeypatch):
    path = put(record, tmp_path)
    monkeypatch.setattr(workers, "execute", None)
    carry_out(LOOPED, tmp_path, tmp_path / "weights")
    assert read_record(path) == record


def test_finished_runs_are_not_run_again_and_others_are_refused(tmp_path, record, monkeypatch):
    put(record, tmp_path)
    monkeypatch.setattr(workers, "_Worker", None)  # nothing is left to run
    assert run_study([LOOPED], tmp_path) == [record]
    assert run_study(iter([LOOPED]), str(tmp_path)) == [record]
    longer = dataclasses.replace(LOOPED, train=dataclasses.replace(TRAIN, steps=5))
    for other in (longer, dataclasses.replace(LOOPED, before=(TRAIN,))):
        with pytest.raises(ValueError, match="another configuration"):
            run_study([other], tmp_path, None)
    put({**record, "before": [TRAIN.to_dict()]}, tmp_path)
    with pytest.raises(ValueError, match="another configuration"):
        run_study([LOOPED], tmp_path, None)


def test_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / LOOPED.study).touch()
    monkeypatch.setattr(workers, "_Worker", None)
    for file in ("file", "within"):
        for folders in ((tmp_path / file, None), (tmp_path / "results", tmp_path / file)):
            with pytest.raises(OSError, match=f"cannot write into this folder.*{file}/{LOOPED.study}"):
                run_study([LOOPED], *folders)


def test_missing_runs_are_run_in_processes_of_one_thread_and_the_environment_stays(tmp_path, monkeypatch):
    """They run the package of their parent, not one that happens to lie in the folder where the study was started."""
    (tmp_path / "mythos_lite").mkdir()
    (tmp_path / "mythos_lite" / "__init__.py").write_text("raise SystemExit('another package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    (record,) = run_study([GRU], tmp_path, None, jobs=1)
    assert read_record(tmp_path / f"{GRU.name}.json") == record
    assert record["provenance"]["threads"] == 1
    assert dict(os.environ) == before


# ---------------------------------------------------------------- interruptions


@contextlib.contextmanager
def meanwhile(act):
    """Another thread that does ``act``, which returns ``False`` until its time has come."""
    over = threading.Event()

    def wait():
        deadline = time.monotonic() + 60
        while not over.is_set() and time.monotonic() < deadline and act() is False:
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def processes(monkeypatch):
    """Those that were started, by run."""
    started = {}
    real = workers._Worker.__init__

    def start(self, run, *given):
        real(self, run, *given)
        started[run.name] = self.process

    monkeypatch.setattr(workers._Worker, "__init__", start)
    return started


@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_run_that_is_ended_by_a_signal_is_named_at_once_and_no_process_stays(tmp_path, monkeypatch, capfd, processes):
    runs = [named("a", ENDLESS), named("b", ENDLESS), named("c", ENDLESS)]
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: runs, (0,)))
    with meanwhile(lambda: processes["ladder/b-seed0"].terminate() if len(processes) == 2 else False):
        assert main(["study", "ladder", "--jobs", "2", "--results", str(tmp_path)]) == 2
    ended = f"{tmp_path / 'ladder' / 'b-seed0'} was ended by signal 15 (Terminated)"
    assert capfd.readouterr().err == f"error: {ended}; the same command runs what is missing\n"
    assert all(process.returncode is not None for process in processes.values())


@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_study_that_is_ended_says_so_and_no_process_stays(tmp_path, monkeypatch, capfd, processes):
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [named("b", ENDLESS)], (0,)))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with meanwhile(lambda: os.kill(os.getpid(), signal.SIGTERM) if processes else False):
            assert main(["study", "ladder", "--jobs", "1", "--results", str(tmp_path)]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr().err == "\ninterrupted; the same command runs what is missing\n"
    assert processes["ladder/b-seed0"].returncode == -signal.SIGKILL


def test_run_that_fails_says_which_and_why(tmp_path):
    (tmp_path / f"{LOOPED.name}.json").mkdir(parents=True)  # where the record should be
    with pytest.raises(OSError, match=f"{LOOPED.name}.json"):
        run_study([LOOPED], tmp_path)
    (tmp_path / "weights" / LOOPED.name).mkdir(parents=True)
    (tmp_path / "weights" / LOOPED.name / "training.safetensors").write_bytes(b"damaged")
    name, again = tmp_path / "results" / LOOPED.name, "the same command runs what is missing"
    with pytest.raises(ChildProcessError, match=rf"^{name} failed: .*training.safetensors.*; {again}$"):
        run_study([LOOPED], tmp_path / "results", tmp_path / "weights")


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs us in the background has it ignored
from mythos_lite.__main__ import main
from mythos_lite.study import plan
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from tiny import ENDLESS, named
    plan.STUDIES["ladder"] = (lambda seed: [named("a"), named("b", ENDLESS), named("c", ENDLESS)], (0,))
    sys.exit(main(["study", "ladder", "--jobs", "2", "--results", sys.argv[2]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_interrupted_study_ends_at_once_and_keeps_what_was_finished(tmp_path):
    """The signal goes to all processes, as from a terminal: to one that trains, and to one that begins."""
    (tmp_path / "study.py").write_text(INTERRUPTED)
    command = [sys.executable, tmp_path / "study.py", Path(__file__).parent, tmp_path / "results"]
    study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    finished = tmp_path / "results" / "ladder" / "a-seed0.json"
    try:
        deadline = time.monotonic() + 120
        while not finished.exists() and study.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # while the second run trains, the third one's process begins
        os.killpg(study.pid, signal.SIGINT)
        _, said = study.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # whoever is left would go on for ever
            os.killpg(study.pid, signal.SIGKILL)
        study.wait()
    assert study.returncode == 130
    assert said == "\ninterrupted; the same command runs what is missing\n"
    assert [path.name for path in finished.parent.glob("*.json")] == ["a-seed0.json"]


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny import ENDLESS, named
from mythos_lite.study.workers import _Worker
worker = _Worker(named("a", ENDLESS), Path(sys.argv[2]), Path(sys.argv[2]))
print(worker.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
def test_processes_end_when_their_parent_is_killed(tmp_path):
    command = [sys.executable, "-c", PARENT, Path(__file__).parent, tmp_path]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split(")")[-1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the process outlives its parent")


def test_study_needs_no_standard_error(tmp_path, record, monkeypatch):
    put(record, tmp_path)
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [LOOPED], (0,)))
    monkeypatch.delenv("CI")  # so that the bar would be shown
    monkeypatch.setattr(sys, "stderr", None)
    assert run_study([LOOPED], tmp_path) == [record]
    assert main(["study", "ladder", "--results", str(tmp_path)]) == 0


# ---------------------------------------------------------------- the command line


def test_study_lists_runs_and_compares_results(tmp_path, capsys, record, monkeypatch):
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [dataclasses.replace(LOOPED, seed=seed)], (0,)))
    assert main(["study", "ladder", "--list"]) == 0
    assert capsys.readouterr().out == "ladder     + tiny, quick, seed 0\n"
    for folder, correct in (("a", record["counts"][-1][3]), ("b", record["counts"][-1][3]), ("c", 10)):
        path = tmp_path / folder / f"{LOOPED.name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**record, "counts": [*record["counts"][:-1], [6, 8, 10, correct]]}))
    assert main(["study", "ladder", "--results", str(tmp_path / "a"), "--compare", str(tmp_path / "b")]) == 0
    assert "they agree" in capsys.readouterr().out
    assert main(["study", "ladder", "--results", str(tmp_path / "a"), "--compare", str(tmp_path / "c")]) == 1
    assert "6 digits at 8 loops" in capsys.readouterr().out


def test_study_refuses_a_comparison_with_nothing_before_it_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [dataclasses.replace(LOOPED, seed=seed)], (0,)))
    monkeypatch.setattr("mythos_lite.__main__.run_study", None)
    assert main(["study", "ladder", "--results", str(tmp_path / "a"), "--compare", str(tmp_path / "b")]) == 2
    assert f"b does not hold {LOOPED.name}.json" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


BASELINE = ["baselines", "--rungs", "GRU", "--seeds", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stairs"], "study='stairs'"),
        ([""], "study=''"),
        (["ladder", "--rungs", "top"], "rung='top'"),
        (["ladder", "--seeds", "-1"], "seed=-1"),
        (["ladder", "--seeds", str(2**32)], f"seed={2**32}"),
        ([*BASELINE, "--jobs", "0"], "jobs=0"),
        ([*BASELINE, "--jobs", "-1"], "jobs=-1"),
        ([*BASELINE, "--jobs", "100000"], f"jobs=100000 is not possible.* {workers.MOST_AT_ONCE} at most"),
        ([*BASELINE, "--results", ""], "results='' is not possible: name a folder"),
        ([*BASELINE, "--compare", ""], "compare='' is not possible: name a folder"),
        ([*BASELINE, "--results", "file"], "cannot write into this folder.*'file/baselines'"),
        ([*BASELINE, "--compare", "file"], "file does not hold baselines/gru-seed0.json"),
    ],
)
def test_impossible_requests_are_refused_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "_Worker", None)
    (tmp_path / "file").touch()
    assert main(["study", *arguments]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_device_that_is_not_there_is_refused_before_anything_is_trained(device, tmp_path):
    with pytest.raises(ValueError, match=f"device='{device}'"):
        run_study([LOOPED], tmp_path, device=device)
    assert not any(tmp_path.iterdir())
