"""Summaries as Markdown tables: mean over seeds and, in brackets, the worst seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mythos_lite.study.summary import ENOUGH_LOOPS, accuracies, accuracies_with_enough_loops, mean, worst_interval

Entry = dict
Column = tuple[str, Callable[[Entry], str]]
FINAL_RUNG = "GQA with experts"


def ladder_table(summary: dict) -> str:
    """From the published setting to the final one."""
    final = {"+ balanced experts: **final**": summary["final"][FINAL_RUNG]}
    return _table("setting", {**summary["ladder"], **final}, _LADDER)


def removal_table(summary: dict) -> str:
    """The final setting, whole and less one thing."""
    return _table("final setting, but", {"**as it is**": summary["final"][FINAL_RUNG], **summary["removal"]}, _LADDER)


def final_table(summary: dict) -> str:
    """Three models, five seeds: worst seed with its 95 % interval."""
    columns = [("seeds", _seeds), ("parameters", _parameters), *(_worst(*asked) for asked in _FAR)]
    return _table("model", summary["final"], columns)


def baseline_table(summary: dict) -> str:
    """The final model beside what one would use instead."""
    looped = {f"looped, {FINAL_RUNG}": summary["final"][FINAL_RUNG]}
    columns = [("seeds", _seeds), ("parameters", _parameters), *(_enough(group) for group in ENOUGH_LOOPS)]
    return _table("model", {**looped, **summary["baselines"]}, columns)


def task_table(summary: dict) -> str:
    """The same recipe on other groups."""
    asked = [("2–5", 4), ("6–8", 1), ("6–8", 4), ("6–8", 8), ("16", 16), ("32", 32), ("40", 40), ("40", 80), ("64", 64)]
    return _table("task", summary["tasks"], [("seeds", _seeds), *(_at(*pair) for pair in asked)])


TABLES = {
    "ladder": ladder_table, "removal": removal_table, "final": final_table, "baselines": baseline_table,
    "tasks": task_table,
}  # fmt: skip


def _seeds(entry: Entry) -> str:
    return str(len(entry["seeds"]))


def _parameters(entry: Entry) -> str:
    return f"{entry['n_parameters']:,}"


def _at(group: str, n_loops: int) -> Column:
    return f"{group} @ {n_loops}", lambda entry: _mean_and_worst(accuracies(entry, group, n_loops))


def _worst(group: str, n_loops: int) -> Column:
    def cell(entry: Entry) -> str:
        low, high = worst_interval(entry, group, n_loops)
        return f"{min(accuracies(entry, group, n_loops)):.4f} ({low:.4f}–{high:.4f})"

    return f"{group} @ {n_loops}", cell


def _enough(group: str) -> Column:
    return group, lambda entry: _mean_and_worst(accuracies_with_enough_loops(entry, group))


def _overthinking(entry: Entry) -> str:
    lost = [a - b for a, b in zip(accuracies(entry, "6–8", 8), accuracies(entry, "6–8", 32), strict=True)]
    return f"{mean(lost):+.3f} ({max(lost):+.3f})"


def _mean_and_worst(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f})"


def _table(first: str, entries: dict[str, Entry], columns: Sequence[Column]) -> str:
    lines = [[first, *(name for name, _ in columns)], ["---"] * (len(columns) + 1)]
    lines += [[name, *(cell(entry) for _, cell in columns)] for name, entry in entries.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


_FAR = (("6–8", 8), ("6–8", 64), ("16", 16), ("32", 32), ("64", 64), ("128", 128), ("8", 512), ("128", 512))
_LADDER: tuple[Column, ...] = (
    ("seeds", _seeds), _at("2–5", 4), *(_at("6–8", loops) for loops in (1, 2, 4, 6, 8)),
    *(_at(str(n), n) for n in (16, 32, 64, 128)), ("8 → 32 loops", _overthinking),
)  # fmt: skip
