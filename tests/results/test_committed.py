"""Checks of committed data: what the records hold, and what is said of them. Only the shipped models are run here."""

import json
import re
from pathlib import Path

import pytest
import torch

from mythos_lite import ChainTask, ConvergenceExit, ModelConfig, RecurrentDepthTransformer
from mythos_lite.files.checkpoint import SHIPPED, WEIGHTS_FILE, open_checkpoint, shipped_names
from mythos_lite.measure.left_to_right import run_left_to_right
from mythos_lite.measure.sweep import evaluation_chains, expert_shares, pool, sweep
from mythos_lite.study.depth import POINTERS
from mythos_lite.study.records import read_record, rows_of
from mythos_lite.task.chains import make_generator

ROOT = Path(__file__).parents[2]
RECORDS = [read_record(path) for path in sorted((ROOT / "results" / "study" / "experiment").glob("*.json"))]
TASK = ChainTask()
SHIPPED_RUNS = {
    "mod7": "final/gqa-dense-seed0", "mod7-experts": "final/mla-with-experts-seed0",
    "mod7-doubling": "doubling/sum-modulo-7-seed50", "pointers": "pointers/loop-seed50",
}  # fmt: skip
every_checkpoint = pytest.mark.parametrize("name", SHIPPED_RUNS)
every_recurrence = pytest.mark.parametrize("name", ["mod7", "mod7-experts"])


def shipped_record(name):
    return read_record(ROOT / "results" / "study" / f"{SHIPPED_RUNS[name]}.json")


def of(name):
    return [record for record in RECORDS if record["rung"] == name]


def worst(results, lengths, n_loops):
    """Lowest accuracy over the seeds on these lengths together at ``n_loops``."""
    rows = [row for result in results for row in pool(rows_of(result), lengths) if row["n_loops"] == n_loops]
    return min(row["accuracy"] for row in rows)


def best(results, lengths, n_loops):
    rows = [row for result in results for row in pool(rows_of(result), lengths) if row["n_loops"] == n_loops]
    return max(row["accuracy"] for row in rows)


@pytest.mark.parametrize("name", ["fixed", "hold", "published"])
def test_recipe_has_the_five_reported_seeds(name):
    assert [result["seed"] for result in of(name)] == [0, 1, 2, 3, 4]


def test_records_are_full_runs_with_provenance():
    for record in RECORDS:
        assert "quick" not in record["rung"]
        assert record["provenance"].keys() >= {"command", "source", "torch", "cpu", "threads", "seconds"}


def test_fixed_climbs_with_loops_on_every_seed():
    results = of("fixed")
    assert worst(results, [2, 3, 4, 5], 4) >= 0.99
    assert best(results, [6, 7, 8], 1) <= 0.25
    assert best(results, [6, 7, 8], 2) <= 0.25
    assert best(results, [6, 7, 8], 4) <= 0.60
    assert worst(results, [6, 7, 8], 8) >= 0.97


def test_hold_keeps_its_answer_on_every_seed():
    results = of("hold")
    for n_loops in (8, 16, 32, 64, 128):
        assert worst(results, [6, 7, 8], n_loops) >= 0.99
    assert worst(results, [32], 64) >= 0.97


def test_the_whole_loop_is_stable_after_training_on_every_seed():
    radii = [radius for result in of("fixed") + of("hold") for _, radius in result["radii"]]
    assert 0.4 < min(radii) <= max(radii) < 1


def test_published_gains_nothing_from_loops_on_any_seed():
    for result in of("published"):
        at_one, *more = [row["accuracy"] for row in pool(rows_of(result), [6, 7, 8])]
        assert max(more) - at_one < 0.02


@every_checkpoint
def test_shipped_checkpoint_is_small_and_loads(name):
    assert name in shipped_names()
    assert (SHIPPED / name / WEIGHTS_FILE).stat().st_size < 1_000_000
    model = RecurrentDepthTransformer.from_pretrained(name)
    assert not model.training


@every_checkpoint
def test_shipped_checkpoint_is_the_run_that_its_notes_name(name):
    found = open_checkpoint(name)
    record = shipped_record(name)
    assert found.config == ModelConfig.from_dict(record["model"])
    assert found.notes == {key: record[key] for key in found.notes}
    assert found.notes.keys() >= {"study", "rung", "seed", "train"}


