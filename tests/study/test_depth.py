"""Studies of depth: that their runs fit together, train and give records."""

import dataclasses
import math

import pytest
from tiny import COMMAND

from mythos_lite.config import ModelConfig
from mythos_lite.study import depth, plan
from mythos_lite.study.baselines import answer_loss, build_baseline
from mythos_lite.study.records import check_record
from mythos_lite.study.run import TASK_KINDS, Run, execute
from mythos_lite.task.loss import chain_loss
from mythos_lite.task.pointers import PointerTask
from mythos_lite.training.recipes import Sweep
from mythos_lite.training.trainer import _check_fit, build_model, train

RUNS = {run.name: run for make in (depth.doubling, depth.words, depth.pointers) for run in make(50)}
LOOPED = {name: run for name, run in RUNS.items() if isinstance(run.model, ModelConfig)}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
every_looped_run = pytest.mark.parametrize("run", LOOPED.values(), ids=LOOPED)
TINY = {"steps": 1, "batch_size": 4, "warmup_steps": 1}


def build(run):
    """The run's model, and what it is trained with."""
    looped = isinstance(run.model, ModelConfig)
    model = build_model(run.model, run.seed) if looped else build_baseline(run.model, run.seed)
    return model, chain_loss if looped else answer_loss


def named(study, rung):
    (run,) = [run for run in RUNS.values() if (run.study, run.rung) == (study, rung)]
    return run


def shortened(run, lengths, loops, **model):
    """The run with trainings of one step, and two questions or so."""
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, **model),
        train=dataclasses.replace(run.train, **TINY),
        before=tuple(dataclasses.replace(one, **TINY) for one in run.before),
        sweeps=(Sweep(lengths=lengths, loops=loops, n_chains=6),),
    )


def n_parameters(run):
    return sum(p.numel() for p in build(run)[0].parameters())


# ---------------------------------------------------------------- which runs there are


def test_each_study_has_its_rows_and_all_are_in_the_plan():
    rows = {study: [run.rung for run in RUNS.values() if run.study == study] for study in plan.STUDIES}
    assert rows["doubling"] == [
        "sum modulo 7", "S3", "no tanh", "LTI injection", "prelude and coda", "no START token", "all lengths at once",
    ]  # fmt: skip
    assert rows["words"] == ["A5: loop", "S5: loop", *(f"A5: {name}" for name in depth.WORD_BASELINES)]
    assert rows["pointers"] == ["loop", "no injection", "no tanh", *depth.POINTER_BASELINES]
    planned = plan.chosen_runs(["doubling", "words", "pointers"], seeds=[50])
    assert {run.name: run for run in planned} == RUNS


def test_later_seeds_are_those_of_the_plan():
    seeds = {}
    for run in plan.chosen_runs(["doubling", "words", "pointers"]):
        seeds.setdefault((run.study, run.rung), []).append(run.seed)
    assert seeds.pop(("doubling", "sum modulo 7")) == seeds.pop(("doubling", "S3")) == [50, 51, 52, 53, 54]
    assert set(map(tuple, seeds.values())) == {(50, 51, 52)}


@every_run
def test_a_run_is_rebuilt_from_what_it_says(run):
    assert Run.from_dict(run.to_dict()) == run
    assert type(run.task).__name__ in TASK_KINDS


@every_run
def test_the_seed_is_that_of_every_training(run):
    assert {one.seed for one in (*run.before, run.train)} == {run.seed} == {50}


def test_variants_differ_from_the_first_row_in_what_their_name_says():
    base = named("doubling", "sum modulo 7")
    for rung, fields in {
        "no tanh": {"state_activation": "none"},
        "LTI injection": {"injection": "lti"},
        "prelude and coda": {"n_prelude_layers": 1, "n_coda_layers": 1},
    }.items():
        model = dataclasses.replace(base.model, **fields)
        assert named("doubling", rung) == dataclasses.replace(base, rung=rung, model=model)
    task = dataclasses.replace(base.task, start_token=False)
    assert named("doubling", "no START token") == dataclasses.replace(base, rung="no START token", task=task)
    at_once = named("doubling", "all lengths at once")
    assert (at_once.model, at_once.task, at_once.before) == (base.model, base.task, ())
    assert at_once.train.steps == sum(one.steps for one in (*base.before, base.train))
    assert dataclasses.replace(at_once.train, steps=base.train.steps) == base.train

    loop = named("pointers", "loop")
    for rung, fields in {"no injection": {"injection": "none"}, "no tanh": {"state_activation": "none"}}.items():
        assert named("pointers", rung) == dataclasses.replace(
            loop, rung=rung, model=dataclasses.replace(loop.model, **fields)
        )


# ---------------------------------------------------------------- what fits together


@every_looped_run
def test_model_task_training_and_questions_fit_together(run):
    model, objective = build(run)
    for config in (*run.before, run.train):
        run.task.check_fit(run.model, config.max_digits)
        _check_fit(model, run.task, config, objective)
    run.task.check_fit(run.model, max(n for asked in run.sweeps for n in asked.lengths))
    assert (run.model.vocab_size, run.model.pad_token_id) == (run.task.vocab_size, run.task.pad_id)


