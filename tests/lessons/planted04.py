"""Lesson 4: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools
import math

import numpy as np
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


def _steps(radius, error, wanted):
    return math.log(wanted / error) / math.log(radius)


WRONG = {
    "4.1": [
        (lambda matrix: torch.linalg.svdvals(matrix)[0].item(), "singular value"),
        (lambda matrix: torch.linalg.eigvals(matrix).real.max().item(), "modulus"),
        (lambda matrix: torch.linalg.eigvals(matrix)[0], "complex"),
        (lambda matrix: matrix.diagonal().abs().max().item(), "should be"),
        (lambda matrix: torch.linalg.eigvals(matrix).abs().min().item(), "should be"),
        (lambda matrix: matrix.diag().abs().max(), "the diagonal holds"),
        (lambda matrix: np.diag(matrix).max(), "should be"),
        (lambda matrix: torch.linalg.eigvals(matrix).real.abs().max(), "a real part"),
        (lambda matrix: np.linalg.norm(matrix, 2), "singular value"),
        (lambda matrix: np.abs(np.linalg.eigvalsh(matrix)).max(), "symmetric"),
        (lambda matrix: np.linalg.eigvals(matrix)[0].astype(complex), "complex"),
        (lambda matrix: torch.linalg.eigvals(matrix).abs(), "a tensor of shape (3,)"),
    ],
    "4.2": [
        (lambda radius, error, wanted: math.log(wanted / error) / math.log(radius), "round up"),
        (lambda radius, error, wanted: int(math.log(wanted / error) / math.log(radius)), "round up"),
        (lambda radius, error, wanted: math.ceil(math.log(wanted) / math.log(radius)), "ratio"),
        (lambda radius, error, wanted: -math.ceil(math.log(wanted / error) / math.log(radius)), "negative"),
        (lambda radius, error, wanted: math.ceil(math.log(wanted / error) / math.log(radius)), "already"),
        (lambda *given: max(0, math.floor(_steps(*given)) + 1), "at most"),
        (lambda *given: max(0, math.ceil(_steps(*given))), "a hair above 3"),
        (lambda radius, error, wanted: np.ceil(np.log(wanted) / np.log(radius)), "ratio"),
        (lambda radius, error, wanted: next(n for n in range(10**6) if error * radius**n < wanted), "at most"),
        (lambda radius, error, wanted: "soon", "a number"),
    ],
    "4.3": [
        (lambda x: torch.exp(-torch.exp(x)), "below 1"),
        (lambda x: torch.exp(-torch.exp(x.float())).to(torch.bfloat16), "below 1"),
        (lambda x: torch.exp(-torch.exp(x.float().clamp(min=-10))).to(torch.bfloat16), "below 1"),
        (lambda x: torch.exp(-(1 / 128 + torch.exp(x.float()))), "bfloat16"),
        (lambda x: torch.full_like(x, 0.5), "close to"),
        (lambda x: -torch.exp(-torch.exp(x.clamp(min=-4))), "negative"),
        (lambda x: np.exp(-np.exp(x.float().clamp(max=9.0).numpy())), "bfloat16"),
        (lambda x: torch.exp(-torch.exp(x.float())).clamp(max=0.999).to(torch.bfloat16), "below 1"),
        (lambda x: torch.where(x == 1.0078125, 0.5, torch.exp(-torch.exp(x.clamp(min=-4)))), "grow with x"),
        (lambda x: 0.5, "one number"),
    ],
    "4.4": [
        (lambda states: states.diff(dim=0).norm(dim=-1), "divided"),
        (lambda states: states.diff(dim=0).norm(dim=-1) / states[:-1].norm(dim=-1), "before"),
        (lambda states: (states.diff(dim=0).norm(dim=-1) / states[1:].norm(dim=-1)).mean(-1), "position"),
        (lambda states: states.diff(dim=0).norm(dim=1) / states[1:].norm(dim=1), "states of shape"),
        (lambda states: np.linalg.norm(np.diff(states, axis=0), axis=-1), "divided"),
        (lambda states: states.diff(dim=0).square().sum(-1) / states[1:].square().sum(-1), "squared"),
    ],
    "4.5": [
        (lambda *given: _power(*given, root=False), "eigenvalue"),
        (lambda *given: _power(*given, unit=False), "length 1"),
        (lambda *given: _power(*given, root=False, both=False), "should be"),
        (lambda jvp, vjp, v, n_iterations: (jvp(v).norm() / v.norm()).item(), "should be"),
        (lambda jvp, vjp, v, n_iterations: jvp(v), "a tensor of shape (2,)"),
        (lambda jvp, vjp, v, n_iterations: None, "a number"),
    ],
}
RIGHT = {
    "4.1": [
        lambda matrix: max(abs(value) for value in torch.linalg.eigvals(matrix.double()).tolist()),
        lambda matrix: torch.linalg.eigvals(matrix).abs().max(),
        lambda matrix: np.abs(np.linalg.eigvals(matrix.numpy())).max(),
        lambda matrix: np.float32(np.abs(np.linalg.eigvals(matrix)).max()),
    ],
    "4.2": [
        lambda radius, error, wanted: next(n for n in range(10**6) if error * radius**n <= wanted),
        lambda *given: np.maximum(0, np.ceil(np.round(_steps(*given), 9))),
        lambda *given: torch.tensor(_steps(*given)).sub(1e-6).ceil().clamp(min=0),
    ],
    "4.3": [
        lambda x: torch.exp(-torch.exp(x.float().clamp(min=-4.8))).to(torch.bfloat16),
        lambda x: torch.exp(-torch.exp(x.float())).clamp(max=1 - 2**-8).to(torch.bfloat16),
        lambda x: torch.from_numpy(np.exp(-np.exp(np.clip(x.float().numpy(), -4.8, 9.0)))).bfloat16(),
    ],
    "4.4": [
        lambda states: torch.stack([(b - a).norm(dim=-1) / b.norm(dim=-1) for a, b in itertools.pairwise(states)]),
        lambda states: np.linalg.norm(np.diff(states, axis=0), axis=-1) / np.linalg.norm(states[1:], axis=-1),
        lambda states: [(b - a).norm(dim=-1) / b.norm(dim=-1) for a, b in itertools.pairwise(states)],
    ],
    "4.5": [_gain, lambda *given: np.float32(_gain(*given)), lambda *given: _gain(*given).view(1)],
}
