"""Exercises of lesson 5, adaptive depth.

Shapes: L loops, B batch, T positions, D width, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mythos_lite.checks import plain
from mythos_lite.lessons.exercise import Exercise, as_answer, difference, fitting_hint, gradient_fault, same

# ---------------------------------------------------------------- 5.1


def act_weights(probabilities, threshold=0.99):
    """Halting probabilities (L, B, T) → weights of the loops (L, B, T), which sum to 1 over L."""
    # What has been spent after each loop, and what had been spent before it.
    total = probabilities.cumsum(dim=0)
    before = torch.cat([torch.zeros_like(total[:1]), total[:-1]])
    # The loops that a token takes part in, and among them the one at which it halts.
    running = before < threshold
    last = running & (total >= threshold)
    last[-1] |= running[-1]  # the loops run out
    # A loop weighs its probability, the last one what is left, and a loop after that nothing.
    return torch.where(last, 1 - before, probabilities) * running


def _halting_cases() -> list[tuple[Tensor, float]]:
    """Probabilities (L, B, T) and thresholds: halted early, at once, at the end, not at all, and met exactly."""
    make = torch.Generator().manual_seed(5)
    mixed = torch.rand(6, 2, 3, generator=make) ** 2
    ties = torch.tensor([0.5, 0.25, 0.125, 0.5]).reshape(4, 1, 1)
    rest = torch.tensor([0.25, 0.5, 0.245, 0.9, 0.9]).reshape(5, 1, 1)
    small = torch.full((5, 1, 1), 0.02)
    at_once = torch.tensor([0.995, 0.3, 0.2]).reshape(3, 1, 1)
    silent = torch.tensor([0.0, 0.5, 0.0, 0.6, 0.3]).reshape(5, 1, 1)
    cases = [(mixed, 0.99), (mixed, 0.6), (small, 0.99), (small[:1], 0.99), (rest, 0.99), (ties, 0.75), (ties, 0.5)]
    return [*cases, (at_once, 0.99), (silent, 0.99)]


def _written(name: str, before: Tensor, after: Tensor) -> str | None:
    """What is wrong if an answer has changed its own argument."""
    if torch.equal(before, after):
        return None
    return f"it changes {name}, which it was only given to read: work on a copy, or without `+=`, `[…] =` and the like"


def _without_remainder_at_the_end(p: Tensor, threshold: float) -> Tensor:
    total = p.cumsum(0)
    before = torch.cat([torch.zeros_like(total[:1]), total[:-1]])
    running = before < threshold
    return torch.where(running & (total >= threshold), 1 - before, p) * running


def _up_to(p: Tensor, threshold: float, last: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Weights of which the last one is ``last(before, total)``."""
    total = p.cumsum(0)
    before = torch.cat([torch.zeros_like(total[:1]), total[:-1]])
    running = before < threshold
    ends = running & (total >= threshold)
    ends[-1] |= running[-1]
    return torch.where(ends, last(before, total), p) * running


def _chance_to_halt(p: Tensor, threshold: float) -> Tensor:
    still = torch.cat([torch.ones_like(p[:1]), (1 - p).cumprod(0)[:-1]])
    return torch.cat([(p * still)[:-1], still[-1:]])


def _over_positions(p: Tensor, threshold: float) -> Tensor:
    return act_weights(p.movedim(-1, 0), threshold).movedim(0, -1)


_WEIGHT_SUSPECTS = {
    "when the loops run out before the threshold is reached, the last loop takes what remains": (
        _without_remainder_at_the_end
    ),
    "these are the probabilities as they are: a loop after the token has halted weighs nothing, and the last one what "
    "remains": lambda p, threshold: p,
    "the loop at which the token halts takes what remains, 1 less what was spent *before* it": lambda p, t: _up_to(
        p, t, lambda before, total: 1 - total
    ),
    "the loop at which the token halts takes what remains to 1, not to the threshold": lambda p, t: _up_to(
        p, t, lambda before, total: t - before
    ),
    "the loop at which the token halts takes what remains to 1, and not its own probability": lambda p, t: _up_to(
        p, t, lambda before, total: total - before
    ),
    "a total that reaches the threshold exactly halts the token: at least, not more than": lambda p, t: act_weights(
        p, t + 1e-6
    ),
    "use the threshold that is given": lambda p, t: act_weights(p, 0.99),
    "ACT adds the probabilities up; it does not multiply the chances of not having halted": _chance_to_halt,
    "the loops are the first axis: add up along dim=0": _over_positions,
    "weights do not come of dividing by the sum: only the last loop is changed": lambda p, t: p / p.sum(0),
    "a single probability may reach the threshold, at the first loop already: take it as it is, without a clamp": (
        lambda p, t: act_weights(p.clamp(max=0.98), t)
    ),
}