@every_checkpoint
def test_shipped_checkpoint_does_what_its_record_says(name):
    """On the chains that the record was measured on."""
    said = {
        (n_digits, n_loops): (n_chains, right) for n_digits, n_loops, n_chains, right in shipped_record(name)["counts"]
    }
    model = RecurrentDepthTransformer.from_pretrained(name)
    tasks = {"pointers": POINTERS}
    asked = {
        "mod7-doubling": (1000, {16: [4, 5, 32], 64: [6, 7]}), "pointers": (1000, {4: [3, 4], 16: [8, 16, 20]}),
    }.get(name, (5000, {5: [2, 16], 8: [8]}))  # fmt: skip
    for n_digits, loops in asked[1].items():
        for row in sweep(model, tasks.get(name, TASK), [n_digits], loops, n_chains=asked[0], seed=1):
            n_chains, right = said[n_digits, row["n_loops"]]
            assert row["n_chains"] == n_chains
            assert row["accuracy"] == pytest.approx(right / n_chains, abs=0.01)


@every_checkpoint
def test_model_card_says_what_the_record_says(name):
    card = (SHIPPED / name / "MODEL_CARD.md").read_text(encoding="utf-8")
    record = shipped_record(name)
    lines = re.findall(r"^\| (\d+)(?:–(\d+))? \| (\d+)(?: to (\d+))? \| ([\d.]+) \|$", card, re.M)
    assert lines
    for first, last, low, high, accuracy in lines:
        rows = pool(rows_of(record), range(int(first), int(last or first) + 1))
        asked = [row for row in rows if int(low) <= row["n_loops"] <= int(high or low)]
        assert asked
        assert all(f"{row['accuracy']:.4f}" == accuracy for row in asked)
    assert f"| parameters | {record['n_parameters']:,} in float32 |" in card
    assert f"`{record['provenance']['command']}`" in card


@every_recurrence
def test_left_to_right_the_shipped_model_does_what_its_record_says(name):
    """On the shorter of the chains that it was measured on; ``benchmarks/left_to_right.py``."""
    found = json.loads((ROOT / "results" / "left_to_right.json").read_text(encoding="utf-8"))
    said = {(row["n_digits"], row["way"]): row for row in found["rows"] if row["model"] == name}
    assert {n for n, _ in said} == {8, 64, 128, 512}
    assert found["provenance"].keys() >= {"command", "source", "git", "torch", "cpu", "seconds"}
    model = RecurrentDepthTransformer.from_pretrained(name)
    for n in (8, 64):
        batch = TASK.encode(evaluation_chains(TASK, n, said[n, "loop"]["n_chains"], seed=1))
        for calls, way in ((1, "left to right, 1 call"), (2, "left to right, 2 calls")):
            answers = run_left_to_right(model, batch.token_ids, calls_per_token=calls)[:, -1].argmax(-1)
            share = (answers == batch.answers).float().mean().item()
            assert share == pytest.approx(said[n, way]["n_correct"] / said[n, way]["n_chains"], abs=0.01)


@every_recurrence
def test_left_to_right_takes_as_many_calls_as_the_loop_and_a_fraction_of_its_work(name):
    found = json.loads((ROOT / "results" / "left_to_right.json").read_text(encoding="utf-8"))
    for row in (row for row in found["rows"] if row["model"] == name):
        n, calls = row["n_digits"], {"left to right, 1 call": 1, "left to right, 2 calls": 2}.get(row["way"])
        expected = (calls * (n + 2), calls * (2 * (n + 2) - 1)) if calls else (n, n * (n + 2))
        assert (row["calls"], row["token_evaluations"]) == expected
        assert row["same_answers"] >= 0.99 * row["n_chains"]


@torch.no_grad()
def test_early_digits_of_the_model_with_experts_are_only_nearly_at_rest():
    """``results/README.md``: on the chains of its gain."""
    model = RecurrentDepthTransformer.from_pretrained("mod7-experts")
    *_, last = model.loop(TASK.encode(evaluation_chains(TASK, 12, 4, seed=1)).token_ids, 64)
    residual = last.residual().amax(dim=0)
    assert 1e-3 < residual[2] < 0.05
    assert residual[8] < 1e-5


def test_no_expert_of_the_trained_model_is_starved_or_swamped():
    model = RecurrentDepthTransformer.from_pretrained("mod7-experts")
    shares = torch.tensor(expert_shares(model, TASK, [2, 3, 4, 5], 4, n_chains=200)).mean(dim=0)
    fair = 1 / model.config.n_experts
    assert shares.min() > fair / 2
    assert shares.max() < fair * 2


def test_early_exit_keeps_the_answers_and_saves_loops_also_while_decoding():
    model = RecurrentDepthTransformer.from_pretrained("mod7")
    chains = TASK.encode(TASK.sample(10, 8, make_generator(5), "held_out"))
    for ids, answer in zip(chains.token_ids.split(1), chains.answers.tolist(), strict=True):
        out = model.generate(ids, max_new_tokens=3, n_loops=64, exit_policy=ConvergenceExit(), return_loops=True)
        assert out.token_ids[0, ids.shape[1]] == answer
        assert max(out.loops_used) < 64
