"""Summaries as Markdown tables: mean over seeds and, in brackets, the worst seed; of one seed, its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pooling import accuracies_with_enough_loops, worst_interval

from mythos_lite.config import ModelConfig
from mythos_lite.lessons.summary import accuracies, ladder_entries
from mythos_lite.measure.cost import cost
from mythos_lite.study.plan import FINAL_RUNG, TASKS
from mythos_lite.study.report import markdown, mean_and_worst

Entry = dict
Column = tuple[str, Callable[[Entry], str]]
_SIZES = {
    "8B, 32 layers": (4096, 32, 14_336, (0, 32, 0), 1),
    "looped, 2 + 4 × 7 + 2": (4096, 32, 14_336, (2, 4, 2), 7),
    "looped, 1 × 32": (4096, 32, 14_336, (0, 1, 0), 32),
    "70B, 80 layers": (8192, 64, 28_672, (0, 80, 0), 1),
    "looped, 4 + 8 × 9 + 4": (8192, 64, 28_672, (4, 8, 4), 9),
    "looped, 1 × 80": (8192, 64, 28_672, (0, 1, 0), 80),
}
"""Width, heads, feed-forward, layers of prelude, core and coda, and loops; the widths are Llama 3's."""
HOLDS = 0.99
"""A seed *holds* if it is right on this share of the chains of 64 elements, with as many loops."""


def ladder_table(summary: dict) -> str:
    """From the published setting to the final one."""
    return _table("setting", ladder_entries(summary), _LADDER)


def mends_table(summary: dict) -> str:
    """The ladder in few columns."""
    columns = [_at(*asked) for asked in (("2–5", 4), ("6–8", 4), ("6–8", 8), ("6–8", 32), ("64", 64))]
    return _table("setting", ladder_entries(summary), [("seeds", _seeds), *columns])


def removal_table(summary: dict) -> str:
    """The final setting, whole and less one thing."""
    return _table("final setting, but", {"**as it is**": summary["final"][FINAL_RUNG], **summary["removal"]}, _LADDER)


def final_table(summary: dict) -> str:
    """Every model's worst seed, with its 95 % interval over chains."""
    columns = [("seeds", _seeds), ("parameters", _parameters), ("CPU minutes", _minutes)]
    columns += [_worst(*asked) for asked in _FAR]
    return _table("model", summary["final"], columns)


def baseline_table(summary: dict) -> str:
    """The final model beside what one would use instead."""
    looped = {f"looped, {FINAL_RUNG}": summary["final"][FINAL_RUNG]}
    columns = [("seeds", _seeds), ("parameters", _parameters), *(_enough(group) for group in _BY_LENGTH)]
    return _table("model", {**looped, **summary["baselines"]}, columns)


def task_table(summary: dict) -> str:
    """The same code on other groups."""
    columns = [("seeds", _seeds), ("parameters", _parameters), _at("3–5", 4), *(_at("6–8", t) for t in (4, 8, 32))]
    columns += [_at("16", 16), _at("16", 32), _at("32", 32), _at("64", 64), _at("64", 128)]
    named = {f"{name} (chance {1 / TASKS[name][0].n_answers:.2g})": entry for name, entry in summary["tasks"].items()}
    return _table("task", named, columns)


def baseline_task_table(summary: dict) -> str:
    """Recurrent networks on other groups."""
    columns = [("seeds", _seeds), ("parameters", _parameters)]
    columns += [_enough(group) for group in ("3–5", "6–8", "16", "32", "64", "128", "512")]
    return _table("task: model", summary["baseline-tasks"], columns)


def doubling_table(summary: dict) -> str:
    """Sums in log n loops: with a loop less than they need, with as many, and with four times as many."""
    asked = [("16", 4), ("16", 5), ("32", 6), ("64", 7), ("128", 7), ("128", 8), ("128", 32)]
    asked += [("256", 9), ("512", 10), ("1024", 10), ("1024", 11), ("1024", 44)]
    columns = [("seeds", _seeds), ("parameters", _parameters), ("CPU minutes", _minutes), *(_at(*a) for a in asked)]
    return _table("setting", summary["doubling"], columns)


def words_table(summary: dict) -> str:
    """The word problem of A5 and S5: the loop with as many loops as it needs, the others as they are."""
    lengths = {"8": 4, "16": 5, "32": 6, "64": 7, "128": 8, "256": 9, "512": 10, "1024": 11}
    columns = [("seeds", _seeds), ("parameters", _parameters), ("CPU minutes", _minutes)]
    columns += [_looped_or_not(group, n_loops) for group, n_loops in lengths.items()]
    return _table("group: model", summary["words"], columns)


