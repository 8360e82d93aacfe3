"""Lesson 2: answers that its checks must reject, with a word of what they must say, and others they must accept."""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F


def _sets(chosen, n_experts=16):
    """(…, k) choices as sets: (…, E) of zeros and ones."""
    return F.one_hot(chosen, n_experts).sum(dim=-2)


def _sums(chosen):
    """Sum and sum of squares, which tell any two pairs apart, and not any two sets of three."""
    return torch.stack([chosen.sum(-1), chosen.square().sum(-1)], dim=-1)


def _changes_by_sets(chosen):
    sets = [[frozenset(experts) for experts in loop.flatten(0, 1).tolist()] for loop in chosen]
    return np.mean([old != new for before, after in pairwise(sets) for old, new in zip(before, after, strict=True)])


WRONG = {
    "2.1": [
        (lambda scores, chosen: scores.gather(-1, chosen), "sum to 1"),
        (lambda scores, chosen: scores.gather(-1, chosen) / scores.sum(-1, keepdim=True), "not over all"),
        (lambda scores, chosen: scores.gather(-1, chosen).softmax(-1), "no softmax"),
        (lambda scores, chosen: (t := scores.topk(chosen.shape[1]).values) / t.sum(-1, keepdim=True), "in `chosen`"),
        (lambda scores, chosen: scores / scores.sum(-1, keepdim=True), "shape"),
        (lambda scores, chosen: (kept := scores.gather(-1, chosen)) / kept.sum(), "sum of its own"),
        (lambda scores, chosen: (kept := scores.gather(-1, chosen)) / kept.sum(dim=0), "sum of its own"),
    ],
    "2.2": [
        (lambda chosen, n_experts: torch.bincount(chosen.flatten()) / chosen.numel(), "minlength"),
        (
            lambda chosen, n_experts: torch.bincount(chosen.flatten(), minlength=n_experts) / chosen[..., 0].numel(),
            "number of choices",
        ),
        (lambda chosen, n_experts: torch.bincount(chosen.flatten(), minlength=n_experts), "not to 1"),
        (
            lambda chosen, n_experts: (
                torch.bincount(chosen[..., 0].flatten(), minlength=n_experts) / chosen[..., 0].numel()
            ),
            "only the strongest",
        ),
        (lambda chosen, n_experts: chosen.float().mean(), "shape"),
        (lambda chosen, n_experts: np.bincount(chosen.flatten()) / chosen.numel(), "minlength"),
        (lambda chosen, n_experts: [0.5, 0.5], "its shape is (2,), and (4,) is asked for"),
        (lambda chosen, n_experts: Counter(chosen.flatten().tolist()), "Counter, and a tensor"),
    ],
    "2.3": [
        (lambda bias, load, rate: bias - rate * torch.sign(load.float().mean() - load), "not more"),
        (lambda bias, load, rate: bias + rate * (load.float().mean() - load), "only the sign"),
        (lambda bias, load, rate: rate * torch.sign(load.float().mean() - load), "from the old one"),
        (lambda bias, load, rate: bias + rate * torch.sign(load.float().median() - load), "not with the median"),
        (
            lambda bias, load, rate: bias + rate * ((load <= load.float().mean()).float() * 2 - 1),
            "exactly the mean load",
        ),
        (
            lambda bias, load, rate: bias + rate * ((load < load.float().mean()).float() * 2 - 1),
            "exactly the mean load",
        ),
        (
            lambda bias, load, rate: bias + F.normalize(load.float().mean() - load, p=torch.inf, dim=0) * rate,
            "only the sign",
        ),
    ],
    "2.4": [
        (lambda chosen: (chosen[1:] != chosen[:-1]).any(-1).float().mean(), "change places"),
        (lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:-1]).float().mean(), "has changed lanes"),
        (lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:1]).any(-1).float().mean(), "not with the first"),
        (
            lambda chosen: (
                (_sets(chosen)[1:] != _sets(chosen)[:-1]).any(-1).float().sum() / chosen[..., 0].numel()
                if len(chosen) > 2
                else (_sets(chosen)[1:] != _sets(chosen)[:-1]).any(-1).float().mean()
            ),
            "divide by those",
        ),
        (lambda chosen: (chosen.sort().values[1:] == chosen.sort().values[:-1]).all(-1).float().mean(), "keeps"),
        (lambda chosen: (chosen.sum(-1).diff(dim=0) != 0).float().mean(), "the sets do not"),
        (lambda chosen: (chosen.square().sum(-1).diff(dim=0) != 0).float().mean(), "the sets do not"),
        (lambda chosen: ((chosen**3).sum(-1).diff(dim=0) != 0).float().mean(), "every set of 2"),
        (lambda chosen: (_sums(chosen).diff(dim=0) != 0).any(-1).float().mean(), "every set of 3"),
    ],
}
RIGHT = {
    "2.1": [
        lambda scores, chosen: torch.stack([s[c] / s[c].sum() for s, c in zip(scores, chosen, strict=True)]),
        lambda scores, chosen: F.normalize(scores.gather(-1, chosen), p=1, dim=-1),
        lambda scores, chosen: (kept := np.take_along_axis(scores.numpy(), chosen.numpy(), 1)) / kept.sum(1)[:, None],
    ],
    "2.2": [
        lambda chosen, n_experts: F.one_hot(chosen, n_experts).flatten(0, -2).float().mean(dim=0),
        lambda chosen, n_experts: np.bincount(chosen.flatten(), minlength=n_experts) / chosen.numel(),
        lambda chosen, n_experts: [(chosen == i).float().mean() for i in range(n_experts)],
        lambda chosen, n_experts: tuple(chosen.flatten().tolist().count(i) / chosen.numel() for i in range(n_experts)),
    ],
    "2.3": [
        lambda bias, load, rate: (
            bias - rate * (load > load.float().mean()).float() + rate * (load < load.float().mean()).float()
        ),
        lambda bias, load, rate: bias.numpy() + rate * np.sign(np.mean(load.numpy()) - load.numpy()),
        lambda bias, load, rate: bias.add_(rate * torch.sign(load.sum() - len(load) * load)),
    ],
    "2.4": [
        lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:-1]).any(-1).float().mean(),
        _changes_by_sets,
        lambda chosen: np.any(np.diff(np.sort(chosen, axis=-1), axis=0) != 0, axis=-1).mean(),
    ],
}
