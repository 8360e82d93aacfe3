"""What the committed records say, pooled, as it ships with the package; ``results/build.py`` writes it from them.

A summary maps study → rung → an *entry*: ``n_parameters``; per seed ``seeds``, ``seconds`` of training and sweep,
``cpu_seconds`` of training alone, and on 8 digits ``radii`` (ρ(J) at loop 32) and ``residuals`` (at loop 64),
``gains`` (by what factor a small error is at most multiplied over 8 digits; ``None`` in the first records, and where
EQ does not rest); ``errors`` (what a run that blew up said); and ``correct``, which maps group of lengths →
loops → a pair ``[n_correct, n_chains]`` per seed. Groups are "2–5", "6–8" and single lengths; loops are
strings, as in JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mythos_lite.study.plan import CHANGES, FINAL_RUNG

SUMMARY = Path(__file__).parent / "summary.json"


def load_summary() -> dict:
    """The summary of the runs in ``results/study``."""
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


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
