"""Lesson 6: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools

import torch

from mythos_lite.config import mod7_model
from mythos_lite.evaluation import wilson_interval

WRONG = {
    "6.1": [
        (lambda digits: digits.cumsum(dim=1), "modulo 7"),
        (lambda digits: digits.cumsum(dim=0) % 7, "along each chain"),
        (lambda digits: digits.sum(dim=1) % 7, "one for each digit"),
        (lambda digits: digits % 7, "off by"),
    ],
    "6.2": [
        (lambda n_digits: n_digits, "prelude and coda"),
        (lambda n_digits: n_digits - 1, "both prelude and coda"),
        (lambda n_digits: n_digits - 3, "one position after"),
        (lambda n_digits: n_digits - 2, "at least one loop"),
    ],
    "6.3": [
        (lambda lengths, n_loops: sum(n_loops >= max(1, n - 2) for n in lengths) / len(lengths), "once in seven"),
        (lambda lengths, n_loops: sum(1 if n_loops >= max(1, n - 2) else 1 / 7 for n in lengths), "a share"),
        (lambda lengths, n_loops: 1.0 if n_loops >= max(lengths) - 2 else 1 / 7, "should be"),
    ],
    "6.4": [
        (lambda a, b, n: a == b, "should be True"),
        (lambda a, b, n: wilson_interval(a, n)[1] >= wilson_interval(b, n)[0], "should be False"),
        (lambda a, b, n: abs(a - b) < 100, "should be False"),
        (lambda a, b, n: 1, "True or False"),
    ],
}
RIGHT = {
    "6.1": lambda digits: torch.tensor([[s % 7 for s in itertools.accumulate(row)] for row in digits.tolist()]),
    "6.2": lambda n_digits: mod7_model().loops_needed(n_digits),
    "6.3": lambda lengths, n_loops: sum([1.0 if n <= n_loops + 2 else 1 / 7 for n in lengths]) / len(lengths),
    "6.4": lambda a, b, n: wilson_interval(max(a, b), n)[0] <= wilson_interval(min(a, b), n)[1],
}
