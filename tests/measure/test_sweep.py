"""Sweeps against plain forward passes, intervals against scipy, and figures that say what to see."""

import ast
import dataclasses
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import binomtest

from mythos_lite import ModelConfig, RecurrentDepthTransformer
from mythos_lite.checks import NonFiniteError
from mythos_lite.measure import plots
from mythos_lite.measure import sweep as evaluation
from mythos_lite.measure.sweep import evaluation_chains, expert_shares, make_row, pool, sweep, wilson_interval
from mythos_lite.task.chains import ChainTask, make_generator
from mythos_lite.task.loss import answer_logits
from mythos_lite.training.trainer import build_model

TASK = ChainTask()
TINY = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16)
EXPERTS = dataclasses.replace(TINY, n_experts=3, n_experts_per_token=2, n_shared_experts=1, d_expert=8, n_core_layers=2)
ACT = dataclasses.replace(TINY, halting="act", injection="additive")
CHANCE = 1 / 7


def keys(chains):
    return set(map(tuple, chains.tolist()))


# ---------------------------------------------------------------- intervals and rows


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_interval_is_wilsons(n, share):
    n_correct = round(share * n)
    for confidence in (0.95, 0.999):
        expected = binomtest(n_correct, n).proportion_ci(confidence_level=confidence, method="wilson")
        assert wilson_interval(n_correct, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-7)