def pointers_table(summary: dict) -> str:
    """Paths: with half as many loops as steps, with as many, with 128; models without a loop as they are."""
    asked = [("4", 2), ("4", 4), ("8", 4), ("8", 8), ("16", 8), ("16", 16), ("18", 18), ("4", 128), ("16", 128)]
    columns = [("seeds", _seeds), ("parameters", _parameters), ("CPU minutes", _minutes)]
    columns += [_looped_or_not(group, n_loops, needed=int(group) == n_loops) for group, n_loops in asked]
    return _table("model", summary["pointers"], columns)


def two_changes_table(summary: dict) -> str:
    """Window and tanh on the published model."""
    asked = [("2–5", 4), ("6–8", 4), ("6–8", 8), ("6–8", 32), ("16", 16), ("64", 64), ("64", 128)]
    columns = [("seeds", _seeds), *(_at(*a) for a in asked), ("gain over 8 digits", _range_of("gains"))]
    return _table("2,000 steps of the published training", summary["two-changes"], columns)


def cures_table(summary: dict) -> str:
    """What is added to the loss, and whether answers stay."""
    asked = [("3–5", 4), ("6–8", 8), ("6–8", 32), ("6–8", 128), ("64", 64), ("64", 128), ("128", 128), ("128", 256)]
    columns = [("seeds", _seeds), *(_at(*a) for a in asked), ("gain over 8 digits", _range_of("gains"))]
    return _table("model, and what is added", summary["cures"], columns)


