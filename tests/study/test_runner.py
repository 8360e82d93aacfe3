"""Running a plan: what is written, what is not run again, what is kept of a run that blows up."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.__main__ import main
from mythos_lite.checks import NonFiniteError
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study import plan, runner
from mythos_lite.study.baselines import BaselineConfig
from mythos_lite.study.plan import Run, Sweep
from mythos_lite.study.runner import (
    chosen_runs,
    describe,
    disagreements,
    execute,
    find_record,
    read_record,
    rows_of,
    run_study,
)
from mythos_lite.study.summary import read_records
from mythos_lite.study.tables import FINAL_RUNG
from mythos_lite.task.chains import ChainTask

TINY = ModelConfig(
    d_model=16, n_heads=2, n_kv_heads=1, d_ff=16, n_experts=2, n_experts_per_token=1, n_shared_experts=1, d_expert=8
)
TRAIN = TrainConfig(steps=4, batch_size=8, log_every=2, warmup_steps=1)
SWEEPS = (Sweep(lengths=(2, 3), loops=(1, 4), n_chains=20), Sweep(lengths=(6,), loops=(8,), n_chains=10))
LOOPED = Run(study="ladder", rung="+ tiny, quick", seed=0, task=ChainTask(), model=TINY, train=TRAIN, sweeps=SWEEPS)
GRU = dataclasses.replace(
    LOOPED, rung="GRU", model=BaselineConfig(kind="gru", d_model=8),
    sweeps=tuple(dataclasses.replace(s, loops=(1,)) for s in SWEEPS),
)  # fmt: skip


ENDLESS = dataclasses.replace(TRAIN, steps=1_000_000)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CI", "1")


@pytest.fixture(scope="module")
def record():
    return execute(LOOPED)[0]


def copy_of(record, **changes):
    return {**json.loads(json.dumps(record)), **changes}


def put(record, folder, name=LOOPED.name):
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path


def test_record_says_what_was_run_and_what_came_out(record):
    assert json.loads(json.dumps(record)) == record
    assert {key: record[key] for key in describe(LOOPED)} == describe(LOOPED)
    asked = [(n, t) for s in SWEEPS for n in s.lengths for t in s.loops]
    assert [(row["n_digits"], row["n_loops"]) for row in rows_of(record)] == asked
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows_of(record))
    assert [point[0] for point in record["curve"]] == [2, 4]
    assert [t for t, _ in record["radii"]] == [t for t, _ in record["residuals"]] == [4, 8, 16, 32, 64]
    assert [k for k, *_ in record["gains"]] == [1, 2, 4, 8]
    assert all(0 <= middle <= highest for _, middle, highest in record["gains"])
    assert [sum(row) for row in record["expert_shares"]] == pytest.approx([1] * 4, abs=0.01)
    assert record["provenance"].keys() >= {"command", "source", "torch", "cpu", "threads", "seconds"}


def test_the_same_run_gives_the_same_record(record):
    again, _ = execute(LOOPED)
    assert {k: v for k, v in again.items() if k != "provenance"} == {
        k: v for k, v in record.items() if k != "provenance"
    }


def test_baseline_is_asked_once_per_length():
    record, _ = execute(GRU)
    assert [(n, t) for n, t, *_ in record["counts"]] == [(2, 1), (3, 1), (6, 1)]
    assert "radii" not in record


def test_weights_of_looped_models_are_kept(tmp_path):
    record = runner._execute_and_write(LOOPED, tmp_path / "records", tmp_path)
    assert RecurrentDepthTransformer.from_pretrained(tmp_path / LOOPED.name).config == TINY
    assert read_record(tmp_path / "records" / f"{LOOPED.name}.json") == record


def test_numbers_are_kept_where_weights_cannot_be_written(tmp_path):
    (tmp_path / "weights" / LOOPED.study).mkdir(parents=True)
    (tmp_path / "weights" / LOOPED.name).touch()
    with pytest.raises(OSError, match=f"^only the record could be written, not the weights .*{LOOPED.name}"):
        runner._execute_and_write(LOOPED, tmp_path, tmp_path / "weights")
    assert find_record(LOOPED, tmp_path)["n_parameters"] > 0


def test_run_that_blows_up_is_kept_as_such(monkeypatch):
    def explode(*_, **__):
        raise NonFiniteError("the loss is not finite at step 3")

    monkeypatch.setattr(runner, "train", explode)
    record, _ = execute(LOOPED)
    assert record["error"] == "the loss is not finite at step 3"
    assert all(row["accuracy"] == 0 for row in rows_of(record))


def test_loops_at_which_the_state_overflows_answer_nothing(monkeypatch):
    real = runner.sweep

    def overflow(model, task, lengths, loops, **options):
        if max(loops) > 3:
            raise NonFiniteError("the logits are not finite after loop 4; is the model damaged?")
        return real(model, task, lengths, loops, **options)

    monkeypatch.setattr(runner, "sweep", overflow)
    found = {(row["n_digits"], row["n_loops"]): row for row in rows_of(execute(LOOPED)[0])}
    assert found[2, 4]["n_correct"] == found[6, 8]["n_correct"] == 0
    assert found[2, 4]["n_chains"] == found[2, 1]["n_chains"]


def test_finished_runs_are_not_run_again_and_others_are_refused(tmp_path, record, monkeypatch):
    put(record, tmp_path)
    monkeypatch.setattr(runner, "_start", None)  # nothing is left to run
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
    monkeypatch.setattr(runner, "_start", None)
    for file in ("file", "within"):
        for folders in ((tmp_path / file, None), (tmp_path / "results", tmp_path / file)):
            with pytest.raises(OSError, match=f"cannot write into this folder.*{file}/{LOOPED.study}"):
                run_study([LOOPED], *folders)


def test_a_training_goes_on_from_the_one_before_it(record):
    short = dataclasses.replace(TRAIN, steps=2)
    again, _ = execute(dataclasses.replace(LOOPED, before=(short,)))
    assert [point[0] for point in again["curve"]] == [2, 2, 4]
    assert again["before"] == [short.to_dict()]
    assert again["curve"][1:] != record["curve"]
    assert "before" not in record


def test_missing_runs_are_run_in_processes_of_one_thread_and_the_environment_stays(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    (record,) = run_study([GRU], tmp_path, None, jobs=1)
    assert read_record(tmp_path / f"{GRU.name}.json") == record
    assert record["provenance"]["threads"] == 1
    assert dict(os.environ) == before


# ---------------------------------------------------------------- interruptions


def named(name, train=TRAIN):
    return dataclasses.replace(LOOPED, rung=name, train=train)


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


def workers():
    return {process.name: process for process in multiprocessing.active_children()}


@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_run_that_is_ended_by_a_signal_is_named_at_once_and_no_process_stays(tmp_path, monkeypatch, capfd):
    runs = [named("a", ENDLESS), named("b", ENDLESS), named("c", ENDLESS)]
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: runs, (0,)))
    with meanwhile(lambda: workers()["ladder/b-seed0"].terminate() if len(workers()) == 2 else False):
        assert main(["study", "ladder", "--jobs", "2", "--results", str(tmp_path)]) == 2
    ended = f"{tmp_path / 'ladder' / 'b-seed0'} was ended by signal 15 (Terminated)"
    assert capfd.readouterr().err == f"error: {ended}; the same command runs what is missing\n"
    assert not workers()


@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_study_that_is_ended_says_so_and_no_process_stays(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [named("b", ENDLESS)], (0,)))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with meanwhile(lambda: os.kill(os.getpid(), signal.SIGTERM) if workers() else False):
            assert main(["study", "ladder", "--jobs", "1", "--results", str(tmp_path)]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr().err == "\ninterrupted; the same command runs what is missing\n"
    assert not workers()


def test_run_that_fails_says_which_and_why(tmp_path, monkeypatch):
    """What its process does and what the parent makes of it, here in one process."""

    def full(*_):
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr(runner, "_end_with_parent", lambda: None)
    monkeypatch.setattr(runner, "_execute_and_write", full)
    answers, other_end = multiprocessing.Pipe(duplex=False)
    runner._work(LOOPED, tmp_path, None, other_end)
    name, again = tmp_path / LOOPED.name, "the same command runs what is missing"
    process = SimpleNamespace(join=lambda: None, exitcode=0)
    with pytest.raises(ChildProcessError, match=rf"^{name} failed: .*No space left on device: 'weights'; {again}$"):
        runner._outcome(answers, process, name)
    other_end.close()  # as when an error of the program ends the process, with a traceback
    process.exitcode = 1
    with pytest.raises(ChildProcessError, match=rf"^{name} ended with code 1; {again}$"):
        runner._outcome(answers, process, name)


INTERRUPTED = """
import dataclasses, sys
from mythos_lite.__main__ import main
from mythos_lite.study import plan
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from test_runner import ENDLESS, named
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
import concurrent.futures, multiprocessing, os, time
from mythos_lite.study.runner import _end_with_parent
if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split(")")[-1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker outlives its parent")


def test_study_needs_no_standard_error(tmp_path, record, monkeypatch):
    put(record, tmp_path)
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [LOOPED], (0,)))
    monkeypatch.delenv("CI")  # so that the bar would be shown
    monkeypatch.setattr(sys, "stderr", None)
    assert run_study([LOOPED], tmp_path) == [record]
    assert main(["study", "ladder", "--results", str(tmp_path)]) == 0


