"""One run: what its record says, and what is kept of a run that blows up."""

import dataclasses
import json

import pytest
from tiny import COMMAND, GRU, LOOPED, SWEEPS, TRAIN

from mythos_lite.checks import NonFiniteError
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.measure.spectral import gains_along_chain, loop_radii, make_loop_map
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study import plan, run
from mythos_lite.study.records import rows_of
from mythos_lite.study.run import Run, execute


@pytest.mark.parametrize(
    "one", [LOOPED, GRU, *(make(3)[-1] for make, _ in plan.STUDIES.values())], ids=lambda r: r.name
)
def test_run_is_rebuilt_from_what_it_says(one):
    assert Run.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert Run.from_dict({**one.to_dict(), "counts": []}) == one  # as in a record


def test_record_of_before_a_field_was_added_is_that_of_its_run(record):
    """What it lacks takes the field's default; another value in the plan makes it another run."""
    old = json.loads(json.dumps(record))
    for field in ("before", "chains_seed"):
        del old[field]
    for config, cls in (("model", ModelConfig), ("train", TrainConfig)):
        for field in dataclasses.fields(cls):
            if (
                field.default is not dataclasses.MISSING
                and getattr(getattr(LOOPED, config), field.name) == field.default
            ):
                del old[config][field.name]
    assert Run.from_dict(old) == LOOPED
    assert Run.from_dict(old) != dataclasses.replace(LOOPED, chains_seed=0)
    assert Run.from_dict(old) != dataclasses.replace(LOOPED, train=dataclasses.replace(TRAIN, weight_decay=0.2))


def test_record_says_what_was_run_and_what_came_out(record):
    assert json.loads(json.dumps(record)) == record
    assert {key: record[key] for key in LOOPED.to_dict()} == LOOPED.to_dict()
    asked = [(n, t) for s in SWEEPS for n in s.lengths for t in s.loops]
    assert [(row["n_digits"], row["n_loops"]) for row in rows_of(record)] == asked
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows_of(record))
    assert [point[0] for point in record["curve"]] == [2, 4]
    assert [t for t, _ in record["radii"]] == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64]
    assert [t for t, _ in record["residuals"]] == [4, 8, 16, 32, 64]
    assert [k for k, *_ in record["gains"]] == [1, 2, 4, 8]
    assert all(0 <= middle <= highest for _, middle, highest in record["gains"])
    assert [sum(row) for row in record["expert_shares"]] == pytest.approx([1] * 4, abs=0.01)
    assert record["provenance"].keys() >= {"command", "source", "torch", "cpu", "threads", "seconds"}


def test_the_same_run_gives_the_same_record(record):
    again, *_ = execute(LOOPED, COMMAND)
    assert {k: v for k, v in again.items() if k != "provenance"} == {
        k: v for k, v in record.items() if k != "provenance"
    }


def test_what_is_said_of_the_loop_is_measured_where_it_says(record):
    """Radii at their own loops, gains from the second digit on; on chains of the run's own seed."""
    _, model, _ = execute(LOOPED, COMMAND)
    one = LOOPED.task.encode(evaluation_chains(LOOPED.task, 8, 100, 1)).token_ids[:1]
    loops = [t for t, _ in record["radii"]]
    assert [r for _, r in record["radii"]] == pytest.approx(loop_radii(model, one, loops), abs=1e-4)
    chains = LOOPED.task.encode(evaluation_chains(LOOPED.task, 12, 4, 1)).token_ids
    *_, last = model.loop(chains, 64)
    gains = [
        gains_along_chain(make_loop_map(model, chains[i : i + 1], 63)[0], last.state[i : i + 1], 2) for i in range(4)
    ]
    assert [g for *_, g in record["gains"]] == pytest.approx(
        [max(g[k - 1] for g in gains) for k in (1, 2, 4, 8)], rel=1e-3
    )


def test_seed_of_the_run_is_that_of_its_first_weights(monkeypatch):
    built = []
    for name in ("build_model", "build_baseline"):
        real = getattr(run, name)
        monkeypatch.setattr(run, name, lambda *given, real=real: built.append(given[1]) or real(*given))
    for one in (LOOPED, GRU):
        execute(dataclasses.replace(one, seed=5, train=dataclasses.replace(TRAIN, steps=1, seed=5)), COMMAND)
    assert built == [5, 5]


@pytest.mark.parametrize("one", [LOOPED, GRU], ids=["looped", "baseline"])
@pytest.mark.parametrize("chains_seed", [0, 1])
def test_questions_are_asked_on_the_chains_of_the_runs_own_seed(one, chains_seed, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "count_correct", lambda model, task, chains, n_loops: asked.append(chains) or 0)
    real = run.sweep
    monkeypatch.setattr(
        run, "sweep", lambda *given, **options: asked.append(options["seed"]) or real(*given, **options)
    )
    execute(dataclasses.replace(one, chains_seed=chains_seed), COMMAND)
    if one is LOOPED:
        assert asked == [chains_seed] * len(SWEEPS)
    else:
        expected = [evaluation_chains(one.task, n, s.n_chains, chains_seed) for s in SWEEPS for n in s.lengths]
        assert all(a.equal(b) for a, b in zip(asked, expected, strict=True))


def test_studies_do_not_ask_the_chains_that_the_main_job_asks():
    seeds = {study: {one.chains_seed for one in make(0)} for study, (make, _) in plan.STUDIES.items()}
    assert seeds.pop("experiment") == {0}
    assert set().union(*seeds.values()) == {1}


def test_baseline_is_asked_once_per_length():
    record, *_ = execute(GRU, COMMAND)
    assert [(n, t) for n, t, *_ in record["counts"]] == [(2, 1), (3, 1), (6, 1)]
    assert "radii" not in record


def test_run_that_blows_up_is_kept_as_such(monkeypatch):
    def explode(*_, **__):
        raise NonFiniteError("the loss is not finite at step 3")

    monkeypatch.setattr(run, "train", explode)
    record, *_ = execute(LOOPED, COMMAND)
    assert record["error"] == "the loss is not finite at step 3"
    assert all(row["accuracy"] == 0 for row in rows_of(record))


def test_a_training_goes_on_from_the_one_before_it(record):
    short = dataclasses.replace(TRAIN, steps=2)
    again, *_ = execute(dataclasses.replace(LOOPED, before=(short,)), COMMAND)
    assert [point[0] for point in again["curve"]] == [2, 2, 4]
    assert again["before"] == [short.to_dict()]
    assert again["curve"][1:] != record["curve"]
    assert record["before"] == []


@pytest.mark.parametrize("one", [LOOPED, GRU], ids=["looped", "baseline"])
def test_training_of_several_parts_goes_on_where_it_was_interrupted(one, tmp_path, monkeypatch):
    one = dataclasses.replace(one, before=(dataclasses.replace(TRAIN, steps=2),))
    expected, *_ = execute(one, COMMAND)
    real, calls = run.train, []

    def interrupted(*given, **options):
        calls.append(given[2].steps)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(run, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(one, COMMAND, folder=tmp_path)
    again, *_ = execute(one, COMMAND, folder=tmp_path)
    assert {**again, "provenance": None} == {**expected, "provenance": None, "resumed": True}
