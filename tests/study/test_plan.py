"""Which runs there are."""

import dataclasses
import json

import numpy as np

from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study import plan
from mythos_lite.study.plan import FINAL_RUNG, chosen_runs
from mythos_lite.task.chains import ChainTask


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


def test_runs_can_be_chosen_by_whatever_gives_numbers_and_names_in_a_row():
    expected = [run.name for run in chosen_runs(["baselines"], ["GRU", "LSTM"], [0, 1])]
    runs = chosen_runs(iter(["baselines"]), iter(["GRU", "LSTM"]), np.arange(2))
    assert [run.name for run in runs] == expected
    assert json.dumps([run.to_dict() for run in runs])


def test_cures_differ_in_the_objective_alone():
    by_setting = {}
    for run in chosen_runs(["cures"], seeds=[50]):
        by_setting.setdefault(run.rung.partition(",")[0], []).append(run)
    assert {name: len(runs) for name, runs in by_setting.items()} == {"no tanh": 4, "parity": 4, "fixed": 4}
    for runs in by_setting.values():
        assert [run.objective for run in runs] == ["chain_loss", "noisy_loss", "fixed_point_loss", "jacobian_loss"]
        assert len({(repr(run.model), repr(run.train), repr(run.task), run.sweeps) for run in runs}) == 1


def test_two_changes_are_all_four_pairs():
    runs = chosen_runs(["two-changes"], seeds=[50])
    assert [(run.model.window, run.model.state_activation) for run in runs] == [
        (None, "none"), (None, "tanh"), (2, "none"), (2, "tanh")
    ]  # fmt: skip
    assert {run.train.steps for run in runs} == {2000}