# ---------------------------------------------------------------- records


def test_disagreement_is_where_intervals_do_not_overlap(record):
    assert disagreements(record, record) == []
    other = copy_of(record)
    row = other["counts"][-1]
    row[3] = 10 if row[3] < 5 else 0
    (line,) = disagreements(record, other)
    assert line.startswith("+ tiny, quick, seed 0, 6 digits at 8 loops: ")


def test_disagreement_is_between_rows_that_were_asked_the_same(record):
    counts = [[2, 1, 20, 0], [2, 4, 20, 20], [2, 4, 10, 5]]
    one = copy_of(record, counts=counts)
    assert disagreements(one, copy_of(record, counts=counts[::-1])) == []
    swapped = copy_of(record, counts=[[2, 4, 20, 0], [2, 1, 20, 20], [2, 4, 10, 5]])
    assert [line.partition(": ")[0] for line in disagreements(one, swapped)] == [
        "+ tiny, quick, seed 0, 2 digits at 1 loops", "+ tiny, quick, seed 0, 2 digits at 4 loops"
    ]  # fmt: skip
    assert disagreements(one, copy_of(record, counts=counts[:2])) == [
        "+ tiny, quick, seed 0, 2 digits at 4 loops: only one of the two was asked 10 chains"
    ]
    assert len(disagreements(one, copy_of(record, counts=[]))) == 3


