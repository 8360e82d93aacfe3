"""What attention remembers while a sequence grows.

In a loop a layer's number does not name one set of keys: the core attends once per loop, each time to other
states. Entries are therefore stored under (stage, layer, loop).

Layers write during a forward pass, and the model advances the cache once, after it. What was written before the
advance does not count, so a pass that failed half-way, or that read the coda out after every loop, changes nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mythos_lite.config import ModelConfig


class CacheKey(NamedTuple):
    stage: str  # "prelude", "core" or "coda"
    layer: int
    loop: int = 0


class Cache:
    """Tensors per (stage, layer, loop), each with positions on its second-last axis.

    ``length`` is the number of positions seen, ``n_kept`` of those that are stored: under a sliding window only the
    last window − 1, which is all that later tokens can see. ``config``, ``n_loops`` and ``batch_size`` are those that
    it was filled for, ``None`` before its first use. ``loops_run`` is the most loops that were run for any of its
    tokens, fewer than ``n_loops`` after early exits. A cache belongs to one model; only configurations are compared.

    Without a window new positions are written into buffers that have room for more, for ``expected`` positions from the
    start. With a window, or where gradients are wanted, they are joined to the past ones, which stay as they are.
    """

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.length = self.n_kept = self.loops_run = 0
        self.config: ModelConfig | None = None
        self.n_loops: int | None = None
        self.batch_size: int | None = None
        self._entries: dict[CacheKey, tuple[Tensor, ...]] = {}

    def begin(self, config: ModelConfig, batch_size: int, n_loops: int) -> None:
        """Start a pass: ``ValueError`` if the cache was filled for another configuration, batch size or loop count.

        An empty cache takes these on, and drops what an unfinished first pass may have left in it.
        """
        if not self.length:
            self._entries.clear()
            self.config, self.batch_size, self.n_loops = config, batch_size, n_loops
        if config != self.config:
            raise ValueError("the cache was filled by a model of another configuration; start a new Cache()")
        _check_same("n_loops", self.n_loops, n_loops)  # else loops would see keys of only some of the tokens
        _check_same("batch_size", self.batch_size, batch_size)

    def put(self, key: CacheKey, *new: Tensor) -> tuple[Tensor, ...]:
        """Store tensors (…, T, width) of new positions; return them joined to the past ones, (…, n_kept + T, width).

        ``ValueError`` for tensors of another type or device than the stored ones, as after a cast of the model.
        """
        past = self._entries.get(key) if self.n_kept else None
        if past:
            for field in ("dtype", "device"):
                _check_same(field, getattr(past[0], field), getattr(new[0], field))
        if self.config.window is not None or torch.compiler.is_compiling() or any(x.requires_grad for x in new):
            if past:
                new = tuple(torch.cat([a[..., : self.n_kept, :], b], dim=-2) for a, b in zip(past, new, strict=True))
            self._entries[key] = new
            return new
        length = self.n_kept + new[0].shape[-2]
        if not past or not _has_room(past[0], length):
            past = tuple(self._with_room(a, b, length) for a, b in zip(past or new, new, strict=True))
            self._entries[key] = past
        for buffer, fresh in zip(past, new, strict=True):
            buffer[..., self.n_kept : length, :] = fresh
        return tuple(buffer[..., :length, :] for buffer in past)

    def _with_room(self, past: Tensor, fresh: Tensor, length: int) -> Tensor:
        """A buffer for ``length`` positions and half as many again, or as many as are expected, with the past ones."""
        shape = [*fresh.shape[:-2], max(length + length // 2, self.expected), fresh.shape[-1]]
        buffer = fresh.new_empty(shape)
        buffer[..., : self.n_kept, :] = past[..., : self.n_kept, :]
        return buffer

    def advance(self, n_new: int, loops_run: int) -> None:
        """End a pass of ``n_new`` positions: count them as seen and drop what has left the window.

        The loops that an early exit left out get the entries of the last one run. Where the state has stopped
        changing their keys would have been the same, so later tokens may attend to them in every loop.
        """
        for key in [k for k in self._entries if k.stage == "core" and k.loop == loops_run - 1]:
            fresh = [tensor[..., self.n_kept : self.n_kept + n_new, :] for tensor in self._entries[key]]
            for loop in range(loops_run, self.n_loops):
                self.put(key._replace(loop=loop), *fresh)
        self.length += n_new
        self.n_kept += n_new
        self.loops_run = max(self.loops_run, loops_run)
        if self.config.window is not None and self.n_kept >= self.config.window:
            old, self.n_kept = self.n_kept, self.config.window - 1
            # Cloned, since a slice alone would keep the memory of what has left the window.
            self._entries = {
                k: tuple(t[..., old - self.n_kept :, :].clone() for t in e) for k, e in self._entries.items()
            }

    def n_bytes(self) -> int:
        """Bytes that the cached positions take; room for more is not counted."""
        kept = [tensor[..., : self.n_kept, :] for entry in self._entries.values() for tensor in entry]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _has_room(buffer: Tensor, length: int) -> bool:
    """Whether so many positions can be written; what was made in inference mode cannot be written to outside of it."""
    writable = torch.is_inference_mode_enabled() or not buffer.is_inference()
    return buffer.shape[-2] >= length and writable


def _check_same(field: str, filled: object, used: object) -> None:
    if filled != used:
        raise ValueError(
            f"the cache was filled at {field}={filled} and cannot be used at {field}={used}; start a new Cache()"
        )
