"""Diagrams: boxes, arrows and grids in one style, for light and dark pages.

A diagram is drawn in units of a tenth of an inch, x to the right and y *down*, so that a size given here is the size
on the page. What a box stands for shows in its colour, the same in all lessons (``KINDS``); each kind also has a
hatch or an edge of its own where colours alone would not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

KINDS = {
    "plain": ("#888888", 0.12),
    "token": ("#56B4E9", 0.35),
    "weight": ("#009E73", 0.30),
    "state": ("#0072B2", 0.45),
    "cached": ("#E69F00", 0.55),
    "chosen": ("#D55E00", 0.55),
    "expert": ("#CC79A7", 0.40),
    "faint": ("#888888", 0.0),
}
"""Colour of a kind of box, and how strongly it fills: a token or an input, weights, a state or activation, what is
cached, what is chosen or changed, an expert, what is left out."""


class Box(NamedTuple):
    """Where a box lies: its middle, and the middles of its sides."""

    middle: tuple[float, float]
    left: tuple[float, float]
    right: tuple[float, float]
    top: tuple[float, float]
    bottom: tuple[float, float]


class Diagram:
    """A figure of ``width`` × ``height`` tenths of an inch with a title; its methods draw into it."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.figure: Figure = plt.figure(figsize=(width / 10, height / 10))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.axes.set_title(title, fontsize=11, pad=8)
        self.ink, self.page = plt.rcParams["text.color"], plt.rcParams["figure.facecolor"]

    def box(
        self, x: float, y: float, width: float, height: float, text: str = "", *, kind: str = "plain", size: float = 9,
        dashed: bool = False,
    ) -> Box:  # fmt: skip
        """A box with its upper left corner at x, y and a text in its middle, which must fit."""
        colour, strength = KINDS[kind]
        patch = FancyBboxPatch(
            (x + 0.3, y + 0.3), width - 0.6, height - 0.6, boxstyle="round,pad=0.3,rounding_size=0.5",
            facecolor=self._mixed(colour, strength), edgecolor=colour, linewidth=1.1, linestyle="--" if dashed else "-",
        )  # fmt: skip
        self.axes.add_patch(patch)
        middle = (x + width / 2, y + height / 2)
        if text:
            self.text(*middle, text, size=size).set_gid(f"{x},{y},{width},{height}")
        return Box(middle, (x, middle[1]), (x + width, middle[1]), (middle[0], y), (middle[0], y + height))

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], text: str = "", *, kind: str = "plain",
        bend: float = 0.0, dashed: bool = False, size: float = 8, beside: tuple[float, float] = (0.0, -1.2),
    ) -> None:  # fmt: skip
        """An arrow; ``bend`` curves it (positive: to its right), ``text`` stands ``beside`` its middle."""
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=9, linewidth=1.2, linestyle="--" if dashed else "-",
                color=self.ink if kind == "plain" else KINDS[kind][0], connectionstyle=f"arc3,rad={bend}",
                shrinkA=1, shrinkB=1,
            )
        )  # fmt: skip
        if text:
            self.text((start[0] + end[0]) / 2 + beside[0], (start[1] + end[1]) / 2 + beside[1], text, size=size)

    def text(
        self, x: float, y: float, text: str, *, size: float = 9, align: str = "center", bold: bool = False,
        colour: str | None = None,
    ):  # fmt: skip
        """Words at a place: their middle there, or with ``align`` their left or right end."""
        return self.axes.text(
            x, y, text, fontsize=size, ha=align, va="center", color=colour or self.ink,
            fontweight="bold" if bold else "normal", linespacing=1.15,
        )  # fmt: skip

    def grid(
        self, x: float, y: float, rows: int, columns: int, size: float, kind_of: Callable[[int, int], str],
        text_of: Callable[[int, int], str] | None = None,
    ) -> None:  # fmt: skip
        """Square cells of side ``size``: ``kind_of(row, column)`` colours one, ``text_of`` writes into it."""
        for row in range(rows):
            for column in range(columns):
                colour, strength = KINDS[kind_of(row, column)]
                corner = (x + column * size, y + row * size)
                face = self._mixed(colour, strength)
                self.axes.add_patch(Rectangle(corner, size, size, facecolor=face, edgecolor=colour, linewidth=0.8))
                if text_of is not None:
                    self.text(corner[0] + size / 2, corner[1] + size / 2, text_of(row, column), size=min(8, 3 * size))

    def key(self, x: float, y: float, **kinds: str) -> None:
        """What the colours mean, from x, y to the right: ``key(2, 30, cached="kept in the cache")``."""
        for kind, words in kinds.items():
            self.box(x, y - 0.8, 1.6, 1.6, kind=kind)
            self.text(x + 2.2, y, words, size=8, align="left")
            x += 4.5 + 0.72 * len(words)

    def _mixed(self, colour: str, strength: float) -> tuple[float, ...]:
        """The colour over the page, ``strength`` of it; opaque, so that what lies behind does not shine through."""
        return tuple(strength * c + (1 - strength) * p for c, p in zip(to_rgb(colour), to_rgb(self.page), strict=True))
