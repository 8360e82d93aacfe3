"""Diagrams of lesson 6."""

from matplotlib.figure import Figure

from mythos_lite.lessons.drawing import Diagram

DIGITS = (3, 5, 6, 2, 4, 1)
"""The chain that the diagrams add up; its running sums are 3, 1, 0, 2, 6, 0."""


def _heard(first: int, last: int) -> str:
    """The tokens from one position to another, START being position 0."""
    name = "START" if first <= 0 else f"d{first}"
    return name if first == last else f"{name}–d{last}"


def news_travels() -> Figure:
    """Of which tokens each state has heard after each loop, for five digits, and what the read-out at EQ hears."""
    n, left, width, height = 5, 9, 9.5, 4.6
    diagram = Diagram(left + width * (n + 1) + 33, 38.5, "News travels one position a loop: a chain of five digits")
    for p in range(n + 1):
        name = "START" if p == 0 else f"d{p}"
        diagram.box(left + p * width + 1.2, 2, width - 2.4, 3.6, name, kind="token")
    reads = left + (n + 1) * width + 4
    diagram.text(reads + 12, 3.7, "answer at EQ, read by the coda", bold=True)
    for t in range(n):
        y = 7.5 + t * (height + 0.6)
        diagram.text(left - 1, y + height / 2, "prelude" if t == 0 else f"loop {t}", align="right")
        for p in range(n + 1):
            first = max(0, p - t - 1)
            kind = "state" if first == 0 else "plain"
            diagram.box(left + p * width + 0.2, y, width - 0.4, height, _heard(first, p) if p else "START", kind=kind,
                        size=8)  # fmt: skip
        first = n - 1 - t
        said = {1: "all digits", 0: "and where they begin"}.get(first, "too few digits")
        kind = {1: "cached", 0: "chosen"}.get(first, "plain")
        box = diagram.box(reads, y, 11.5, height, _heard(first, n), kind=kind, size=8)
        diagram.arrow((reads - 3.8, y + height / 2), box.left)
        diagram.text(reads + 12.5, y + height / 2, said, size=8, align="left")
    diagram.key(left, 36.5, plain="a part of the chain", state="everything up to here",
                cached="just enough", chosen="one more")  # fmt: skip
    return diagram.figure


def _partial(p: int, t: int) -> int:
    """The sum, modulo 7, of the digits that position p has heard of after t loops."""
    return sum(DIGITS[max(0, p - t - 2) : p]) % 7


def _is_whole(p: int, t: int) -> bool:
    return p - t - 1 <= 1


def two_orders() -> Figure:
    """The loop, all positions at once, beside one core call per position from left to right."""
    n, size, top = len(DIGITS), 4.4, 9.5
    diagram = Diagram(86, 45, "The same sums in two orders")
    for x, name in ((9, "the loop: every position in every loop"), (53, "left to right: each position once")):
        diagram.text(x + n * size / 2, 2, name, bold=True)
        for p in range(1, n + 1):
            diagram.box(x + (p - 1) * size + 0.5, 4.6, size - 1, 3.6, str(DIGITS[p - 1]), kind="token")

    def of_loop(row: int, column: int) -> str:
        p, t = column + 1, row + 1
        if not _is_whole(p, t):
            return "plain"
        return "chosen" if t == 1 or not _is_whole(p, t - 1) else "cached"

    diagram.grid(9, top, n, n, size, of_loop, lambda row, column: str(_partial(column + 1, row + 1)))
    for t in range(1, n + 1):
        diagram.text(8.3, top + (t - 0.5) * size, f"loop {t}", size=8, align="right")
        diagram.text(52.3, top + (t - 0.5) * size, f"call {t}", size=8, align="right")
        x, y = 53 + (t - 1) * size, top + (t - 1) * size
        diagram.grid(x, y, 1, 1, size, lambda row, column: "chosen", lambda row, column, t=t: str(_partial(t, n)))
        if t < n:
            middle = (x + size, y + size / 2)
            diagram.arrow(middle, (x + 1.5 * size, y + size), kind="state", bend=-0.3)
    diagram.text(9 + n * size / 2, 38.4, "n loops in a row, n positions in each")
    diagram.text(53 + n * size / 2, 38.4, "n calls in a row, one new position in each")
    diagram.key(6, 42.5, plain="a part of the sum", chosen="the whole sum, for the first time", cached="made again")
    return diagram.figure


