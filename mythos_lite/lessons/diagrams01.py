"""Diagrams of lesson 1: the loop, who sees whom, shared heads, the two forms of latent attention."""

from matplotlib.figure import Figure

from mythos_lite.lessons.drawing import Box, Diagram


def prelude_loop_coda() -> Figure:
    """The whole model: what runs once, and what is looped."""
    d = Diagram(78, 25, "One block is looped: the same weights in every turn")
    ids = d.box(1, 9, 11, 6, "START 3 5 6 EQ\n(B, T)", kind="token", size=8)
    prelude = d.box(16, 9, 11, 6, "prelude\none block", kind="weight")
    core = d.box(35, 9, 15, 6, "core\none block", kind="weight")
    coda = d.box(58, 9, 9, 6, "coda\none block", kind="weight")
    answer = d.box(70, 9, 7, 6, "answer\n0", kind="token")
    d.arrow(ids.right, prelude.left)
    d.arrow(prelude.right, core.left, "e\n(B, T, D)", beside=(0, -2.4))
    d.arrow(core.right, coda.left, "state h\n(B, T, D)", beside=(0, -2.4))
    d.arrow(coda.right, answer.left)
    d.arrow((48.5, 9), (36.5, 9), kind="state", bend=0.75)
    d.text(42.5, 2.2, "n loops: h goes in again", size=9)
    d.arrow((21.5, 15), (42.5, 15), kind="token", bend=0.3)
    d.text(32, 20.4, "e comes back in every loop (injection)", size=8)
    d.text(60, 20.4, "a block: attention,\nthen a feed-forward network", size=8)
    d.key(2, 23.7, token="tokens, inputs", weight="weights", state="the state")
    return d.figure


def masks() -> Figure:
    """A causal mask and a window of 3, for six tokens."""
    d = Diagram(66, 27, "A mask says which keys (columns) each query (row) may see")
    for x, name, window in ((7, "causal", 6), (40, "causal, window of 3", 3)):
        d.text(x + 9, 1.2, name, bold=True)
        d.grid(
            x, 5, 6, 6, 3,
            lambda row, column, w=window: "state" if 0 <= row - column < w else "faint",
            lambda row, column, w=window: "1" if 0 <= row - column < w else "0",
        )  # fmt: skip
        for place in range(6):
            d.text(x + 1.5 + 3 * place, 3.6, str(place), size=8)
            d.text(x - 1.2, 6.5 + 3 * place, str(place), size=8)
        d.text(x - 4.3, 14, "query", size=8)
        d.text(x + 9, 25, "key", size=8)
    return d.figure


def _heads(d: Diagram, x: float, y: float, n: int, text: str, kind: str, width: float = 3.4) -> list[Box]:
    """A row of ``n`` boxes, spread over the width of four query heads."""
    step = 16 / n
    return [d.box(x + step * (i + 0.5) - width / 2, y, width, 3.6, f"{text}{i}" if n > 1 else text, kind=kind, size=8)
            for i in range(n)]  # fmt: skip


