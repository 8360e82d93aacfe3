"""Figures from rows and records; no torch, nothing shown, a ``Figure`` returned.

Colours are Okabe & Ito's, which colour-blind readers can tell apart; every line also has its own
marker and dash, so a grey print loses nothing. Every title says what to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def loop_scaling(
    groups: Mapping[str, Sequence[dict]], *, trained_loops: tuple[int, int], chance: float, title: str | None = None
) -> Figure:
    """Accuracy against loops, one line per group of rows, with 95 % bands.

    ``trained_loops`` is the range of loop counts seen in training; it is shaded. The last group is
    the one that the title speaks of, unless a ``title`` is given.
    """
    figure, axes = _figure(7.2, 4.2)
    counts = sorted({row["n_loops"] for rows in groups.values() for row in rows})
    low, high = trained_loops
    axes.axvspan(low * 0.93, high * 1.07, color="0.88", zorder=0)
    axes.annotate(
        "loops in training", (high * 1.1, 0.5), xycoords=("data", "axes fraction"), fontsize=8, color="0.35", va="center"
    )
    axes.axhline(chance, color="0.45", lw=1, ls=":")
    axes.annotate(
        f"chance {chance:.3f}", (1, chance), xycoords=("axes fraction", "data"), xytext=(-3, -3),
        textcoords="offset points", ha="right", va="top", fontsize=8, color="0.35",
    )  # fmt: skip
    for (name, rows), style in zip(groups.items(), _styles(), strict=False):
        rows = sorted(rows, key=lambda row: row["n_loops"])
        x = [row["n_loops"] for row in rows]
        axes.plot(x, [row["accuracy"] for row in rows], label=name, **style)
        axes.fill_between(x, [r["low"] for r in rows], [r["high"] for r in rows], color=style["color"], alpha=0.2, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("loops at inference")
    axes.set_ylabel("accuracy (share of chains)")
    axes.legend(loc="best", fontsize=9, frameon=False)
    axes.set_title(title or describe_scaling(list(groups.values())[-1], list(groups)[-1], chance), fontsize=11)
    return figure


def describe_scaling(rows: Sequence[dict], name: str, chance: float) -> str:
    """One sentence on what more loops do to this group."""
    rows = sorted(rows, key=lambda row: row["n_loops"])
    first, last, best = rows[0], rows[-1], max(rows, key=lambda row: row["accuracy"])
    if best["accuracy"] < chance + 0.1:
        return f"{name}: near chance at every loop count"
    if best["accuracy"] - first["accuracy"] < 0.1:
        text = f"{name}: {first['accuracy']:.2f} at {_loops(first)}, more loops add little"
    else:
        text = f"{name}: {first['accuracy']:.2f} at {_loops(first)}, {best['accuracy']:.2f} at {best['n_loops']}"
    if best["accuracy"] - last["accuracy"] > 0.05:
        return f"{text}, and down to {last['accuracy']:.2f} at {last['n_loops']}"
    return f"{text}, still {last['accuracy']:.2f} at {last['n_loops']}"


def loops_by_length(rows: Sequence[dict], *, needed: Mapping[int, int] | None = None, title: str | None = None) -> Figure:
    """Heat map of accuracy, loops across and digits up; a line marks the loops ``needed`` by length."""
    lengths = sorted({row["n_digits"] for row in rows})
    counts = sorted({row["n_loops"] for row in rows})
    grid = np.full((len(lengths), len(counts)), np.nan)
    for row in rows:
        grid[lengths.index(row["n_digits"]), counts.index(row["n_loops"])] = row["accuracy"]
    figure, axes = _figure(1.9 + 0.55 * len(counts), 1.6 + 0.34 * len(lengths))
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1)
    for i, j in np.ndindex(grid.shape):
        if np.isfinite(grid[i, j]):
            axes.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=8, color="black" if grid[i, j] > 0.55 else "white")
    if needed:
        edge = [next((j for j, count in enumerate(counts) if count >= needed[n]), len(counts)) - 0.5 for n in lengths]
        axes.step([edge[0], *edge], [i - 0.5 for i in range(len(lengths) + 1)], where="pre", color="#D55E00", lw=2.5)
    axes.set_xticks(range(len(counts)), counts)
    axes.set_yticks(range(len(lengths)), lengths)
    axes.set_xlabel("loops at inference")
    axes.set_ylabel("digits in the chain")
    axes.set_title(
        title or ("Right of the line information can reach the end of the chain" if needed else "Accuracy by loops and length"),
        fontsize=11,
    )
    figure.colorbar(image, ax=axes, label="accuracy")
    return figure


def stability(records: Sequence[dict], *, title: str | None = None) -> Figure:
    """Residual over the loops, early to late in training, and both radii over training.

    ``records`` are those that ``train`` returns.
    """
    figure, (left, right) = _figure(9.6, 3.8, n_columns=2)
    shown = [records[i] for i in sorted({0, (len(records) - 1) // 2, len(records) - 1})]
    for record, style in zip(shown, _styles(), strict=False):
        values = record["residuals"]
        left.plot(range(1, len(values) + 1), values, label=f"step {record['step']}", **style)
    left.set_yscale("log")
    left.set_xticks(range(1, len(shown[-1]["residuals"]) + 1))
    left.set_xlabel("loop")
    left.set_ylabel("relative residual ‖h − h before‖ / ‖h‖")
    left.set_title("How much each loop still changes the state", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    steps = [record["step"] for record in records]
    for (key, name), style in zip((("decay_radius", "ρ(Ā), injection"), ("jacobian_radius", "ρ(J), whole loop")), _styles(), strict=False):
        right.plot(steps, [record[key] for record in records], label=name, markevery=max(1, len(steps) // 10), **style)
    right.axhline(1, color="0.45", lw=1, ls=":")
    right.set_xlabel("training step")
    right.set_ylabel("spectral radius")
    right.set_title("Below 1, small errors die out", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    last = records[-1]
    side = "above" if last["jacobian_radius"] >= 1 else "below"
    figure.suptitle(
        title or f"ρ(Ā) ends at {last['decay_radius']:.2f}, the whole loop's radius at {last['jacobian_radius']:.2f}, {side} 1", fontsize=11
    )
    return figure


def _figure(width: float, height: float, n_columns: int = 1):
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    axes = figure.subplots(1, n_columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles():
    return [
        {"color": colour, "marker": marker, "ls": dash, "lw": 1.8, "ms": 5}
        for colour, marker, dash in zip(COLOURS, MARKERS, DASHES, strict=True)
    ]


def _loops(row: dict) -> str:
    return f"{row['n_loops']} loop" + ("" if row["n_loops"] == 1 else "s")