@every_run
def test_lengths_grow_in_the_course_of_a_training(run):
    longest = [one.max_digits for one in (*run.before, run.train)]
    assert longest == sorted(set(longest))
    assert max(longest) < max(n for asked in run.sweeps for n in asked.lengths)
    assert run.model.vocab_size == run.task.vocab_size


@pytest.mark.parametrize(
    "run",
    [run for run in LOOPED.values() if run.model.dilated and not run.model.n_prelude_layers],
    ids=lambda r: r.name,
)
def test_a_dilated_model_is_trained_on_the_logarithm_of_the_length_and_one_loop_more(run):
    for config in (*run.before, run.train):
        needed = math.ceil(math.log2(config.max_digits + 1))
        assert (config.min_loops, config.max_loops) == (needed, needed + 1)
        assert needed == run.model.loops_needed(config.max_digits)
    for asked in run.sweeps:
        enough = math.ceil(math.log2(max(asked.lengths) + 1))
        assert max(asked.loops) > enough
    assert (run.model.window, run.model.n_prelude_layers, run.model.n_coda_layers) == (2, 0, 0)


def test_pointers_are_followed_in_sight_of_the_whole_graph_for_as_many_loops_as_steps():
    for run in LOOPED.values():
        if run.study == "pointers":
            assert (run.model.window, run.model.dilated) == (None, False)
            assert all(one.loss == "from_length" for one in (*run.before, run.train))
            assert [one.max_digits for one in (*run.before, run.train)] == [1, 2, 3, 4]
            assert max(n for asked in run.sweeps for n in asked.lengths) <= run.task.n_nodes - run.task.n_ends


def test_groups_are_those_of_the_names():
    assert [named("words", f"{group}: loop").task.n_answers for group in ("A5", "S5")] == [60, 120]
    for run in RUNS.values():
        if run.study == "words" or run.rung == "S3":
            assert run.task.n_symbols == run.task.n_answers  # every element is a factor
    assert named("words", "A5: LSTM").task.even


def test_the_loop_of_a5_has_as_many_parameters_as_is_said():
    assert n_parameters(named("words", "A5: loop")) == 270_592


@pytest.mark.parametrize("name", depth.WORD_BASELINES)
def test_other_models_have_the_size_of_the_loop(name):
    assert abs(n_parameters(named("words", f"A5: {name}")) / 270_592 - 1) <= 0.05


# ---------------------------------------------------------------- training and records


@every_run
def test_a_training_takes_a_step(run):
    """Its last part; of the first run of each study all parts, which in the others are the same."""
    model, objective = build(run)
    is_first = run.rung in ("sum modulo 7", "A5: loop", "loop")
    for config in (*(run.before if is_first else ()), run.train):
        (point,) = train(model, run.task, dataclasses.replace(config, **TINY), objective=objective)
        assert math.isfinite(point["loss"])
        assert point["loss"] > 0
        assert point["grad_norm"] > 0
        if "decay_radius" in point and run.model.injection == "none":
            assert point["decay_radius"] == 1.0


SMALL = {"d_model": 16, "n_heads": 2, "n_kv_heads": 2, "d_ff": 16}


@pytest.mark.parametrize(
    ("study", "rung", "lengths", "loops"),
    [
        ("doubling", "sum modulo 7", (2, 20), (1, 6)),
        ("doubling", "no START token", (2, 5), (1, 3)),
        ("words", "A5: loop", (3, 9), (2, 5)),
        ("pointers", "loop", (1, 18), (1, 5)),
        ("pointers", "no injection", (2,), (3,)),
    ],
)
def test_a_run_gives_the_record_that_its_sweeps_ask_for(study, rung, lengths, loops):
    run = shortened(named(study, rung), lengths, loops, **SMALL)
    record, model, history = execute(run, COMMAND)
    check_record(record)
    assert Run.from_dict(record) == run
    assert [(n, t) for n, t, *_ in record["counts"]] == [(n, t) for n in lengths for t in loops]
    assert len(record["curve"]) == len(run.before) + 1
    assert [t for t, _ in record["radii"]] == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64]
    assert "gains" not in record
    assert record["n_parameters"] == model.n_parameters()
    assert len(history) == 1


def test_a_baseline_of_words_gives_the_record_that_its_sweeps_ask_for():
    record, *_ = execute(shortened(named("words", "A5: GRU"), (3, 9), (1,), d_model=16), COMMAND)
    check_record(record)
    assert [n for n, *_ in record["counts"]] == [3, 9]


@pytest.mark.parametrize("name", depth.POINTER_BASELINES)
def test_a_baseline_of_pointers_gives_the_record_that_its_sweeps_ask_for(name):
    record, *_ = execute(shortened(named("pointers", name), (1, 18), (1,), d_model=16), COMMAND)
    assert [n for n, *_ in record["counts"]] == [1, 18]
    check_record(record)


def test_a_small_graph_gives_a_record_too():
    run = shortened(named("pointers", "loop"), (1, 4), (1, 5), **SMALL)
    task = PointerTask(n_nodes=9, n_ends=2)
    model = dataclasses.replace(run.model, vocab_size=task.vocab_size, pad_token_id=task.pad_id)
    check_record(execute(dataclasses.replace(run, task=task, model=model), COMMAND)[0])
