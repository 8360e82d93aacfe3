"""Figures from rows and records, without torch. Each function returns a ``Figure`` and shows nothing.

Colours are Okabe & Ito's, which colour-blind readers can tell apart. Every line also has its own marker and dash,
so that nothing is lost in a grey print. Every title says what to see.
"""

import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)))
_STYLES = [
    {"color": colour, "marker": marker, "ls": dash, "lw": 1.8, "ms": 5}
    for colour, marker, dash in zip(COLOURS, MARKERS, DASHES, strict=True)
]
_DOTTED = {"color": "0.45", "lw": 1, "ls": ":"}
_NOTE = {"fontsize": 8, "color": "0.35"}
_LEGEND = {"fontsize": 8, "frameon": False}


def to_png(figure: Figure, **options: object) -> bytes:
    """The figure as a PNG file, the same bytes every time; ``options`` go to ``Figure.savefig``.

    Texts are never set by LaTeX: whoever sets ``text.usetex`` in general need not have it.
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
    figure, axes = _figure(7.2, 4.2, title or describe_scaling(list(groups.values())[-1], list(groups)[-1], chance))
    low, high = trained_loops
    axes.axvspan(low * 0.93, high * 1.07, color="0.88", zorder=0)
    axes.annotate("loops in training", (high * 1.1, 0.04), xycoords=("data", "axes fraction"), va="center", **_NOTE)
    axes.axhline(chance, **_DOTTED)
    right = {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
    axes.annotate(f"chance\n{chance:.3f}", (1.01, chance), va="center", **right, **_NOTE)
    lines = {name: [(r["n_loops"], r["accuracy"], r["low"], r["high"]) for r in rows] for name, rows in groups.items()}
    _draw_bands(axes, lines, alpha=0.2, lw=0)
    axes.set(ylim=(-0.02, 1.05), xlabel="loops at inference", ylabel="accuracy (share of chains)")
    axes.legend(loc="best", fontsize=9, frameon=False)
    return figure


def describe_scaling(rows: Sequence[dict], name: str, chance: float) -> str:
    """One sentence on what more loops do to this group."""
    rows = sorted(rows, key=lambda row: row["n_loops"])
    first, last, best = rows[0], rows[-1], max(rows, key=lambda row: row["accuracy"])
    if best["accuracy"] < chance + 0.1:
        return f"{name}: near chance at every loop count"
    text = f"{name}: {first['accuracy']:.2f} at {first['n_loops']} loop{'s' * (first['n_loops'] != 1)}, "
    few = best["accuracy"] - first["accuracy"] < 0.1
    text += "more loops add little" if few else f"{best['accuracy']:.2f} at {best['n_loops']}"
    falls = best["accuracy"] - last["accuracy"] > 0.05
    return f"{text}, {'and down to' if falls else 'still'} {last['accuracy']:.2f} at {last['n_loops']}"


def loops_by_length(
    rows: Sequence[dict], *, needed: Mapping[int, int] | None = None, title: str | None = None
) -> Figure:
    """Heat map of accuracy, loops across and digits up; a line marks the loops ``needed`` by length."""
    lengths, counts = ({row[key] for row in rows} for key in ("n_digits", "n_loops"))
    said = "Right of the line information can reach the end of the chain" if needed else "Accuracy by loops and length"
    figure, axes = _figure(1.9 + 0.55 * len(counts), 1.6 + 0.34 * len(lengths), title or said)
    for (i, j), accuracy in np.ndenumerate(_draw_map(axes, rows, needed)):
        if np.isfinite(accuracy):
            colour = "black" if accuracy > 0.55 else "white"
            axes.text(j, i, f"{accuracy:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(axes.images[0], ax=axes, label="accuracy")
    return figure


def frontier(panels: Mapping[str, tuple[Sequence[dict], Mapping[int, int]]], *, title: str) -> Figure:
    """The same heat map of several models side by side: name → rows, and loops ``needed`` by length."""
    if not panels:
        raise ValueError("panels must hold at least one model")
    figure, many = _panels(1.5 + 3.0 * len(panels), 3.9, 1, len(panels))
    for axes, (name, (rows, needed)) in zip(many[0], panels.items(), strict=True):
        _draw_map(axes, rows, needed, every=4)
        axes.set_title(name, fontsize=10)
        axes.label_outer()
    figure.colorbar(axes.images[0], ax=many, label="accuracy")
    figure.suptitle(title, fontsize=11)
    return figure


def fewest_loops(
    found: Mapping[str, Mapping[int, int]], needed: Mapping[str, Mapping[int, int]], *, trained: Mapping[str, int],
    title: str,
) -> Figure:  # fmt: skip
    """Loops against chain length, both logarithmic: ``found`` as points, ``needed`` as lines, name → {length: loops}.

    Points up to the length in ``trained`` are hollow.
    """
    if not found or len(found) > len(COLOURS) or not found.keys() == needed.keys() == trained.keys():
        raise ValueError(f"found, needed and trained must hold the same 1 to {len(COLOURS)} names")
    figure, axes = _figure(7.2, 4.0, title)
    for name, style in zip(found, _STYLES, strict=False):
        axes.plot(*zip(*sorted(needed[name].items()), strict=True), **style | {"marker": ""})
        for beyond in (False, True):
            points = [pair for pair in sorted(found[name].items()) if (pair[0] > trained[name]) == beyond]
            fill = {} if beyond else {"mfc": "white"}
            label = name if beyond else None
            axes.plot([n for n, _ in points], [t for _, t in points], label=label, **style | {"ls": "", "ms": 6} | fill)
    axes.set(xscale="log", yscale="log", xlabel="length of the chain (log scale)", ylabel="loops (log scale)")
    ticks = {"xticks": (2, 8, 32, 128, 512), "yticks": (1, 2, 4, 8, 16, 32, 64, 128)}
    axes.set(**ticks, **{f"{key[0]}ticklabels": [str(n) for n in values] for key, values in ticks.items()})
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=len(found), **_LEGEND)
    return figure


def length_generalisation(
    lines: Mapping[str, Mapping[int, Sequence[float]]], *, trained: int, chance: float, title: str
) -> Figure:
    """Accuracy against chain length. ``lines`` maps a name to {length: one accuracy per seed}.

    A line is the mean over seeds, its band goes from the worst seed to the best. Lengths up to ``trained`` are shaded.
    """
    if not lines or len(lines) > len(COLOURS):
        raise ValueError(f"lines must hold 1 to {len(COLOURS)} names, not {len(lines)}")
    figure, axes = _figure(7.2, 4.2, title)
    axes.axvspan(trained * 0.7, trained, color="0.88", zorder=0)
    axes.axhline(chance, **_DOTTED)
    above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    axes.annotate("chance", (max(n for line in lines.values() for n in line), chance), **above)
    axes.annotate("trained", (trained * 0.95, 0.02), ha="right", **_NOTE)
    points = {name: [(n, sum(a) / len(a), min(a), max(a)) for n, a in line.items()] for name, line in lines.items()}
    _draw_bands(axes, points, alpha=0.15)
    axes.set(ylim=(0, 1.05), xlabel="length of the chain (log scale)", ylabel="accuracy, mean and range over seeds")
    figure.legend(loc="outside lower center", ncols=3, **_LEGEND)
    return figure


def ladder(rungs: Mapping[str, Mapping[str, Sequence[float]]], *, chance: float, title: str) -> Figure:
    """One row per setting, from the top; per question a point for each seed and a larger one for the mean.

    ``rungs`` maps a setting to {question: one accuracy per seed}.
    """
    if not rungs:
        raise ValueError("there are no rungs to draw")
    questions = list(dict.fromkeys(question for asked in rungs.values() for question in asked))
    figure, axes = _figure(7.6, 1.4 + 0.34 * len(rungs), title, loc="left")
    axes.axvline(chance, **_DOTTED)
    for index, (question, style) in enumerate(zip(questions, _STYLES, strict=False)):
        for row, asked in enumerate(rungs.values()):
            seeds, y = asked[question], row + 0.16 * (index - (len(questions) - 1) / 2)
            axes.plot(seeds, [y] * len(seeds), **style | {"ls": "", "ms": 3, "alpha": 0.5})
            label = question if row == 0 else None
            axes.plot([sum(seeds) / len(seeds)], [y], label=label, **style | {"ls": "", "ms": 7})
    axes.set(yticks=range(len(rungs)), yticklabels=list(rungs), axisbelow=True)
    axes.set(xlim=(0, 1.03), xlabel="accuracy; small points are seeds, large ones their mean")
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside lower center", ncols=len(questions), **_LEGEND)
    return figure


def gain_and_accuracy(
    points: Mapping[str, Sequence[tuple[float, float]]], *, chance: float, asked: str, title: str
) -> Figure:
    """Every run a point, name → (gain of a small error along the chain, accuracy on ``asked``)."""
    figure, axes = _figure(7.2, 3.8, title)
    axes.axhline(chance, **_DOTTED)
    axes.axvline(1, **_DOTTED)
    axes.annotate("errors grow", (1.2, 1.04), **_NOTE)
    right = {"xycoords": ("axes fraction", "data"), "xytext": (2, 3), "textcoords": "offset points", "ha": "right"}
    axes.annotate("chance", (1, chance), **right, **_NOTE)
    _draw(axes, {name: zip(*pairs, strict=True) for name, pairs in points.items()}, ls="", ms=6, alpha=0.7)
    axes.set(ylim=(0, 1.1), ylabel=f"accuracy, {asked}")
    axes.set(xscale="log", xlabel="highest gain of a small error over 8 digits (log scale)")
    axes.legend(loc="center left", **_LEGEND)
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
    decay, radius = records[-1]["decay_radius"], radii[trained - 1]
    said = f"Training ends at ρ(Ā) = {decay:.2f}; after it the whole loop's radius at loop {trained} is {radius:.2f}, "
    figure, panels = _panels(9.6, 6.4, 2, 2)
    figure.suptitle(title or said + ("above 1" if radius >= 1 else "below 1"), fontsize=11)

    shown = [records[i] for i in sorted({0, (len(records) - 1) // 2, len(records) - 1})]
    of_loop = list(zip(*(record["residuals"] for record in records), strict=True))
    steps, decays, last_radii = ([r[key] for r in records] for key in ("step", "decay_radius", "jacobian_radius"))
    loops, later_loops, every = range(1, trained + 1), range(1, len(radii) + 1), max(1, len(steps) // 10)
    _draw(panels[0, 0], {f"step {r['step']}": (loops, r["residuals"]) for r in shown})
    _draw(panels[0, 1], {"first loop": (steps, of_loop[0]), "last loop": (steps, of_loop[-1])}, markevery=every)
    _draw(panels[1, 0], {"ρ(J), whole loop, after training": (later_loops, radii)}, _STYLES[1:])
    lines = {"ρ(Ā), injection alone": (steps, decays), "ρ(J), whole loop, last": (steps, last_radii)}
    _draw(panels[1, 1], lines, markevery=every)

    panels[0, 0].set_title("How much each loop changes the state", fontsize=10)
    panels[0, 0].set(xlabel="loop", xticks=loops)
    panels[1, 0].set_title("Whole loop: below 1 small errors die out", fontsize=10)
    panels[1, 0].set(xlabel="loop", xticks=later_loops)
    for axes in panels[:, 1]:
        axes.set_title("… over training, weights before averaging", fontsize=10)
        axes.set_xlabel("training step")
    for top, bottom in panels.T:
        top.set(yscale="log", ylabel="relative residual")
        bottom.axhline(1, **_DOTTED)
        bottom.set_ylabel("spectral radius")
    for axes in panels.flat:
        axes.legend(**_LEGEND)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _panels(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _figure(width: float, height: float, title: str, **where: str) -> tuple[Figure, Axes]:
    figure, ((axes,),) = _panels(width, height, 1, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11, **where)
    return figure, axes


def _draw(axes: Axes, lines: Mapping[str, Iterable[Sequence]], styles: Sequence[dict] = _STYLES, **look) -> None:
    """Named lines, (x, y) each, each in a style of its own."""
    for (name, line), style in zip(lines.items(), styles, strict=False):
        axes.plot(*line, label=name, **style | look)


def _draw_bands(axes: Axes, lines: Mapping[str, Sequence[tuple]], **band: float) -> None:
    """A line through each name's points (x, y, low, high) and a band from low to high, on a logarithmic axis."""
    for (name, points), style in zip(lines.items(), _STYLES, strict=False):
        x, middle, low, high = zip(*sorted(points), strict=True)
        axes.plot(x, middle, label=name, **style)
        axes.fill_between(x, low, high, color=style["color"], **band)
    ticks = sorted({x for points in lines.values() for x, *_ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, ticks)
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_map(axes: Axes, rows: Sequence[dict], needed: Mapping[int, int] | None, every: int = 1) -> np.ndarray:
    """The grid that is drawn, lengths by loop counts; one loop count in ``every`` is named."""
    lengths, counts = (sorted({row[key] for row in rows}) for key in ("n_digits", "n_loops"))
    grid = np.full((len(lengths), len(counts)), np.nan)
    for row in rows:
        grid[lengths.index(row["n_digits"]), counts.index(row["n_loops"])] = row["accuracy"]
    axes.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1)
    if needed:
        edge = np.searchsorted(counts, [needed[n] for n in lengths]) - 0.5
        border = np.arange(len(lengths) + 1) - 0.5
        axes.plot(np.repeat(edge, 2), np.repeat(border, 2)[1:-1], color="#D55E00", lw=2.5)
    axes.set_xticks(range(every - 1, len(counts), every), counts[every - 1 :: every])
    axes.set_yticks(range(len(lengths)), lengths)
    axes.set(xlabel="loops at inference", ylabel="digits in the chain")
    return grid
