"""Lesson 6: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools

import numpy as np
import torch

from mythos_lite.measure.sweep import wilson_interval
from mythos_lite.training.recipes import mod7_model


def within(a, b, n):
    low, high = wilson_interval(a, n)
    return low <= b / n <= high


def overlap(a, b, n):
    return wilson_interval(max(a, b), n)[0] <= wilson_interval(min(a, b), n)[1]


WRONG = {
    "6.1": [
        (lambda digits: digits.cumsum(dim=1), "modulo 7"),
        (lambda digits: digits.cumsum(dim=0) % 7, "along each chain"),
        (lambda digits: digits.sum(dim=1) % 7, "one for each digit"),
        (lambda digits: digits % 7, "off by"),
        (lambda digits: np.cumsum(digits.numpy(), axis=1), "modulo 7"),
        (lambda digits: [row.sum() % 7 for row in digits], "one for each digit"),
    ],
    "6.2": [
        (lambda n_digits: n_digits, "prelude and coda"),
        (lambda n_digits: n_digits - 1, "both prelude and coda"),
        (lambda n_digits: n_digits - 3, "one position after"),
        (lambda n_digits: n_digits - 2, "at least one loop"),
        (lambda n_digits: np.int64(n_digits), "prelude and coda"),
        (lambda n_digits: [n_digits, n_digits], "a tensor of shape (2,)"),
        (lambda n_digits: "some", "a number"),
    ],
    "6.3": [
        (lambda lengths, n_loops: sum(n_loops >= max(1, n - 2) for n in lengths) / len(lengths), "once in seven"),
        (lambda lengths, n_loops: sum(1 if n_loops >= max(1, n - 2) else 1 / 7 for n in lengths), "a share"),
        (lambda lengths, n_loops: 1.0 if n_loops >= max(lengths) - 2 else 1 / 7, "should be"),
        (lambda lengths, n_loops: np.mean([1.0 if n < n_loops + 2 else 1 / 7 for n in lengths]), "is within reach"),
        (lambda lengths, n_loops: np.mean(np.array(lengths) <= n_loops + 2), "once in seven"),
    ],
    "6.4": [
        (lambda a, b, n: a == b, "should be True"),
        (lambda a, b, n: wilson_interval(a, n)[1] >= wilson_interval(b, n)[0], "should be False"),
        (lambda a, b, n: abs(a - b) < 100, "should be False"),
        (lambda a, b, n: 1, "True or False"),
        (lambda a, b, n: np.bool_(wilson_interval(a, n)[1] >= wilson_interval(b, n)[0]), "either of the two"),
        (lambda a, b, n: within(a, b, n) or within(b, a, n), "neither holds"),
        (within, "neither holds"),
        (lambda a, b, n: not overlap(a, b, n), "whether they lie apart"),
        (lambda a, b, n: wilson_interval(a, n), "True or False"),
    ],
}
RIGHT = {
    "6.1": [
        lambda digits: torch.tensor([[s % 7 for s in itertools.accumulate(row)] for row in digits.tolist()]),
        lambda digits: [[s % 7 for s in itertools.accumulate(row)] for row in digits.tolist()],
        lambda digits: np.cumsum(digits.numpy(), axis=1) % 7,
        lambda digits: torch.remainder(digits.double().cumsum(1), 7),
    ],
    "6.2": [
        lambda n_digits: mod7_model().loops_needed(n_digits),
        lambda n_digits: np.maximum(1, n_digits - 2),
        lambda n_digits: torch.tensor(n_digits - 2).clamp(min=1),
        lambda n_digits: max(1.0, n_digits - 2.0),
    ],
    "6.3": [
        lambda lengths, n_loops: sum([1.0 if n <= n_loops + 2 else 1 / 7 for n in lengths]) / len(lengths),
        lambda lengths, n_loops: np.where(np.array(lengths) - 2 <= n_loops, 1, 1 / 7).mean(),
        lambda lengths, n_loops: torch.where(torch.tensor(lengths) <= n_loops + 2, 1.0, 1 / 7).mean(),
    ],
    "6.4": [
        overlap,
        lambda a, b, n: np.bool_(overlap(a, b, n)),
        lambda a, b, n: torch.tensor(overlap(a, b, n)),
    ],
}