@pytest.mark.parametrize("n", [1, 7, 1000, 10**9])
def test_interval_holds_the_share_stays_a_share_and_is_never_empty(n):
    for n_correct in {0, 1, n // 2, n - 1, n}:
        low, high = wilson_interval(n_correct, n)
        assert 0 <= low <= n_correct / n <= high <= 1
        assert low < high


@pytest.mark.parametrize(
    ("n_correct", "n", "named"), [(0, 0, "n=0"), (-1, 5, "n_correct=-1"), (6, 5, "n_correct=6"), (0.5, 5, "0.5")]
)
def test_impossible_counts_are_refused(n_correct, n, named):
    with pytest.raises(ValueError, match=named):
        wilson_interval(n_correct, n)


def test_row_holds_counts_share_and_interval():
    row = make_row(5, 2, 30, 40)
    assert (row["n_digits"], row["n_loops"], row["n_correct"], row["n_chains"]) == (5, 2, 30, 40)
    assert row["accuracy"] == 0.75
    assert (row["low"], row["high"]) == wilson_interval(30, 40)


def test_pool_sums_chains_over_lengths_for_each_loop_count():
    rows = [make_row(2, 1, 1, 10), make_row(2, 4, 9, 10), make_row(3, 4, 45, 90), make_row(3, 1, 20, 90)]
    rows += [make_row(8, 1, 0, 50)]
    assert pool(rows, (2, 3)) == [make_row("2–3", 1, 21, 100), make_row("2–3", 4, 54, 100)]
    assert pool(rows, (8,)) == [make_row("8", 1, 0, 50)]
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        pool(rows, (4, 5))


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize(("n_digits", "n_chains"), [(2, 100), (5, 100), (5, 10_000), (16, 200)])
def test_evaluation_uses_held_out_chains_only(n_digits, n_chains):
    chains = evaluation_chains(TASK, n_digits, n_chains)
    assert TASK.is_held_out(chains).all()
    assert chains.shape[1] == n_digits
    assert len(chains) <= n_chains
    training = TASK.sample(500, n_digits, make_generator(0), "train")
    assert not keys(chains) & keys(training)


def test_short_lengths_are_evaluated_on_every_held_out_chain():
    every = TASK.enumerate(3, "held_out")
    for n_chains in (1000, len(every)):
        assert torch.equal(evaluation_chains(TASK, 3, n_chains), every)
    assert len(evaluation_chains(TASK, 3, len(every) - 1)) == len(every) - 1


def test_long_lengths_are_evaluated_on_as_many_chains_as_asked_for():
    one, same, other = (evaluation_chains(TASK, 20, 300, seed) for seed in (0, 0, 1))
    assert len(one) == 300
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_evaluation_chains_are_pinned():
    """A change here makes every published number incomparable."""
    assert evaluation_chains(TASK, 8, 2).tolist() == [[6, 4, 0, 1, 5, 4, 2, 5], [4, 5, 0, 6, 0, 6, 0, 3]]
    first, second = evaluation_chains(TASK, 12, 2, 1).tolist()
    assert first == [2, 4, 0, 6, 5, 2, 2, 6, 6, 0, 1, 3]
    assert second == [0, 4, 5, 6, 1, 4, 1, 0, 0, 3, 4, 6]


@pytest.mark.parametrize(
    ("task", "n_digits", "n_chains", "named"),
    [
        (ChainTask(modulus=2, n_symbols=2), 2, 10, "n_digits=2 lies on the 'held_out' side"),
        (TASK, 0, 10, "n_digits=0"),
        (TASK, 3, 0, "n_chains=0"),
    ],
)
def test_chains_that_do_not_exist_are_refused(task, n_digits, n_chains, named):
    with pytest.raises(ValueError, match=named):
        evaluation_chains(task, n_digits, n_chains)


# ---------------------------------------------------------------- sweeps


@pytest.mark.parametrize("config", [TINY, EXPERTS, ACT], ids=["dense", "experts", "act"])
def test_sweep_equals_a_separate_run_per_loop_count_on_the_chains_of_its_seed(config):
    model = build_model(config, seed=0)
    rows = sweep(model, TASK, (2, 12), (5, 1, 3, 3), n_chains=300, seed=3)
    assert [(row["n_digits"], row["n_loops"]) for row in rows] == [(n, k) for n in (2, 12) for k in (1, 3, 5)]
    for row in rows:
        batch = TASK.encode(evaluation_chains(TASK, row["n_digits"], 300, 3))
        with torch.no_grad():
            logits = model(batch.token_ids, n_loops=row["n_loops"]).logits
        n_correct = (logits[:, -1].argmax(-1) == batch.answers).sum().item()
        assert row == make_row(row["n_digits"], row["n_loops"], n_correct, len(batch.answers))


def count_calls(monkeypatch, name):
    calls, method = [], getattr(RecurrentDepthTransformer, name)

    def counted(self, *arguments, **named):
        calls.append(name)
        return method(self, *arguments, **named)

    monkeypatch.setattr(RecurrentDepthTransformer, name, counted)
    return calls


def test_sweep_runs_each_loop_once_and_reads_out_only_where_asked(monkeypatch):
    turns, readouts = (count_calls(monkeypatch, name) for name in ("loop_map", "read_out"))
    sweep(build_model(TINY, 0), TASK, (3, 4), (1, 2, 4, 8), n_chains=20)
    assert (len(turns), len(readouts)) == (2 * 8, 2 * 4)


def test_sweep_in_parts_equals_a_sweep_at_once(monkeypatch):
    model = build_model(TINY, 0)
    whole = sweep(model, TASK, (2, 6), (1, 4), n_chains=50)
    monkeypatch.setattr("mythos_lite.measure.sweep._TOKENS_AT_ONCE", {"cpu": 33})
    assert sweep(model, TASK, (2, 6), (1, 4), n_chains=50) == whole


def test_sweep_is_deterministic_json_and_changes_nothing_but_the_mode():
    model = build_model(TINY, 0).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    one, other = (sweep(model, TASK, (2, 20), (1, 2), n_chains=30, seed=3) for _ in range(2))
    assert one == other == json.loads(json.dumps(one))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], r"=\[\] is not possible: {} must hold at least one whole number"),
        ((0, 1), "=0 is not possible: {} must be a whole number, 1 or more"),
        ((-2,), "=-2 is not possible: {} must be a whole number, 1 or more"),
        ((1.5,), "=1.5 is not possible: {} must be a whole number, 1 or more"),
        (None, "=None is not possible: {} must be whole numbers in a row"),
        (3, "=3 is not possible: {} must be whole numbers in a row"),
    ],
)
def test_impossible_loops_and_lengths_are_named(values, said):
    model, experts = build_model(TINY, 0), build_model(EXPERTS, 0)
    for name, call in {
        "loops": lambda: sweep(model, TASK, (2,), values),
        "lengths": lambda: sweep(model, TASK, values, (2,)),
        "lengths, of experts": lambda: expert_shares(experts, TASK, values, 2),
        "lengths, pooled": lambda: pool([make_row(2, 1, 1, 10)], values),
    }.items():
        field = name.partition(",")[0]
        with pytest.raises(ValueError, match="^" + field + said.format(field)):
            call()


