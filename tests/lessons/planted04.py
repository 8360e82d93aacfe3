"""Lesson 4: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools
import math

import torch


def _power(jvp, vjp, v, n_iterations, *, root=True, unit=True, both=True):
    for _ in range(n_iterations):
        v = v / v.norm() if unit else v
        before = v.norm()
        v = vjp(jvp(v)) if both else jvp(v)
    gain = v.norm() / before
    return (gain**0.5 if root else gain).item()


def _gain(jvp, vjp, v, n_iterations):
    for _ in range(n_iterations):
        u = jvp(v / v.norm())
        v = vjp(u / u.norm())
    return v.norm()


WRONG = {
    "4.1": [
        (lambda matrix: torch.linalg.svdvals(matrix)[0].item(), "singular value"),
        (lambda matrix: torch.linalg.eigvals(matrix).real.max().item(), "modulus"),
        (lambda matrix: torch.linalg.eigvals(matrix)[0], "complex"),
        (lambda matrix: matrix.diagonal().abs().max().item(), "should be"),
        (lambda matrix: torch.linalg.eigvals(matrix).abs().min().item(), "should be"),
    ],
    "4.2": [
        (lambda radius, error, wanted: math.log(wanted / error) / math.log(radius), "round up"),
        (lambda radius, error, wanted: int(math.log(wanted / error) / math.log(radius)), "round up"),
        (lambda radius, error, wanted: math.ceil(math.log(wanted) / math.log(radius)), "ratio"),
        (lambda radius, error, wanted: -math.ceil(math.log(wanted / error) / math.log(radius)), "negative"),
        (lambda radius, error, wanted: math.ceil(math.log(wanted / error) / math.log(radius)), "already"),
    ],
    "4.3": [
        (lambda x: torch.exp(-torch.exp(x)), "below 1"),
        (lambda x: torch.exp(-torch.exp(x.float())).to(torch.bfloat16), "below 1"),
        (lambda x: torch.exp(-torch.exp(x.float().clamp(min=-10))).to(torch.bfloat16), "below 1"),
        (lambda x: torch.exp(-(1 / 128 + torch.exp(x.float()))), "bfloat16"),
        (lambda x: torch.full_like(x, 0.5), "close to"),
        (lambda x: -torch.exp(-torch.exp(x.clamp(min=-4))), "negative"),
    ],
    "4.4": [
        (lambda states: states.diff(dim=0).norm(dim=-1), "divided"),
        (lambda states: states.diff(dim=0).norm(dim=-1) / states[:-1].norm(dim=-1), "before"),
        (lambda states: (states.diff(dim=0).norm(dim=-1) / states[1:].norm(dim=-1)).mean(-1), "position"),
        (lambda states: states.diff(dim=0).norm(dim=1) / states[1:].norm(dim=1), "states of shape"),
    ],
    "4.5": [
        (lambda *given: _power(*given, root=False), "eigenvalue"),
        (lambda *given: _power(*given, unit=False), "length 1"),
        (lambda *given: _power(*given, root=False, both=False), "should be"),
        (lambda jvp, vjp, v, n_iterations: (jvp(v).norm() / v.norm()).item(), "should be"),
    ],
}
RIGHT = {
    "4.1": lambda matrix: max(abs(value) for value in torch.linalg.eigvals(matrix.double()).tolist()),
    "4.2": lambda radius, error, wanted: next(n for n in range(10**6) if error * radius**n <= wanted),
    "4.3": lambda x: torch.exp(-torch.exp(x.float().clamp(min=-4.8))).to(torch.bfloat16),
    "4.4": lambda states: torch.stack([(b - a).norm(dim=-1) / b.norm(dim=-1) for a, b in itertools.pairwise(states)]),
    "4.5": _gain,
}
