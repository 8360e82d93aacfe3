"""The study's figures, from a summary."""

from __future__ import annotations

from matplotlib.figure import Figure
from pooling import accuracies_with_enough_loops, rows

from mythos_lite.lessons.study_figures import CHANCE, what_is_needed, what_mends
from mythos_lite.lessons.summary import accuracies
from mythos_lite.measure import plots
from mythos_lite.measure.sweep import make_row
from mythos_lite.study.depth import DOUBLING, pointers
from mythos_lite.study.plan import FINAL_RUNG, STUDIES, passing, windows
from mythos_lite.task.chains import ChainTask

_BESIDE = ("transformer, same parameters", "LSTM", "GRU", "Elman RNN", "tanh RNN")
"""The baselines of one figure; the others are transformers that guess on long chains too, and a convolution."""
_TRAINED_STEPS = pointers(0)[0].train.max_digits
KNOWN = 0.99
"""Share of the chains of trained length from which on a run counts as having learned them."""
UNLEARNED = "short chains not learned"
LEAST_GAIN = 1e-7
"""Where smaller gains are drawn: one of 1e-19, for which there is no float32 beside 1, would take half of the axis."""


def how_far(summary: dict) -> Figure:
    """Accuracy against chain length: the final model beside the baselines."""
    entries = {"looped": summary["final"][FINAL_RUNG], **{name: summary["baselines"][name] for name in _BESIDE}}
    lines = {
        name: {n: accuracies_with_enough_loops(entry, str(n)) for n in (5, 8, 16, 32, 64, 128)}
        for name, entry in entries.items()
    }
    last = min(accuracies_with_enough_loops(entries["looped"], "128"))
    title = f"Trained on at most 5 digits; at 128 the worst looped model is right on {last:.1%}"
    return plots.length_generalisation(lines, trained=5, chance=CHANCE, title=title)


def frontier(summary: dict) -> Figure:
    """Accuracy by loops and length for three windows, with the loops that ``ModelConfig.loops_needed`` says."""
    panels = {}
    for run in windows(0):
        entry = summary["windows"][run.rung]
        measured = [{**row, "n_digits": int(length)} for length in entry["correct"] for row in rows(entry, length)]
        panels[run.rung] = measured, {int(length): run.model.loops_needed(int(length)) for length in entry["correct"]}
    return plots.frontier(
        panels, title="Left of the line, which the window sets, the first digit cannot have reached EQ"
    )


def fewest_loops(summary: dict) -> Figure:
    """From how many loops on every seed is right on ``KNOWN`` of the chains: a window of 2, and a dilated one.

    Of the former, all counts were asked up to 24 digits, and beyond that as many as digits.
    """
    slow, fast = summary["final"][FINAL_RUNG], summary["doubling"]["sum modulo 7"]
    window, lengths = windows(0)[0].model, [int(n) for n in fast["correct"] if n.isdigit()]
    short = summary["windows"]["window of 2"]
    asked = [(short, n) for n in short["correct"]] + [(slow, n) for n in ("32", "64", "128")]
    slowly = {int(n): _from_then_on(entry, n) for entry, n in asked}
    found = {
        "window of 2": {n: t for n, t in slowly.items() if t},
        "dilated window of 2": {n: t for n in lengths if (t := _from_then_on(fast, str(n)))},
    }
    needed = {
        "window of 2": {n: window.loops_needed(n) for n in lengths if n <= 128},
        "dilated window of 2": {n: DOUBLING.loops_needed(n) for n in lengths},
    }
    return plots.fewest_loops(
        found, needed, trained={"window of 2": 5, "dilated window of 2": 16},
        title="Fewest loops that were enough (points), and the loops that the window asks for (lines)",
    )  # fmt: skip


def _from_then_on(entry: dict, group: str) -> int | None:
    """The fewest loops asked from which on no seed falls below ``KNOWN``."""
    asked = sorted(map(int, entry["correct"][group]))
    good = [min(accuracies(entry, group, t)) >= KNOWN for t in asked]
    return next((t for i, t in enumerate(asked) if all(good[i:])), None)


def answers_pass(summary: dict) -> Figure:
    """Accuracy by loops and bits of parity models that were trained on five bits, seed by seed."""
    entry = summary["passing"]["parity"]
    (run,) = passing(0)
    needed = {int(n): run.model.loops_needed(int(n)) for n in entry["correct"]}
    panels = {}
    for i, seed in enumerate(entry["seeds"]):
        answers = ((int(n), int(t), *pairs[i]) for n, loops in entry["correct"].items() for t, pairs in loops.items())
        panels[f"seed {seed}"] = [make_row(*answer) for answer in answers], needed
    return plots.frontier(
        panels, title="Parity, trained on five bits at most: right answers may pass, come late, or stay"
    )


def steps_in_sight(summary: dict) -> Figure:
    """Accuracy on paths through a graph by loops and steps, with a line at as many loops as steps."""
    entry = summary["pointers"]["loop"]
    steps = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18)
    few = [{**row, "n_digits": k} for k in steps for row in rows(entry, str(k)) if row["n_loops"] <= 20]
    title = f"A path of k steps takes k loops; in training, at most {_TRAINED_STEPS} of either"
    figure = plots.loops_by_length(few, needed={k: k for k in steps}, title=title)
    figure.axes[0].set_ylabel("steps of the path")
    return figure


def errors_fade(summary: dict) -> Figure:
    """Gain along the chain against accuracy on long chains, every run on digit chains that has a gain."""
    points = gains_and_accuracies(summary)
    return plots.gain_and_accuracy(
        points,
        chance=CHANCE,
        asked="64 digits, 64 loops",
        title="Where short chains are learned with the window, fading errors go with long chains",
    )


def gains_and_accuracies(summary: dict) -> dict[str, list[tuple[float, float]]]:
    """(gain over 8 digits, accuracy on 64 digits at 64 loops) of every run on digit chains modulo 7 that has a gain.

    Runs with a window and with full attention apart, and those apart that are right on less than ``KNOWN`` of the
    chains of trained length. Gains below ``LEAST_GAIN`` are given as that.
    """
    points: dict = {"window of 2": [], "full attention": [], UNLEARNED: []}
    for study in ("ladder", "removal", "final", "two-changes", "cures", "experiment"):
        runs = {run.rung: run for run in STUDIES[study][0](0)}
        for rung, entry in summary.get(study, {}).items():
            task = runs[rung].task
            if not (isinstance(task, ChainTask) and task.modulus == 7) or all(gain is None for gain in entry["gains"]):
                continue
            window = runs[rung].model.window
            name = "full attention" if window is None else f"window of {window}"
            trained = "2–5" if "2–5" in entry["correct"] else "3–5"
            seeds = zip(entry["gains"], accuracies(entry, trained, 4), accuracies(entry, "64", 64), strict=True)
            for gain, known, far in seeds:
                if gain is not None:
                    points[name if known >= KNOWN else UNLEARNED].append((max(gain, LEAST_GAIN), far))
    return points


FIGURES = {
    "how_far": how_far, "what_mends": what_mends, "what_is_needed": what_is_needed, "frontier": frontier,
    "errors_fade": errors_fade, "answers_pass": answers_pass, "fewest_loops": fewest_loops,
    "steps_in_sight": steps_in_sight,
}  # fmt: skip