def test_expert_shares_are_those_of_the_router_and_sum_to_one_per_loop(monkeypatch):
    monkeypatch.setattr("mythos_lite.measure.sweep._TOKENS_AT_ONCE", {"cpu": 100})  # more than one batch
    model = build_model(EXPERTS, seed=0)
    shares = expert_shares(model, TASK, (2, 12), 3, n_chains=30, seed=3)
    load = torch.zeros(3, 3)
    for n_digits in (2, 12):
        ids = TASK.encode(evaluation_chains(TASK, n_digits, 30, 3)).token_ids
        with torch.no_grad():
            routing = model(ids, n_loops=3, trace=True).trace.routing
        for loop, layers in enumerate(routing):
            for stats in layers:
                load[loop] += stats.chosen.flatten().bincount(minlength=3)
    torch.testing.assert_close(torch.tensor(shares), load / load.sum(dim=1, keepdim=True))
    assert [sum(row) for row in shares] == pytest.approx([1.0] * 3)


def test_dense_model_has_no_expert_shares():
    with pytest.raises(ValueError, match="n_experts=0"):
        expert_shares(build_model(TINY, 0), TASK, (2,), 2)


# ---------------------------------------------------------------- what a figure says


def group(accuracies, n_digits="6–8"):
    return [make_row(n_digits, n_loops, round(1000 * share), 1000) for n_loops, share in accuracies.items()]


@pytest.mark.parametrize(
    ("accuracies", "sentence"),
    [
        ({1: 0.14, 4: 0.15, 8: 0.2}, "A: near chance at every loop count"),
        ({1: 0.14, 4: 0.5, 8: 0.98}, "A: 0.14 at 1 loop, 0.98 at 8, still 0.98 at 8"),
        ({2: 0.14, 4: 0.98, 8: 0.96}, "A: 0.14 at 2 loops, 0.98 at 4, still 0.96 at 8"),
        ({1: 0.14, 8: 0.98, 32: 0.4}, "A: 0.14 at 1 loop, 0.98 at 8, and down to 0.40 at 32"),
        ({1: 0.95, 4: 1.0, 8: 1.0}, "A: 0.95 at 1 loop, more loops add little, still 1.00 at 8"),
        ({1: 0.95, 4: 1.0, 8: 0.3}, "A: 0.95 at 1 loop, more loops add little, and down to 0.30 at 8"),
        ({4: 0.9}, "A: 0.90 at 4 loops, more loops add little, still 0.90 at 4"),
    ],
)
def test_sentence_says_what_more_loops_do(accuracies, sentence):
    assert plots.describe_scaling(group(accuracies), "A", CHANCE) == sentence
    assert plots.describe_scaling(group(accuracies)[::-1], "A", CHANCE) == sentence


GROUPS = {"2–5 digits": group({1: 0.9, 4: 1.0, 8: 1.0}), "6–8 digits": group({1: 0.14, 4: 0.4, 8: 0.97})}
LENGTH_ROWS = [make_row(n, k, min(100, 20 * k), 100) for n in (2, 5, 9) for k in (1, 2, 4)]
RECORDS = [
    {
        "step": step, "decay_radius": 0.45, "jacobian_radius": radius,
        "residuals": [0.7, 0.1], "gradient_norms": [0.1, 0.2],
    }
    for step, radius in ((10, 0.7), (20, 0.8), (30, 1.3))
]  # fmt: skip
RADII = [1.4, 0.9, 0.7, 0.6]
FIGURES = {
    "loop_scaling": lambda **title: plots.loop_scaling(GROUPS, trained_loops=(1, 4), chance=CHANCE, **title),
    "loops_by_length": lambda **title: plots.loops_by_length(LENGTH_ROWS, **title),
    "loops_by_length, needed": lambda **title: plots.loops_by_length(LENGTH_ROWS, needed={2: 1, 5: 3, 9: 7}, **title),
    "stability": lambda **title: plots.stability(RECORDS, RADII, **title),
    "stability, one record": lambda **title: plots.stability(RECORDS[:1], RADII, **title),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def titles(figure):
    return [text for text in [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)] if text]


@every_figure
def test_figure_has_labelled_axes_and_a_title_and_can_be_saved(draw, tmp_path):
    figure = draw()
    assert isinstance(figure, Figure)
    assert titles(figure)
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert all(axes.get_xlabel() for axes in figure.axes if axes.get_label() != "<colorbar>")
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@every_figure
def test_given_title_is_used(draw):
    assert "what to see" in titles(draw(title="what to see"))


