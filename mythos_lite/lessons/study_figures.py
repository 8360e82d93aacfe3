"""The study's figures that a lesson shows, from a summary; the others are drawn where the results are."""

from matplotlib.figure import Figure

from mythos_lite.lessons.summary import accuracies, ladder_entries
from mythos_lite.measure import plots
from mythos_lite.study.plan import FINAL_RUNG

CHANCE = 1 / 7


def what_mends(summary: dict) -> Figure:
    """The ladder from the published setting to the final one."""
    return _ladder(ladder_entries(summary), "From the published setting to one that holds")


def what_is_needed(summary: dict) -> Figure:
    """The final setting less one thing."""
    return _ladder({"final": summary["final"][FINAL_RUNG], **summary["removal"]}, "The final setting, less one thing")


def _ladder(entries: dict, title: str) -> Figure:
    asked = {"2–5 digits, 4 loops": ("2–5", 4), "6–8 digits, 8 loops": ("6–8", 8), "64 digits, 64 loops": ("64", 64)}
    rungs = {
        name: {question: accuracies(entry, *pair) for question, pair in asked.items()}
        for name, entry in entries.items()
    }
    return plots.ladder(rungs, chance=CHANCE, title=title)