def heads_shared() -> Figure:
    """Four query heads in four variants, and what each keeps of a token."""
    d = Diagram(78, 33, "Four query heads, and what a token leaves in the cache (orange)")
    d.text(3.5, 8.8, "queries", size=8)
    d.text(3.5, 17.8, "keys,\nvalues", size=8)
    d.text(3.5, 25.3, "latent", size=8)
    d.text(3.5, 30, "numbers\nkept", size=8)
    variants = (
        ("multi-head", 4, "2·H·d"),
        ("grouped-query", 2, "2·K·d"),
        ("multi-query", 1, "2·d"),
        ("latent", 0, "R + r"),
    )
    for place, (name, n_kv_heads, numbers) in enumerate(variants):
        x = 8 + 17.6 * place
        d.text(x + 8, 3.6, name, bold=True)
        queries = _heads(d, x, 7, 4, "q", "token")
        if n_kv_heads:
            shared = _heads(d, x, 16, n_kv_heads, "k v", "cached", 3.6 if n_kv_heads > 1 else 5)
        else:
            shared = _heads(d, x, 16, 4, "k v", "plain", 3.6)
            latent = d.box(x + 1, 23.5, 6.5, 3.6, "latent", kind="cached", size=8)
            rotary = d.box(x + 8.5, 23.5, 7, 3.6, "rot. key", kind="cached", size=8)
            for head in shared:
                d.arrow(latent.top, head.bottom)
                d.arrow(rotary.top, head.bottom)
        for index, query in enumerate(queries):
            d.arrow(query.bottom, shared[index * len(shared) // 4].top)
        d.text(x + 8, 30, numbers, bold=True)
    return d.figure


def _inputs(d: Diagram) -> dict[str, Box]:
    """The part that both forms share: from x to queries, latent and rotary key."""
    x = d.box(1, 15, 8, 6, "x\n(T, D)", kind="token")
    q_down = d.box(13, 6, 12, 6, "query_down,\nnorm, query_up", kind="weight", size=8)
    kv_down = d.box(13, 24, 12, 6, "kv_down,\nnorm on latent", kind="weight", size=8)
    d.arrow(x.right, q_down.left)
    d.arrow(x.right, kv_down.left)
    parts = {
        "q_nope": d.box(29, 3, 11, 5, "q without pos.\n(H, T, n)", kind="state", size=8),
        "q_rope": d.box(29, 10, 11, 5, "q rotated\n(H, T, r)", kind="state", size=8),
        "rotary": d.box(29, 21, 11, 5, "rotary key\n(S, r)", kind="cached", size=8),
        "latent": d.box(29, 28, 11, 5, "latent\n(S, R)", kind="cached", size=8),
    }
    d.arrow(q_down.right, parts["q_nope"].left)
    d.arrow(q_down.right, parts["q_rope"].left)
    d.arrow(kv_down.right, parts["rotary"].left)
    d.arrow(kv_down.right, parts["latent"].left)
    d.key(2, 38.5, token="input", weight="weights", state="activations", cached="kept in the cache")
    return parts


def latent_explicit() -> Figure:
    """Latent attention that builds every head's keys and values."""
    d = Diagram(78, 40, "Explicit: every head's keys and values are built from the latent")
    parts = _inputs(d)
    key_up = d.box(43, 24, 8, 4, "key_up", kind="weight", size=8)
    value_up = d.box(43, 31, 8, 4, "value_up", kind="weight", size=8)
    d.arrow(parts["latent"].right, key_up.left)
    d.arrow(parts["latent"].right, value_up.left)
    q = d.box(54, 6, 11, 5, "q\n(H, T, n + r)", kind="state", size=8)
    k = d.box(54, 20, 11, 5, "k\n(H, S, n + r)", kind="state", size=8)
    v = d.box(54, 30.5, 11, 5, "v\n(H, S, v)", kind="state", size=8)
    d.arrow(parts["q_nope"].right, q.left)
    d.arrow(parts["q_rope"].right, q.left)
    d.arrow(parts["rotary"].right, k.left)
    d.arrow(key_up.right, k.left)
    d.arrow(value_up.right, v.left)
    attend = d.box(68, 17, 9, 6, "attend,\nout", kind="plain", size=8)
    for part in (q, k, v):
        d.arrow(part.right, attend.left)
    return d.figure


def latent_absorbed() -> Figure:
    """Latent attention on the latents themselves."""
    d = Diagram(78, 40, "Absorbed: the queries move into the space of the latent")
    parts = _inputs(d)
    key_up = d.box(43, 3.5, 8, 4, "key_up", kind="weight", size=8)
    d.arrow(parts["q_nope"].right, key_up.left)
    q = d.box(54, 7, 11, 5, "q\n(H, T, R + r)", kind="state", size=8)
    d.arrow(key_up.right, q.left)
    d.arrow(parts["q_rope"].right, q.left)
    k = d.box(54, 20, 11, 5, "one key head\n(1, S, R + r)", kind="cached", size=8)
    v = d.box(54, 29, 11, 5, "values: latent\n(1, S, R)", kind="cached", size=8)
    d.arrow(parts["rotary"].right, k.left)
    d.arrow(parts["latent"].right, k.left)
    d.arrow(parts["latent"].right, v.left)
    attend = d.box(68, 15, 9, 5, "attend\n(H, T, R)", kind="plain", size=8)
    up = d.box(68, 23, 9, 5, "value_up,\nout", kind="weight", size=8)
    for part in (q, k, v):
        d.arrow(part.right, attend.left)
    d.arrow(attend.bottom, up.top)
    return d.figure


DIAGRAMS = (prelude_loop_coda, masks, heads_shared, latent_explicit, latent_absorbed)
