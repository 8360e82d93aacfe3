"""Lesson 4: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools
import math

import numpy as np
import torch

from mythos_lite.lessons import lesson04


def _steps(radius, start, target):
    return math.log(target / start) / math.log(radius)


def _power(matvec, v, n_steps=60, keep=20, *, unit=True, mean="geometric", only=None, twice=False):
    """Power iteration with one of its usual mistakes."""
    growths = []
    for _ in range(n_steps):
        v = v / v.norm() if unit else v
        before, v = v.norm(), matvec(matvec(v) if twice else v)
        growths.append((v.norm() / before).item())
        if growths[-1] == 0:
            return 0.0
    kept = growths[-keep:] if only is None else growths[only]
    logs = [math.log(growth) for growth in kept]
    return {
        "geometric": lambda: math.exp(sum(logs) / len(logs)),
        "arithmetic": lambda: sum(kept) / len(kept),
        "logs": lambda: sum(logs) / len(logs),
        "sum": lambda: math.exp(sum(logs)),
    }[mean]()


def _power_in_place(matvec, v, n_steps=60, keep=20):
    v /= v.norm()
    return lesson04.power_iteration(matvec, v, n_steps, keep)


def _power_numpy(matvec, v, n_steps=60, keep=20):
    growth = np.zeros(n_steps)
    for step in range(n_steps):
        v = matvec(v / torch.linalg.vector_norm(v))
        growth[step] = torch.linalg.vector_norm(v)
        if not growth[step]:
            return np.float32(0)
    return np.float32(np.prod(growth[-keep:] ** (1 / keep)))


def _power_tensor(matvec, v, n_steps=60, keep=20):
    total = torch.zeros(())
    for step in range(n_steps):
        v = matvec(v)
        size = v.norm()
        if size == 0:
            return size.view(1)
        if step == 0:
            size = torch.ones(()) * size  # the start need not be of length 1: it is in none of the kept products
        total = total + (size.log() if step >= n_steps - keep else 0.0)
        v = v / size
    return (total / keep).exp()


def _moves_on(loop_map, h, n_steps=60, keep=20):
    states = [h]

    def matvec(v):
        state, product = torch.func.jvp(loop_map, (states[-1],), (v,))
        states.append(state)
        return product

    return lesson04.power_iteration(matvec, _direction(h), n_steps, keep)


def _direction(h):
    return torch.randn(h.shape, generator=torch.Generator().manual_seed(1))


def _derivative_at_v(loop_map, h, n_steps=60, keep=20):
    return lesson04.power_iteration(lambda v: torch.func.jvp(loop_map, (v,), (v,))[1], _direction(h), n_steps, keep)


def _differenced(step, sides):
    """J v by finite differences of a length, to one side or to both."""

    def radius(loop_map, h, n_steps=60, keep=20):
        def matvec(v):
            before = h - step * v if sides == 2 else h
            return (loop_map(h + step * v) - loop_map(before)) / (sides * step)

        return lesson04.power_iteration(matvec, _direction(h), n_steps, keep)

    return radius


def _from_the_state(loop_map, h, n_steps=60, keep=20):
    return lesson04.power_iteration(lambda v: torch.func.jvp(loop_map, (h,), (v,))[1], h.clone(), n_steps, keep)


def _decay_in_place(a, delta):
    with torch.no_grad():
        a.clamp_(-4.8, 4.0)
    return lesson04.safe_decay(a, delta)


def _max_norm(matvec, v, n_steps=60, keep=20):
    growths = []
    for _ in range(n_steps):
        v = matvec(v / v.abs().max())
        growths.append(v.abs().max().item())
        if not growths[-1]:
            return 0.0
    return math.prod(growths[-keep:]) ** (1 / keep)


def _full_radius(loop_map, h, n_steps=60, keep=20):
    matrix = torch.autograd.functional.jacobian(loop_map, h).reshape(h.numel(), h.numel())
    return torch.linalg.eigvals(matrix).abs().max()


def _by_backward(loop_map, h, n_steps=60, keep=20):
    _, pull_back = torch.func.vjp(loop_map, h)  # Jᵀ has the same eigenvalues
    return lesson04.power_iteration(lambda u: pull_back(u)[0], torch.ones_like(h), n_steps, keep)


def _value_in_place_of_product(loop_map, h, n_steps=60, keep=20):
    return lesson04.power_iteration(
        lambda v: torch.func.jvp(loop_map, (h,), (v,))[0], torch.ones_like(h), n_steps, keep
    )


def _iterated_map(loop_map, h, n_steps=60, keep=20):
    return lesson04.power_iteration(loop_map, h, n_steps, keep)


def _bound_decay(a, delta):
    return torch.exp(-delta * torch.exp(a)).clamp(1e-7, 1 - 2**-8)


def _clamped_rate(a, delta):
    return torch.exp(-(delta * torch.exp(a)).clamp(1 / 128, 64))


class _StandsStill(lesson04.Monitor):
    @torch.no_grad()
    def walk(self, loop_map, h):
        _, residual = super().walk(loop_map, h)

        def matvec(v):
            return torch.func.jvp(loop_map, (h,), (v,))[1]

        return lesson04.power_iteration(matvec, torch.ones_like(h), self.n_loops, max(1, self.n_loops // 2)), residual


class _AllLoops(lesson04.Monitor):
    @torch.no_grad()
    def walk(self, loop_map, h):
        states, logs = [h], []
        v = torch.ones_like(h)
        for _ in range(self.n_loops):
            state, v = torch.func.jvp(loop_map, (states[-1],), (v / v.norm(),))
            logs.append(v.norm().log().item())
            states.append(state)
        growth = math.exp(sum(logs) / len(logs))
        return growth, ((states[-1] - states[-2]).norm() / states[-1].norm()).item()


class _DividedByBefore(lesson04.Monitor):
    def walk(self, loop_map, h):
        growth, _ = super().walk(loop_map, h)
        for _ in range(self.n_loops):
            before, h = h, loop_map(h)
        return growth, ((h - before).norm() / before.norm()).item()


class _OwnWalk(lesson04.Monitor):
    """The walk in a loop, with places where a mistake can be planted."""

    def half(self):
        return max(1, self.n_loops // 2)

    def residual(self, before, after):
        return ((after - before).norm() / after.norm()).item()

    @torch.no_grad()
    def walk(self, loop_map, h):
        v, logs = _direction(h), []
        for _ in range(self.n_loops):
            before, (h, v) = h, torch.func.jvp(loop_map, (h,), (v / v.norm(),))
            logs.append(v.norm().log().item())
        return math.exp(sum(logs[-self.half() :]) / self.half()), self.residual(before, h)


class _HalfRoundedUp(_OwnWalk):
    def half(self):
        return (self.n_loops + 1) // 2


class _ByPosition(_OwnWalk):
    def residual(self, before, after):
        return ((after - before).norm(dim=-1) / after.norm(dim=-1)).mean().item()


class _WithGraph(_OwnWalk):
    def walk(self, loop_map, h):
        with torch.enable_grad():
            return _OwnWalk.walk.__wrapped__(self, loop_map, h)


class _KeepsTensors(lesson04.Monitor):
    def walk(self, loop_map, h):
        return tuple(map(torch.tensor, super().walk(loop_map, h)))


class _SharedRecords(lesson04.Monitor):
    """Its records are one list for all monitors, as those of a class attribute."""

    def __init__(self, n_loops, patience=3, kept=[]):  # noqa: B006
        super().__init__(n_loops, patience)
        self.records = kept


class _Differences(lesson04.Monitor):
    """Right: finite differences in place of a derivative."""

    @torch.no_grad()
    def walk(self, loop_map, h):
        v, logs = 1e-3 * torch.ones_like(h), []
        for _ in range(self.n_loops):
            before, after = h, loop_map(h)
            moved = loop_map(h + v) - after
            logs.append((moved.norm() / v.norm()).log().item())
            h, v = after, 1e-3 * moved / moved.norm()
        half = max(1, self.n_loops // 2)
        return math.exp(sum(logs[-half:]) / half), ((h - before).norm() / h.norm()).item()


class _ChangesTheState(lesson04.Monitor):
    def walk(self, loop_map, h):
        found = super().walk(loop_map, h)
        h.mul_(0.5)
        return found


class _OneNumber(lesson04.Monitor):
    def walk(self, loop_map, h):
        return super().walk(loop_map, h)[0]


class _NoRecords(lesson04.Monitor):
    def watch(self, loop_map, h, loss, grad_norm):
        super().watch(loop_map, h, loss, grad_norm)
        self.records = self.records[-1:]


class _ForgetsLoss(lesson04.Monitor):
    def watch(self, loop_map, h, loss, grad_norm):
        super().watch(loop_map, h, loss, grad_norm)
        del self.records[-1]["loss"]


def _alarming(rule):
    """A monitor whose alarm follows ``rule(monitor)`` → the step, or None."""

    class Alarming(lesson04.Monitor):
        def watch(self, loop_map, h, loss, grad_norm):
            super().watch(loop_map, h, loss, grad_norm)
            self.alarm = rule(self)

    return Alarming


def _growing(monitor):
    return [record["growth"] > 1 for record in monitor.records]


def _level(monitor):
    last = [record["growth"] >= 1 for record in monitor.records[-monitor.patience :]]
    return len(last) == monitor.patience and all(last)


def _finite(monitor):
    return all(math.isfinite(value) for value in monitor.records[-1].values())


class _Latest(lesson04.Monitor):
    """Keeps the latest alarm in place of the first."""

    def watch(self, loop_map, h, loss, grad_norm):
        self.alarm, before = None, self.alarm
        super().watch(loop_map, h, loss, grad_norm)
        self.alarm = self.alarm if self.alarm is not None else before


class _Silent(lesson04.Monitor):
    def watch(self, loop_map, h, loss, grad_norm):
        super().watch(loop_map, h, loss, grad_norm)
        self.reason = ""


class _CountsFromZero(lesson04.Monitor):
    def watch(self, loop_map, h, loss, grad_norm):
        before = self.alarm
        super().watch(loop_map, h, loss, grad_norm)
        if before is None and self.alarm is not None:
            self.alarm -= 1


class _OwnStyle:
    """A right monitor that shares no code with the solution: a list of states, NumPy, a counter."""

    def __init__(self, n_loops, patience=3):
        self.n_loops, self.patience = n_loops, patience
        self.records, self.alarm, self.reason, self._in_a_row = [], None, "", 0

    def walk(self, loop_map, h):
        states, growths, v = [h.detach().clone()], [], torch.ones_like(h)
        with torch.no_grad():
            for _ in range(self.n_loops):
                after, w = torch.func.jvp(loop_map, (states[-1],), (v,))
                growths.append(float(w.norm() / v.norm()))
                states.append(after)
                v = w / w.norm()
        kept = np.array(growths[-max(1, self.n_loops // 2) :])
        change = torch.linalg.vector_norm(states[-1] - states[-2]) / torch.linalg.vector_norm(states[-1])
        return np.exp(np.log(kept).mean()), change

    def watch(self, loop_map, h, loss, grad_norm):
        growth, residual = self.walk(loop_map, h)
        self.records.append(
            {"loss": loss, "grad_norm": grad_norm, "growth": float(growth), "residual": float(residual)}
        )
        self._in_a_row = self._in_a_row + 1 if growth > 1 else 0
        broken = not np.isfinite(list(self.records[-1].values())).all()
        if self.alarm is None and (broken or self._in_a_row >= self.patience):
            self.alarm, self.reason = len(self.records), "not finite" if broken else "growing"


class _MoreToSay(lesson04.Monitor):
    """Right: with more in its records than asked for, and a longer reason."""

    def watch(self, loop_map, h, loss, grad_norm):
        super().watch(loop_map, h, loss, grad_norm)
        self.records[-1]["step"] = len(self.records)
        self.reason = f"step {self.alarm}: {self.reason}" if self.alarm else ""


def _stepwise(radius, start, target):
    if radius >= 1 and start > target:
        return np.inf
    return next(n for n in itertools.count() if start * radius**n <= target)


WRONG = {
    "4.1": [
        (lambda radius, start, target: _steps(radius, start, target), "round up"),
        (lambda radius, start, target: int(_steps(radius, start, target)), "round up"),
        (lambda radius, start, target: math.ceil(math.log(target) / math.log(radius)), "ratio"),
        (lambda radius, start, target: np.ceil(np.log(target) / np.log(radius)), "ratio"),
        (lambda radius, start, target: -math.ceil(_steps(radius, start, target)), "negative"),
        (lambda radius, start, target: math.ceil(_steps(radius, start, target)), "already"),
        (lambda *given: max(0, math.floor(_steps(*given)) + 1), "at most"),
        (lambda *given: max(0, math.ceil(_steps(*given))), "a hair above"),
        (lambda radius, start, target: next(n for n in range(10**6) if start * radius**n < target), "at most"),
        (lambda radius, start, target: next(n for n in range(10**4) if start * radius**n <= target), "StopIteration"),
        (lambda radius, start, target: max(0, math.ceil(_steps(radius, start, target))), "the 3rd power"),
        (lambda radius, start, target: math.ceil(_steps(radius, start, target)), "values ✗"),
        (lambda radius, start, target: "soon", "a number"),
    ],
    "4.2": [
        (lambda *given: _power(*given, unit=False), "length 1"),
        (lambda *given: _power(*given, mean="arithmetic"), "factors multiply"),
        (lambda *given: _power(*given, mean="logs"), "exponential"),
        (lambda *given: _power(*given, mean="sum"), "divided by"),
        (lambda *given: _power(*given, only=slice(-1, None)), "last product alone"),
        (lambda *given: _power(*given, only=slice(None)), "leave them out"),
        (lambda *given: _power(*given, twice=True), "should be"),
        (lambda matvec, v, n_steps=60, keep=20: matvec(v), "a tensor of shape"),
        (lambda matvec, v, n_steps=60, keep=20: None, "a number"),
        (_power_in_place, "v /="),
        (lambda matvec, v, n_steps=60, keep=20: _power(matvec, v, n_steps, 20), "whatever `keep` is"),
        (lambda matvec, v, n_steps=60, keep=20: _power(matvec, v.flatten(), n_steps + 1, keep), "products"),
    ],
    "4.3": [
        (_value_in_place_of_product, "not its derivative"),
        (_iterated_map, "should be"),
        (lambda loop_map, h, n_steps=60, keep=20: lesson04.jacobian_radius(loop_map, torch.zeros_like(h)), "at 0"),
        (
            lambda loop_map, h, n_steps=60, keep=20: _full_radius(loop_map, loop_map(h)),
            "at F(h)",
        ),
        (_moves_on, "a moving state; J stays that of h"),
        (_derivative_at_v, "J is taken at v"),
        (_differenced(0.1, 1), "too coarse"),
        (_from_the_state, "may be zero"),
        (lambda loop_map, h, n_steps=60, keep=20: lesson04.jacobian_radius(loop_map, h), "hand them on"),
        (lambda loop_map, h, n_steps=60, keep=20: torch.func.jvp(loop_map, (h,), (h,)), "a number"),
        (lambda loop_map, h, n_steps=60, keep=20: _full_radius(loop_map, h.mul_(1.5)), "should be"),
    ],
    "4.4": [
        (lambda a, delta: torch.exp(-delta * torch.exp(a)), "below 1"),
        (lambda a, delta: torch.exp(delta * torch.exp(a)), "minus"),
        (lambda a, delta: torch.exp(-torch.exp(a)), "Δ is missing"),
        (lambda a, delta: torch.exp(-torch.exp(a + delta)), "multiplies"),
        (lambda a, delta: delta * torch.exp(a), "the rate"),
        (_bound_decay, "infinite"),
        (_clamped_rate, "the gradient by"),
        (lambda a, delta: torch.exp(-torch.exp((a + delta.log()).clamp(-20, 20))), "below 1"),
        (lambda a, delta: torch.exp(-torch.exp((a + delta.log()).clamp(-4.8, 20))), "above 0"),
        (lambda a, delta: lesson04.safe_decay(a, delta).detach(), "no gradient"),
        (_decay_in_place, "changes the caller's a"),
        (lambda a, delta: lesson04.safe_decay(a.double(), delta.double()), "float32 is asked for"),
        (lambda a, delta: 0.5, "one number"),
    ],
    "4.5": [
        (_StandsStill, "move the state on"),
        (_AllLoops, "first half"),
        (_DividedByBefore, "divided by"),
        (_ChangesTheState, "changes the state"),
        (_HalfRoundedUp, "rounded down"),
        (_ByPosition, "all numbers of a state"),
        (_WithGraph, "no_grad"),
        (_KeepsTensors, "is a tensor"),
        (_SharedRecords, "make the list in `__init__`"),
        (_OneNumber, "two numbers"),
        (_NoRecords, "two records"),
        (_ForgetsLoss, "loss is missing"),
        (_CountsFromZero, "counted from 1"),
        (_Latest, "keeps the first"),
        (_Silent, "reason"),
        (_alarming(lambda m: len(m.records) if any(_growing(m)) else None), "in a row"),
        (_alarming(lambda m: m.alarm or (len(m.records) if _level(m) else None)), "*above* 1"),
        (_alarming(lambda m: m.alarm if _finite(m) and all(_growing(m)[-m.patience :]) else None), "should be"),
        (lambda n_loops, patience=3: lesson04.Monitor(2 * n_loops, patience), "growth"),
    ],
}
RIGHT = {
    "4.1": [
        _stepwise,
        lambda *given: np.float32(_stepwise(*given)),
        lambda *given: torch.tensor(float(_stepwise(*given))),
    ],
    "4.2": [
        lambda *given: _power(*given),
        _power_numpy,
        _max_norm,
        _power_tensor,
        lambda *given: torch.tensor([_power(*given)]),
    ],
    "4.3": [_full_radius, _by_backward, _differenced(1e-3, 2), lambda *given: np.float64(_full_radius(*given))],
    "4.4": [
        lambda a, delta: torch.exp(-torch.exp((a + delta.log()).clamp(-4.8, 4.0))),
        lambda a, delta: torch.exp(-(1 / 128 + torch.exp((a + torch.log(delta)).clamp(-30, 4)))),
    ],
    "4.5": [_OwnStyle, _MoreToSay, _OwnWalk, _Differences],
}
