"""Figures from rows and records; no torch, nothing shown, a ``Figure`` returned.

Colours are Okabe & Ito's, which colour-blind readers can tell apart; every line also has its own
marker and dash, so a grey print loses nothing. Every title says what to see.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)))


def to_png(figure: Figure, **options: object) -> bytes:
    """The figure as a PNG file, the same bytes every time; ``options`` go to ``Figure.savefig``.

    Its texts are never set by LaTeX, which who asks for it in general (``text.usetex``) need not have.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.usetex": False}):
        for text in figure.findobj(Text):
            text.set_usetex(False)
        figure.savefig(buffer, format="png", metadata={"Software": None}, **options)
    return buffer.getvalue()


def loop_scaling(
    groups: Mapping[str, Sequence[dict]], *, trained_loops: tuple[int, int], chance: float, title: str | None = None
) -> Figure:
    """Accuracy against loops, one line per group of rows, with bands from their ``low`` to their ``high``.

    ``trained_loops`` is the range of loop counts seen in training; it is shaded. The last group is
    the one that the title speaks of, unless a ``title`` is given.
    """
    if not groups or not all(groups.values()) or len(groups) > len(COLOURS):
        raise ValueError(f"groups must hold 1 to {len(COLOURS)} lines of at least one row each, not {len(groups)}")
    figure, axes = _figure(7.2, 4.2)
    counts = sorted({row["n_loops"] for rows in groups.values() for row in rows})
    low, high = trained_loops
    axes.axvspan(low * 0.93, high * 1.07, color="0.88", zorder=0)
    axes.annotate(
        "loops in training",
        (high * 1.1, 0.04),
        xycoords=("data", "axes fraction"),
        fontsize=8,
        color="0.35",
        va="center",
    )
    axes.axhline(chance, color="0.45", lw=1, ls=":")
    axes.annotate(
        f"chance\n{chance:.3f}", (1.01, chance), xycoords=("axes fraction", "data"), ha="left", va="center",
        fontsize=8, color="0.35", annotation_clip=False,
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


def loops_by_length(
    rows: Sequence[dict], *, needed: Mapping[int, int] | None = None, title: str | None = None
) -> Figure:
    """Heat map of accuracy, loops across and digits up; a line marks the loops ``needed`` by length."""
    lengths, counts = ({row[key] for row in rows} for key in ("n_digits", "n_loops"))
    figure, axes = _figure(1.9 + 0.55 * len(counts), 1.6 + 0.34 * len(lengths))
    grid, image = _accuracy_map(axes, rows, needed)
    for i, j in np.ndindex(grid.shape):
        if np.isfinite(grid[i, j]):
            colour = "black" if grid[i, j] > 0.55 else "white"
            axes.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(
        title
        or (
            "Right of the line information can reach the end of the chain" if needed else "Accuracy by loops and length"
        ),
        fontsize=11,
    )
    figure.colorbar(image, ax=axes, label="accuracy")
    return figure


def frontier(panels: Mapping[str, tuple[Sequence[dict], Mapping[int, int]]], *, title: str) -> Figure:
    """The same heat map of several models side by side: name → rows, and loops ``needed`` by length."""
    if not panels:
        raise ValueError("panels must hold at least one model")
    figure = Figure(figsize=(1.5 + 3.0 * len(panels), 3.9), layout="constrained", dpi=130)
    many = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (rows, needed)) in zip(many, panels.items(), strict=True):
        _, image = _accuracy_map(axes, rows, needed, every=4)
        axes.set_title(name, fontsize=10)
        axes.label_outer()
    figure.colorbar(image, ax=many, label="accuracy")
    figure.suptitle(title, fontsize=11)
    return figure


