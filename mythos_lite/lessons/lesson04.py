"""Exercises of lesson 4, the spectral radius."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, fitting_hint, is_number, same

# ---------------------------------------------------------------- 4.1


def steps_to_shrink(radius: float, start: float, target: float) -> float:
    """Fewest steps after which an error ``start``, times ``radius`` at each step, is at most ``target``."""
    if start <= target:
        return 0
    if radius >= 1:
        return math.inf  # it never gets there
    n = math.ceil(math.log(target / start) / math.log(radius))  # two negative logarithms: a positive quotient
    # Logarithms are rounded, so at an exact power the quotient may lie a hair above or below its whole number.
    while n > 0 and start * radius ** (n - 1) <= target:
        n -= 1
    while start * radius**n > target:
        n += 1
    return n


def _fault_in_steps(answer: Callable) -> str | None:
    for radius, start, target in ((0.5, 1.0, 0.1), (0.9, 1.0, 1e-3), (0.99, 5.0, 1e-3), (0.3, 100.0, 1e-6)):
        got, exact = answer(radius, start, target), math.log(target / start) / math.log(radius)
        if fault := difference(got, steps_to_shrink(radius, start, target)):
            where = f"for radius={radius}, start={start:g}, target={target:g}: {fault}"
            if same(got, exact) or same(got, math.floor(exact)):
                return f"{where}; after a part of a step nothing has happened: round up"
            from_one = math.log(target) / math.log(radius)
            if any(same(got, steps) for steps in (from_one, math.ceil(from_one), math.floor(from_one) + 1)):
                return f"{where}; the error does not start at 1: only its ratio to the target counts"
            if is_number(got) and got < 0:
                return f"{where}; a number of steps is not negative: both logarithms are"
            return where
    if fault := difference(answer(0.5, 0.01, 0.1), 0):
        return f"an error that is small enough already needs no step: {fault}"
    return None


def _fault_in_exact_steps(answer: Callable) -> str | None:
    fine = 1 - 2**-10
    powers = [(0.5, 1.0, 2), (0.5, 8.0, 5), (0.5, 0.1, 0), (0.5, 3.0, 30), (0.25, 1.0, 7)]
    powers += [(0.75, 1.0, 3), (0.75, 1.0, 6), (0.625, 1.0, 5), (fine, 1.0, 5)]
    for radius, start, steps in powers:  # all of these are exact in binary
        target = start * radius**steps
        if fault := difference(answer(radius, start, target), steps):
            power = {2: "2nd", 3: "3rd"}.get(steps, f"{steps}th")
            where = f"for radius={radius:g}, start={start:g}, target={target:g}, the {power} power exactly: {fault}"
            if is_number(got := answer(radius, start, target)) and got == steps + 1:
                return (
                    f"{where}; “at most” takes in what meets the target, and rounding may put the quotient of the "
                    "logarithms a hair above its whole number: try the power itself"
                )
            return where
    return None


def _fault_in_no_shrinking(answer: Callable) -> str | None:
    for radius in (1.0, 1.3):
        got = answer(radius, 1.0, 0.1)
        if got != math.inf:
            return f"for radius={radius} it is {got}; an error that never shrinks never arrives: math.inf"
        if fault := difference(answer(radius, 0.05, 0.1), 0):
            return f"for radius={radius} and an error that is small enough already: {fault}"
    return None


# ---------------------------------------------------------------- 4.2


def power_iteration(matvec: Callable[[Tensor], Tensor], v: Tensor, n_steps: int = 60, keep: int = 20) -> float:
    """Growth per product of a linear map, which is its spectral radius once ``n_steps`` is large enough.

    ``matvec(v)`` is the map times a vector of v's shape; the last ``keep`` of ``n_steps`` products are averaged.
    """
    logs = []
    for _ in range(n_steps):
        v = v / v.norm()  # length 1, so that the next length is the growth, and nothing overflows
        v = matvec(v)
        growth = v.norm().item()
        if growth == 0:
            return 0.0  # nothing is left, and nothing can be divided by it
        logs.append(math.log(growth))
    return math.exp(sum(logs[-keep:]) / keep)  # factors multiply: the mean is that of their logarithms


def _turning(radius: float, degrees: float, stretch: float) -> Tensor:
    """Eigenvalues radius·exp(±i·angle), on ellipses ``stretch`` times as long as wide."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return radius * torch.tensor([[cos, -stretch * sin], [sin / stretch, cos]])


