"""The study's figures, from a summary."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mythos_lite.lessons.summary import (
    accuracies,
    accuracies_with_enough_loops,
    gains_and_accuracies,
    ladder_entries,
    rows,
)
from mythos_lite.measure import plots
from mythos_lite.measure.sweep import make_row
from mythos_lite.study.plan import FINAL_RUNG, passing, windows

CHANCE = 1 / 7
_BESIDE = ("transformer, same parameters", "LSTM", "GRU", "Elman RNN", "tanh RNN")
"""The baselines of one figure; the others are transformers that guess on long chains too, and a convolution."""


def how_far(summary: dict, measured: Mapping[str, Mapping[int, Sequence[float]]] | None = None) -> Figure:
    """Accuracy against chain length: the final model beside the baselines.

    ``measured``: further lines, name → length → one accuracy per seed.
    """
    entries = {"looped": summary["final"][FINAL_RUNG], **{name: summary["baselines"][name] for name in _BESIDE}}
    lines = {
        name: {n: accuracies_with_enough_loops(entry, str(n)) for n in (5, 8, 16, 32, 64, 128)}
        for name, entry in entries.items()
    }
    lines |= measured or {}
    last = min(accuracies_with_enough_loops(entries["looped"], "128"))
    title = f"Trained on at most 5 digits; at 128 the worst looped model is right on {last:.1%}"
    return plots.length_generalisation(lines, trained=5, chance=CHANCE, title=title)


def what_mends(summary: dict) -> Figure:
    """The ladder from the published setting to the final one."""
    return _ladder(ladder_entries(summary), "From the published setting to one that holds")


def what_is_needed(summary: dict) -> Figure:
    """The final setting less one thing."""
    return _ladder({"final": summary["final"][FINAL_RUNG], **summary["removal"]}, "The final setting, less one thing")


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


def errors_fade(summary: dict) -> Figure:
    """Gain along the chain against accuracy on long chains, every run on digit chains that has a gain."""
    points = gains_and_accuracies(summary)
    return plots.gain_and_accuracy(
        points,
        chance=CHANCE,
        asked="64 digits, 64 loops",
        title="Where short chains are learned with the window, fading errors go with long chains",
    )


def _ladder(entries: dict, title: str) -> Figure:
    asked = {"2–5 digits, 4 loops": ("2–5", 4), "6–8 digits, 8 loops": ("6–8", 8), "64 digits, 64 loops": ("64", 64)}
    rungs = {
        name: {question: accuracies(entry, *pair) for question, pair in asked.items()}
        for name, entry in entries.items()
    }
    return plots.ladder(rungs, chance=CHANCE, title=title)


FIGURES = {"how_far": how_far, "what_mends": what_mends, "what_is_needed": what_is_needed, "frontier": frontier,
           "errors_fade": errors_fade, "answers_pass": answers_pass}  # fmt: skip
