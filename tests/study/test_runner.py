"""Running a plan: what is written, what is not run again, what is kept of a run that blows up."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mythos_lite import RecurrentDepthTransformer
from mythos_lite.__main__ import main
from mythos_lite.baselines import BaselineConfig
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.data import ChainTask
from mythos_lite.evaluation import evaluation_chains
from mythos_lite.study import plan, runner
from mythos_lite.study.plan import Run, Sweep
from mythos_lite.study.runner import chosen_runs, describe, disagreements, execute, read_record, rows_of, run_study
from mythos_lite.study.tables import FINAL_RUNG
from mythos_lite.training import NonFiniteError

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


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def record():
    return execute(LOOPED)


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
    again = execute(LOOPED)
    assert {k: v for k, v in again.items() if k != "provenance"} == {
        k: v for k, v in record.items() if k != "provenance"
    }


def test_baseline_is_asked_once_per_length():
    record = execute(GRU)
    assert [(n, t) for n, t, *_ in record["counts"]] == [(2, 1), (3, 1), (6, 1)]
    assert "radii" not in record


def test_weights_of_looped_models_are_kept(tmp_path):
    execute(LOOPED, tmp_path)
    assert RecurrentDepthTransformer.from_pretrained(tmp_path / LOOPED.name).config == TINY


def test_run_that_blows_up_is_kept_as_such(monkeypatch):
    def explode(*_, **__):
        raise NonFiniteError("the loss is not finite at step 3")

    monkeypatch.setattr(runner, "train", explode)
    record = execute(LOOPED)
    assert record["error"] == "the loss is not finite at step 3"
    assert all(row["accuracy"] == 0 for row in rows_of(record))


def test_loops_at_which_the_state_overflows_answer_nothing(monkeypatch):
    real = runner.sweep

    def overflow(model, task, lengths, loops, **options):
        if max(loops) > 3:
            raise NonFiniteError("the logits are not finite after loop 4; is the model damaged?")
        return real(model, task, lengths, loops, **options)

    monkeypatch.setattr(runner, "sweep", overflow)
    found = {(row["n_digits"], row["n_loops"]): row for row in rows_of(execute(LOOPED))}
    assert found[2, 4]["n_correct"] == found[6, 8]["n_correct"] == 0
    assert found[2, 4]["n_chains"] == found[2, 1]["n_chains"]


def test_finished_runs_are_not_run_again_and_others_are_refused(tmp_path, record, monkeypatch):
    path = tmp_path / f"{LOOPED.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    monkeypatch.setattr(runner, "execute", None)  # nothing is left to run
    assert run_study([LOOPED], tmp_path, None) == [record]
    longer = dataclasses.replace(LOOPED, train=dataclasses.replace(TRAIN, steps=5))
    for other in (longer, dataclasses.replace(LOOPED, before=(TRAIN,))):
        with pytest.raises(ValueError, match="another configuration"):
            run_study([other], tmp_path, None)
    path.write_text(json.dumps({**record, "before": [TRAIN.to_dict()]}))
    with pytest.raises(ValueError, match="another configuration"):
        run_study([LOOPED], tmp_path, None)


def test_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(runner, "execute", None)
    for folders in ((tmp_path / "file", None), (tmp_path / "results", tmp_path / "file")):
        with pytest.raises(OSError, match="cannot write into this folder"):
            run_study([LOOPED], *folders)


def test_a_training_goes_on_from_the_one_before_it(record):
    short = dataclasses.replace(TRAIN, steps=2)
    again = execute(dataclasses.replace(LOOPED, before=(short,)))
    assert [point[0] for point in again["curve"]] == [2, 2, 4]
    assert again["before"] == [short.to_dict()]
    assert again["curve"][1:] != record["curve"]
    assert "before" not in record


def test_missing_runs_are_run_in_processes_of_their_own(tmp_path):
    (record,) = run_study([GRU], tmp_path, None, jobs=1)
    assert read_record(tmp_path / f"{GRU.name}.json") == record
    assert record["provenance"]["threads"] == 1


INTERRUPTED = """
import dataclasses, sys
from pathlib import Path
from mythos_lite.__main__ import main
from mythos_lite.study import plan
sys.path.insert(0, sys.argv[1])
from test_runner import LOOPED
if __name__ == "__main__":
    def runs(seed):
        long = dataclasses.replace(LOOPED.train, steps=100_000)
        return [dataclasses.replace(LOOPED, rung=name, seed=seed, train=train)
                for name, train in (("a", LOOPED.train), ("b", long), ("c", LOOPED.train))]
    plan.STUDIES["ladder"] = (runs, (0,))
    sys.exit(main(["study", "ladder", "--jobs", "1", "--results", sys.argv[2]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_interrupted_study_ends_at_once_and_keeps_what_was_finished(tmp_path):
    (tmp_path / "study.py").write_text(INTERRUPTED)
    command = [sys.executable, tmp_path / "study.py", Path(__file__).parent, tmp_path / "results"]
    study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    finished = tmp_path / "results" / "ladder" / "a-seed0.json"
    deadline = time.monotonic() + 60
    while not finished.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # the second run begins
    os.killpg(study.pid, signal.SIGINT)  # as a terminal does, to workers too
    _, said = study.communicate(timeout=20)
    assert study.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted; the same command runs what is missing"
    assert "Traceback" not in said
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


def test_disagreement_is_where_intervals_do_not_overlap(record):
    assert disagreements(record, record) == []
    other = json.loads(json.dumps(record))
    row = other["counts"][-1]
    row[3] = 10 if row[3] < 5 else 0
    (line,) = disagreements(record, other)
    assert line.startswith("+ tiny, quick, seed 0, 6 digits at 8 loops: ")


def test_file_that_holds_no_record_is_refused(tmp_path):
    for text in ("", "[]", "{}", '{"counts": 3}', '{"counts": []}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="is not the record of a run"):
            read_record(tmp_path / "x.json")


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["stairs"], "study='stairs'"), (["ladder", "--rungs", "top"], "rung='top'"),
     (["ladder", "--seeds", "-1"], "seed=-1"), (["baselines", "--rungs", "GRU", "--jobs", "0"], "jobs=0")],
)  # fmt: skip
def test_impossible_requests_are_refused_in_a_line(arguments, message, capsys):
    assert main(["study", *arguments]) == 2
    assert message in capsys.readouterr().err