def probe_and_swap() -> Figure:
    """A probe reads the sum from a state; then a state of another chain is put in the place of one's own."""
    own, other = (3, 5, 6, 2, 4, 1, 6), (1, 0, 4, 2, 4)
    left, width = 13, 8.4
    diagram = Diagram(92, 42, "Reading a state, and exchanging it")

    def chain(y: float, digits: tuple[int, ...], name: str, kinds: str, texts: str, *, tokens_below: bool) -> list:
        state_y, token_y = (y, y + 7) if tokens_below else (y + 7, y)
        diagram.text(left - 1.5, token_y + 2, name, align="right")
        diagram.text(left - 1.5, state_y + 2, "states", align="right")
        boxes = []
        for i, (digit, kind, text) in enumerate(zip(digits, kinds.split(), texts.split(), strict=True)):
            x = left + i * width
            token = diagram.box(x + 1.4, token_y, width - 2.8, 4, str(digit), kind="token")
            state = diagram.box(x + 0.5, state_y, width - 1, 4, f"Σ = {text}", kind=kind, size=8)
            diagram.arrow(*((token.top, state.bottom) if tokens_below else (token.bottom, state.top)))
            if boxes:
                diagram.arrow(boxes[-1].right, state.left)
            boxes.append(state)
        return boxes

    upper = chain(3, other, "another chain", "state state state state chosen", "1 1 5 0 4", tokens_below=False)
    probe = diagram.box(left + 5 * width + 8, 10, 15, 4, "(h, 1) W → 4", kind="weight")
    diagram.arrow(upper[-1].right, probe.left)
    diagram.text(left + 5 * width + 15.5, 7.6, "the probe reads the sum", size=8)
    kinds = "state state state state chosen cached cached"
    lower = chain(23, own, "own chain", kinds, "3 1 0 2 4 ? ?", tokens_below=True)
    diagram.arrow(upper[-1].bottom, lower[4].top, kind="chosen", dashed=True)
    diagram.text(left + 4.5 * width - 1.2, 18.5, "held there in every loop", size=8, align="right")
    answer = diagram.box(left + 7 * width + 4, 23, 13, 4, "answer ?", size=8)
    diagram.arrow(lower[-1].right, answer.left)
    diagram.key(left, 39, state="its own past", chosen="the other chain's past", cached="what follows it")
    return diagram.figure


def doubling() -> Figure:
    """News that goes twice as far in every loop: what has been added up where, of eight digits."""
    digits = (3, 5, 6, 2, 4, 1, 6, 2)
    n, size, left, top = len(digits), 8.2, 15, 10
    diagram = Diagram(left + (n + 1) * size + 4, top + 4 * 9 + 9, "Eight digits in three loops")

    def total(first: int, last: int) -> str:
        return str(sum(digits[max(first, 0) : last + 1]) % 7)

    rows = []
    for t in range(4):
        y = top + t * 9
        name = "digits" if t == 0 else f"loop {t}"
        diagram.text(left - 1.5, y + 2, name, align="right")
        boxes = []
        for i in range(n):
            whole = i - 2**t < 0
            kind = "token" if t == 0 else "chosen" if whole else "state"
            text = str(digits[i]) if t == 0 else total(i - 2**t + 1, i)
            boxes.append(diagram.box(left + i * size + 1, y, size - 2, 4, text, kind=kind))
        rows.append(boxes)
    for t in range(3):
        for i in range(2**t, n):
            diagram.arrow(rows[t][i - 2**t].bottom, rows[t + 1][i].top, kind="state")
        for i in range(n):
            diagram.arrow(rows[t][i].bottom, rows[t + 1][i].top, kind="plain")
    diagram.key(left, top + 4 * 9 + 3, state="a part of the sum", chosen="the whole sum up to here")
    return diagram.figure


DIAGRAMS = (news_travels, two_orders, probe_and_swap, doubling)
