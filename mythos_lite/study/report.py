"""A finished run, or several, as text and as a figure.

A *result* is what ``sweep.json`` of a run holds: recipe, seed, groups of lengths, rows, provenance.
"""

from __future__ import annotations

from collections.abc import Sequence

from mythos_lite.checks import check_choice, check_int, check_ints, check_number
from mythos_lite.config import ModelConfig
from mythos_lite.measure import plots
from mythos_lite.measure.sweep import pool
from mythos_lite.training.recipes import RECIPES


def check_result(result: dict) -> None:
    """Refuse a result of which no table can be made; one has a row for each length of its groups at each loop count.

    Raises:
        ValueError: for values that cannot be.
        KeyError, TypeError: for values that are missing, or laid out in another way.
    """
    check_choice("recipe", result["recipe"], tuple(RECIPES))
    check_int("seed", result["seed"], 0)
    for name in ("experts", "quick"):
        if not isinstance(result[name], bool):
            raise ValueError(f"{name}={result[name]!r} is not possible: {name} must be true or false")
    check_number("training", result["provenance"]["seconds"]["training"], 0)
    for row in result["rows"]:
        for name in ("n_digits", "n_loops", "n_chains"):
            check_int(name, row[name], 1)
        check_int("n_correct", row["n_correct"], 0, row["n_chains"])
    found = [(row["n_digits"], row["n_loops"]) for row in result["rows"]]
    lengths = [n for group in result["groups"] for n in check_ints("groups", group, 1)]
    if not found or sorted(found) != sorted((n, t) for n in lengths for t in {t for _, t in found}):
        raise ValueError("its rows must be one for each length of its groups at each loop count")
    grouped_rows(result)


def check_together(results: Sequence[dict], names: Sequence[str]) -> None:
    """``ValueError`` if results cannot stand in one table: a run twice, or a recipe that was swept in two ways.

    ``names`` say what the message calls them, such as their files.
    """
    runs: dict = {}
    sweeps: dict = {}
    for name, result in zip(names, results, strict=True):
        label = recipe_label(result)
        if other := runs.get((label, result["seed"])):
            raise ValueError(f"{other} and {name} are both recipe {label}, seed {result['seed']}; give each run once")
        runs[label, result["seed"]] = name
        asked = result["groups"], sorted({row["n_loops"] for row in result["rows"]})
        other, swept = sweeps.setdefault(label, (name, asked))
        if swept != asked:
            raise ValueError(f"{other} and {name}, both recipe {label}, were swept over different lengths or loops")


def grouped_rows(result: dict) -> dict[str, list[dict]]:
    """Rows pooled by group of lengths, with the name that tables and figures use."""
    pooled = [pool(result["rows"], group) for group in result["groups"]]
    return {f"{rows[0]['n_digits']} digits": rows for rows in pooled}


def figures(result: dict, records: Sequence[dict], model: ModelConfig) -> dict[str, bytes]:
    """PNG files by name: loops against accuracy, loops by length, and the stability of the loop over training.

    Raises:
        ValueError: where matplotlib cannot draw, as with a font that is damaged.
    """
    groups = grouped_rows(result)
    longer = list(groups)[1]
    needed = {row["n_digits"]: model.loops_needed(row["n_digits"]) for row in result["rows"]}
    drawn = {
        "loop_scaling.png": plots.loop_scaling(
            groups,
            trained_loops=tuple(result["trained_loops"]),
            chance=result["chance"],
            title=plots.describe_scaling(groups[longer], longer, result["chance"]),
        ),
        "loops_by_length.png": plots.loops_by_length(result["rows"], needed=needed),
        "stability.png": plots.stability(records, result["jacobian_radii"]),
    }
    try:
        return {name: plots.to_png(figure) for name, figure in drawn.items()}
    except RuntimeError as error:
        raise ValueError(f"the figures cannot be drawn: {str(error).partition(chr(10))[0]}") from error


def format_table(result: dict) -> str:
    """Accuracy by group and loop count, as text."""
    groups = grouped_rows(result)
    counts = [row["n_loops"] for row in next(iter(groups.values()))]
    width = max(map(len, groups)) + 2
    lines = ["", f"{'loops':<{width}}" + "".join(f"{count:>7}" for count in counts)]
    for name, rows in groups.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row['accuracy']:>7.3f}" for row in rows))
    return "\n".join([*lines, f"chance {result['chance']:.3f}"])


def format_chart(result: dict, width: int = 50) -> str:
    """Bars of accuracy against loops on the first group that is longer than training."""
    name, rows = list(grouped_rows(result).items())[1]
    low, high = result["trained_loops"]
    lines = ["", f"accuracy on {name} by loops"]
    for row in rows:
        bar = "█" * round(row["accuracy"] * width)
        mark = "  ← loops in training" if low <= row["n_loops"] <= high else ""
        lines.append(f"{row['n_loops']:>4} {bar:<{width}} {row['accuracy']:.3f}{mark}")
    return "\n".join([*lines, ""])


def recipe_label(result: dict) -> str:
    """The recipe's name, with the kind of model where it is not the recipe's own."""
    return result["recipe"] + (" with experts" if result["experts"] else "") + (" (quick)" if result["quick"] else "")


def summary_table(results: Sequence[dict]) -> str:
    """Markdown: per recipe and group of lengths, the mean over seeds and, in brackets, the worst seed."""
    return _tables(results, per_seed=False)


def seed_table(results: Sequence[dict]) -> str:
    """Markdown: per recipe, seed and group of lengths, the accuracy at each loop count."""
    return _tables(results, per_seed=True)


def _tables(results: Sequence[dict], *, per_seed: bool) -> str:
    results = list(results)
    check_together(results, [f"result {i}" for i in range(1, len(results) + 1)])
    by_recipe: dict[str, list[dict]] = {}
    for result in sorted(
        results, key=lambda r: (list(RECIPES).index(r["recipe"]), r["experts"], r["quick"], r["seed"])
    ):
        by_recipe.setdefault(recipe_label(result), []).append(result)
    lines = []
    for name, same in by_recipe.items():
        counts = [row["n_loops"] for row in next(iter(grouped_rows(same[0]).values()))]
        lines += [
            "",
            f"**{name}**, {_seeds(same)}, trained on {same[0]['groups'][0][-1]} digits at most; columns are loops",
            "",
        ]
        header = [*(["seed"] if per_seed else []), "digits", *map(str, counts), *(["training, s"] if per_seed else [])]
        lines += [_row(header), "|" + " --- |" * len(header)]
        if per_seed:
            for result in same:
                for group, rows in grouped_rows(result).items():
                    seconds = f"{result['provenance']['seconds']['training']:.0f}"
                    lines.append(
                        _row([str(result["seed"]), group.removesuffix(" digits"), *map(_share, rows), seconds])
                    )
        else:
            for group in grouped_rows(same[0]):
                per_loop = zip(*(grouped_rows(result)[group] for result in same), strict=True)
                lines.append(_row([group.removesuffix(" digits"), *map(_mean_and_worst, per_loop)]))
    return "\n".join(lines).strip() + "\n"


def _seeds(results: Sequence[dict]) -> str:
    seeds = [str(result["seed"]) for result in results]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds[:-1])} and {seeds[-1]}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _share(row: dict) -> str:
    return f"{row['accuracy']:.3f}"


def _mean_and_worst(rows: Sequence[dict]) -> str:
    values = [row["accuracy"] for row in rows]
    return f"{sum(values) / len(values):.2f} ({min(values):.2f})"
