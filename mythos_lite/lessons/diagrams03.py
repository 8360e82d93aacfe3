"""Diagrams of lesson 3."""

from itertools import pairwise

from matplotlib.figure import Figure

from mythos_lite.lessons.drawing import Box, Diagram


def stack_against_loop() -> Figure:
    """Four different blocks, and one block that runs four times."""
    d = Diagram(76, 40, "Four blocks deep: four sets of weights, or one set four times")
    for left, name in ((4, "a stack"), (42, "a loop")):
        d.text(left + 13, 3, name, bold=True)
    stack = [d.box(6, 34, 22, 4, "prelude", kind="token")]
    stack += [d.box(6, 28 - 5 * i, 22, 4, f"block {i + 1}, weights $W_{i + 1}$", kind="weight") for i in range(4)]
    stack.append(d.box(6, 6, 22, 4, "coda", kind="token"))
    loop = [
        d.box(44, 34, 22, 4, "prelude", kind="token"),
        d.box(44, 20, 22, 6, "one block, weights $W$", kind="weight"),
        d.box(44, 6, 22, 4, "coda", kind="token"),
    ]
    for boxes in (stack, loop):
        for lower, upper in pairwise(boxes):
            d.arrow(lower.top, upper.bottom)
    d.arrow((66, 21.5), (66, 24.5), bend=-1.6)
    d.text(71.5, 23, "4 times", size=8)
    d.text(36, 23, "the same depth,\nthe same arithmetic", size=8)
    return d.figure


def overview() -> Figure:
    """Prelude, loop and coda, with the injection and the shapes."""
    d = Diagram(98, 42, "Prelude once, core n times, coda once; the input e comes in again at every turn")
    tokens = d.box(2, 4, 13, 5, "tokens\n(B, T)", kind="token")
    prelude = d.box(21, 4, 16, 5, "embedding,\nprelude", kind="weight")
    e = d.box(43, 4, 15, 5, "input $e$\n(B, T, D)", kind="token")
    mix = d.box(39, 19, 23, 6, "injection\n$\\bar A \\odot h_t + \\bar B\\,e$", kind="weight")
    core = d.box(68, 19, 13, 6, "core $R$\n(residual inside)", kind="weight", size=8)
    tanh = d.box(86, 19, 9, 6, "tanh", kind="plain")
    state = d.box(61, 32, 20, 5, "state $h_{t+1}$  (B, T, D)", kind="state")
    coda = d.box(33, 32, 16, 5, "coda, norm,\nhead", kind="weight")
    logits = d.box(10, 32, 15, 5, "logits\n(B, T, V)", kind="token")
    d.arrow(tokens.right, prelude.left)
    d.arrow(prelude.right, e.left)
    d.arrow(e.bottom, mix.top, "every turn", kind="token", beside=(6, 0))
    d.arrow(mix.right, core.left)
    d.arrow(core.right, tanh.left)
    d.arrow(tanh.bottom, (81, 34.5), bend=-0.35)
    d.arrow((66, 32), (56, 25), "$h_t$ of the next turn", kind="state", beside=(-10.5, 0.4))
    d.arrow(state.left, coda.right, "after n turns", beside=(0, 1.7))
    d.arrow(coda.left, logits.right)
    d.arrow((43, 8), (39, 21), "once:\n$h_0 = e$", dashed=True, bend=0.45, beside=(-7.5, 0))
    d.text(82, 10, "the same weights at every turn", size=8)
    d.axes.plot([82, 76], [11.5, 18.5], color=d.ink, linewidth=0.9, linestyle=":")  # a pointer; no data flows here
    return d.figure


def news() -> Figure:
    """Who knows of the first digit after how many loops, under a window of two."""
    d = Diagram(84, 46, "News travels one position per loop: who knows of the digit at position 1")
    left, top, size = 26, 8, 4.6
    names = ("START", "3", "5", "6", "2", "0", "4", "EQ")
    rows = ("embedding", "after the prelude", *(f"after loop {t}" for t in range(1, 5)), "after the coda")
    for column, name in enumerate(names):
        d.text(left + size * (column + 0.5), top - 2, name, size=8)
    for row, name in enumerate(rows):
        d.text(left - 1.5, top + size * (row + 0.5), name, size=8, align="right")

    def kind_of(row: int, column: int) -> str:
        if column == 1 + row:
            return "chosen"
        return "state" if 1 <= column <= row else "faint"

    d.grid(left, top, len(rows), len(names), size, kind_of)
    for row in range(6):
        start = (left + size * (row + 1.75), top + size * (row + 0.6))
        d.arrow(start, (left + size * (row + 2.4), top + size * (row + 1.3)))
    d.text(66, 18, "window of 2: a query sees\nitself and the one before", size=8, align="left")
    d.text(66, 36, "6 digits, so 6 steps to EQ:\nprelude 1, coda 1, loops 4", size=8, align="left")
    d.key(left, 43.5, chosen="the news has just arrived", state="known already", faint="unheard of")
    return d.figure


