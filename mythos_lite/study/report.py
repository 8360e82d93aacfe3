"""Records as text, as Markdown and as figures."""

from collections.abc import Sequence

from mythos_lite.measure import plots
from mythos_lite.study.records import check_together, grouped_rows, rows_of
from mythos_lite.study.run import Run


def figures(record: dict, history: Sequence[dict]) -> dict[str, bytes]:
    """PNG files by name: loops against accuracy, loops by length, and the stability of the loop over training.

    ``history`` is what ``train`` returned.

    Raises:
        ValueError: where matplotlib cannot draw, as with a font that is damaged.
    """
    run, groups = Run.from_dict(record), grouped_rows(record)
    longer, chance = list(groups)[1], 1 / run.task.n_answers
    needed = {n: run.model.loops_needed(n) for asked in run.sweeps for n in asked.lengths}
    title = plots.describe_scaling(groups[longer], longer, chance)
    trained = (run.train.min_loops, run.train.max_loops)
    radii = [radius for loop, radius in record["radii"] if loop <= 2 * run.train.max_loops]
    drawn = {
        "loop_scaling.png": plots.loop_scaling(groups, trained_loops=trained, chance=chance, title=title),
        "loops_by_length.png": plots.loops_by_length(rows_of(record), needed=needed),
        "stability.png": plots.stability(history, radii),
    }
    try:
        return {name: plots.to_png(figure) for name, figure in drawn.items()}
    except RuntimeError as error:
        raise ValueError(f"the figures cannot be drawn: {str(error).partition(chr(10))[0]}") from error


def format_table(record: dict) -> str:
    """Accuracy by group of lengths and loop count, as text; blank where a sweep does not ask."""
    found = {name: {r["n_loops"]: f"{r['accuracy']:.3f}" for r in rows} for name, rows in grouped_rows(record).items()}
    counts = sorted({count for group in found.values() for count in group})
    width = max(map(len, found)) + 2
    lines = ["", f"{'loops':<{width}}" + "".join(f"{count:>7}" for count in counts)]
    lines += [f"{name:<{width}}" + "".join(f"{group.get(t, ''):>7}" for t in counts) for name, group in found.items()]
    return "\n".join([*lines, f"chance {1 / Run.from_dict(record).task.n_answers:.3f}"])


def format_chart(record: dict, width: int = 50) -> str:
    """Bars of accuracy against loops on the first group that is longer than training."""
    name, rows = list(grouped_rows(record).items())[1]
    low, high = record["train"]["min_loops"], record["train"]["max_loops"]
    lines = ["", f"accuracy on {name} by loops"]
    for row in rows:
        bar = "█" * round(row["accuracy"] * width)
        mark = "  ← loops in training" if low <= row["n_loops"] <= high else ""
        lines.append(f"{row['n_loops']:>4} {bar:<{width}} {row['accuracy']:.3f}{mark}")
    return "\n".join([*lines, ""])


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *lines))


def mean_and_worst(values: Sequence[float]) -> str:
    """The mean and, in brackets, the lowest; of one value, that value."""
    mean = f"{sum(values) / len(values):.3f}"
    return f"{mean} ({min(values):.3f})" if len(values) > 1 else mean


def seed_tables(records: Sequence[dict], *, per_seed: bool) -> str:
    """Markdown: of each rung the accuracy by group of lengths and loop count, per seed or as mean (worst seed).

    A cell is empty where a sweep does not ask.
    """
    check_together(records, [f"record {i}" for i in range(1, len(records) + 1)])
    parts = []
    for rung in dict.fromkeys(record["rung"] for record in records):
        same = sorted((record for record in records if record["rung"] == rung), key=lambda record: record["seed"])
        found = [{g: {r["n_loops"]: r["accuracy"] for r in rows} for g, rows in grouped_rows(r).items()} for r in same]
        loops = sorted({t for group in found[0].values() for t in group})
        if per_seed:
            lines = [
                [str(record["seed"]), name.removesuffix(" digits"),
                 *(f"{group[t]:.3f}" if t in group else "" for t in loops),
                 "" if record.get("resumed") else f"{record['provenance']['seconds']['training']:.0f}"]
                for record, groups in zip(same, found, strict=True) for name, group in groups.items()
            ]  # fmt: skip
            header = ["seed", "digits", *map(str, loops), "training, s"]
        else:
            lines = [
                [name.removesuffix(" digits"),
                 *(mean_and_worst([groups[name][t] for groups in found]) if t in group else "" for t in loops)]
                for name, group in found[0].items()
            ]  # fmt: skip
            header = ["digits", *map(str, loops)]
        seeds = ", ".join(str(record["seed"]) for record in same)
        title = f"**{rung}**, {'seeds' if len(same) > 1 else 'seed'} {seeds}"
        digits = same[0]["train"]["max_digits"]
        parts.append(f"{title}, trained on {digits} digits at most; columns are loops\n\n{markdown(header, lines)}")
    return "\n".join(parts)
