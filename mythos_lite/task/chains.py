"""Chains of symbols: START d₁ … dₙ EQ, and the answer at the position of EQ.

``ChainTask`` adds digits modulo m, the experiment of the lessons. ``PermutationTask`` multiplies permutations, where
the order counts.

The START token is not decoration. Attention over identical tokens cannot count them, so without it "3 =" and "3 3 ="
look alike to the model.

A chain's own digits decide whether it may be trained on: a hash of them sends about one chain in five to the held-out
side. Training draws from the other side only, every evaluation from the held-out side only, so no two sets share an
example at any length or seed.

Shapes: B chains, n digits, T = n + 2 tokens.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mythos_lite.checks import check_bool, check_choice, check_int
from mythos_lite.config import ModelConfig

SPLITS = ("train", "held_out")
_HELD_OUT_SHARE = 0.2
_ENUMERABLE = 2_000_000


def make_generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for ``seed`` and any number of stream indices.

    torch keeps only 32 bits of a CPU seed, so ``seed + step`` of two runs would collide.
    ``numpy.random.SeedSequence`` mixes all of them instead, in practice one generator for each tuple of indices.
    """
    seed, *stream = (check_int("seed", value, 0) for value in (seed, *stream))
    mixed = np.random.SeedSequence(seed, spawn_key=tuple(stream)).generate_state(1)[0]
    return torch.Generator(device="cpu").manual_seed(int(mixed))


class Batch(NamedTuple):
    """Chains of mixed length, padded on the right."""

    token_ids: Tensor
    """(B, T) int64, START d₁ … dₙ EQ PAD …"""
    answer_positions: Tensor
    """(B,) int64, where EQ stands and the answer is read."""
    answers: Tensor
    """(B,) int64 in 0 … ``n_answers`` − 1."""
    n_digits: Tensor
    """(B,) int64."""

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