def _fault_in_weight_shapes(answer: Callable) -> str | None:
    for probabilities, threshold in _halting_cases():
        given, shape = probabilities.clone(), tuple(probabilities.shape)
        got = answer(given, threshold)
        if not isinstance(got, Tensor):
            return f"it is {type(got).__name__}, and a tensor of weights of shape {shape} is asked for"
        if got.shape != probabilities.shape:
            return (
                f"for probabilities of shape {shape} it has shape {tuple(got.shape)}: one weight for each is asked for"
            )
        if fault := _written("probabilities", probabilities, given):
            return fault
    return None


def _fault_in_weights(answer: Callable) -> str | None:
    cases = _halting_cases()
    found = [answer(probabilities.clone(), threshold) for probabilities, threshold in cases]
    for got, (probabilities, threshold) in zip(found, cases, strict=True):
        wanted = act_weights(probabilities, threshold)
        if fault := difference(got, wanted):
            where = f"threshold {threshold}, {len(probabilities)} loops: {fault}"
            if hint := fitting_hint(_WEIGHT_SUSPECTS, cases, found):
                return f"{where}; {hint}"
            sums = got.double().sum(0)
            if (sums - 1).abs().max() > 1e-4:
                return f"{where}; weights must sum to 1 over the loops, and a token's sum to {sums.flatten()[0]:.3g}"
            token = probabilities[:, 0, 0].tolist(), wanted[:, 0, 0].tolist()
            return f"{where}; {_rounded(token[0])} should become {_rounded(token[1])}"
    return None


def _fault_in_weight_gradients(answer: Callable) -> str | None:
    for probabilities, threshold in _halting_cases()[:3]:

        def weighted(p: Tensor, threshold: float = threshold, rule: Callable = answer.raw) -> Tensor:
            return rule(p * 1.0, threshold)  # a copy, which may be changed in place

        if fault := gradient_fault(weighted, lambda p, t=threshold: act_weights(p, t), probabilities):
            return f"{fault}; the remainder is 1 less the probabilities before it, and their gradient goes through it"
    return None


def _rounded(numbers: list[float]) -> list[float]:
    return [round(number, 3) for number in numbers]


# ---------------------------------------------------------------- 5.2


def ponder_cost(probabilities, threshold=0.99):
    """Halting probabilities (L, B, T) → N + R, loops used and remainder, of every token (B, T)."""
    # A loop that does not reach the threshold is followed by another, if there is one.
    loops = 1 + (probabilities.cumsum(dim=0)[:-1] < threshold).sum(dim=0)  # N
    # The remainder is what the last of them weighs.
    remainder = act_weights(probabilities, threshold).gather(0, (loops - 1).unsqueeze(0)).squeeze(0)  # R
    return loops + remainder


