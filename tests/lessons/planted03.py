"""Lesson 3: answers that its checks must reject, with a word of what they must say, and others they must accept."""

from fractions import Fraction

import numpy as np
import torch


def _loops_by_counting(budget, core, outer):
    loops = 0
    while outer + (loops + 1) * core <= budget:
        loops += 1
    if loops == 0:
        raise ValueError("nothing fits")
    return loops


def _loops_by_dividing(budget, core, outer):
    loops = np.floor((budget - outer) / core)
    if loops < 1:
        raise ValueError("nothing fits")
    return loops


def _gradients_by_stepping(a, b, n):
    start, source = 1.0, 0.0
    for _ in range(n):
        start, source = a * start, a * source + b
    return [start, source]


WRONG = {
    "3.1": [
        (lambda h, e, decay, b, core, norm: decay * h + b * e + core(norm(h + e)), "tanh over the sum"),
        (lambda h, e, decay, b, core, norm: decay * h + b * e + torch.tanh(core(norm(h + e))), "core alone"),
        (lambda h, e, decay, b, core, norm: torch.tanh(decay * h + b * e + core(norm(h))), "must see h + e"),
        (lambda h, e, decay, b, core, norm: torch.tanh(decay * h + b * e + core(h + e)), "norm is missing"),
        (lambda h, e, decay, b, core, norm: torch.tanh(decay * h + core(norm(h + e))), "not injected"),
        (lambda h, e, decay, b, core, norm: torch.tanh(h + b * e + core(norm(h + e))), "decay"),
        (lambda h, e, decay, b, core, norm: torch.tanh(core(norm(decay * h + b * e))), "beside"),
        (lambda h, e, decay, b, core, norm: torch.tanh(h), "off by"),
        (lambda h, e, decay, b, core, norm: h[0], "shape"),
    ],
    "3.2": [
        (lambda n, core, outer: n, "does not grow"),
        (lambda n, core, outer: (core + outer) / (n * core + outer), "upside down"),
        (lambda n, core, outer: n * core + outer, "divide"),
        (lambda n, core, outer: n + 1.0, "should be"),
        (lambda n, core, outer: None, "a number"),
        (lambda n, core, outer: (n * core + outer) // (core + outer), "do not round"),
        (lambda n, core, outer: [n * core + outer, core + outer], "a tensor of shape (2,)"),
    ],
    "3.3": [
        (lambda budget, core, outer: budget // core, "paid too"),
        (lambda budget, core, outer: budget // (core + outer), "not in every loop"),
        (lambda budget, core, outer: (budget - outer) / core, "whole loops"),
        (lambda budget, core, outer: -(-(budget - outer) // core), "more than the budget"),
        (lambda budget, core, outer: (budget - outer) // core, "raise a ValueError"),
        (lambda budget, core, outer: 1, "should be"),
        (
            lambda budget, core, outer: next(n for n in range(99999) if outer + (n + 1) * core >= budget),
            "within the budget",
        ),
        (lambda budget, core, outer: "a few", "a number"),
        (lambda budget, core, outer: np.floor((budget - outer) / core) or 1 / 0, "raise a ValueError; it raised"),
        (lambda budget, core, outer: max(0, (budget - outer) // core), "it gave 0"),
    ],
    "3.4": [
        (lambda a, b, n: a**n, "two numbers"),
        (lambda a, b, n: (n * a, b * sum(a**k for k in range(n))), "multiply"),
        (lambda a, b, n: (b * sum(a**k for k in range(n)), a**n), "changed places"),
        (lambda a, b, n: (a**n, b), "every loop"),
        (lambda a, b, n: (a**n, b * n), "decayed"),
        (lambda a, b, n: (a**n, b * sum(a**k for k in range(n + 1))), "one term too many"),
        (lambda a, b, n: (a**n, b * (1 - a**n) / (1 - a)), "ZeroDivisionError"),
        (lambda a, b, n: (a ** (n - 1), b), "∂h_0"),
        (lambda a, b, n: torch.tensor([b * sum(a**k for k in range(n)), a**n]), "changed places"),
        (lambda a, b, n: (a**n, b * sum(a**k for k in range(1, n + 1))), "begins at a^0"),
        (lambda a, b, n: torch.stack([(t := torch.tensor(a)) ** n, b * (1 - t**n) / (1 - t)]), "closed form"),
        (lambda a, b, n: np.array([a**n, b, n]), "two numbers"),
        (lambda a, b, n: (a**n, None), "two numbers"),
    ],
}
RIGHT = {
    "3.1": [
        lambda h, e, decay, b, core, norm: (torch.mul(h, decay).add(e * b) + core(norm(e + h))).tanh(),
        lambda h, e, decay, b, core, norm: np.tanh((decay * h + b * e + core(norm(h + e))).numpy()),
    ],
    "3.2": [
        lambda n, core, outer: 1 + (n - 1) * core / (core + outer),
        lambda n, core, outer: Fraction(n * core + outer, core + outer),
        lambda n, core, outer: np.float64(n * core + outer) / np.float64(core + outer),
        lambda n, core, outer: torch.tensor(n * core + outer) / (core + outer),
    ],
    "3.3": [
        _loops_by_counting,
        _loops_by_dividing,
        lambda budget, core, outer: torch.tensor(_loops_by_counting(budget, core, outer)),
    ],
    "3.4": [
        _gradients_by_stepping,
        lambda a, b, n: torch.tensor(_gradients_by_stepping(a, b, n)),
        lambda a, b, n: np.array([a**n, b * np.sum(a ** np.arange(n))]),
        lambda a, b, n: (torch.tensor(a) ** n, b * (torch.tensor(a) ** torch.arange(n)).sum()),
        lambda a, b, n: (np.float64(a) ** n, torch.tensor([b * sum(a**k for k in range(n))]).item()),
    ],
}
