"""What attention remembers while a sequence grows.

In a loop a layer number does not name a set of keys: the core attends once per loop and each time
to other states. Entries are therefore keyed by (stage, layer, loop).

Layers write during a forward pass; the model advances the cache once, after it. What was written
but not advanced does not count: a pass that failed half-way, or that read the coda out after every
loop, leaves no trace.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mythos_lite.config import ModelConfig


class CacheKey(NamedTuple):
    stage: str
    """``"prelude"``, ``"core"`` or ``"coda"``"""
    layer: int
    loop: int = 0


class Cache:
    """Tensors per (stage, layer, loop), each with positions on its second-last axis.

    ``length`` is the number of positions seen; ``config``, ``n_loops`` and ``batch_size`` are those that
    it is filled for, ``None`` before its first use. ``loops_run`` is the most loops that were really run
    for one of its tokens, fewer than ``n_loops`` after early exits. Under a sliding window only the last
    window − 1 positions are kept, which is all that later tokens can see.

    A cache belongs to one model: configurations are compared, weights are not.
    """

    def __init__(self) -> None:
        self.length = 0
        self.config: ModelConfig | None = None
        self.n_loops: int | None = None
        self.batch_size: int | None = None
        self.loops_run = 0
        self._kept = 0
        self._entries: dict[CacheKey, tuple[Tensor, ...]] = {}

    @property
    def n_kept(self) -> int:
        """Positions that entries hold: ``length``, or at most window − 1."""
        return self._kept

    def begin(self, config: ModelConfig, batch_size: int, n_loops: int) -> None:
        """Start a pass: an empty cache takes these on, a filled one must have been filled for them (``ValueError``).

        An empty cache also lets go of what an unfinished first pass may have left in it.
        """
        if not self.length:
            self._entries.clear()
            self.config, self.batch_size, self.n_loops = config, batch_size, n_loops
        if config != self.config:
            raise ValueError("the cache was filled by a model of another configuration; start a new Cache()")
        if n_loops != self.n_loops:
            raise ValueError(
                f"the cache was filled at n_loops={self.n_loops} and cannot be used at n_loops={n_loops}: "
                f"loop {min(n_loops, self.n_loops) + 1} would see keys of other tokens than the loops before it. "
                f"Keep n_loops={self.n_loops}, or start a new Cache()"
            )
        if batch_size != self.batch_size:
            raise ValueError(
                f"the cache holds {self.batch_size} sequences and cannot be used for {batch_size}; start a new Cache()"
            )

    def put(self, key: CacheKey, *new: Tensor) -> tuple[Tensor, ...]:
        """Store new positions under ``key`` and return past and new ones together.

        Each tensor is (…, T, width); what comes back is (…, n_kept + T, width). ``ValueError`` for tensors of another
        type or device than those that are kept, as after a cast of the model.
        """
        past = self._entries.get(key)
        if past is not None and self._kept:
            (old, *_), (fresh, *_) = past, new
            if (old.dtype, old.device) != (fresh.dtype, fresh.device):
                raise ValueError(
                    f"the cache was filled in {old.dtype} on {old.device} and cannot be used in {fresh.dtype} on "
                    f"{fresh.device}; start a new Cache()"
                )
            new = tuple(
                torch.cat([old[..., : self._kept, :], fresh], dim=-2) for old, fresh in zip(past, new, strict=True)
            )
        self._entries[key] = new
        return new

    def advance(self, n_new: int, loops_run: int) -> None:
        """End a pass of ``n_new`` positions: count them as seen, let go of what the window has passed.

        An early exit has left out the loops after ``loops_run``; they get its entries. Where the state has
        stopped changing, their keys would have equalled these, so later tokens may attend to them.
        """
        for key in [k for k in self._entries if k.stage == "core" and k.loop == loops_run - 1]:
            fresh = tuple(tensor[..., self._kept :, :] for tensor in self._entries[key])
            for loop in range(loops_run, self.n_loops):
                self.put(key._replace(loop=loop), *fresh)
        self.length += n_new
        self.loops_run = max(self.loops_run, loops_run)
        self._kept += n_new
        window = self.config.window
        if window is not None and self._kept > window - 1:
            self._kept = window - 1
            # A copy, so that the memory of what has left the window is really given back.
            self._entries = {
                key: tuple(tensor[..., tensor.shape[-2] - self._kept :, :].clone() for tensor in entry)
                for key, entry in self._entries.items()
            }

    def n_bytes(self) -> int:
        """Bytes that the cached tensors take."""
        return sum(t.numel() * t.element_size() for entry in self._entries.values() for t in entry)