class _Counted:
    """Products with a matrix (D, D) for vectors of any shape with D numbers; counts them, and notes the growth."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.growth = matrix, []

    def __call__(self, v: Tensor) -> Tensor:
        image = (self.matrix @ v.flatten()).view(v.shape)
        self.growth.append((image.norm() / v.norm()).item())
        return image


_POWER_CASES = {
    "a diagonal matrix": (torch.diag(torch.tensor([0.2, 0.9, -0.4])), 60, 20),
    "a matrix whose largest eigenvalue is negative": (torch.diag(torch.tensor([0.3, -0.8])), 60, 20),
    "a complex pair on a circle": (_turning(0.7, 40, 1), 60, 20),
    "a complex pair on an ellipse, whose growth goes up and down": (_turning(0.8, 90, 5), 60, 20),
    "another complex pair on an ellipse": (_turning(0.9, 40, 3), 420, 360),
    "a matrix that stretches at first and then shrinks": (torch.tensor([[0.9, 8.0], [0.0, 0.6]]), 60, 20),
}


def _fault_in_radius(answer: Callable) -> str | None:
    for name, (matrix, n_steps, keep) in _POWER_CASES.items():
        products = _Counted(matrix)
        got = answer(products, torch.linspace(1, 0.5, len(matrix)), n_steps, keep)
        wanted = torch.linalg.eigvals(matrix).abs().max().item()
        if isinstance(got, complex):
            return "it is a complex number, and a growth is real: take the length of the vector"
        if fault := difference(got, wanted, 0.02):
            return f"for {name}: {fault}" + _power_hint(got, products.growth, keep, matrix)
        if len(products.growth) != n_steps:
            return f"for n_steps={n_steps} it takes {len(products.growth)} products: one for each step"
    return _fault_in_keep(answer)


def _fault_in_keep(answer: Callable) -> str | None:
    """Products that grow by ½ at first and by 2 in the last five: what is kept shows in the answer, in any norm."""
    for keep, wanted in ((5, 2.0), (10, 1.0)):
        factors = iter([0.5] * 10 + [2.0] * 5)
        got = answer(lambda v, f=factors: next(f) * v, torch.tensor([1.0, 0.5]), 15, keep)
        if fault := difference(got, wanted, 1e-3):
            return (
                f"for 15 products, ten of which halve the vector and five then double it, and keep={keep}: {fault}; "
                "the last `keep` products are averaged, whatever `keep` is"
            )
    return None


def _power_hint(got: object, growth: list[float], keep: int, matrix: Tensor) -> str:
    """The mistake that gives this answer, given how the lengths grew at each product."""
    if not growth:
        return ""
    logs = [math.log(g) for g in growth if g > 0] or [0.0]
    suspects = {
        "that is the growth of the last product alone; along an ellipse it goes up and down: average the last `keep`": (
            growth[-1]
        ),
        "that is the mean of the factors; factors multiply, so average their logarithms": sum(growth[-keep:]) / keep,
        "the first products are in the mean too: leave them out, they tell of the start": math.exp(
            sum(logs) / len(logs)
        ),
        "that is the mean of the logarithms: take the exponential": sum(logs[-keep:]) / keep,
        "that is the largest singular value, how much one product can stretch": torch.linalg.matrix_norm(matrix, 2),
        "that is the largest growth of all; what counts is the mean of the last": max(growth),
        "that is the sum of the logarithms, not divided by `keep`": math.exp(sum(logs[-keep:])),
    }
    for hint, value in suspects.items():
        if same(got, value, 1e-3):
            return f"; {hint}"
    return ""


def _fault_in_scale(answer: Callable) -> str | None:
    for scale in (1e6, 1e-6):
        got = answer(_Counted(scale * _turning(1.0, 30, 1)), torch.tensor([1.0, 0.0]), 60, 20)
        relative = got / scale if is_number(got) else got
        if fault := difference(relative, 1.0, 0.01):
            where = f"for a matrix with radius {scale:g}: {fault} (divided by {scale:g})"
            return f"{where}; the vector grows or shrinks at every product: bring it back to length 1 each time"
    try:
        got = answer(_Counted(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), torch.tensor([1.0, 1.0]), 20, 10)
    except (ValueError, ZeroDivisionError) as error:
        got = error
    if not is_number(got) or got != 0:
        return f"a matrix whose square is zero leaves no vector after two products; the answer is 0, and not {got!r}"
    return None


def _fault_in_shapes(answer: Callable) -> str | None:
    start = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(4))
    kept = start.clone()
    got = answer(_Counted(torch.diag(torch.tensor([0.3, -0.8, 0.1, 0.2, 0.5, 0.4]))), start, 60, 20)
    if fault := difference(got, 0.8, 0.01):
        return f"for a vector of shape (1, 3, 2): {fault}; its length is that of all its numbers together"
    if not torch.equal(start, kept):
        return "it changes the vector that it was given: write v = v / …, not v /= …"
    return None


# ---------------------------------------------------------------- 4.3


def jacobian_radius(loop_map: Callable[[Tensor], Tensor], h: Tensor, n_steps: int = 60, keep: int = 20) -> float:
    """ρ of the Jacobian of ``loop_map`` at the state ``h``, from products alone."""
    v = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))

    def matvec(v: Tensor) -> Tensor:
        _, product = torch.func.jvp(loop_map, (h,), (v,))  # F(h), and J v with J taken at h
        return product

    with torch.no_grad():
        return power_iteration(matvec, v, n_steps, keep)


def _tanh_map(radius: float, size: int = 4, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """h → tanh(h W + c): its Jacobian depends on the state; W has the given radius."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator)
    weight *= radius / torch.linalg.eigvals(weight).abs().max()
    shift = torch.randn(size, generator=generator)
    return lambda h: torch.tanh(h @ weight + shift)


