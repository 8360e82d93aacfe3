"""Lesson 2: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import torch
from torch.nn import functional as F


def _sets(chosen, n_experts=16):
    """(…, k) choices as sets: (…, E) of zeros and ones."""
    return F.one_hot(chosen, n_experts).sum(dim=-2)


WRONG = {
    "2.1": [
        (lambda scores, chosen: scores.gather(-1, chosen), "sum to 1"),
        (lambda scores, chosen: scores.gather(-1, chosen) / scores.sum(-1, keepdim=True), "not over all"),
        (lambda scores, chosen: scores.gather(-1, chosen).softmax(-1), "no softmax"),
        (lambda scores, chosen: (t := scores.topk(chosen.shape[1]).values) / t.sum(-1, keepdim=True), "in `chosen`"),
        (lambda scores, chosen: scores / scores.sum(-1, keepdim=True), "shape"),
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
    ],
    "2.3": [
        (lambda bias, load, rate: bias - rate * torch.sign(load.float().mean() - load), "not more"),
        (lambda bias, load, rate: bias + rate * (load.float().mean() - load), "only the sign"),
        (lambda bias, load, rate: rate * torch.sign(load.float().mean() - load), "from the old one"),
        (lambda bias, load, rate: bias + rate * torch.sign(load.float().median() - load), "not with the median"),
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
    ],
}
RIGHT = {
    "2.1": lambda scores, chosen: torch.stack([s[c] / s[c].sum() for s, c in zip(scores, chosen, strict=True)]),
    "2.2": lambda chosen, n_experts: F.one_hot(chosen, n_experts).flatten(0, -2).float().mean(dim=0),
    "2.3": lambda bias, load, rate: (
        bias - rate * (load > load.float().mean()).float() + rate * (load < load.float().mean()).float()
    ),
    "2.4": lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:-1]).any(-1).float().mean(),
}