@every_figure
def test_figure_is_not_registered_with_pyplot_and_changes_no_setting(draw):
    before = dict(matplotlib.rcParams)
    draw()
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in vars(plots)


def test_loop_scaling_draws_the_rows_chance_and_the_loops_of_training():
    axes = FIGURES["loop_scaling"]().axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    for name, rows in GROUPS.items():
        assert list(drawn[name].get_xdata()) == [row["n_loops"] for row in rows]
        assert list(drawn[name].get_ydata()) == [row["accuracy"] for row in rows]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(GROUPS)
    assert any(set(line.get_ydata()) == {CHANCE} for line in axes.lines)
    notes = " ".join(text.get_text().replace("\n", " ") for text in axes.texts)
    assert "chance 0.143" in notes
    assert "loops in training" in notes
    assert axes.get_title() == plots.describe_scaling(GROUPS["6–8 digits"], "6–8 digits", CHANCE)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "8"]


def test_lines_differ_in_colour_marker_and_dash():
    groups = {str(i): group({1: i / 10, 2: i / 10}) for i in range(7)}
    lines = plots.loop_scaling(groups, trained_loops=(1, 1), chance=CHANCE).axes[0].lines[1:]
    assert len(lines) == 7
    for what in (lambda line: line.get_color(), lambda line: line.get_marker(), lambda line: str(line._dash_pattern)):
        assert len({what(line) for line in lines}) == 7


def test_heat_map_writes_each_accuracy_and_leaves_gaps_empty():
    figure = plots.loops_by_length(LENGTH_ROWS[:-1])
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == sorted(f"{r['accuracy']:.2f}" for r in LENGTH_ROWS[:-1])
    grid = axes.images[0].get_array()
    assert grid.shape == (3, 3)
    assert math.isnan(grid.filled(math.nan)[2, 2])


def test_line_of_needed_loops_lies_left_of_the_first_count_that_is_enough():
    axes = FIGURES["loops_by_length, needed"]().axes[0]
    (line,) = axes.lines
    # 1 loop → left of column 0, 3 → of that of 4 loops, 7 → past the last; each along the height of its row
    assert list(line.get_xdata()) == [-0.5, -0.5, 1.5, 1.5, 2.5, 2.5]
    assert list(line.get_ydata()) == [-0.5, 0.5, 0.5, 1.5, 1.5, 2.5]


def test_fewest_loops_draws_points_hollow_where_trained_and_a_line_each():
    found, needed = (
        {"slow": {2: 1, 8: 6, 32: 30}, "fast": {4: 3, 64: 7}},
        {"slow": {2: 1, 32: 30}, "fast": {4: 3, 64: 7}},
    )
    axes = plots.fewest_loops(found, needed, trained={"slow": 5, "fast": 16}, title="t").axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_markerfacecolor()) for line in axes.lines]
    assert [points for *points, _ in drawn] == [
        [[2, 32], [1, 30]], [[2], [1]], [[8, 32], [6, 30]], [[4, 64], [3, 7]], [[4], [3]], [[64], [7]]
    ]  # fmt: skip
    assert [fill for *_, fill in drawn][1::3] == ["white", "white"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    with pytest.raises(ValueError, match="same"):
        plots.fewest_loops(found, {"slow": {2: 1}}, trained={"slow": 5}, title="t")


def test_frontier_draws_one_map_per_model_each_with_its_own_line():
    panels = {"a": (LENGTH_ROWS, {2: 1, 5: 3, 9: 7}), "b": (LENGTH_ROWS, {2: 1, 5: 1, 9: 1})}
    first, second, _ = plots.frontier(panels, title="t").axes
    assert [axes.get_title() for axes in (first, second)] == ["a", "b"]
    assert list(first.lines[0].get_xdata()) == [-0.5, -0.5, 1.5, 1.5, 2.5, 2.5]
    assert set(second.lines[0].get_xdata()) == {-0.5}
    many = [make_row(2, k, k, 100) for k in range(1, 10)]
    axes, _ = plots.frontier({"a": (many, {2: 1})}, title="t").axes
    assert [(x, label.get_text()) for x, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)] == [
        (3, "4"), (7, "8"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one model"):
        plots.frontier({}, title="t")


def test_length_generalisation_draws_the_mean_and_range_of_seeds():
    lines = {"a": {8: [0.5, 0.9], 5: [1.0, 1.0]}, "b": {5: [0.4]}}
    axes = plots.length_generalisation(lines, trained=5, chance=CHANCE, title="t").axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["a"].get_xdata()) == [5, 8]
    assert list(drawn["a"].get_ydata()) == [1.0, pytest.approx(0.7)]
    band = axes.collections[0].get_paths()[0].vertices.tolist()
    assert [8.0, 0.5] in band
    assert [8.0, 0.9] in band
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "8"]
    with pytest.raises(ValueError, match="lines must hold 1 to 7 names, not 0"):
        plots.length_generalisation({}, trained=5, chance=CHANCE, title="t")


