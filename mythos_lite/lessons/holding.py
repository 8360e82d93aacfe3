"""Keep tokens at the experts that they had in one loop.

The model has no support for it. While it lasts, ``SparseMoE.choose`` and ``RecurrentDepthTransformer.loop_map`` are
replaced, for all models; those that are not held run as before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torch import Tensor

from mythos_lite.checks import check_int
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.moe import SparseMoE

_choose, _loop_map = SparseMoE.choose, RecurrentDepthTransformer.loop_map
_holds: list[_Hold] = []
"""Those that last at the moment, the innermost last."""
_entering = threading.Lock()
_here = threading.local()
"""``loop``: the number of the loop, from 0, that this thread is running; ``None`` or missing outside."""


class _Hold(threading.local):
    """Which layers are held, from which loop on, and the experts that their tokens had last, in each thread."""

    def __init__(self, layers: set[SparseMoE], from_loop: int) -> None:
        self.layers, self.from_loop = layers, from_loop
        self.last: dict[SparseMoE, tuple[int, Tensor]] = {}  # loop and experts

    def choose(self, layer: SparseMoE, chosen: Tensor, loop: int) -> Tensor:
        """The experts that this layer's tokens are sent to in ``loop``, where ``chosen`` is what they would choose."""
        if loop >= self.from_loop:
            before, held = self.last.get(layer, (None, chosen))
            if before != loop - 1 or held.shape != chosen.shape:
                raise ValueError(
                    f"hold_experts does not know these tokens' experts of loop {loop}; run them through the loop "
                    "from its start, one batch after the other"
                )
            chosen = held
        self.last[layer] = loop, chosen
        return chosen


def _held_choose(layer: SparseMoE, scores: Tensor) -> Tensor:
    chosen, loop = _choose(layer, scores), getattr(_here, "loop", None)
    hold = next((hold for hold in reversed(_holds) if layer in hold.layers), None)
    return chosen if hold is None or loop is None else hold.choose(layer, chosen, loop)


def _held_loop_map(model: RecurrentDepthTransformer, h: Tensor, e: Tensor, t: int, *others, **more):
    _here.loop = t
    try:
        return _loop_map(model, h, e, t, *others, **more)
    finally:
        _here.loop = None


@contextlib.contextmanager
def hold_experts(model: RecurrentDepthTransformer, from_loop: int) -> Iterator[None]:
    """While it lasts, every token keeps from ``from_loop`` on the experts that it had in that loop.

    ``with hold_experts(model, 8): model(token_ids, n_loops=16)``. The weights of the experts may still change. Each
    pass through the loop starts anew, and each thread has its own. It holds for the layers of ``model`` itself, not
    for copies of them; of two that are nested the inner one counts.

    Raises:
        ValueError: if ``model`` has no sparse layer, or ``from_loop`` is below 1; within, for a pass that does not
            begin at the first loop.
    """
    from_loop = check_int("from_loop", from_loop, 1)
    layers = {layer for layer in model.modules() if isinstance(layer, SparseMoE)}
    if not layers:
        raise ValueError("hold_experts needs a model with routed experts; this one has none (n_experts is 0)")
    hold = _Hold(layers, from_loop)
    with _entering:
        _holds.append(hold)
        SparseMoE.choose, RecurrentDepthTransformer.loop_map = _held_choose, _held_loop_map
    try:
        yield
    finally:
        with _entering:
            _holds.remove(hold)
            if not _holds:
                SparseMoE.choose, RecurrentDepthTransformer.loop_map = _choose, _loop_map
