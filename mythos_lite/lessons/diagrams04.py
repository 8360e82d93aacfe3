"""Diagrams of lesson 4: a map and its linearisation, transient growth, where the monitor sits."""

import math

from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from mythos_lite.lessons.drawing import KINDS, Diagram


def _errors(d: Diagram, x: float, y: float, width: float, height: float, angle: float, kind: str) -> None:
    """The outline of all errors of one size around a fixed point at x, y."""
    colour = KINDS[kind][0]
    shape = Ellipse((x, y), width, height, angle=angle, fill=False, edgecolor=colour, linewidth=1.6)
    d.axes.add_patch(shape)
    d.axes.plot(x, y, "o", color=d.ink, markersize=4)


def linearisation() -> Figure:
    """A circle of errors around a fixed point, before the map and after one step and two."""
    d = Diagram(78, 29, "Near a fixed point h* the map is a matrix:  F(h* + δ) ≈ h* + J δ")
    panels = (
        (2, "contracting", "all |λ| < 1: errors die out in the end", ((10, 10, 0), (7.5, 4.5, 25), (5, 2.2, 50))),
        (41, "expanding", "some |λ| > 1: errors along it grow", ((3.4, 3.4, 0), (6.5, 4.2, 25), (11.5, 5.6, 50))),
    )
    for x, name, words, sizes in panels:
        d.text(x + 17.5, 2.5, name, bold=True)
        for step, (size, where) in enumerate(zip(sizes, (5.5, 17.5, 29.5), strict=True)):
            _errors(d, x + where, 13, *size, "state" if step == 0 else "chosen")
            d.text(x + where, 21.5, ("δ", "J δ", "J² δ")[step], size=9)
            if step:
                d.arrow((x + where - 7.6, 21.5), (x + where - 3.6, 21.5), "F", beside=(0, -1.4))
        d.text(x + 17.5, 24.5, words, size=8)
    d.axes.axvline(39.5, ymin=0.2, ymax=0.95, color="0.7", linewidth=0.8)
    d.key(3, 27.8, state="all errors of one size, before", chosen="the same after a step or two")
    d.text(64.5, 27.8, "•  h*, the fixed point", size=8)
    return d.figure


def transient_growth() -> Figure:
    """An error as the sum of two long parts along nearly parallel eigenvectors, at three times."""
    d = Diagram(78, 23, "Every part shrinks, and yet the error grows: eigenvectors that lie close together")
    length, tilt = 21.0, math.radians(12)
    for place, step in enumerate((0, 3, 20)):
        slow, fast = 0.9**step, 0.6**step
        origin = (3 + 26 * place, 14.5)
        middle = (origin[0] + length * slow, origin[1])
        end = (middle[0] - length * fast * math.cos(tilt), middle[1] - length * fast * math.sin(tilt))
        d.text(origin[0] + 10, 2, f"after {step} steps" if step else "at the start", bold=True)
        d.axes.plot(*zip(origin, end, strict=True), color=KINDS["chosen"][0], linewidth=5, alpha=0.6)
        d.arrow(origin, middle, kind="state")
        if fast > 0.01:  # nothing to see of it later
            d.arrow(middle, end, kind="expert")
        size = math.dist(origin, end) / (2 * length * math.sin(tilt / 2))
        d.text(
            origin[0] + 10,
            17.5,
            f"error {size:.1f} times its start" if step else "error: what two long parts leave",
            size=8,
        )
    d.key(3, 21.3, state="part with λ = 0.9", expert="part with λ = 0.6", chosen="the error, their sum")
    return d.figure


def monitor_in_training() -> Figure:
    """A training step above, the monitor's walk along one chain below, and what goes into the monitor."""
    d = Diagram(82, 44, "The monitor: two signals from the training step, two from a walk of its own")
    d.text(1, 3, "a training step", bold=True, align="left")
    batch = d.box(1, 6, 10, 5, "batch\n(B, T)", kind="token", size=8)
    loop = d.box(16, 6, 12, 5, "model,\nn loops", kind="weight", size=8)
    loss = d.box(33, 6, 9, 5, "loss", kind="state", size=8)
    back = d.box(47, 6, 13, 5, "backward:\ngradient", kind="state", size=8)
    step = d.box(66, 6, 14, 5, "optimiser\nmoves weights", kind="weight", size=8)
    for one, other in ((batch, loop), (loop, loss), (loss, back), (back, step)):
        d.arrow(one.right, other.left)
    d.box(44, 18, 22, 6, "Monitor.watch\none record per step", kind="chosen", size=9)
    d.arrow(loss.bottom, (48, 18), "loss", beside=(-3.6, 0.5))
    d.arrow(back.bottom, (54, 18), "gradient norm", beside=(6.6, 0.2))
    d.arrow((66, 20), (73, 11), "alarm: calm", kind="chosen", beside=(7.2, 1.2))
    d.text(1, 26, "its walk", bold=True, align="left")
    states = [d.box(1 + 17 * i, 29, 8, 4, name, kind="state", size=8) for i, name in enumerate(("h₀", "h₁", "h₂"))]
    errors = [d.box(1 + 17 * i, 37, 8, 4, name, kind="cached", size=8) for i, name in enumerate(("v₀", "v₁", "v₂"))]
    for place in range(2):
        d.arrow(states[place].right, states[place + 1].left, "F", beside=(0, -1.3))
        d.arrow(
            errors[place].right, errors[place + 1].left, f"J at h{'₀₁'[place]}, then length 1", size=7, beside=(0, 3.2)
        )
        d.arrow(states[place].bottom, (5 + 17 * place + 8, 38.2), kind="state", dashed=True, bend=0.15)
    d.text(50.5, 31, "…  $h_{n-1}$    $h_n$", size=9)
    d.text(50.5, 39, "…  $v_{n-1}$   $v_n$", size=9)
    d.arrow((52.6, 31), (52.6, 24), "residual", beside=(-4.8, -0.6))
    d.arrow((56.6, 38.2), (62, 24), "growth", beside=(4.6, -1.5))
    d.text(71, 37, "F: one loop\nh: the state of the probe chain\nv: an error carried along", size=8)
    return d.figure


DIAGRAMS = (linearisation, transient_growth, monitor_in_training)