def test_ladder_draws_a_point_for_each_seed_and_a_larger_one_for_the_mean():
    rungs = {"x": {"q": [0.2, 0.4], "r": [1.0]}, "y": {"q": [0.6], "r": [0.8]}}
    axes = plots.ladder(rungs, chance=CHANCE, title="t").axes[0]
    points = [(list(line.get_xdata()), line.get_markersize()) for line in axes.lines[1:]]
    assert points[:4] == [([0.2, 0.4], 3), ([pytest.approx(0.3)], 7), ([0.6], 3), ([0.6], 7)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    assert axes.yaxis_inverted()
    with pytest.raises(ValueError, match="no rungs"):
        plots.ladder({}, chance=CHANCE, title="t")


def test_gain_and_accuracy_draws_every_run():
    points = {"x": [(0.5, 1.0), (3.0, 0.2)], "y": [(1e-4, 0.9)]}
    axes = plots.gain_and_accuracy(points, chance=CHANCE, asked="64 digits", title="t").axes[0]
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert {name: drawn[name] for name in points} == points


@pytest.mark.parametrize(("radii", "said"), [(RADII, "0.90, below 1"), ([0.5, 1.1, 0.5], "1.10, above 1")])
def test_stability_title_speaks_of_the_loop_count_of_training(radii, said):
    title = plots.stability(RECORDS, radii).get_suptitle()
    assert "0.45" in title
    assert title.endswith(f"at loop 2 is {said}")


def test_stability_says_which_panels_are_of_weights_before_averaging():
    over_training = [
        axes.get_title() for axes in plots.stability(RECORDS, RADII).axes if "training" in axes.get_xlabel()
    ]
    assert over_training == ["… over training, weights before averaging"] * 2


def test_stability_draws_first_middle_and_last_record():
    labels = [text.get_text() for text in plots.stability(RECORDS, RADII).axes[0].get_legend().get_texts()]
    assert labels == ["step 10", "step 20", "step 30"]


def test_stability_draws_the_first_and_the_last_loop_over_training():
    _, residuals, _, radii = plots.stability(RECORDS, RADII).axes
    drawn = {line.get_label(): list(line.get_ydata()) for axes in (residuals, radii) for line in axes.lines}
    assert drawn["first loop"] == [0.7] * 3
    assert drawn["last loop"] == [0.1] * 3
    assert drawn["ρ(J), whole loop, last"] == [0.7, 0.8, 1.3]


def test_stability_draws_the_radius_of_each_loop_after_training():
    (line, *_) = plots.stability(RECORDS, RADII).axes[2].lines
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == RADII


def test_figures_are_the_same_bytes_every_time_and_need_no_latex(monkeypatch):
    """Whoever asks matplotlib for LaTeX in general need not have it."""

    def png():
        return plots.to_png(plots.stability(RECORDS, RADII), dpi=30)

    assert png() == png()
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setenv("PATH", "")  # as on a machine without LaTeX
    assert png().startswith(b"\x89PNG")
    assert matplotlib.rcParams["text.usetex"]


def test_plots_import_neither_torch_nor_pyplot():
    tree = ast.parse(Path(plots.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not {name for name in imported if name.split(".")[0] in ("torch", "mythos_lite") or "pyplot" in name}


def test_sweep_refuses_what_it_cannot_do_before_it_starts(monkeypatch):
    model = RecurrentDepthTransformer(ModelConfig(max_seq_len=8))
    monkeypatch.setattr(model, "loop_map", None)  # nothing may be computed
    with pytest.raises(ValueError, match="n_digits=9 is too long"):
        sweep(model, ChainTask(), [2, 9], [1])
    with pytest.raises(ValueError, match="loops='a'"):
        sweep(model, ChainTask(), [2], [1, "a"])


def test_sweep_refuses_a_task_that_is_not_the_models():
    """START and EQ are other tokens there: every answer would count as wrong."""
    model, other = build_model(EXPERTS, 0), ChainTask(modulus=5, n_symbols=5)
    for measure in (lambda: sweep(model, other, [2], [1]), lambda: expert_shares(model, other, [2], 1)):
        with pytest.raises(ValueError, match="pads with 7"):
            measure()


def test_lengths_and_loops_may_come_in_any_row():
    model = build_model(TINY, 0)
    expected = sweep(model, TASK, [2, 3], [1, 4], n_chains=20)
    for as_row in (np.array, torch.tensor, iter, tuple, lambda row: (value for value in row)):
        assert sweep(model, TASK, as_row([2, 3]), as_row([1, 4]), n_chains=np.int64(20)) == expected
    assert pool(expected, np.array([2, 3])) == pool(expected, (2, 3))
    for lengths, loops in (("23", [1]), ([2], "14"), ([2.0], [1])):
        with pytest.raises(ValueError, match=r"^(lengths|loops)="):
            sweep(model, TASK, lengths, loops)


def test_sweep_runs_on_devices_that_have_no_number_of_their_own(monkeypatch):
    monkeypatch.setattr(evaluation, "_TOKENS_AT_ONCE", {})
    model = build_model(TINY, 0)
    assert [row["n_chains"] for row in sweep(model, TASK, [2], [1], n_chains=5)] == [5]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_sweep_says_the_same_in_every_mode(mode):
    model = build_model(EXPERTS, 0)
    expected = sweep(model, TASK, [3, 12], [1, 4], n_chains=20), expert_shares(model, TASK, [3], 2, n_chains=20)
    with mode():
        assert (sweep(model, TASK, [3, 12], [1, 4], n_chains=20), expert_shares(model, TASK, [3], 2, n_chains=20)) == (
            expected
        )


def test_sweep_of_damaged_weights_is_an_error():
    model = RecurrentDepthTransformer(ModelConfig())
    with torch.no_grad():
        model.embedding.weight[8] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite after loop 1"):
        sweep(model, ChainTask(), [2], [1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_chains_whose_logits_are_not_finite_may_count_as_not_correct(bad, monkeypatch):
    """Here those that the model would answer with 0; the others are counted as ever."""
    model, loops = RecurrentDepthTransformer.from_pretrained("mod7"), [1, 2, 4]

    def spoilt(*arguments):
        logits = answer_logits(*arguments)
        logits[logits.argmax(-1) == 0, 1] = bad
        return logits

    monkeypatch.setattr(evaluation, "answer_logits", spoilt)
    with pytest.raises(NonFiniteError, match="not finite after loop 1"):
        sweep(model, TASK, [3], loops)
    batch = TASK.encode(evaluation_chains(TASK, 3, 1000))
    with torch.no_grad():
        said = [model(batch.token_ids, n_loops=n_loops).logits[:, -1].argmax(-1) for n_loops in loops]
    right = [int(((answers == batch.answers) & (answers != 0)).sum()) for answers in said]
    assert any(int((answers == batch.answers).sum()) > n for answers, n in zip(said, right, strict=True))
    rows = sweep(model, TASK, [3], loops, count_non_finite=True)
    assert [(row["n_correct"], row["n_chains"]) for row in rows] == [(n, len(batch.answers)) for n in right]


def test_a_model_whose_weights_are_not_finite_may_count_as_never_correct():
    model = build_model(TINY, 0)
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    rows = sweep(model, TASK, [2, 9], [1, 8], n_chains=20, count_non_finite=True)
    assert [(row["n_digits"], row["n_loops"], row["n_correct"]) for row in rows] == [
        (2, 1, 0), (2, 8, 0), (9, 1, 0), (9, 8, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda: plots.loop_scaling({}, trained_loops=(4, 4), chance=0.1), "groups must hold 1 to 7 lines"),
        (lambda: plots.stability([], RADII), "no records to draw"),
        (lambda: plots.stability(RECORDS, RADII[:1]), "radii must go up to loop 2"),
    ],
)
def test_nothing_to_draw_is_an_error(draw, named):
    with pytest.raises(ValueError, match=named):
        draw()