class Task:
    """Chains of symbols, each with one answer. Subclasses are frozen dataclasses that say what the answer is.

    Token ids: symbols and answers share the first ones (answer k is the token of symbol k, where there is
    such a symbol), then START, EQ and PAD; 0–6, 7, 8 and 9 for digit chains modulo 7.
    """

    n_symbols: int
    n_answers: int
    start_token: bool
    """Whether chains begin with START."""

    def answer(self, chains: Tensor) -> Tensor:
        """(B, n) symbols → (B,) answers in 0 … ``n_answers`` − 1."""
        raise NotImplementedError

    @property
    def start_id(self) -> int:
        return max(self.n_symbols, self.n_answers)

    @property
    def eq_id(self) -> int:
        return self.start_id + 1

    @property
    def pad_id(self) -> int:
        return self.start_id + 2

    @property
    def vocab_size(self) -> int:
        return self.start_id + 3

    def n_chains(self, n_digits: int) -> int:
        """How many chains of ``n_digits`` there are, on both sides of the split."""
        return self.n_symbols**n_digits

    def check_fit(self, model: ModelConfig, max_digits: int) -> None:
        """``ValueError`` for a model that has other tokens than this task, or no room for chains of ``max_digits``."""
        if model.vocab_size < self.vocab_size:
            raise ValueError(f"vocab_size={model.vocab_size} is too small: the task has {self.vocab_size} tokens")
        if (model.output_size or model.vocab_size) < self.n_answers:
            raise ValueError(f"output_size={model.output_size} is too small: the task has {self.n_answers} answers")
        if model.pad_token_id != self.pad_id:
            raise ValueError(f"pad_token_id={model.pad_token_id} does not fit: the task pads with {self.pad_id}")
        if (room := model.max_seq_len - 2) < max_digits:
            raise ValueError(
                f"n_digits={max_digits} is too long: max_seq_len={model.max_seq_len} allows {room}, START and EQ aside"
            )

    def _checked(self, chains: Tensor) -> Tensor:
        """The chains as int64: arithmetic in a narrower type would wrap around, and uint8 and bool index as masks."""
        known = isinstance(chains, Tensor)
        if not known or chains.ndim != 2 or chains.shape[1] == 0 or chains.is_floating_point() or chains.is_complex():
            kind = f"{tuple(chains.shape)} {chains.dtype}" if known else type(chains).__name__
            raise ValueError(f"chains must be a tensor of whole numbers of shape (B, n) with n ≥ 1, not {kind}")
        chains = chains.long()
        if chains.numel() and (chains.min() < 0 or chains.max() >= self.n_symbols):
            found = f"{chains.min().item()} … {chains.max().item()}"
            raise ValueError(f"digits must lie in 0 … {self.n_symbols - 1}; found {found}")
        return chains

    def encode(self, chains: Tensor) -> Batch:
        """(B, n) symbols of one length → the batch that asks for their answers."""
        chains, first = self._checked(chains), int(self.start_token)
        tokens = F.pad(F.pad(chains, (first, 0), value=self.start_id), (0, 1), value=self.eq_id)
        n_digits = torch.full((len(chains),), chains.shape[1], device=chains.device)
        return Batch(tokens, n_digits + first, self.answer(chains), n_digits)

    def is_held_out(self, chains: Tensor) -> Tensor:
        """(B, n) digits → (B,) bool: whether the chain belongs to evaluation. The same on every machine."""
        chains = self._checked(chains)
        key = torch.full((len(chains),), chains.shape[1], device=chains.device)
        for digit in chains.unbind(dim=1):
            # Multiply and fold after each digit, so that the last digits reach the tested bits too.
            key = (key + digit + 1) * 0x2545F4914F6CDD1D
            key = key ^ ((key >> 29) & 0x7FFFFFFFF)
        return ((key >> 24) & 0xFFFF) < int(_HELD_OUT_SHARE * 2**16)

    def enumerate(self, n_digits: int, split: str) -> Tensor:
        """Every chain of ``n_digits`` digits on one side of the split, (B, n), in counting order."""
        n_digits = check_int("n_digits", n_digits, 1)
        check_choice("split", split, SPLITS)
        if (total := self.n_chains(n_digits)) > _ENUMERABLE:
            raise ValueError(f"n_digits={n_digits} has {total:,} chains, more than {_ENUMERABLE:,}; use sample()")
        place = self.n_symbols ** torch.arange(n_digits - 1, -1, -1, device="cpu")
        chains = torch.arange(total, device="cpu").unsqueeze(1) // place % self.n_symbols
        return chains[self.is_held_out(chains) == (split == "held_out")]

    def sample(self, count: int, n_digits: int, generator: torch.Generator, split: str) -> Tensor:
        """``count`` random chains of ``n_digits`` digits from one side of the split, (B, n), with replacement."""
        count, n_digits = check_int("count", count, 0), check_int("n_digits", n_digits, 1)
        check_choice("split", split, SPLITS)
        device = generator.device  # and not the default one, which need not be the generator's
        chains = torch.zeros(count, n_digits, dtype=torch.int64, device=device)
        wrong = torch.ones(count, dtype=torch.bool, device=device)
        for _ in range(1000):
            size = (int(wrong.sum()), n_digits)
            chains[wrong] = torch.randint(self.n_symbols, size, generator=generator, device=device)
            wrong = self.is_held_out(chains) != (split == "held_out")
            if not wrong.any():
                return chains
        raise ValueError(f"no chain of n_digits={n_digits} lies on the {split!r} side of the split; use more digits")

    def batch(self, size: int, min_digits: int, max_digits: int, generator: torch.Generator) -> Batch:
        """``size`` training chains, lengths drawn evenly from ``min_digits`` to ``max_digits``, shortest first."""
        size, min_digits = check_int("size", size, 1), check_int("min_digits", min_digits, 1)
        max_digits = check_int("max_digits", max_digits, min_digits)
        lengths = torch.randint(min_digits, max_digits + 1, (size,), generator=generator, device=generator.device)
        counts = zip(*(found.tolist() for found in lengths.unique(return_counts=True)), strict=True)
        return self.join([self.encode(self.sample(count, n, generator, "train")) for n, count in counts])

    def join(self, parts: list[Batch]) -> Batch:
        """One batch out of several, padded on the right to the longest."""
        width = max(part.token_ids.shape[1] for part in parts)
        padded = [F.pad(part.token_ids, (0, width - part.token_ids.shape[1]), value=self.pad_id) for part in parts]
        return Batch(torch.cat(padded), *map(torch.cat, list(zip(*parts, strict=True))[1:]))