def _true_radius(loop_map: Callable, h: Tensor) -> float:
    matrix = torch.autograd.functional.jacobian(loop_map, h).reshape(h.numel(), h.numel())
    return torch.linalg.eigvals(matrix.double()).abs().max().item()


def _fault_in_linear_radius(answer: Callable) -> str | None:
    for degrees, radius in ((90, 0.8), (0, 1.2), (180, 0.5)):
        weight = _turning(radius, degrees, 1)
        got = answer(lambda h, w=weight: h @ w.T + 3.0, torch.ones(1, 1, 2))
        if fault := difference(got, radius, 0.02):
            hint = ""
            if same(got, (weight @ torch.ones(2) + 3).norm() / 2**0.5, 0.02) or (is_number(got) and got > 1.5):
                hint = "; it looks like the map itself, not its derivative: `torch.func.jvp` gives F(h) first, then J v"
            return f"for a map h → h Wᵀ + 3 with ρ(W) = {radius}: {fault}{hint}"
    got = answer(lambda h: h @ _turning(0.8, 90, 1).T + 3.0, torch.zeros(1, 1, 2))
    if fault := difference(got, 0.8, 0.02):
        return f"at the state 0: {fault}; start from a random direction, since the state itself may be zero"
    return None


def _fault_in_local_radius(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(4)
    for shape, seed in (((1, 1, 4), 0), ((1, 3, 4), 1), ((1, 2, 4), 2)):
        loop_map, h = _tanh_map(1.5, seed=seed), torch.randn(shape, generator=generator)
        given = h.clone()
        got, wanted = answer(loop_map, given, 400, 300), _true_radius(loop_map, h)
        if fault := difference(got, wanted, 0.03):
            where = f"for a tanh map at a state of shape {shape}: {fault}"
            suspects = {
                "J is taken at a moving state; J stays that of h": lambda m=loop_map, h=h: _moving_growth(m, h),
                "that is the Jacobian at 0; it belongs at the state h": lambda m=loop_map, h=h: _true_radius(m, 0 * h),
                "that is the Jacobian at F(h); it belongs at the state h": lambda m=loop_map, h=h: _true_radius(
                    m, m(h)
                ),
                "J is taken at v; it belongs at the state h": lambda m=loop_map, h=h: _growth_at_v(m, h),
            }
            return where + next((f"; {hint}" for hint, radius in suspects.items() if same(got, radius(), 0.02)), "")
        if not torch.equal(given, h):
            return "it changes the state that it was given: work on a copy"
    return _fault_in_fine_points(answer)


def _moving_growth(loop_map: Callable, h: Tensor) -> float:
    """Mean growth if the state moves on between the products."""
    states = [h]

    def matvec(v: Tensor) -> Tensor:
        state, product = torch.func.jvp(loop_map, (states.pop(),), (v,))
        states.append(state)
        return product

    return power_iteration(matvec, torch.ones_like(h), 400, 300)


def _growth_at_v(loop_map: Callable, h: Tensor) -> float:
    """Mean growth if J is taken at the direction in place of the state."""
    start = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    return power_iteration(lambda v: torch.func.jvp(loop_map, (v,), (v,))[1], start, 400, 300)


def _fault_in_fine_points(answer: Callable) -> str | None:
    """Whether J is the derivative itself, and whether the numbers of products are handed on."""
    h = torch.tensor([[[0.1, 0.03, 0.06]]])
    if fault := difference(answer(lambda state: 10 * state * state, h.clone(), 60, 20), 2.0, 0.02):
        return f"for h → 10 h² at (0.1, 0.03, 0.06): {fault}; a difference of two values is too coarse, take `jvp`"
    weight, ones = _turning(0.9, 40, 3), torch.ones(1, 1, 2)
    few, many = (answer(lambda state: state @ weight.T, ones.clone(), n_steps, 20) for n_steps in (20, 60))
    if same(few, many, 1e-6) and not same(many, 0.9, 1e-4):  # an exact answer needs no number of products
        return "`n_steps` and `keep` change nothing: hand them on to your power iteration"
    return None


# ---------------------------------------------------------------- 4.4


def safe_decay(a: Tensor, delta: Tensor) -> Tensor:
    """exp(−Δ·exp(a)) that stays inside (0, 1) at every a and every Δ from 10⁻³⁷ up."""
    log_rate = a + torch.log(delta)  # the logarithm of Δ·exp(a): nothing can overflow here
    log_rate = log_rate.clamp(math.log(1 / 128), math.log(64))
    return torch.exp(-torch.exp(log_rate))


def _extremes() -> tuple[Tensor, Tensor]:
    a = torch.tensor(
        [-3e38, -1e30, -100.0, -30.0, -17.0, -7.0, -5.0, -3.0, 0.0, 3.0, 5.0, 7.0, 30.0, 100.0, 1e30, 3e38]
    )
    delta = torch.tensor([1e-37, 1e-20, 1e-4, 0.1, 1.0, 10.0, 1e4, 1e20, 3e38])
    return a.repeat(len(delta)), delta.repeat_interleave(len(a))


def _fault_in_decay_values(answer: Callable) -> str | None:
    for a, delta in ((torch.linspace(-3, 1, 9), torch.tensor(1.0)), (torch.linspace(-2, 0, 5), torch.tensor(0.5))):
        delta = delta.expand(a.shape).clone()
        got, wanted = answer(a.clone(), delta.clone()), torch.exp(-delta * torch.exp(a))
        if fault := difference(got, wanted, 0.02):
            hint = fitting_hint(_DECAY_SUSPECTS, [(a, delta)], [got], 0.02)
            return f"for a from {a[0]:g} to {a[-1]:g} and Δ = {delta[0]:g}: {fault}" + (f"; {hint}" if hint else "")
    if isinstance(got, Tensor) and got.dtype != torch.float32:
        return f"for a and Δ in float32 it is in {str(got.dtype).removeprefix('torch.')}, and float32 is asked for"
    return None


_DECAY_SUSPECTS = {
    "the minus before the rate is missing": lambda a, delta: torch.exp(delta * torch.exp(a)),
    "that is the rate; the decay is exp(−rate)": lambda a, delta: delta * torch.exp(a),
    "Δ multiplies exp(a), it is not added to a": lambda a, delta: torch.exp(-torch.exp(a + delta)),
    "Δ is missing": lambda a, delta: torch.exp(-torch.exp(a)),
}  # fmt: skip


def _fault_in_decay_range(answer: Callable) -> str | None:
    a, delta = _extremes()
    given = a.clone(), delta.clone()
    got = answer(*given)
    for name, before, after in zip(("a", "Δ"), (a, delta), given, strict=True):
        if not torch.equal(before, after):
            return f"it changes the caller's {name}: write a new tensor"
    if not isinstance(got, Tensor) or got.shape != a.shape:
        return difference(got, torch.empty(a.shape))
    for name, values in (("float32", got.float()), ("bfloat16", got.to(torch.bfloat16).float())):
        for fault, wrong in (
            ("is not a number", values.isnan()),
            ("must stay below 1", values >= 1),
            ("must stay above 0", values <= 0),
        ):
            if wrong.any():
                place = wrong.nonzero()[0, 0]
                return (
                    f"at a = {a[place]:g}, Δ = {delta[place]:g} it is {values[place]:g}"
                    f"{' once it is rounded to bfloat16' if name == 'bfloat16' else ''}: it {fault}"
                )
    rising = answer(torch.linspace(-40, 40, 4001), torch.ones(4001)).diff()
    if (rising > 0).any():
        return "it must not grow with a: a larger a is a faster decay"
    return None


def _fault_in_decay_gradient(answer: Callable) -> str | None:
    a, delta = (x.requires_grad_() for x in _extremes())
    got = answer.raw(a, delta)
    if not isinstance(got, Tensor) or not got.requires_grad:
        return "its answer carries no gradient: stay with tensors, without .item(), .detach(), NumPy or no_grad"
    by_a, by_delta = torch.autograd.grad(got.sum(), (a, delta), allow_unused=True)
    if by_a is None or by_delta is None:
        return f"no gradient reaches {'a' if by_a is None else 'Δ'}"
    for name, gradient in (("a", by_a), ("Δ", by_delta)):
        if not gradient.isfinite().all():
            place = (~gradient.isfinite()).nonzero()[0, 0]
            return (
                f"the gradient by {name} is {gradient[place]:g} at a = {a[place]:g}, Δ = {delta[place]:g}: "
                "somewhere before the last step a number is infinite; bound the logarithm of the rate, not the decay"
            )
    a = torch.linspace(-3, 1, 9, requires_grad=True)
    (got,) = torch.autograd.grad(answer.raw(a, torch.ones(9)).sum(), a)
    rate = torch.exp(a.detach())
    if fault := difference(got, -rate * torch.exp(-rate), 0.02):
        return f"the gradient by a, for a from −3 to 1 and Δ = 1: {fault}"
    return None


# ---------------------------------------------------------------- 4.5


class Monitor:
    """Watches a training run, one training step at a time."""

    def __init__(self, n_loops: int, patience: int = 3) -> None:
        self.n_loops, self.patience = n_loops, patience
        self.records: list[dict] = []  # one for each training step
        self.alarm: int | None = None  # the training step, from 1, at which the alarm was raised first
        self.reason = ""

    @torch.no_grad()
    def walk(self, loop_map: Callable[[Tensor], Tensor], h: Tensor) -> tuple[float, float]:
        """Walk ``n_loops`` loops from ``h``: growth of a small error per loop, and the last loop's residual."""
        before = state = h.detach()

        def matvec(v: Tensor) -> Tensor:  # J v at the state where the walk is; then the state moves on
            nonlocal before, state
            before, (state, product) = state, torch.func.jvp(loop_map, (state,), (v,))
            return product

        v = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
        growth = power_iteration(matvec, v, self.n_loops, max(1, self.n_loops // 2))
        residual = (state - before).norm() / state.norm()
        return growth, residual.item()

    def watch(self, loop_map: Callable[[Tensor], Tensor], h: Tensor, loss: float, grad_norm: float) -> None:
        """Keep a record of one training step, and raise the alarm if something is wrong."""
        growth, residual = self.walk(loop_map, h)
        record = {"loss": loss, "grad_norm": grad_norm, "growth": growth, "residual": residual}
        self.records.append(record)
        if self.alarm is not None:
            return  # the first alarm counts
        last = self.records[-self.patience :]
        if not all(math.isfinite(value) for value in record.values()):
            self.alarm, self.reason = len(self.records), "a number is not finite"
        elif len(last) == self.patience and all(one["growth"] > 1 for one in last):
            self.alarm, self.reason = len(self.records), f"errors grew {self.patience} times in a row"


def _quadratic(h: Tensor) -> Tensor:
    """h → h² / 2: its derivative is h, so that it changes along the orbit."""
    return h * h / 2


def _fault_in_walk(answer: Callable) -> str | None:
    for n_loops, radius in ((8, 0.7), (5, 1.3), (1, 0.5)):
        start, weight = torch.ones(1, 2, 2), _turning(radius, 90, 1)
        got = answer(n_loops).walk(lambda h, w=weight: h @ w.T, start)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            return f"`walk` returned {got!r}; two numbers are asked for, growth and residual"
        if fault := difference(got[0], radius, 1e-3):
            return f"growth, {n_loops} loops of a linear map with ρ = {radius}: {fault}"
        moved = 2**0.5 if radius == 1 else (1 + radius**2) ** 0.5 / radius  # a quarter turn: a right angle
        if fault := difference(got[1], moved, 1e-3):
            hint = ""
            if same(got[1], moved * radius, 1e-3):
                hint = "; it is divided by the state before the loop, and the one after it is asked for"
            if same(got[1], moved * radius**n_loops * 2, 1e-3):
                hint = "; relative means: divided by the length of the state"
            return f"residual, {n_loops} loops of a linear map with ρ = {radius}: {fault}{hint}"
    return _fault_in_moving(answer) or _fault_in_whole_state(answer) or _fault_in_graph(answer)


def _fault_in_moving(answer: Callable) -> str | None:
    """Whether the Jacobian is taken along the orbit, and only the second half is averaged."""
    for n_loops in (6, 5):
        start, states = torch.full((1, 1, 3), 1.9), [1.9]
        for _ in range(n_loops):
            states.append(states[-1] ** 2 / 2)
        given = start.clone()
        growth, residual = answer(n_loops).walk(_quadratic, given)
        logs, half = [math.log(state) for state in states[:-1]], n_loops // 2
        if fault := difference(growth, math.exp(sum(logs[-half:]) / half), 1e-3):
            where = f"growth, {n_loops} loops of h → h²/2 from 1.9, whose derivative is h: {fault}"
            suspects = {
                "J is taken at the first state in every loop: move the state on": states[0],
                "all loops are averaged; leave the first half out": math.exp(sum(logs) / n_loops),
                "J is taken at the state after the loop": math.exp(
                    sum([*logs[1 - half :], math.log(states[-1])]) / half
                ),
                "that is the growth of the last loop alone": states[-2],
                "two loops are walked for one product": _two_loops_each(n_loops),
                "of an odd number of loops the half is rounded down": math.exp(sum(logs[-half - 1 :]) / (half + 1)),
            }
            return where + next((f"; {hint}" for hint, value in suspects.items() if same(growth, value, 1e-3)), "")
        if fault := difference(residual, abs(states[-1] - states[-2]) / states[-1], 1e-3):
            return f"residual, {n_loops} loops of h → h²/2 from 1.9: {fault}; it is that of the last loop"
        if not torch.equal(given, start):
            return "`walk` changes the state that it was given: work on a copy"
    return None


def _two_loops_each(n_loops: int) -> float:
    states, half = [1.9], n_loops // 2
    for _ in range(2 * n_loops):
        states.append(states[-1] ** 2 / 2)
    return math.exp(sum(math.log(state) for state in states[-1 - 2 * half : -1 : 2]) / half)


def _fault_in_whole_state(answer: Callable) -> str | None:
    """Rows of unequal size, which shrink at unequal rates: the norms run over all numbers of the state."""
    state, rates = torch.tensor([[[9.0, 3.0], [0.5, 2.0], [0.1, 0.2]]]), torch.tensor([[0.9], [0.5], [0.3]])
    after = state * rates**4
    change = after / rates - after
    _, got = answer(4).walk(lambda h: h * rates, state.clone())
    if fault := difference(got, change.norm() / after.norm(), 1e-3):
        hint = "; the norms run over all numbers of a state, not position by position"
        by_position = (change.norm(dim=-1) / after.norm(dim=-1)).mean()
        return f"residual of a state of shape (1, 3, 2): {fault}" + (hint if same(got, by_position, 1e-3) else "")
    return None


def _fault_in_graph(answer: Callable) -> str | None:
    recording = []

    def loop_map(h: Tensor) -> Tensor:
        recording.append(torch.is_grad_enabled())
        return h / 2

    answer(2).walk(loop_map, torch.ones(1, 1, 2))
    if any(recording):
        return "`walk` records a graph for backward, which nobody needs: `@torch.no_grad()` above it, as in the stub"
    return None


def _watched(answer: Callable, radii: list[float], patience: int, losses: list[float] | None = None) -> object:
    """A monitor that has seen a training step for each of these radii."""
    monitor, losses = answer(4, patience), losses or [1.0] * len(radii)
    for radius, loss in zip(radii, losses, strict=True):
        weight = _turning(radius, 90, 1)
        monitor.watch(lambda h, w=weight: h @ w.T, torch.ones(1, 1, 2), loss, 2.0)
    return monitor


def _fault_in_records(answer: Callable) -> str | None:
    monitor = _watched(answer, [0.5, 0.8], 3)
    records = getattr(monitor, "records", None)
    if not isinstance(records, list) or len(records) != 2:
        return "after two training steps `records` does not hold two records"
    wanted = {"loss": 1.0, "grad_norm": 2.0, "growth": 0.8, "residual": (1 + 0.8**2) ** 0.5 / 0.8}
    for name, value in wanted.items():
        if not isinstance(records[-1], dict) or name not in records[-1]:
            return f"a record is a dictionary with the keys {', '.join(wanted)}; {name} is missing"
        got = records[-1][name]
        if isinstance(got, Tensor):
            return f"{name} in a record is a tensor, which may keep a whole graph: keep a number, as `.item()` gives it"
        if fault := difference(got, value, 1e-3):
            return f"{name} in the second record: {fault}"
    if answer(4, 3).records:
        return "a new monitor has records already, those of another one: make the list in `__init__`, not in the class"
    return None


def _fault_in_alarm(answer: Callable) -> str | None:
    calm, up, nan = 0.9, 1.1, math.nan
    cases = [
        ("a run that stays below 1", [calm] * 5, 3, None, None),
        ("growth above 1 at single steps only", [up, up, calm, up, up, calm], 3, None, None),
        ("three steps in a row above 1", [calm, up, calm, up, up, up, up], 3, None, 6),
        ("patience of 1", [calm, calm, up], 1, None, 3),
        ("patience of 2, from the first step on", [up, up, calm], 2, None, 2),
        ("an alarm that the run then calms down from", [up, up, calm, calm, up, up], 2, None, 2),
        ("a loss that is not a number at the second step", [calm, calm, calm], 3, [1.0, nan, 1.0], 2),
        ("a loss that is infinite", [calm, calm], 3, [1.0, math.inf], 2),
        ("two steps above 1, where patience is 3", [up, up], 3, None, None),
    ]
    for name, radii, patience, losses, wanted in cases:
        monitor = _watched(answer, radii, patience, losses)
        got = getattr(monitor, "alarm", "missing")
        got = got.item() if isinstance(got, Tensor) else got
        if got != wanted or isinstance(got, bool):
            hint = ""
            if wanted is not None and got == wanted - 1:
                hint = "; training steps are counted from 1"
            elif wanted is not None and isinstance(got, int) and got > wanted:
                hint = "; `alarm` keeps the first step at which it was raised"
            elif wanted is None and isinstance(got, int):
                hint = "; so many steps *in a row* are asked for"
            elif losses is not None and got is None:
                hint = "; what is not finite raises the alarm at once"
            return f"{name} (growth {radii}, patience {patience}): `alarm` is {got}, and should be {wanted}{hint}"
        if wanted is not None and not getattr(monitor, "reason", ""):
            return "with the alarm, `reason` says in words what was wrong; it is empty"
    return _fault_in_level_run(answer) or _fault_in_broken_map(answer)


def _fault_in_level_run(answer: Callable) -> str | None:
    """A growth of exactly 1; one number, and one so small that finite differences give exactly 1 too."""
    monitor = answer(4, 2)
    for _ in range(3):
        monitor.watch(lambda h: 1.0 * h, torch.full((1, 1, 1), 1e-12), 1.0, 1.0)
    if monitor.alarm is not None:
        return f"three steps with a growth of exactly 1: `alarm` is {monitor.alarm}; only a growth *above* 1 counts"
    return None


def _fault_in_broken_map(answer: Callable) -> str | None:
    """A loop map that gives NaN must raise the alarm, and not an error."""
    monitor = answer(4, 3)
    monitor.watch(lambda h: h * math.nan, torch.ones(1, 1, 2), 1.0, 1.0)
    if getattr(monitor, "alarm", None) != 1:
        return "a loop map that gives NaN, at the first step: `alarm` should be 1"
    return None


EXERCISES = (
    Exercise(
        number="4.1", title="steps until an error has shrunk", minutes=5, difficulty=1,
        stages={"values": _fault_in_steps, "exact powers": _fault_in_exact_steps, "no end": _fault_in_no_shrinking},
        solution=steps_to_shrink,
    ),
    Exercise(
        number="4.2", title="power iteration", minutes=15, difficulty=2,
        stages={"radius": _fault_in_radius, "scale": _fault_in_scale, "shapes": _fault_in_shapes},
        solution=power_iteration,
    ),
    Exercise(
        number="4.3", title="the radius of a Jacobian", minutes=10, difficulty=2,
        stages={"linear map": _fault_in_linear_radius, "at the state": _fault_in_local_radius},
        solution=jacobian_radius,
    ),
    Exercise(
        number="4.4", title="a decay below 1 in floating point", minutes=10, difficulty=2,
        stages={"values": _fault_in_decay_values, "range": _fault_in_decay_range, "gradient": _fault_in_decay_gradient},
        solution=safe_decay,
    ),
    Exercise(
        number="4.5", title="a monitor", minutes=30, difficulty=3,
        stages={"walk": _fault_in_walk, "records": _fault_in_records, "alarm": _fault_in_alarm},
        solution=Monitor,
    ),
)  # fmt: skip