def _accuracy_map(
    axes: Axes, rows: Sequence[dict], needed: Mapping[int, int] | None, every: int = 1
) -> tuple[np.ndarray, AxesImage]:
    """The grid, lengths by loop counts, and its image; one loop count in ``every`` is named."""
    lengths, counts = (sorted({row[key] for row in rows}) for key in ("n_digits", "n_loops"))
    grid = np.full((len(lengths), len(counts)), np.nan)
    for row in rows:
        grid[lengths.index(row["n_digits"]), counts.index(row["n_loops"])] = row["accuracy"]
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1)
    if needed:
        edge = [next((j for j, count in enumerate(counts) if count >= needed[n]), len(counts)) - 0.5 for n in lengths]
        border = [i + side for i in range(len(lengths)) for side in (-0.5, 0.5)]
        axes.plot(np.repeat(edge, 2), border, color="#D55E00", lw=2.5)
    axes.set_xticks(range(every - 1, len(counts), every), counts[every - 1 :: every])
    axes.set_yticks(range(len(lengths)), lengths)
    axes.set(xlabel="loops at inference", ylabel="digits in the chain")
    return grid, image


def length_generalisation(
    lines: Mapping[str, Mapping[int, Sequence[float]]], *, trained: int, chance: float, title: str
) -> Figure:
    """Accuracy against chain length. ``lines`` maps a name to {length: one accuracy per seed}.

    A line is the mean over seeds, its band goes from the worst seed to the best. Lengths up to ``trained`` are shaded.
    """
    if not lines or len(lines) > len(COLOURS):
        raise ValueError(f"lines must hold 1 to {len(COLOURS)} names, not {len(lines)}")
    figure, axes = _figure(7.2, 4.2)
    lengths = sorted({n for line in lines.values() for n in line})
    axes.axvspan(trained * 0.7, trained, color="0.88", zorder=0)
    axes.axhline(chance, color="0.45", lw=1, ls=":")
    axes.annotate("chance", (lengths[-1], chance), xytext=(0, 4), textcoords="offset points", fontsize=8, ha="right")
    axes.annotate("trained", (trained * 0.95, 0.02), fontsize=8, ha="right", color="0.35")
    for (name, line), style in zip(lines.items(), _styles(), strict=False):
        at = sorted(line)
        axes.fill_between(at, [min(line[n]) for n in at], [max(line[n]) for n in at], color=style["color"], alpha=0.15)
        axes.plot(at, [sum(line[n]) / len(line[n]) for n in at], label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, lengths)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(ylim=(0, 1.05), xlabel="length of the chain (log scale)", ylabel="accuracy, mean and range over seeds")
    axes.set_title(title, fontsize=11)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    return figure


def ladder(rungs: Mapping[str, Mapping[str, Sequence[float]]], *, chance: float, title: str) -> Figure:
    """One row per setting, from the top; per question a point for each seed and a larger one for the mean.

    ``rungs`` maps a setting to {question: one accuracy per seed}.
    """
    if not rungs:
        raise ValueError("there are no rungs to draw")
    questions = list(dict.fromkeys(question for asked in rungs.values() for question in asked))
    figure, axes = _figure(7.6, 1.4 + 0.34 * len(rungs))
    axes.axvline(chance, color="0.45", lw=1, ls=":")
    for index, (question, style) in enumerate(zip(questions, _styles(), strict=False)):
        look = {"color": style["color"], "marker": style["marker"], "linestyle": ""}
        for row, asked in enumerate(rungs.values()):
            y = row + 0.16 * (index - (len(questions) - 1) / 2)
            axes.plot(asked[question], [y] * len(asked[question]), ms=3, alpha=0.5, **look)
            label = question if row == 0 else None
            axes.plot([sum(asked[question]) / len(asked[question])], [y], ms=7, label=label, **look)
    axes.set_yticks(range(len(rungs)), list(rungs))
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set(xlim=(0, 1.03), xlabel="accuracy; small points are seeds, large ones their mean")
    axes.set_title(title, fontsize=11, loc="left")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=len(questions))
    return figure


def gain_and_accuracy(
    points: Mapping[str, Sequence[tuple[float, float]]], *, chance: float, asked: str, title: str
) -> Figure:
    """Every run a point, name → (gain of a small error along the chain, accuracy on ``asked``)."""
    figure, axes = _figure(7.2, 3.8)
    axes.axhline(chance, color="0.45", lw=1, ls=":")
    axes.axvline(1, color="0.45", lw=1, ls=":")
    axes.annotate("errors grow", (1.2, 1.04), fontsize=8, color="0.35")
    axes.annotate("chance", (1, chance), xytext=(2, 3), textcoords="offset points", fontsize=8, color="0.35",
                  xycoords=("axes fraction", "data"), ha="right")  # fmt: skip
    for (name, pairs), style in zip(points.items(), _styles(), strict=False):
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "", "alpha": 0.7}
        axes.plot([gain for gain, _ in pairs], [accuracy for _, accuracy in pairs], label=name, **look)
    axes.set_xscale("log")
    axes.set(
        ylim=(0, 1.1), xlabel="highest gain of a small error over 8 digits (log scale)", ylabel=f"accuracy, {asked}"
    )
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="center left")
    return figure