def spans_table(rows: Sequence[dict]) -> str:
    """What ``benchmarks/spans.py`` found: calls in a row, and milliseconds of one chain."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    by_length: dict[int, dict[str, dict]] = {}
    for row in rows:
        by_length.setdefault(row["n_digits"], {})[row["way"]] = row
    lines = [
        [f"{n:,}", *(f"{w[name]['span']:,}: {w[name]['ms_alone']:.1f}" for name in names)] for n, w in by_length.items()
    ]
    return markdown(["digits", *names], lines)


def sizes_table() -> str:
    """Stacks of the 8B and 70B class, and loops of the same depth, by the cost model."""
    context, lines = 8192, []
    for name, (d_model, n_heads, d_ff, layers, n_loops) in _SIZES.items():
        prelude, core, coda = layers
        config = ModelConfig(
            d_model=d_model, n_heads=n_heads, n_kv_heads=8, d_ff=d_ff, vocab_size=128_256, pad_token_id=None,
            window=None, n_prelude_layers=prelude, n_core_layers=core, n_coda_layers=coda,
            injection="lti" if n_loops > 1 else "none", state_activation="none",
        )  # fmt: skip
        token = cost(config, n_loops, cached=context - 1, bytes_per_number=2)
        shared = cost(config, n_loops, cached=context - 1, bytes_per_number=2, shared_slot=True)
        doubled = dataclasses.replace(config, n_core_layers=2 * core)  # whose weights are more by those of the core
        read = token.weight_bytes + (n_loops - 1) * (
            cost(doubled, bytes_per_number=2).weight_bytes - token.weight_bytes
        )
        kept = cost(config, n_loops, length=4096).kept_bytes // 2
        numbers = [token.parameters, token.weight_bytes, token.weight_bytes / 4, token.cache_bytes, shared.cache_bytes]
        numbers += [token.flops, read, 16 * token.parameters, kept]
        lines.append([name, *(f"{number / 1e9:.1f}" for number in numbers)])
    header = ["model", "10⁹ weights", "GB", "GB at 4 bits", "GB of cache", "with a shared slot", "GFLOPs a token",
              "GB read a token", "GB to train", "GB kept, 4,096 tokens"]  # fmt: skip
    return markdown(header, lines)


def rest_table(summary: dict) -> str:
    """Does the state come to rest, and do errors fade along the chain? Beside accuracy, over the settings and tasks."""
    settings = {f"final, {name}": entry for name, entry in summary["final"].items()} | summary["removal"]
    overthinking = ("+ 2,000 steps", "+ window of 2")
    settings |= {f"ladder, {name}": summary["ladder"][name] for name in overthinking}
    settings |= {f"task, {name}": entry for name, entry in summary["tasks"].items()}
    columns = [
        ("ρ(J) at loop 32", _range_of("radii")),
        ("residual at loop 64", _range_of("residuals")),
        ("gain over 8 digits", _range_of("gains")),
    ]
    return _table("setting", settings, [("seeds", _seeds), *columns, _at("6–8", 8), _at("6–8", 32), _at("64", 64)])


def spread_table(summary: dict) -> str:
    """How far the seeds of a setting lie apart on 64 elements, and how many of them hold."""
    settings = {
        f"{study}: {rung}": e
        for study, rungs in summary.items()
        if study in ("ladder", "removal", "final", "baselines", "tasks", "baseline-tasks")
        for rung, e in rungs.items()
    }

    def on_64(entry: Entry) -> list[float]:
        return sorted(accuracies_with_enough_loops(entry, "64"))

    held = ("seeds that hold", lambda e: f"{sum(a >= HOLDS for a in on_64(e))} of {len(e['seeds'])}")
    return _table("setting", settings, [held, ("64, every seed", lambda e: ", ".join(f"{a:.3f}" for a in on_64(e)))])


def cost_table(summary: dict) -> str:
    """What the runs took, one thread each."""
    took = {study: [s for entry in entries.values() for s in entry["seconds"]] for study, entries in summary.items()}
    took["together"] = [s for seconds in took.values() for s in seconds]
    columns = [("runs", lambda seconds: str(len(seconds))), ("hours of one process", lambda s: f"{sum(s) / 3600:.1f}")]
    return _table("study", took, columns)


TABLES = {
    "ladder": ladder_table, "mends": mends_table, "removal": removal_table, "final": final_table,
    "baselines": baseline_table, "tasks": task_table, "baseline tasks": baseline_task_table,
    "doubling": doubling_table, "words": words_table, "pointers": pointers_table,
    "two changes": two_changes_table, "cures": cures_table,
    "rest": rest_table, "spread": spread_table, "cost": cost_table,
}  # fmt: skip


def _seeds(entry: Entry) -> str:
    failed = f", {len(entry['errors'])} blew up" if entry["errors"] else ""
    return f"{len(entry['seeds'])}{failed}"


def _parameters(entry: Entry) -> str:
    return f"{entry['n_parameters']:,}"


def _minutes(entry: Entry) -> str:
    """The shortest and the longest training; the first records have no CPU time, nor have those of a GPU."""
    return _range([seconds and seconds / 60 for seconds in entry["cpu_seconds"]], ".1f")


def _at(group: str, n_loops: int) -> Column:
    return f"{group} @ {n_loops}", lambda entry: mean_and_worst(accuracies(entry, group, n_loops))


def _worst(group: str, n_loops: int) -> Column:
    def cell(entry: Entry) -> str:
        low, high = worst_interval(entry, group, n_loops)
        return f"{min(accuracies(entry, group, n_loops)):.4f} ({low:.4f}–{high:.4f})"

    return f"{group} @ {n_loops}", cell


def _enough(group: str) -> Column:
    def cell(entry: Entry) -> str:
        return mean_and_worst(accuracies_with_enough_loops(entry, group)) if group in entry["correct"] else "–"

    return group, cell


def _looped_or_not(group: str, n_loops: int, *, needed: bool = True) -> Column:
    """With so many loops; a model without loops has one answer, which stands where as many as ``needed`` are run."""

    def cell(entry: Entry) -> str:
        if list(entry["correct"][group]) != ["1"]:
            return mean_and_worst(accuracies(entry, group, n_loops))
        return mean_and_worst(accuracies(entry, group, 1)) if needed else "–"

    return f"{group} @ {n_loops}", cell


def _range_of(key: str) -> Callable[[Entry], str]:
    return lambda entry: _range(entry[key], ".3g")


def _range(values: Sequence[float | None], form: str) -> str:
    """Lowest and highest of what was measured, and of how many seeds if not of all."""
    measured = [value for value in values if value is not None]
    if not measured:
        return "–"
    ends = " to ".join(dict.fromkeys(f"{value:{form}}" for value in (min(measured), max(measured))))
    return ends if len(measured) == len(values) else f"{ends} ({len(measured)} of {len(values)} seeds)"


def _overthinking(entry: Entry) -> str:
    """What the best loop count up to 8 gives, less what 32 give: mean and worst seed."""
    best = [max(values) for values in zip(*(accuracies(entry, "6–8", t) for t in (1, 2, 4, 6, 8)), strict=True)]
    lost = [a - b for a, b in zip(best, accuracies(entry, "6–8", 32), strict=True)]
    mean = f"{sum(lost) / len(lost):+.3f}"
    return f"{mean} ({max(lost):+.3f})" if len(lost) > 1 else mean


def _table(first: str, entries: dict[str, Entry], columns: Sequence[Column]) -> str:
    lines = [[name, *(cell(entry) for _, cell in columns)] for name, entry in entries.items()]
    return markdown([first, *(name for name, _ in columns)], lines)


_BY_LENGTH = ("2–5", "6–8", "16", "32", "64", "128")
_FAR = (("6–8", 8), ("6–8", 64), ("16", 16), ("32", 32), ("64", 64), ("128", 128), ("8", 512), ("128", 512))
_LADDER: tuple[Column, ...] = (
    ("seeds", _seeds), _at("2–5", 4), *(_at("6–8", loops) for loops in (1, 2, 4, 6, 8)),
    *(_at(str(n), n) for n in (16, 32, 64, 128)), ("lost at 32 loops", _overthinking),
)  # fmt: skip
