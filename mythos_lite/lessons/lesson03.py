"""Exercises of lesson 3, the recurrent loop."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, is_number, same

# ---------------------------------------------------------------- 3.1


def additive_step(h: Tensor, e: Tensor, decay: Tensor, b: Tensor, core: Callable, norm: Callable) -> Tensor:
    """One loop with the core beside the linear system: (B, T, D) → (B, T, D)."""
    return torch.tanh(decay * h + b * e + core(norm(h + e)))


def _fault_in_additive_step(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(0)
    for batch, length, width in ((1, 1, 2), (2, 3, 5), (3, 4, 4)):
        h, e = (torch.randn(batch, length, width, generator=generator) for _ in range(2))
        decay, b = torch.rand(width, generator=generator), torch.randn(width, generator=generator)
        weight = torch.randn(width, width, generator=generator)

        def core(x, weight=weight):
            return torch.sin(x @ weight)

        def norm(x):
            return x / x.pow(2).mean(dim=-1, keepdim=True).sqrt()

        got = answer(h.clone(), e.clone(), decay.clone(), b.clone(), core, norm)
        if fault := difference(got, additive_step(h, e, decay, b, core, norm)):
            without_tanh = decay * h + b * e + core(norm(h + e))
            suspects = {
                "the tanh over the sum is missing": without_tanh,
                "the tanh is over the core alone; it belongs over the whole sum": decay * h
                + b * e
                + torch.tanh(core(norm(h + e))),
                "the core sees h alone; it must see h + e": torch.tanh(decay * h + b * e + core(norm(h))),
                "the norm is missing before the core": torch.tanh(decay * h + b * e + core(h + e)),
                "the input is not injected: b ⊙ e is missing": torch.tanh(decay * h + core(norm(h + e))),
                "the decay of h is missing": torch.tanh(h + b * e + core(norm(h + e))),
                "the core stands behind the linear system, as in lti; here it stands beside it": torch.tanh(
                    core(norm(decay * h + b * e))
                ),
            }
            for message, wrong in suspects.items():
                if same(got, wrong):
                    return message
            return f"for states of shape {(batch, length, width)}: {fault}"
    return None


# ---------------------------------------------------------------- 3.2


def weights_ratio(n: int, core: int, outer: int) -> float:
    """Weights of n stacked cores over weights of one core looped n times."""
    return (n * core + outer) / (core + outer)


def _fault_in_weights_ratio(answer: Callable) -> str | None:
    for n, core, outer in ((1, 7, 3), (8, 100, 50), (80, 5, 0), (4, 10, 1000)):
        got = answer(n, core, outer)
        if fault := difference(got, weights_ratio(n, core, outer)):
            where = f"for n={n}, core={core}, outer={outer}: {fault}"
            if same(got, (core + outer) / (n * core + outer)):
                return f"{where}; it is upside down, the stack's weights come first"
            if same(got, n):
                return f"{where}; only the core is stacked, the outer part does not grow with n"
            if same(got, n * core + outer):
                return f"{where}; that is the stack alone, divide by the weights of the loop"
            if same(got, (n * core + outer) // (core + outer)):
                return f"{where}; a ratio need not be a whole number: do not round it"
            return where
    return None


# ---------------------------------------------------------------- 3.3


def loops_within(budget: float, core: float, outer: float) -> int:
    """Largest whole number of loops whose cost stays within the budget."""
    loops = math.floor((budget - outer) / core)
    if loops < 1:
        raise ValueError(f"a budget of {budget} does not pay for one loop, which costs {core + outer}")
    return loops


def _fault_in_loops_within(answer: Callable) -> str | None:
    for budget, core, outer in ((100, 10, 20), (109, 10, 20), (30, 10, 20), (1000, 7, 0), (12, 4, 3)):
        got, wanted = answer(budget, core, outer), loops_within(budget, core, outer)
        if fault := difference(got, wanted):
            where = f"for budget={budget}, core={core}, outer={outer}: {fault}"
            if same(got, budget // core) or same(got, budget / core):
                return f"{where}; prelude and coda must be paid too, once"
            if same(got, budget // (core + outer)):
                return f"{where}; prelude and coda are paid once, not in every loop"
            if same(got, (budget - outer) / core):
                return f"{where}; only whole loops can be run"
            if is_number(got) and outer + got * core > budget:
                return f"{where}; that costs more than the budget"
            if same(got, wanted - 1):
                return f"{where}; one loop more still stays within the budget"
            return where
    for budget, core, outer in ((29, 10, 20), (5, 10, 20)):
        where = f"for budget={budget}, core={core}, outer={outer} not one loop fits: raise a ValueError"
        try:
            got = answer(budget, core, outer)
        except ValueError:
            continue
        except NotImplementedError:
            raise
        except Exception as error:
            return f"{where}; it raised {type(error).__name__}"
        return f"{where}; it gave {got!r}"
    return None


# ---------------------------------------------------------------- 3.4


def linear_gradients(a: float, b: float, n: int) -> tuple[float, float]:
    """(∂h_n/∂h_0, ∂h_n/∂e) of h ← a·h + b·e."""
    return a**n, b * sum(a**k for k in range(n))


def _fault_in_linear_gradients(answer: Callable) -> str | None:
    for a, b, n in ((0.5, 2.0, 1), (0.5, 2.0, 3), (0.9, 0.1, 64), (1.0, 0.5, 8), (-0.5, 1.0, 4), (1.1, 1.0, 5)):
        got = answer(a, b, n)
        if not isinstance(got, Tensor) or got.numel() != 2:
            return f"it is {got!r}, and two numbers are asked for: the derivatives after h_0 and after e"
        got = got.flatten().tolist()
        start, source = linear_gradients(a, b, n)
        where = f"for a={a:g}, b={b:g}, n={n}"
        if fault := difference(got[0], start):
            if same(got[0], n * a):
                return f"{where}, ∂h_n/∂h_0: {fault}; factors multiply from loop to loop, they do not add"
            if same(got[0], source) and same(got[1], start):
                return f"{where}: the two derivatives have changed places"
            return f"{where}, ∂h_n/∂h_0: {fault}"
        if fault := difference(got[1], source):
            if a == 1.0 and not math.isfinite(got[1]):
                return f"{where}, ∂h_n/∂e: {fault}; at a = 1 the closed form of the sum divides by zero"
            if same(got[1], a * source):
                return f"{where}, ∂h_n/∂e: {fault}; the e that came in last has not decayed yet: the sum begins at a^0"
            if same(got[1], b):
                return f"{where}, ∂h_n/∂e: {fault}; e comes in at every loop, not only at the last"
            if same(got[1], b * n):
                return f"{where}, ∂h_n/∂e: {fault}; what came in earlier has decayed since, by a at every loop"
            if same(got[1], source + b * a**n):
                return f"{where}, ∂h_n/∂e: {fault}; the sum has one term too many, it ends at a^(n−1)"
            return f"{where}, ∂h_n/∂e: {fault}"
    return None


EXERCISES = (
    Exercise(
        number="3.1", title="the other injection", minutes=6, difficulty=2,
        find_fault=_fault_in_additive_step, solution=additive_step,
    ),
    Exercise(
        number="3.2", title="weights of a loop and of a stack", minutes=4, difficulty=1,
        find_fault=_fault_in_weights_ratio, solution=weights_ratio,
    ),
    Exercise(
        number="3.3", title="loops for a budget", minutes=6, difficulty=2,
        find_fault=_fault_in_loops_within, solution=loops_within,
    ),
    Exercise(
        number="3.4", title="gradients of a linear loop", minutes=8, difficulty=2,
        find_fault=_fault_in_linear_gradients, solution=linear_gradients,
    ),
)  # fmt: skip
