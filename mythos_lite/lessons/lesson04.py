"""Exercises of lesson 4, the spectral radius."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, fitting_hint, is_number, same

# ---------------------------------------------------------------- 4.1


def spectral_radius(matrix: Tensor) -> float:
    """ρ of a square matrix (D, D)."""
    return torch.linalg.eigvals(matrix).abs().max().item()


_RADIUS_SUSPECTS = {
    "that is the largest singular value, how much one step can stretch": lambda m: torch.linalg.matrix_norm(m, 2),
    "that is the largest real part: an eigenvalue counts with its modulus": lambda m: torch.linalg.eigvals(
        m
    ).real.max(),
    "that is the largest size of a real part: an eigenvalue counts with its modulus": lambda m: (
        torch.linalg.eigvals(m).real.abs().max()
    ),
    "the diagonal holds the eigenvalues of a diagonal or triangular matrix only": lambda m: m.diag().abs().max(),
    "`eigvalsh` is for symmetric matrices only": lambda m: torch.linalg.eigvalsh(m).abs().max(),
}


def _fault_in_spectral_radius(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(4)
    cases = {
        "a diagonal matrix": torch.diag(torch.tensor([0.2, 0.9, -0.4])),
        "a matrix whose largest eigenvalue is negative": torch.diag(torch.tensor([0.3, -0.8])),
        "a quarter turn, whose eigenvalues are imaginary": torch.tensor([[0.0, -0.5], [0.5, 0.0]]),
        "a matrix that stretches once and then shrinks": torch.tensor([[0.5, 10.0], [0.0, 0.5]]),
        "a random matrix": torch.randn(6, 6, generator=generator),
        "a matrix of one number": torch.tensor([[-0.3]]),
    }
    found = [answer(matrix.clone()) for matrix in cases.values()]
    for got, (name, matrix) in zip(found, cases.items(), strict=True):
        if isinstance(got, complex) or (isinstance(got, Tensor) and got.is_complex()):
            return "it is a complex number, and a radius is real: take the modulus of the eigenvalues"
        if fault := difference(got, spectral_radius(matrix), 1e-4):
            hint = fitting_hint(_RADIUS_SUSPECTS, [(matrix,) for matrix in cases.values()], found, 1e-4)
            return f"for {name}: {fault}" + (f"; {hint}" if hint else "")
    return None


# ---------------------------------------------------------------- 4.2


def steps_to_shrink(radius: float, error: float, wanted: float) -> int:
    """Fewest steps after which an error, times ``radius`` at each, is at most ``wanted``."""
    steps = math.log(wanted / error) / math.log(radius)
    return max(0, math.ceil(steps - 1e-9))  # rounding may put an exact power a hair above its whole number


def _fault_in_steps_to_shrink(answer: Callable) -> str | None:
    for radius, error, wanted in ((0.5, 1.0, 0.1), (0.9, 1.0, 1e-3), (0.99, 5.0, 1e-3), (0.3, 100.0, 1e-6)):
        got, exact = answer(radius, error, wanted), math.log(wanted / error) / math.log(radius)
        if fault := difference(got, steps_to_shrink(radius, error, wanted)):
            where = f"for radius={radius}, error={error:g}, wanted={wanted:g}: {fault}"
            if same(got, exact) or same(got, math.floor(exact)):
                return f"{where}; after a part of a step nothing has happened: round up"
            from_one = math.log(wanted) / math.log(radius)
            if any(same(got, steps) for steps in (from_one, math.ceil(from_one), math.floor(from_one) + 1)):
                return f"{where}; the error does not start at 1: only its ratio to what is wanted counts"
            if is_number(got) and got < 0:
                return f"{where}; a number of steps is not negative: both logarithms are"
            return where
    if fault := difference(answer(0.5, 0.01, 0.1), 0):
        return f"an error that is small enough already needs no step: {fault}"
    for radius, error, wanted, steps in ((0.5, 1.0, 0.25, 2), (0.5, 8.0, 0.25, 5), (0.5, 0.1, 0.1, 0)):
        if fault := difference(answer(radius, error, wanted), steps):
            return f"for radius={radius}, error={error}, wanted={wanted}: {fault}; “at most” takes in what meets it"
    radius, steps = 0.75, 3
    if fault := difference(answer(radius, 1.0, radius**steps), steps):
        return (
            f"for radius={radius}, error=1.0, wanted={radius**steps}, its third power: {fault}; "
            "rounding puts the quotient of the logarithms a hair above 3: allow for it before you round up"
        )
    return None


# ---------------------------------------------------------------- 4.3


def safe_decay(x: Tensor) -> Tensor:
    """A decay in bfloat16 for any x (D,), in [0, 1): it never grows with x."""
    return torch.exp(-(1 / 128 + torch.exp(x.float().clamp(-20, 20)))).to(torch.bfloat16)


def _fault_in_safe_decay(answer: Callable) -> str | None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite()].sort().values  # every finite number there is
    got = answer(x.clone())
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return difference(got, torch.empty(x.shape))
    if got.dtype != torch.bfloat16:
        return f"its type is {got.dtype}, and torch.bfloat16 is asked for: what it rounds to there is the question"
    if not torch.isfinite(got).all():
        return f"it is not finite at x = {x[~torch.isfinite(got)][0].item():g}"
    if (got >= 1).any():
        return f"it is {got.max().item():g} at x = {x[got >= 1][-1].item():g}: it must stay below 1"
    if (got < 0).any():
        return f"it is {got.min().item():g} at x = {x[got < 0][0].item():g}: a decay is not negative"
    if (got.diff() > 0).any():
        return "it must not grow with x: a larger x is a faster decay"
    middle = (x >= -3) & (x <= 1)
    off = (got[middle].float() - torch.exp(-torch.exp(x[middle].float()))).abs().max().item()
    if off > 0.02:
        return f"between x = −3 and 1 it should be close to exp(−exp(x)), and is off by {off:.2f}"
    return None


# ---------------------------------------------------------------- 4.4


def relative_residual(states: Tensor) -> Tensor:
    """States h_0 … h_L as (L + 1, T, D) → ‖h_t − h_{t−1}‖ / ‖h_t‖ per loop and position, (L, T)."""
    return states.diff(dim=0).norm(dim=-1) / states[1:].norm(dim=-1)


def _fault_in_relative_residual(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(4)
    for loops, length, width in ((4, 3, 5), (1, 2, 2), (3, 3, 3)):
        states = torch.randn(loops + 1, length, width, generator=generator) * 3
        got, wanted = answer(states.clone()), relative_residual(states)
        if fault := difference(got, wanted):
            if same(got, states.diff(dim=0).norm(dim=-1)):
                return "that is the length of the change; relative means: divided by the length of the state"
            if same(got, states.diff(dim=0).norm(dim=-1) / states[:-1].norm(dim=-1)):
                return "it is divided by the state before the loop, and the one after it is asked for"
            if same(got, wanted**2):
                return "it is squared: a length is the root of the sum of squares"
            if isinstance(got, Tensor) and got.shape == (loops,):
                return "there is one number per loop, and one for each loop and position is asked for"
            return f"for states of shape {tuple(states.shape)}: {fault}"
    return None


# ---------------------------------------------------------------- 4.5


def power_iteration(jvp: Callable, vjp: Callable, v: Tensor, n_iterations: int) -> float:
    """σ_max of J from products alone: ``jvp(v)`` is J v, ``vjp(u)`` is Jᵀ u; start at ``v``."""
    for _ in range(n_iterations):
        v = v / v.norm()
        v = vjp(jvp(v))
    return (v.norm() ** 0.5).item()  # JᵀJ has the eigenvalue σ²


def _fault_in_power_iteration(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(4)
    for size, scale in ((2, 1.0), (5, 1.0), (5, 1e4), (5, 1e-4)):
        left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator)).Q for _ in range(2))
        matrix = scale * left @ torch.diag(2.0 ** -torch.arange(size)) @ right.T
        start = torch.randn(size, generator=generator)
        got = answer(lambda v, m=matrix: m @ v, lambda u, m=matrix: m.T @ u, start.clone(), 60)
        got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
        relative = got / scale if isinstance(got, (int, float)) and not isinstance(got, bool) else got
        if fault := difference(relative, 1.0, 1e-3):
            where = f"for a matrix of size {size} with σ_max = {scale:g}: {fault} (divided by σ_max)"
            if isinstance(relative, (int, float)) and (relative == 0 or not math.isfinite(relative)):
                return f"{where}; the vector grows or shrinks at every product: bring it back to length 1 each time"
            if same(relative, scale, 1e-3):
                return f"{where}; JᵀJ has the eigenvalue σ², and σ is asked for"
            if same(relative, torch.linalg.eigvals(matrix).abs().max().item() / scale, 1e-3):
                return f"{where}; that is ρ: products with J alone lead to an eigenvector"
            return where
    return None


EXERCISES = (
    Exercise(
        number="4.1", title="spectral radius of a matrix", minutes=4, difficulty=1,
        find_fault=_fault_in_spectral_radius, solution=spectral_radius,
    ),
    Exercise(
        number="4.2", title="steps until an error has shrunk", minutes=5, difficulty=2,
        find_fault=_fault_in_steps_to_shrink, solution=steps_to_shrink,
    ),
    Exercise(
        number="4.3", title="a decay below 1 in bfloat16", minutes=8, difficulty=3,
        find_fault=_fault_in_safe_decay, solution=safe_decay,
    ),
    Exercise(
        number="4.4", title="relative residual", minutes=5, difficulty=1,
        find_fault=_fault_in_relative_residual, solution=relative_residual,
    ),
    Exercise(
        number="4.5", title="power iteration", minutes=8, difficulty=3,
        find_fault=_fault_in_power_iteration, solution=power_iteration,
    ),
)  # fmt: skip
