"""What the committed records say, pooled, as it ships with the package; ``results/build.py`` writes it from them.

A summary maps study → rung → an *entry*: ``n_parameters``; per seed ``seeds``, ``seconds`` of training and sweep,
``cpu_seconds`` of training alone, and on 8 digits ``radii`` (ρ(J) at loop 32) and ``residuals`` (at loop 64),
``gains`` (by what factor a small error is at most multiplied over 8 digits; ``None`` in the first records, and where
EQ does not rest); ``errors`` (what a run that blew up said); and ``correct``, which maps group of lengths →
loops → a pair ``[n_correct, n_chains]`` per seed. Groups are "2–5", "6–8" and, from 5 on, single lengths; loops are
strings, as in JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mythos_lite.measure.sweep import make_row, wilson_interval
from mythos_lite.study.plan import CHANGES, FINAL_RUNG, STUDIES

SUMMARY = Path(__file__).parent / "summary.json"
ENOUGH_LOOPS = {"2–5": 4, "3–5": 4, "5": 4, "6–8": 8, "8": 8, "16": 16, "32": 32, "64": 64, "128": 128}
"""Groups of lengths that most studies ask, with loops that are enough for them."""
KNOWN = 0.99
"""Share of the chains of trained length from which on a run counts as having learned them."""
UNLEARNED = "short chains not learned"


def load_summary() -> dict:
    """The summary of the runs in ``results/study``."""
    return _load()["studies"]


def load_table(name: str) -> str:
    """A table of ``results/README.md`` as Markdown: "final", "baselines", "tasks", …"""
    return _load()["tables"][name]


def _load() -> dict:
    return json.loads(SUMMARY.read_text(encoding="utf-8"))


def ladder_entries(summary: dict) -> dict[str, dict]:
    """The ladder's settings by name, the last two from the studies that ran them."""
    *_, averaged, balanced = CHANGES
    return {
        **summary["ladder"],
        f"+ {averaged.adding}": summary["removal"][balanced.removing],
        f"+ {balanced.adding}: final": summary["final"][FINAL_RUNG],
    }


def accuracies(entry: dict, group: str, n_loops: int) -> list[float]:
    """One accuracy per seed."""
    return [n_correct / n_chains for n_correct, n_chains in entry["correct"][group][str(n_loops)]]


def worst_interval(entry: dict, group: str, n_loops: int) -> tuple[float, float]:
    """95 % interval of the worst seed's accuracy."""
    return wilson_interval(*min(entry["correct"][group][str(n_loops)], key=lambda pair: pair[0] / pair[1]))


def accuracies_with_enough_loops(entry: dict, group: str) -> list[float]:
    """One accuracy per seed; of a model without loops, as it is."""
    return accuracies(entry, group, 1 if list(entry["correct"][group]) == ["1"] else ENOUGH_LOOPS[group])


def gains_and_accuracies(summary: dict) -> dict[str, list[tuple[float, float]]]:
    """(gain over 8 digits, accuracy on 64 digits at 64 loops) of every run on digit chains modulo 7 that has a gain.

    Runs with a window and with full attention apart, and those apart that are right on less than ``KNOWN`` of the
    chains of trained length.
    """
    points: dict = {"window of 2": [], "full attention": [], UNLEARNED: []}
    for study in ("ladder", "removal", "final"):
        windows = {run.rung: run.model.window for run in STUDIES[study][0](0)}
        for rung, entry in summary[study].items():
            name = "full attention" if windows[rung] is None else f"window of {windows[rung]}"
            seeds = zip(entry["gains"], accuracies(entry, "2–5", 4), accuracies(entry, "64", 64), strict=True)
            for gain, known, far in seeds:
                if gain is not None:
                    points[name if known >= KNOWN else UNLEARNED].append((gain, far))
    return points


def rows(entry: dict, group: str) -> list[dict]:
    """Rows of a group, one per loop count, as ``measure.sweep`` makes them.

    Of several seeds: their chains together, and as interval the lowest and the highest seed, which lie further apart
    than chains alone would make them.
    """
    found = []
    for n_loops, pairs in sorted(entry["correct"][group].items(), key=lambda item: int(item[0])):
        row = make_row(group, int(n_loops), *map(sum, zip(*pairs, strict=True)))
        if len(pairs) > 1:
            shares = accuracies(entry, group, int(n_loops))
            row |= {"low": min(shares), "high": max(shares)}
        found.append(row)
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
