"""Exercises of lesson 1, attention variants."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, same

# ---------------------------------------------------------------- 1.1


def cached_numbers(n_layers: int, n_kv_heads: int, head_dim: int) -> int:
    """Numbers that a model with grouped-query attention caches per token."""
    return n_layers * 2 * n_kv_heads * head_dim  # a key and a value for each kv head of each layer


def _fault_in_cached_numbers(answer: Callable) -> str | None:
    for n_layers, n_kv_heads, head_dim in ((3, 5, 16), (80, 8, 128), (1, 1, 1)):
        got, wanted = answer(n_layers, n_kv_heads, head_dim), cached_numbers(n_layers, n_kv_heads, head_dim)
        if fault := difference(got, wanted):
            if same(got, wanted / 2):
                return "it is half of what is asked for: a token leaves a key and a value"
            if n_layers > 1 and same(got, wanted / n_layers):
                return "that is one layer's share: every layer keeps its own keys and values"
            where = f"for n_layers={n_layers}, n_kv_heads={n_kv_heads}, head_dim={head_dim}: {fault}"
            if same(got, wanted * 2) or same(got, wanted * 4):
                return f"{where}; is that in bytes? Numbers are asked for"
            return where
    return None


# ---------------------------------------------------------------- 1.2


def expand_kv(kv: Tensor, n_heads: int) -> Tensor:
    """Give every query head its key/value head: (B, K, S, d) → (B, H, S, d)."""
    return kv.repeat_interleave(n_heads // kv.shape[1], dim=1)


def _fault_in_expand_kv(answer: Callable) -> str | None:
    for n_kv_heads, n_heads in ((1, 4), (2, 6), (4, 4)):
        kv = torch.randn(2, n_kv_heads, 3, 5, generator=torch.Generator().manual_seed(n_heads))
        got, wanted = answer(kv.clone(), n_heads), expand_kv(kv, n_heads)
        if fault := difference(got, wanted):
            if same(got, kv.repeat(1, n_heads // n_kv_heads, 1, 1)):
                return (
                    "heads are in the order 0, 1, 0, 1, …; query heads of one group stand side by side, "
                    "so the order must be 0, 0, …, 1, 1, …"
                )
            return f"from {n_kv_heads} kv heads to {n_heads} heads: {fault}"
    return None


# ---------------------------------------------------------------- 1.3


def absorb(query: Tensor, key_up: Tensor) -> Tensor:
    """Move queries (B, H, T, n) into the space of the latent with W^UK (H, n, R): (B, H, T, R)."""
    return query @ key_up


def _fault_in_absorb(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(0)
    for batch, heads, length, nope, rank in ((1, 1, 1, 2, 3), (2, 3, 4, 5, 7), (2, 3, 3, 3, 3)):
        query = torch.randn(batch, heads, length, nope, generator=generator)
        key_up = torch.randn(heads, nope, rank, generator=generator)
        got, wanted = answer(query.clone(), key_up.clone()), absorb(query, key_up)
        if fault := difference(got, wanted):
            if nope == rank and same(got, query @ key_up.transpose(1, 2)):
                return "it is wrong where n = R: key_up is turned the wrong way round"
            if same(got, wanted / nope**0.5):
                return "it is divided by √n: the scale belongs to the scores, and is not part of absorbing"
            return f"for queries (B, H, T, n) = {tuple(query.shape)} and key_up {tuple(key_up.shape)}: {fault}"
    return None


# ---------------------------------------------------------------- 1.4


def layers_needed(distance: int, window: int) -> int:
    """Attention layers until a token can depend on the one ``distance`` positions earlier."""
    return math.ceil(distance / (window - 1))


def _fault_in_layers_needed(answer: Callable) -> str | None:
    for distance, window in ((1, 2), (5, 2), (6, 3), (11, 3), (4095, 4096), (8190, 4096), (0, 4)):
        got, wanted = answer(distance, window), layers_needed(distance, window)
        if fault := difference(got, wanted):
            where = f"for distance={distance}, window={window}: {fault}"
            if distance and any(same(got, wrong) for wrong in (math.ceil(distance / window), distance / window)):
                return f"{where}; a window counts the token itself, so it reaches back one position less"
            if same(got, distance // (window - 1) + 1):
                return f"{where}; a distance that full layers cover needs no further one: round up, do not add one"
            if same(got, distance / (window - 1)) or same(got, distance // (window - 1)):
                return f"{where}; a layer begun counts as a whole one"
            return where
    return None


EXERCISES = (
    Exercise(
        number="1.1", title="count the cache", minutes=3, difficulty=1,
        find_fault=_fault_in_cached_numbers, solution=cached_numbers,
    ),
    Exercise(
        number="1.2", title="hand out key/value heads", minutes=5, difficulty=2,
        find_fault=_fault_in_expand_kv, solution=expand_kv,
    ),
    Exercise(
        number="1.3", title="absorb the key matrix", minutes=8, difficulty=3,
        find_fault=_fault_in_absorb, solution=absorb,
    ),
    Exercise(
        number="1.4", title="how far a window reaches", minutes=5, difficulty=1,
        find_fault=_fault_in_layers_needed, solution=layers_needed,
    ),
)  # fmt: skip