def _unrolled(d: Diagram, y: float, names: list[str], kinds: list[str], left: float = 12) -> list[Box]:
    """Steps of a loop from left to right, one box each, with arrows between them."""
    steps = [
        d.box(left + 14 * i, y, 9, 5, name, kind=kind, size=8)
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    for one, other in pairwise(steps):
        d.arrow(one.right, other.left)
    return steps


def unrolled_cache() -> Figure:
    """The loop unrolled, with what its attention caches: a slot per loop, or one slot for all."""
    d = Diagram(99, 47, "The loop unrolled, and two ways to keep its keys and values")
    names = ["prelude", "loop 1", "loop 2", "loop 3", "…", "loop n", "coda"]
    kinds = ["token", "weight", "weight", "weight", "faint", "weight", "token"]
    steps = _unrolled(d, 12, names, kinds, left=3)
    d.text(34, 4, "$e$, injected at every loop", size=8)
    for step in (*steps[1:4], steps[5]):
        d.arrow((step.middle[0], 6.5), step.top, kind="token")
    d.axes.plot([7.5, 7.5, steps[5].middle[0]], [12, 6.5, 6.5], color="#56B4E9", linewidth=1.2)
    for i, step in enumerate(steps):
        x = step.middle[0] - 4.5
        if i != 4:
            d.arrow(step.bottom, d.box(x, 24, 9, 4, "K, V", kind="cached", size=8).top, kind="cached")
        if i in (0, 6):
            d.box(x, 36.5, 9, 4, "K, V", kind="cached", size=8)
    said = "K, V of the core, overwritten by each loop: the last one stays"
    shared = d.box(17, 36.5, 65, 4, said, kind="cached", size=8)
    for step in (*steps[1:4], steps[5]):
        d.arrow((step.middle[0], 28.2), (step.middle[0], shared.top[1]), kind="cached", dashed=True)
    d.text(63.5, 26, "a slot for\nevery loop", size=8)
    d.text(63.5, 32.5, "or one for all", size=8)
    d.text(49.5, 44, "n + 2 slots for every token above; 3 below, whatever n is", size=8)
    return d.figure


def truncation() -> Figure:
    """All loops forwards, the last k backwards."""
    d = Diagram(99, 34, "All n loops forwards, the last k = 2 backwards")
    names = ["$h_0$", "loop 1", "loop 2", "…", "loop n−1", "loop n", "loss"]
    kinds = ["plain", "faint", "faint", "faint", "state", "state", "chosen"]
    steps = _unrolled(d, 13, names, kinds, left=3)
    e = d.box(30, 2, 30, 4.5, "embedding and prelude give $e$", kind="token", size=8)
    d.arrow((33, 6.5), steps[1].top, bend=0.1)
    d.arrow((38, 6.5), steps[2].top)
    d.arrow((55, 6.5), steps[4].top)
    d.arrow((59, 6.5), steps[5].top)
    for i in (6, 5):
        d.arrow((steps[i].middle[0] - 2, 18.5), (steps[i - 1].middle[0] + 2, 18.5), kind="chosen", bend=-0.5)
    for i in (4, 5):
        d.arrow((steps[i].middle[0] + 2.5, 12.8), (57 + 3 * (i - 4), e.bottom[1] + 0.3), kind="chosen", bend=0.25)
    d.text(27, 24.5, "computed, nothing kept\n(torch.no_grad)", size=8)
    d.text(73, 26, "recorded: the gradient goes through these,\nand through them to e and the prelude", size=8)
    d.key(
        3, 31.5, state="kept for the way back", faint="not kept", chosen="the way of the gradient",
        token="run once, and kept",
    )  # fmt: skip
    return d.figure


def gradient_paths() -> Figure:
    """How far the loss's gradient has to go to the start, to the input and to the weights."""
    d = Diagram(99, 40, "Three gradients: one has to go through every loop, two find a short way")
    names = ["start $h_0$", "loop 1", "loop 2", "…", "loop n−1", "loop n", "loss"]
    kinds = ["chosen", "state", "state", "faint", "state", "state", "plain"]
    steps = _unrolled(d, 17, names, kinds, left=3)
    e = d.box(17, 4, 65, 4.5, "input $e$: the same at every loop", kind="token")
    weights = d.box(17, 31, 65, 4.5, "weights of the core: the same at every loop", kind="weight")
    for i in (1, 2, 4, 5):
        x = steps[i].middle[0]
        d.arrow((x, 16.8), (x, e.bottom[1]), kind="token", dashed=i < 5)
        d.arrow((x, 22.2), (x, weights.top[1]), kind="weight", dashed=i < 5)
    for i in range(6, 0, -1):
        d.arrow((steps[i].left[0], 20.9), (steps[i - 1].right[0], 20.9), kind="chosen", dashed=True)
    d.text(90.5, 12.5, "one loop\nto e", size=8)
    d.text(90.5, 27.5, "one loop\nto the weights", size=8)
    d.text(8, 26.5, "n loops\nto the start", size=8)
    return d.figure


DIAGRAMS = (stack_against_loop, overview, news, unrolled_cache, truncation, gradient_paths)