def stability(records: Sequence[dict], radii: Sequence[float], *, title: str | None = None) -> Figure:
    """Residual (top) and radius (bottom), over the loops (left) and over training (right).

    ``records`` are those that ``train`` returns; of their residuals over the loops the first, a middle and the
    last are drawn. They were taken from the weights before averaging. ``radii`` are ρ(J) of loops 1, 2, …
    after training, from ``spectral.loop_radii``; the title speaks of the one at the loop count of training.
    """
    if not records:
        raise ValueError("there are no records to draw")
    trained = len(records[-1]["residuals"])
    if len(radii) < trained:
        raise ValueError(f"radii must go up to loop {trained}, the loop count of training, not to {len(radii)}")
    figure = Figure(figsize=(9.6, 6.4), layout="constrained", dpi=130)
    (residual_loops, residual_steps), (radius_loops, radius_steps) = figure.subplots(2, 2)
    shown = [records[i] for i in sorted({0, (len(records) - 1) // 2, len(records) - 1})]
    for record, style in zip(shown, _styles(), strict=False):
        loops = range(1, len(record["residuals"]) + 1)
        residual_loops.plot(loops, record["residuals"], label=f"step {record['step']}", **style)
    steps = [record["step"] for record in records]
    first, second = _styles()[:2]
    radius_loops.plot(range(1, len(radii) + 1), radii, label="ρ(J), whole loop, after training", **second)
    every = max(1, len(steps) // 10)
    residual_steps.plot(steps, [r["residuals"][0] for r in records], label="first loop", markevery=every, **first)
    residual_steps.plot(steps, [r["residuals"][-1] for r in records], label="last loop", markevery=every, **second)
    radius_steps.plot(
        steps, [r["decay_radius"] for r in records], label="ρ(Ā), injection alone", markevery=every, **first
    )
    radius_steps.plot(
        steps, [r["jacobian_radius"] for r in records], label="ρ(J), whole loop, last", markevery=every, **second
    )
    for axes in (residual_loops, residual_steps):
        axes.set_yscale("log")
        axes.set_ylabel("relative residual")
    for axes in (radius_loops, radius_steps):
        axes.axhline(1, color="0.45", lw=1, ls=":")
        axes.set_ylabel("spectral radius")
    for axes, shown_loops in ((residual_loops, records[-1]["residuals"]), (radius_loops, radii)):
        axes.set_xticks(range(1, len(shown_loops) + 1))
        axes.set_xlabel("loop")
    for axes in (residual_steps, radius_steps):
        axes.set_xlabel("training step")
    residual_loops.set_title("How much each loop changes the state", fontsize=10)
    residual_steps.set_title("… over training, weights before averaging", fontsize=10)
    radius_loops.set_title("Whole loop: below 1 small errors die out", fontsize=10)
    radius_steps.set_title("… over training, weights before averaging", fontsize=10)
    for axes in figure.axes:
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    radius = radii[trained - 1]
    side = "above" if radius >= 1 else "below"
    decay = f"Training ends at ρ(Ā) = {records[-1]['decay_radius']:.2f}"
    figure.suptitle(
        title or f"{decay}; after it the whole loop's radius at loop {trained} is {radius:.2f}, {side} 1", fontsize=11
    )
    return figure


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles():
    return [
        {"color": colour, "marker": marker, "ls": dash, "lw": 1.8, "ms": 5}
        for colour, marker, dash in zip(COLOURS, MARKERS, DASHES, strict=True)
    ]


def _loops(row: dict) -> str:
    return f"{row['n_loops']} loop" + ("" if row["n_loops"] == 1 else "s")