@dataclass(frozen=True, kw_only=True)
class ChainTask(Task):
    """Sums of digits modulo ``modulus``, over the digits 0 … ``n_symbols`` − 1."""

    modulus: int = 7
    n_symbols: int = 7
    start_token: bool = True

    def __post_init__(self) -> None:
        for field in ("modulus", "n_symbols"):
            object.__setattr__(self, field, check_int(field, getattr(self, field), 2))
        check_bool("start_token", self.start_token)
        if self.n_symbols < self.modulus:
            need = f"answers 0 to {self.modulus - 1} need a token each; use at least modulus={self.modulus}"
            raise ValueError(f"n_symbols={self.n_symbols} is not possible: {need}")

    @property
    def n_answers(self) -> int:
        return self.modulus

    def answer(self, chains: Tensor) -> Tensor:
        """(B, n) digits → (B,) sums modulo ``modulus``."""
        return self._checked(chains).sum(dim=1) % self.modulus


@dataclass(frozen=True, kw_only=True)
class PermutationTask(Task):
    """Products of permutations of ``degree`` points: which one comes of applying them in order?

    They are those of the symmetric group or, if ``even``, of the alternating one, numbered by their distance from the
    identity in transpositions: 0 is the identity, and in the symmetric group 1 … ``degree``·(``degree`` − 1)/2 are the
    transpositions. Chains are made of the first ``n_symbols``; the answer can be any. From degree 5 on the word problem
    of either group is complete for NC¹ (Barrington 1989), out of reach of transformers of fixed depth unless TC⁰ = NC¹
    (Merrill & Sabharwal 2023; Liu et al. 2023).
    """

    degree: int = 3
    n_symbols: int = 6
    start_token: bool = True
    even: bool = False

    def __post_init__(self) -> None:
        check_bool("even", self.even)
        object.__setattr__(self, "degree", check_int("degree", self.degree, 3 if self.even else 2, 6))
        object.__setattr__(self, "n_symbols", check_int("n_symbols", self.n_symbols, 2, self.n_answers))
        check_bool("start_token", self.start_token)

    @property
    def n_answers(self) -> int:
        return math.factorial(self.degree) // (2 if self.even else 1)

    def answer(self, chains: Tensor) -> Tensor:
        """(B, n) permutations → (B,) the permutation that applies the first, then the second, and so on."""
        chains = self._checked(chains)
        table = _products(self.degree, self.even).to(chains.device)
        state = torch.zeros(len(chains), dtype=torch.int64, device=chains.device)
        for symbol in chains.unbind(dim=1):
            state = table[state, symbol]
        return state


@functools.cache
def _products(degree: int, even: bool) -> Tensor:
    """Table of n_answers rows and columns: entry [p, q] is the number of "first p, then q"."""
    permutations, one = list(itertools.permutations(range(degree))), np.eye(degree)
    # A permutation's distance is its points less its cycles, which is the rank of its matrix less the identity.
    distances = np.linalg.matrix_rank(one[np.array(permutations)] - one).tolist()
    permutations = [p for d, p in sorted(zip(distances, permutations, strict=True)) if not (even and d % 2)]
    number = {p: i for i, p in enumerate(permutations)}
    products = [[number[tuple(q[i] for i in p)] for q in permutations] for p in permutations]
    return torch.tensor(products, device="cpu")
