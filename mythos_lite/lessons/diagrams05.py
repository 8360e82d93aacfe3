"""Diagrams of lesson 5."""

from matplotlib.figure import Figure

from mythos_lite.lessons.drawing import Diagram


def act_sum() -> Figure:
    """How a token spends its budget of 1 over the loops, and the sum that comes of it."""
    d = Diagram(86, 40, "ACT: a token spends a budget of 1, and the last loop takes the remainder")
    left, scale = 20, 58
    d.text(18, 8, "halting\nprobability", size=8, align="right")
    d.text(18, 16.5, "weight", size=8, align="right")
    x = left
    for t, (weight, p) in enumerate(((0.3, 0.3), (0.45, 0.45), (0.25, 0.4)), start=1):
        width, last = weight * scale, t == 3
        d.box(x, 6, min(p * scale, left + scale + 5 - x), 4, f"$p_{t}$ = {p:g}", kind="plain", dashed=last)
        kind, text = ("chosen", f"R = {weight:g}") if last else ("state", f"{weight:g}")
        box = d.box(x, 14.5, width, 4, text, kind=kind)
        state = d.box(box.middle[0] - 5, 26, 10, 4, f"state $h_{t}$", kind="state")
        d.arrow(state.top, box.bottom)
        x += width
    d.text(left, 3, "loop 1", size=8, align="left")
    d.text(left + 0.3 * scale, 3, "loop 2", size=8, align="left")
    d.text(left + 0.75 * scale, 3, "loop 3: would overspend", size=8, align="left")
    d.arrow((left + scale, 12), (left + scale, 14.5))
    d.text(left + scale, 12.2 - 0.9, "1", size=8)
    d.text(left + scale + 1.5, 16.5, "loop 4: 0", size=7, align="left")
    d.text(43, 35, "output = .3 $h_1$ + .45 $h_2$ + .25 $h_3$   (B, T, D)", size=10)
    return d.figure


def breaking_a_stick() -> Figure:
    """How a gate's chances make a distribution over loops, and priors to hold it to."""
    d = Diagram(100, 50, "A gate opens or stays shut after every loop; a prior says how often it should")
    for t in range(1, 5):
        x = 4 + 24 * (t - 1)
        loop = d.box(x, 4, 12, 5, f"loop {t}", kind="state")
        halts = (
            "$p_1 = \\lambda_1$",
            "$p_2 = (1-\\lambda_1)\\,\\lambda_2$",
            "$p_3 = (1-\\lambda_1)(1-\\lambda_2)\\,\\lambda_3$",
            "$p_4$: the rest",
        )
        halt = d.box(x - 3.5, 16, 19, 5, halts[t - 1], kind="chosen", size=8)
        d.arrow(loop.bottom, halt.top, f"$\\lambda_{t}$ opens" if t < 4 else "in any case", beside=(5.2, 0))
        if t < 4:
            d.arrow(loop.right, (x + 24, 6.5), f"$1-\\lambda_{t}$")
    panels = (
        ("geometric prior (PonderNet)", "plain", [*(0.2 * 0.8**t for t in range(7)), 0.8**7]),
        ("even prior (Ouro)", "plain", [0.125] * 8),
        ("what a gate makes of it", "chosen", [0, 0, 0, 0.02, 0.3, 0.28, 0.22, 0.18]),
    )
    for i, (name, kind, heights) in enumerate(panels):
        x = 5 + 33 * i
        d.text(x + 12, 27, name, size=9)
        for t, height in enumerate(heights):
            if height:
                d.box(x + 3 * t, 44 - 45 * height, 2.7, 45 * height, kind=kind)
        d.text(x + 1.3, 46, "1", size=8)
        d.text(x + 22.3, 46, "8", size=8)
        d.text(x + 12, 46, "loop", size=8)
    return d.figure


def exit_in_the_loop() -> Figure:
    """Where an exit policy sits in the loop, and what it sees of a sequence."""
    d = Diagram(100, 46, "An exit policy: look after every loop, go round again until all positions rest")
    prelude = d.box(3, 6, 13, 5, "prelude", kind="weight")
    core = d.box(24, 6, 14, 5, "core", kind="weight")
    state = d.box(46, 6, 16, 5, "state $h_t$\n(B, T, D)", kind="state")
    coda = d.box(70, 6, 13, 5, "coda, head", kind="weight")
    d.box(70, 18, 22, 5, "answers of all positions\n(B, T, V)", kind="token", size=8)
    d.arrow(prelude.right, core.left, "e")
    d.arrow(core.right, state.left)
    d.arrow(state.right, coda.left, "look")
    d.arrow(coda.bottom, (76.5, 18))
    d.text(24, 28.5, "how far each position moved since the loop before", size=8, align="left")
    rests = (True, True, True, False, False, True, False)
    d.grid(24, 30.5, 1, 7, 5, lambda row, column: "faint" if rests[column] else "chosen")
    for column, name in enumerate(("START", "3", "5", "6", "2", "0", "EQ")):
        d.text(26.5 + 5 * column, 37, name, size=8)
    d.arrow((81, 23), (60, 31.5), "variation or divergence", kind="plain", beside=(9.5, 0.8))
    d.arrow((50, 11), (42, 27.3), "or: movement\nof the state", dashed=True, beside=(-7, 0))
    d.box(3, 17, 18, 6, "policy: largest change\nquiet for long enough?", kind="cached", size=8)
    d.arrow((24, 33), (12, 23), "largest", beside=(-5, 1.5))
    d.arrow((15, 17), (27, 11), "no: next loop", beside=(8.5, 0.6))
    d.text(3, 41, "yes: read the answer out and stop", size=8, align="left")
    d.arrow((7, 23), (7, 40))
    d.key(46, 42.5, chosen="still moves", faint="rests")
    return d.figure


DIAGRAMS = (act_sum, breaking_a_stick, exit_in_the_loop)
