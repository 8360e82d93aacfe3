"""Diagrams of lesson 2."""

import itertools

from matplotlib.figure import Figure

from mythos_lite.lessons.drawing import Diagram


def draw_layer() -> Figure:
    """One token through the layer: router, two chosen experts of six, the shared one, the weighted sum."""
    diagram = Diagram(84, 45, "One token, its two experts out of six, and the expert that all tokens share")
    x = diagram.box(1, 18, 9, 6, "token x\n(D,)", kind="token")
    router = diagram.box(16, 3, 15, 6, "router\nD × E weights", kind="weight")
    scores = (0.31, 0.74, 0.12, 0.66, 0.25, 0.40)
    chosen = (1, 3)
    diagram.grid(
        36, 4, 1, 6, 4,
        lambda _, i: "chosen" if i in chosen else "state",
        lambda _, i: f"{scores[i]:.2f}",
    )  # fmt: skip
    diagram.text(48, 2.3, "scores (E,): sigmoid of six numbers", size=8)
    diagram.arrow((x.middle[0], x.top[1]), router.left, bend=-0.2)
    diagram.arrow(router.right, (36, 6))
    diagram.text(62, 5.0, "the largest k = 2 of score + bias\nare chosen; their weights are", size=8, align="left")
    diagram.text(62, 9.6, "0.74 / 1.40 = 0.53\n0.66 / 1.40 = 0.47", size=8, align="left")
    total = diagram.box(66, 21, 9, 6, "sum\n(D,)", kind="state")
    for i in range(6):
        is_chosen = i in chosen
        top = 12 + 4.2 * i
        expert = diagram.box(
            36, top, 16, 3.4, f"expert {i}" + (": D → F → D" if is_chosen else ""),
            kind="expert" if is_chosen else "faint", dashed=not is_chosen, size=8,
        )  # fmt: skip
        if is_chosen:
            diagram.arrow(x.right, expert.left)
            diagram.arrow(expert.right, total.left)
            share = ("× 0.53", "× 0.47")[chosen.index(i)]
            diagram.text(57.5, expert.middle[1] + (0 if i == 1 else 1.5), share, size=8)
    shared = diagram.box(36, 38, 16, 3.4, "shared expert", kind="weight", size=8)
    diagram.arrow((x.middle[0], x.bottom[1]), shared.left, bend=0.15)
    diagram.arrow(shared.right, (total.middle[0], total.bottom[1]), bend=0.15)
    diagram.text(64.5, 38.9, "always, × 1", size=8)
    y = diagram.box(78.5, 21, 5, 6, "y\n(D,)", kind="token", size=8)
    diagram.arrow(total.right, y.left)
    return diagram.figure


def draw_dispatch() -> Figure:
    """Five tokens with two choices each queue for three experts with three places; two choices are dropped."""
    diagram = Diagram(84, 38, "Three places per expert: first choices queue first, and who comes too late is dropped")
    choices = ("A B", "A C", "B A", "A C", "A B")
    diagram.text(6, 3, "token", size=8)
    diagram.text(16, 3, "1st", size=8)
    diagram.text(21, 3, "2nd", size=8)
    dropped = {(2, 1), (4, 0)}
    for token, pair in enumerate(choices):
        top = 5 + 5 * token
        diagram.box(2, top, 8, 4, f"token {token + 1}", kind="token", size=8)
        for place, expert in enumerate(pair.split()):
            gone = (token, place) in dropped
            diagram.box(14 + 5 * place, top, 4, 4, expert, kind="faint" if gone else "chosen", dashed=gone, size=8)
    queues = {"A": "124", "B": "315", "C": "24 "}
    late = {"A": "5 (1st), then 3 (2nd)", "B": "", "C": ""}
    diagram.arrow((25, 16), (33, 16), "dispatch", beside=(0, -1.6))
    diagram.text(52, 3, "places in the queue, capacity 3", size=8)
    diagram.text(72, 3, "no place left", size=8)
    for row, (name, queue) in enumerate(queues.items()):
        top = 5 + 9 * row
        expert = diagram.box(34, top, 9, 6, f"expert {name}", kind="expert", size=8)
        diagram.grid(
            46, top + 0.5, 1, 3, 5,
            lambda _, place, queue=queue: "token" if queue[place] != " " else "faint",
            lambda _, place, queue=queue: queue[place],
        )  # fmt: skip
        diagram.arrow((46, expert.middle[1]), expert.right)
        if late[name]:
            diagram.text(72.5, expert.middle[1], late[name], size=8)
    diagram.text(
        2, 33.5, "Tokens 3 and 5 go on with one expert each: the weight of the other choice is 0. Expert C computes an "
        "empty place.", size=8, align="left",
    )  # fmt: skip
    diagram.key(14, 36.2, chosen="has a place", faint="dropped, or empty")
    return diagram.figure


def draw_lanes() -> Figure:
    """One token in four loops on a road of four lanes, its experts; it changes one lane when news arrives."""
    diagram = Diagram(78, 38, "The same router is asked in every loop, about a state that has changed in between")
    pairs = ((0, 2), (0, 2), (1, 2), (1, 2))
    diagram.text(6, 7, "state of\none token", size=8)
    states = [diagram.box(13 + 14 * loop, 5, 7, 4.5, f"h{loop}", kind="state", size=9) for loop in range(5)]
    for loop, (before, after) in enumerate(itertools.pairwise(states)):
        diagram.arrow(before.right, after.left, f"loop {loop + 1}", beside=(0, -1.5))
    diagram.text(6, 13, "router", size=8)
    for expert in range(4):
        diagram.text(6, 17.5 + 4 * expert, f"expert {expert}", size=8)
    for loop, pair in enumerate(pairs):
        left = 21.2 + 14 * loop
        router = diagram.box(left - 1.2, 11.2, 8, 3, "same W", kind="weight", size=8)
        diagram.arrow((states[loop].middle[0] + 1, states[loop].bottom[1]), router.left, bend=0.2)
        for expert in range(4):
            kind = "chosen" if expert in pair else "faint"
            diagram.box(left, 15.8 + 4 * expert, 5.6, 3.4, kind=kind, dashed=kind == "faint")
    diagram.arrow((26.8 + 14, 17.5), (21.2 + 28, 21.5), kind="chosen")
    diagram.text(44.9, 33.6, "a change of lanes: the set {0, 2} becomes {1, 2}", size=8)
    diagram.arrow((45, 32.6), (45, 21.5), dashed=True)
    diagram.key(14, 36.2, chosen="the experts used in this loop", weight="one set of weights")
    return diagram.figure


DIAGRAMS = (draw_layer, draw_dispatch, draw_lanes)