def _loops_and_remainder(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    loops = 1 + (p.cumsum(0)[:-1] < threshold).sum(0)
    return loops.float(), ponder_cost(p, threshold) - loops


_COST_SUSPECTS = {
    "the loops N are counted, the remainder R is missing": lambda p, t: _loops_and_remainder(p, t)[0],
    "that is the remainder R alone, the loops N are missing": lambda p, t: _loops_and_remainder(p, t)[1],
    "loops are counted from 1: a token that halts at the first one has used one": lambda p, t: ponder_cost(p, t) - 1,
    "count the loops up to the one at which the token halts, not all that were run": lambda p, t: (
        len(p) + _loops_and_remainder(p, t)[1]
    ),
    "R is the weight of the loop at which the token halts: what was left *before* it": lambda p, t: (
        _loops_and_remainder(p, t)[0] + 1 - (p.cumsum(0)).gather(0, (_loops_and_remainder(p, t)[0] - 1).long()[None])[0]
    ),
    "a total that reaches the threshold exactly halts the token: at least, not more than": lambda p, t: ponder_cost(
        p, t + 1e-6
    ),
    "use the threshold that is given": lambda p, t: ponder_cost(p, 0.99),
    "a loop whose probability is 0 has been used nevertheless: count the totals that are below the threshold, not the "
    "weights above 0": lambda p, t: (act_weights(p, t) > 0).sum(0) + _loops_and_remainder(p, t)[1],
}


def _fault_in_cost_shapes(answer: Callable) -> str | None:
    for probabilities, threshold in _halting_cases():
        given, shape = probabilities.clone(), tuple(probabilities.shape)
        got, wanted = answer(given, threshold), shape[1:]
        if isinstance(got, (int, float)):
            return (
                f"for probabilities of shape {shape} it is one number, {got:.4g}, and a tensor of shape {wanted} is "
                "asked for: take off the axis of the loops alone, as in squeeze(0)"
            )
        if isinstance(got, Tensor) and got.shape == probabilities.shape:
            return f"its shape is {shape}, and {wanted} is asked for: one number per token, not one per loop"
        if isinstance(got, Tensor) and got.shape != wanted:
            return f"for probabilities of shape {shape} its shape is {tuple(got.shape)}, and {wanted} is asked for"
        if fault := _written("probabilities", probabilities, given):
            return fault
    return None


def _fault_in_ponder_cost(answer: Callable) -> str | None:
    cases = _halting_cases()
    found = [answer(probabilities.clone(), threshold) for probabilities, threshold in cases]
    for got, (probabilities, threshold) in zip(found, cases, strict=True):
        wanted = ponder_cost(probabilities, threshold)
        if fault := difference(got, wanted):
            hint = fitting_hint(_COST_SUSPECTS, cases, found)
            where = f"threshold {threshold}, {len(probabilities)} loops: {fault}"
            if hint:
                return f"{where}; {hint}"
            return f"{where}; {_rounded(probabilities[:, 0, 0].tolist())} costs {wanted[0, 0].item():.3g}"
    return None


def _fault_in_cost_gradients(answer: Callable) -> str | None:
    for probabilities, threshold in _halting_cases()[:3]:

        def cost(p: Tensor, threshold: float = threshold, rule: Callable = answer.raw) -> Tensor:
            return rule(p * 1.0, threshold)

        if fault := gradient_fault(cost, lambda p, t=threshold: ponder_cost(p, t), probabilities):
            return f"{fault}; N has no gradient, and R has that of a weight"
    return None


# ---------------------------------------------------------------- 5.3


def act_loop(step, halt, h, n_loops, threshold=0.99):
    """Run ``h = step(h, t)`` with t = 0, 1, … until all tokens have halted; ``n_loops`` at most.

    Returns ACT's output (B, T, D), the ponder cost (B, T), and how many loops were run.
    """
    states, probabilities = [], []
    for t in range(n_loops):
        h = step(h, t)
        states.append(h)  # (B, T, D)
        probabilities.append(halt(h))  # (B, T)
        # Once every token has spent its probability, all further loops weigh nothing.
        if (torch.stack(probabilities).sum(dim=0) >= threshold).all():
            break
    p = torch.stack(probabilities)  # (L, B, T)
    mixed = (act_weights(p, threshold).unsqueeze(-1) * torch.stack(states)).sum(dim=0)
    return mixed, ponder_cost(p, threshold), len(states)


class _Toy:
    """A loop map and a halting unit that count their calls.

    ``rate`` says how fast tokens halt; several of them are the halting probabilities themselves, loop by loop.
    """

    def __init__(self, rate: float | tuple[float, ...]) -> None:
        self.rate, self.times = rate, []

    def step(self, h: Tensor, t: int) -> Tensor:
        self.times.append(t)
        return torch.tanh(1.3 * h.roll(1, -1) + 0.2 * t - 0.1)

    def halt(self, h: Tensor) -> Tensor:
        if isinstance(self.rate, tuple):
            return torch.full(h.shape[:-1], self.rate[max(len(self.times) - 1, 0)])
        return self.rate * torch.sigmoid(2 * h.mean(-1))


_TOYS = (
    (0.9, 12, 0.99, (2, 3, 4)),
    (0.3, 12, 0.7, (1, 5, 4)),
    (0.1, 4, 0.99, (2, 2, 6)),
    (1.0, 1, 0.99, (1, 1, 4)),
    ((0.5, 0.25, 0.5, 0.5), 4, 0.75, (1, 2, 4)),
)
"""Rate, loops, threshold, shape of the state: tokens that halt at different loops, loops that run out, and a total that
meets the threshold exactly."""


def _toy_state(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _toy_run(
    rate: float | tuple[float, ...], n_loops: int, threshold: float, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    toy = _Toy(rate)
    return act_loop(toy.step, toy.halt, _toy_state(shape), n_loops, threshold)


def _three_parts(answer: Callable, toy: _Toy, case: tuple) -> tuple | str:
    _, n_loops, threshold, shape = case
    got = answer(toy.step, toy.halt, _toy_state(shape), n_loops, threshold)
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        return f"it returns {type(got).__name__}; three things are asked for: the mixed state, the cost, the loops run"
    if any(part is ... for part in got):
        raise NotImplementedError
    return tuple(as_answer(part) for part in got)


def _fault_in_loop_shapes(answer: Callable) -> str | None:
    for case in _TOYS:
        parts = _three_parts(answer, _Toy(case[0]), case)
        if isinstance(parts, str):
            return parts
        for name, part, shape in (("the mixed state", parts[0], case[3]), ("the cost", parts[1], case[3][:-1])):
            if tuple(getattr(part, "shape", ())) != shape:
                return f"{name} has shape {tuple(getattr(part, 'shape', ()))}, and {shape} is asked for"
    return None


def _fault_in_loop_values(answer: Callable) -> str | None:
    for case in _TOYS:
        toy = _Toy(case[0])
        mixed, cost, run = _three_parts(answer, toy, case)
        wanted = _toy_run(*case)
        where = f"{case[1]} loops allowed, threshold {case[2]}"
        if toy.times and toy.times[0] != 0:
            return f"{where}: step was first called with t={toy.times[0]}; t counts from 0"
        if toy.times != list(range(len(toy.times))):
            return f"{where}: step was called with t={toy.times}; call it once per loop, with t = 0, 1, 2, …"
        if len(toy.times) > wanted[2]:
            exactly = " (a total that reaches the threshold exactly halts the token)" if type(case[0]) is tuple else ""
            return (
                f"{where}: {len(toy.times)} loops were run, and after {wanted[2]} every token had halted: stop "
                f"there{exactly}"
            )
        if len(toy.times) < wanted[2]:
            return (
                f"{where}: {len(toy.times)} loops were run, and {wanted[2]} are needed until *every* token has halted"
            )
        if fault := difference(run, wanted[2]):
            return f"{where}: the loops run: {fault}"
        if fault := difference(mixed, wanted[0]):
            return f"{where}: the mixed state: {fault}{_loop_hint(mixed, case)}"
        if fault := difference(cost, wanted[1]):
            return (
                f"{where}: the cost: {fault}; it is ponder_cost of the probabilities, with the threshold that is given"
            )
    return None


def _loop_hint(mixed: Tensor, case: tuple) -> str:
    rate, _, threshold, shape = case
    toy, states, early, late = _Toy(rate), [_toy_state(shape)], [], []
    for t in range(_toy_run(*case)[2]):
        early.append(toy.halt(states[-1]))
        states.append(toy.step(states[-1], t))
        late.append(toy.halt(states[-1]))
    after, before, p = torch.stack(states[1:]), torch.stack(states[:-1]), torch.stack(late)

    def mixed_by(weights: Tensor, states: Tensor = after) -> Tensor:
        return (weights.unsqueeze(-1) * states).sum(0)

    suspects = {
        "that is the last state; the weighted sum of the states is asked for": after[-1],
        "halt reads the state after the step": mixed_by(act_weights(torch.stack(early), threshold)),
        "the states to mix are those after each step, without the first one": mixed_by(
            act_weights(p, threshold), before
        ),
        "the weights are act_weights of the probabilities": mixed_by(p),
        "hand the threshold on to act_weights": mixed_by(act_weights(p)),
    }
    return next((f"; {hint}" for hint, wrong in suspects.items() if same(mixed, wrong)), "")


def _fault_in_loop_gradients(answer: Callable) -> str | None:
    for rate, n_loops, threshold, shape in _TOYS[:3]:
        for part, name in ((0, "the mixed state"), (1, "the cost")):

            def output(h: Tensor, rule: Callable, part=part, rate=rate, n_loops=n_loops, threshold=threshold) -> Tensor:
                toy = _Toy(rate)
                return rule(toy.step, toy.halt, h, n_loops, threshold)[part]

            def constant(step, halt, h, *rest) -> tuple:
                return act_loop(step, lambda h: halt(h).detach(), h, *rest)

            state = _toy_state(shape)
            if fault := gradient_fault(lambda h: output(h, answer.raw), lambda h: output(h, act_loop), state):
                detached = part == 0 and not gradient_fault(
                    lambda h: output(h, answer.raw), lambda h: output(h, constant), state
                )
                return f"{name}: {fault}" + (
                    "; the halting probabilities have lost theirs, and the unit is trained through it" * detached
                )
    return None


# ---------------------------------------------------------------- 5.4


def halting_loss(logits, losses, prior, strength):
    """The gate's logits (L, B), the answer's losses by loop (L, B), a prior (L,) and its strength.

    Returns the loss, one number, and the probability of halting at each loop (L, B).
    """
    # log of the probability that the gate has stayed shut at every loop before this one
    stays_shut = F.logsigmoid(-logits).cumsum(dim=0)
    still_running = torch.cat([torch.zeros_like(stays_shut[:1]), stays_shut[:-1]])
    # A chain halts where it is still running and the gate opens; at the last loop in any case.
    opens = torch.cat([F.logsigmoid(logits[:-1]), torch.zeros_like(logits[-1:])])
    log_p = still_running + opens
    p = log_p.exp()
    # What the answer costs on average, and how far p is from the prior, for each chain.
    expected = (p * losses).sum(dim=0)
    divergence = (p * (log_p - prior.log().unsqueeze(-1))).sum(dim=0)
    return (expected + strength * divergence).mean(), p


def _gate_cases() -> list[tuple[Tensor, Tensor, Tensor, float]]:
    make, cases = torch.Generator().manual_seed(7), []
    for n_loops, batch, strength in ((5, 3, 0.3), (4, 1, 0.0), (3, 4, 2.0), (2, 2, 1.0)):
        logits = torch.randn(n_loops, batch, generator=make)
        losses = 3 * torch.rand(n_loops, batch, generator=make)
        prior = torch.rand(n_loops, generator=make) + 0.2
        cases.append((logits, losses, prior / prior.sum(), strength))
    return cases


def _gate_loss(p: Tensor, losses: Tensor, prior: Tensor, strength: float, divergence: str = "p to prior") -> Tensor:
    prior = prior.unsqueeze(-1)
    terms = {
        "p to prior": p * (p / prior).log(),
        "prior to p": prior * (prior / p).log(),
        "entropy, added": -p * p.log(),
        "entropy, taken off": p * p.log(),
        "none": torch.zeros_like(p),
    }
    return ((p * losses) + strength * terms[divergence]).sum(0).mean()


def _far(logits: Tensor, prior: Tensor) -> Tensor:
    """The divergence from the prior, added up over all chains."""
    p = halting_loss(logits, torch.zeros_like(logits), prior, 0.0)[1]
    return (p * (p / prior.unsqueeze(-1)).log()).sum()


def _two_parts(answer: Callable, case: tuple) -> tuple | str:
    given = tuple(part.clone() if isinstance(part, Tensor) else part for part in case)
    got = answer(*given)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        return f"it returns {type(got).__name__}; two things are asked for: the loss, and the probabilities (L, B)"
    if any(part is ... for part in got):
        raise NotImplementedError
    for name, before, after in zip(("logits", "losses", "prior"), case, given, strict=False):
        if fault := _written(name, before, after):
            return fault
    return as_answer(got[0]), as_answer(got[1])


_GATE_SUSPECTS = {
    "at the last loop a chain halts in any case: it takes what remains, so that the probabilities sum to 1": (
        lambda x: torch.sigmoid(x) * torch.cat([torch.ones_like(x[:1]), torch.sigmoid(-x).cumprod(0)[:-1]])
    ),
    "these are the gate's own probabilities λ; a chain halts at a loop only if it has not halted before": torch.sigmoid,
    "a chain is still running if the gate stayed shut at the loops *before* this one, without this one": (
        lambda x: torch.sigmoid(x) * torch.sigmoid(-x).cumprod(0)
    ),
    "halting is a matter of chances that multiply, not of a softmax over the loops": lambda x: x.softmax(0),
    "the gate's probabilities are not added up as in ACT: multiply by the chance of still running": (
        lambda x: act_weights(torch.sigmoid(x))
    ),
    "the loops are the first axis, the chains the second": lambda x: halting_loss(x.T, x.T, _flat(x.T), 0.0)[1].T,
}


def _flat(x: Tensor) -> Tensor:
    return torch.full((len(x),), 1 / len(x))


def _fault_in_halting_distribution(answer: Callable) -> str | None:
    cases = _gate_cases()
    parts = [_two_parts(answer, case) for case in cases]
    if faults := [part for part in parts if isinstance(part, str)]:
        return faults[0]
    found, logits = [part[1] for part in parts], [(case[0],) for case in cases]
    for got, case in zip(found, cases, strict=True):
        if fault := difference(got, halting_loss(*case)[1]):
            hint = fitting_hint(_GATE_SUSPECTS, logits, found)
            where = f"logits of shape {tuple(case[0].shape)}, the probabilities of halting: {fault}"
            if not hint and isinstance(got, Tensor) and (got.double().sum(0) - 1).abs().max() > 1e-4:
                hint = "over the loops they must sum to 1 for every chain"
            return f"{where}; {hint}" if hint else where
    return None


def _fault_in_halting_loss(answer: Callable) -> str | None:
    cases = _gate_cases()
    found = [_two_parts(answer, case)[0] for case in cases]
    suspects = {
        hint: lambda x, losses, prior, strength, name=name: _gate_loss(
            halting_loss(x, losses, prior, strength)[1], losses, prior, strength, name
        ).item()
        for name, hint in {
            "prior to p": "the divergence is of the distribution from the prior, Σ p log(p / prior), not the other way",
            "entropy, added": "the entropy is rewarded, not charged; and the prior is missing",
            "entropy, taken off": "the prior is missing: Σ p log p is right for an even prior, up to a constant",
            "none": "the divergence from the prior, times its strength, is missing",
        }.items()
    }
    suspects["average over the chains, and add up over the loops"] = lambda x, losses, prior, strength: (
        halting_loss(x, losses, prior, strength)[0].item() * x.shape[1]
    )
    suspects["add up over the loops, do not average"] = lambda x, losses, prior, strength: (
        halting_loss(x, losses, prior, strength)[0].item() / len(x)
    )
    suspects["the divergence has to be multiplied by its strength"] = lambda x, losses, prior, strength: halting_loss(
        x, losses, prior, 1.0
    )[0].item()
    suspects |= {
        hint: lambda x, losses, prior, strength, parts=parts: (
            halting_loss(x, losses, prior, 0.0)[0] + strength * _far(x, prior) / parts(x)
        ).item()
        for parts, hint in (
            (
                torch.numel,
                "the divergence is added up over the loops too: `.mean()` over both axes divides by L as well",
            ),
            (len, "the divergence is to be averaged over the chains: `batchmean` divides by the first axis, the loops"),
        )
    }
    for got, case in zip(found, cases, strict=True):
        if fault := difference(got, halting_loss(*case)[0]):
            hint = fitting_hint(suspects, cases, found, 1e-4)
            return f"the loss, strength {case[3]}: {fault}" + (f"; {hint}" if hint else "")
    return None


def _fault_at_extreme_logits(answer: Callable) -> str | None:
    logits = torch.tensor([[-200.0, 200.0, 0.0], [-200.0, -200.0, 300.0], [-200.0, 5.0, -300.0]])
    case = (logits, torch.ones(3, 3), torch.tensor([0.5, 0.3, 0.2]), 0.1)
    loss, p = _two_parts(answer, case)
    wanted_loss, wanted_p = halting_loss(*case)
    if fault := difference(p, wanted_p) or difference(loss, wanted_loss, 1e-4):
        return (
            f"gates that are wide open or tightly shut (logits of ±200): {fault}; take logarithms with "
            "F.logsigmoid, and add them, so that no probability becomes 0 before its logarithm is taken"
        )
    if fault := gradient_fault(
        lambda x: answer.raw(x, *case[1:])[0], lambda logits: halting_loss(logits, *case[1:])[0], logits
    ):
        return (
            f"gates that are wide open or tightly shut (logits of ±200): the values are right, but {fault}; a function "
            "that hides the logarithm of 0 (xlogy, nan_to_num, where) still differentiates it: stay with F.logsigmoid"
        )
    return None


def _fault_in_gate_gradients(answer: Callable) -> str | None:
    for case in _gate_cases():
        others = case[2:]
        fault = gradient_fault(
            lambda x, losses, others=others: answer.raw(x, losses, *others)[0],
            lambda x, losses, others=others: halting_loss(x, losses, *others)[0],
            *case[:2],
        )  # fmt: skip
        if fault:
            return fault
    return None


# ---------------------------------------------------------------- 5.5


def kl_change(logits, before):
    """Logits (…, V) of a loop and of the one before → KL(before ‖ now), the answer's move (…)."""
    now, then = logits.log_softmax(dim=-1), before.log_softmax(dim=-1)
    return (then.exp() * (then - now)).sum(dim=-1)


def _answer_cases() -> list[tuple[Tensor, Tensor]]:
    make = torch.Generator().manual_seed(11)
    return [
        (2 * torch.randn(*shape, generator=make), 2 * torch.randn(*shape, generator=make))
        for shape in ((2, 3, 8), (1, 1, 5), (4, 10), (6,))
    ]


def _kl(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    return (p * (p / q).log()).sum(dim)


_KL_SUSPECTS = {
    "it is the divergence of the answer before from the one now, KL(before ‖ now), and not the other way": (
        lambda a, b: _kl(a.softmax(-1), b.softmax(-1))
    ),
    "that is the total variation, not the divergence": lambda a, b: 0.5 * (a.softmax(-1) - b.softmax(-1)).abs().sum(-1),
    "the logarithm is the natural one": lambda a, b: _kl(b.softmax(-1), a.softmax(-1)) / math.log(2),
    "the sign is wrong: a divergence is never below 0": lambda a, b: -_kl(b.softmax(-1), a.softmax(-1)),
    "add up over the vocabulary, do not average": lambda a, b: _kl(b.softmax(-1), a.softmax(-1)) / a.shape[-1],
    "that is the cross-entropy; the entropy of the answer before has to be taken off": lambda a, b: (
        -(b.softmax(-1) * a.log_softmax(-1)).sum(-1)
    ),
}


def _fault_in_kl_shapes(answer: Callable) -> str | None:
    for now, before in _answer_cases()[:3]:
        given = now.clone(), before.clone()
        got = answer(*given)
        if tuple(getattr(got, "shape", ())) != tuple(now.shape[:-1]):
            said = f"{got:.4g}" if isinstance(got, float) else repr(got)
            said = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else said
            return f"for logits of shape {tuple(now.shape)} it is {said}: one number for each token is asked for"
        for name, one, other in zip(("logits", "before"), (now, before), given, strict=True):
            if fault := _written(name, one, other):
                return fault
    return None


def _fault_in_kl(answer: Callable) -> str | None:
    cases = _answer_cases()
    found = [answer(now.clone(), before.clone()) for now, before in cases]
    for got, (now, before) in zip(found, cases, strict=True):
        if fault := difference(got, kl_change(now, before), 1e-4):
            hint = fitting_hint(_KL_SUSPECTS, cases, found, 1e-4)
            if not hint and now.ndim > 1 and same(got, _kl(before.softmax(0), now.softmax(0)), 1e-4):
                hint = "the softmax goes over the vocabulary, the last axis"
            return f"logits of shape {tuple(now.shape)}: {fault}" + (f"; {hint}" if hint else "")
    sure = torch.tensor([[200.0, 0.0, -200.0], [0.0, 300.0, 0.0]])
    if fault := difference(answer(sure.clone(), sure.flip(-1)), kl_change(sure, sure.flip(-1)), 1e-3):
        return (
            f"two answers that are both quite sure (logits of ±200): {fault}; some of their probabilities are 0 in "
            "floating point, and must be neither divided by, nor put into a logarithm, nor taken for impossible (as "
            "torch.distributions does): the difference of two log_softmax is finite"
        )
    return None


# ---------------------------------------------------------------- 5.6


class PatientExit:
    """Stop once the change has been at most ``tolerance`` for ``patience`` loops in a row."""

    def __init__(self, tolerance, patience):
        self.tolerance, self.patience = tolerance, patience

    def settled(self, changes):
        """``changes`` holds one number per loop so far, the newest last → whether to stop now."""
        recent = changes[-self.patience :]
        # Too few loops so far, or one of the newest was loud: go on.
        return len(recent) == self.patience and all(change <= self.tolerance for change in recent)


_HISTORIES = (
    [0.3, 0.004, 0.2, 0.003, 0.002, 0.001, 0.4],
    [0.004, 0.003, 0.3, 0.3, 0.3, 0.3],
    [0.012, 0.009, 0.012, 0.009],
    [0.25, 0.125, 0.25, 0.25, 0.125],
    [0.0, 0.0, 0.0, 0.0],
    [0.001],
    [],
    [0.001, math.nan, 0.001, 0.001],
)
"""Changes, loop by loop; with the tolerance 0.25 the fourth meets it exactly."""
_RULES = ((0.01, 1), (0.01, 2), (0.01, 3), (0.25, 2), (0.0, 2))


def _verdicts(rule: Callable[[list, float, int], object]) -> list[bool]:
    """What a rule says of every beginning of every history, under every tolerance and patience."""
    return [
        bool(rule(history[:end], tolerance, patience))
        for tolerance, patience in _RULES
        for history in _HISTORIES
        for end in range(len(history) + 1)
    ]


def _in_any_order(changes: list[float], tolerance: float, patience: int) -> bool:
    quiet = [change <= tolerance for change in changes]
    return sum(quiet) >= patience and quiet[-1]


_EXIT_SUSPECTS = {
    "the quiet loops must be the newest ones, one after the other without a loud one between them": _in_any_order,
    "any quiet loop stops it: all of the newest `patience` loops must be quiet": lambda changes, tolerance, patience: (
        any(change <= tolerance for change in changes[-patience:])
    ),
    "fewer loops than `patience` are never enough": lambda changes, tolerance, patience: (
        bool(changes) and all(change <= tolerance for change in changes[-patience:])
    ),
    "with fewer loops than `patience`, even with none, the answer is False": lambda changes, tolerance, patience: all(
        change <= tolerance for change in changes[-patience:]
    ),
    "only the newest change is looked at; `patience` of them count": lambda changes, tolerance, patience: (
        bool(changes) and changes[-1] <= tolerance
    ),
    "a change of exactly the tolerance is quiet: at most, not less than": lambda changes, tolerance, patience: (
        len(changes) >= patience and all(change < tolerance for change in changes[-patience:])
    ),
    "`patience` quiet loops are enough, not one more": lambda changes, tolerance, patience: (
        len(changes) > patience and all(change <= tolerance for change in changes[-patience - 1 :])
    ),
    "the newest changes are the last ones of the list": lambda changes, tolerance, patience: (
        len(changes) >= patience and all(change <= tolerance for change in changes[:patience])
    ),
    "every one of the changes must be quiet, and not their mean": lambda changes, tolerance, patience: (
        len(changes) >= patience and sum(changes[-patience:]) / patience <= tolerance
    ),
}  # fmt: skip


def _ask(policy: object, changes: list[float]) -> object:
    said = plain(policy.settled(list(changes)))
    if said is ...:
        raise NotImplementedError
    return said


def _fault_in_exit_answers(answer: Callable) -> str | None:
    policy = answer(0.01, 2)
    if not hasattr(policy, "settled"):
        return f"it makes {type(policy).__name__}, which has no method settled(changes)"
    said = _ask(policy, [0.5, 0.001])
    if not isinstance(said, bool) and not (isinstance(said, (int, float)) and said in (0, 1)):
        return f"settled([0.5, 0.001]) returns {said!r}; True or False is asked for"
    return None


def _fault_in_exit_rule(answer: Callable) -> str | None:
    found = _verdicts(lambda changes, tolerance, patience: _ask(answer(tolerance, patience), changes))
    wanted = _verdicts(lambda changes, tolerance, patience: PatientExit(tolerance, patience).settled(changes))
    if found == wanted:
        return None
    for hint, rule in _EXIT_SUSPECTS.items():
        if found == _verdicts(rule):
            return hint
    cases = [(h[:end], rule) for rule in _RULES for h in _HISTORIES for end in range(len(h) + 1)]
    place = next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    history, (tolerance, patience) = cases[place]
    if any(math.isnan(change) for change in history):
        return f"changes {history}: NaN, a change that is not a number, is not quiet"
    return (
        f"tolerance {tolerance}, patience {patience}: after the changes {history} it says {found[place]} and should "
        f"say {wanted[place]}"
    )


def _fault_in_exit_memory(answer: Callable) -> str | None:
    policy, history = answer(0.01, 2), [0.3, 0.004, 0.002]
    first = [bool(_ask(policy, history[:end])) for end in range(4)]
    second = [bool(_ask(policy, history[:end])) for end in range(4)]
    if first != second:
        return (
            "asked a second time, about another sequence, it answers otherwise: keep no count between calls, the list "
            "of changes says all"
        )
    for history in ([0.5, 0.001], [0.5, 0.3, 0.004, 0.002], [0.002, 0.004, 0.3]):
        changes = list(history)
        answer(0.01, 2).settled(changes)
        if changes != history:
            return f"it changes the list that it is given: {history} is {changes} afterwards"
    return None


EXERCISES = (
    Exercise(
        number="5.1", title="ACT's weights", minutes=15, difficulty=2, solution=act_weights,
        stages={
            "shape": _fault_in_weight_shapes, "values": _fault_in_weights, "gradient": _fault_in_weight_gradients,
        },
    ),
    Exercise(
        number="5.2", title="the ponder cost", minutes=5, difficulty=1, solution=ponder_cost,
        stages={
            "shape": _fault_in_cost_shapes, "values": _fault_in_ponder_cost, "gradient": _fault_in_cost_gradients,
        },
    ),
    Exercise(
        number="5.3", title="a loop that halts", minutes=10, difficulty=2, solution=act_loop,
        stages={
            "shape": _fault_in_loop_shapes, "values": _fault_in_loop_values, "gradient": _fault_in_loop_gradients,
        },
    ),
    Exercise(
        number="5.4", title="a prior over halting", minutes=30, difficulty=3, solution=halting_loss,
        stages={
            "distribution": _fault_in_halting_distribution, "loss": _fault_in_halting_loss,
            "extremes": _fault_at_extreme_logits, "gradient": _fault_in_gate_gradients,
        },
    ),
    Exercise(
        number="5.5", title="how far an answer moved", minutes=5, difficulty=1, solution=kl_change,
        stages={"shape": _fault_in_kl_shapes, "values": _fault_in_kl},
    ),
    Exercise(
        number="5.6", title="an exit policy", minutes=10, difficulty=2, solution=PatientExit,
        stages={"answers": _fault_in_exit_answers, "rule": _fault_in_exit_rule, "memory": _fault_in_exit_memory},
    ),
)  # fmt: skip