def with_row(index, *row):
    return lambda record: record["counts"].__setitem__(index, list(row))


def without(*path):
    def change(record):
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return change


DAMAGES = {
    "no rows": (lambda record: record.update(counts=[]), "its sweeps ask for 5 rows of counts, and it has 0"),
    "a row less": (without("counts", 4), "5 rows of counts, and it has 4"),
    "a row more": (lambda record: record["counts"].append([6, 8, 10, 0]), "5 rows of counts, and it has 6"),
    "nothing asked": (lambda record: record.update(counts=[], sweeps=[]), "ask for 0 rows"),
    "other order": (lambda record: record["counts"].reverse(), "2 digits at 1 loops where it has 6 at 8"),
    "too many right": (with_row(0, 2, 1, 10, 11), "n_correct=11"),
    "negative": (with_row(0, 2, 1, 10, -1), "n_correct=-1"),
    "negative chains": (with_row(0, 2, 1, -10, -1), "n_chains=-10"),
    "more chains than asked": (with_row(0, 2, 1, 10**6, 1), "n_chains=1000000"),
    "chains beyond floats": (lambda r: (r["sweeps"][0].update(n_chains=10**400), with_row(0, 2, 1, 10**400, 1)(r)), ""),
    "not a number": (with_row(0, 2, 1, 10, float("nan")), "it holds NaN"),
    "share": (with_row(0, 2, 1, 10, 0.5), "n_correct=0.5"),
    "text": (with_row(0, 2, 1, "10", 0), "n_chains='10'"),
    "true": (with_row(0, 2, True, 10, 0), "n_loops=True"),
    "short row": (with_row(0, 2, 1, 10), "expected 4, got 3"),
    "rows are numbers": (lambda record: record.update(counts=[1] * 5), "laid out in another way"),
    "no provenance": (without("provenance"), "'provenance' is missing"),
    "no seconds": (without("provenance", "seconds", "sweep"), "'sweep' is missing"),
    "seconds are text": (lambda record: record["provenance"]["seconds"].update(sweep="1"), "sweep='1'"),
    "no parameters": (without("n_parameters"), "'n_parameters' is missing"),
    "no task": (without("task"), "'task' is missing"),
    "unknown study": (lambda record: record.update(study=["ladder"]), "study="),
    "seed is text": (lambda record: record.update(seed="0"), "seed='0'"),
    "radii are text": (lambda record: record.update(radii=[[32, "0.5"]]), "radii='0.5'"),
    "gains of two columns": (lambda record: record.update(gains=[[8, 0.5]]), "columns of gains=1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record_is_refused_in_a_sentence_with_its_name(damage, record, tmp_path, monkeypatch, capsys):
    change, message = DAMAGES[damage]
    spoilt = copy_of(record)
    change(spoilt)
    path = put(spoilt, tmp_path)
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [LOOPED], (0,)))
    monkeypatch.setattr(runner, "_start", None)
    sentence = rf"{re.escape(str(path))} is not the record of a run: .*{re.escape(message)}"
    for read in (lambda: read_record(path), lambda: find_record(LOOPED, tmp_path), lambda: read_records(tmp_path)):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            read()
    assert main(["study", "ladder", "--results", str(tmp_path)]) == 2
    assert re.fullmatch(f"error: {sentence}.*; remove the file, or .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b'{"counts": 3}', b'{"counts": []}', b"\xff", b"[" * 100_000],
)
def test_file_that_holds_no_record_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not the record of a run: "):
        read_record(tmp_path / "x.json")


def test_record_that_cannot_be_read_is_an_error_with_its_name(record, tmp_path, monkeypatch):
    (tmp_path / f"{LOOPED.name}.json").mkdir(parents=True)
    with pytest.raises(OSError, match=f"{LOOPED.name}.json"):
        find_record(LOOPED, tmp_path)

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_text", broken)
    with pytest.raises(OSError, match=f"Input/output error: .*{LOOPED.name}.json"):
        find_record(LOOPED, tmp_path)


# ---------------------------------------------------------------- the plan


def test_ladder_leads_to_the_final_setting_with_the_two_rungs_that_other_studies_run():
    runs = plan.ladder(0)
    assert 10 <= len(runs) <= 14
    averaged, balanced = plan.CHANGES[-2:]
    model, train = runs[-1].model, runs[-1].train
    for change, (study, rung) in ((averaged, ("removal", balanced.removing)), (balanced, ("final", FINAL_RUNG))):
        model = dataclasses.replace(model, **{f: getattr(plan.FINAL, f) for f in change.model})
        train = dataclasses.replace(train, **{f: getattr(plan.final_train(0), f) for f in change.train})
        (other,) = [run for run in plan.STUDIES[study][0](0) if run.rung == rung]
        assert (model, train) == (other.model, other.train)


def test_every_run_has_chains_to_be_asked():
    for run in chosen_runs(list(plan.STUDIES), seeds=[0]):
        for asked in run.sweeps:
            for n in asked.lengths:
                assert n > 8 or len(evaluation_chains(run.task, n, asked.n_chains))


def test_every_rung_differs_from_the_one_before_it():
    for a, b in zip(plan.ladder(0), plan.ladder(0)[1:], strict=False):
        assert (a.model, a.train) != (b.model, b.train), b.rung


def test_every_removal_differs_from_the_final_setting_in_its_own_way():
    found = {(run.task, run.model, run.train) for run in plan.removal(0)}
    assert len(found) == len(plan.removal(0))
    assert (ChainTask(), plan.FINAL, plan.final_train(0)) not in found


def test_names_of_runs_are_files_of_their_own():
    runs = chosen_runs(list(plan.STUDIES))
    assert len({run.name for run in runs}) == len(runs)
    assert all(set(run.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-/") for run in runs)


def test_final_models_are_trained_on_five_digits_and_four_loops_at_most():
    for run in plan.final(0):
        assert (run.train.max_digits, run.train.max_loops, run.task) == (5, 4, ChainTask())


def test_first_seed_of_every_rung_comes_before_the_second_of_any():
    seeds = [run.seed for run in chosen_runs(["ladder", "baselines"])]
    assert seeds == sorted(seeds)
    assert [run.rung for run in chosen_runs(["baselines"], ["GRU"], [7])] == ["GRU"]


def test_each_rung_has_the_seeds_of_the_plan_or_those_asked_for_once():
    def seeds(study, rung, *asked):
        return [run.seed for run in chosen_runs([study, study], [rung], *asked)]

    assert seeds("ladder", "as published") == seeds("final", "MLA with experts") == [0, 1, 2, 3, 4]
    assert seeds("ladder", "+ LTI injection") == [0, 1, 2]
    assert seeds("final", "GQA, dense") == [0]
    assert seeds("ladder", "+ LTI injection", [5, 5]) == [5]


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
    monkeypatch.setattr(runner, "run_study", None)
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
        ([*BASELINE, "--jobs", "100000"], f"jobs=100000 is not possible.* {runner.MOST_AT_ONCE} at most"),
        ([*BASELINE, "--results", ""], "results='' is not possible: name a folder"),
        ([*BASELINE, "--compare", ""], "compare='' is not possible: name a folder"),
        ([*BASELINE, "--results", "file"], "cannot write into this folder.*'file/baselines'"),
        ([*BASELINE, "--compare", "file"], "file does not hold baselines/gru-seed0.json"),
    ],
)
def test_impossible_requests_are_refused_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "_start", None)
    (tmp_path / "file").touch()
    assert main(["study", *arguments]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_runs_can_be_chosen_by_whatever_gives_numbers_and_names_in_a_row():
    expected = [run.name for run in chosen_runs(["baselines"], ["GRU", "LSTM"], [0, 1])]
    runs = chosen_runs(iter(["baselines"]), iter(["GRU", "LSTM"]), np.arange(2))
    assert [run.name for run in runs] == expected
    assert json.dumps([describe(run) for run in runs])
