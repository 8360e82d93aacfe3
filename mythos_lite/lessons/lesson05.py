"""Exercises of lesson 5, adaptive depth."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, fitting_hint, is_number, same

# ---------------------------------------------------------------- 5.1


def act_weights(probabilities: list[float], threshold: float = 0.99) -> list[float]:
    """Weights of the loops from a token's halting probabilities; they sum to 1."""
    weights, spent = [], 0.0
    for loop, p in enumerate(probabilities, start=1):
        last = spent + p >= threshold or loop == len(probabilities)
        weights.append(1.0 - spent if last else p)
        spent += weights[-1]
        if last:
            break
    return weights + [0.0] * (len(probabilities) - len(weights))


_TOKENS = (
    ([0.5, 0.3, 0.6, 0.4], 0.99),
    ([0.2, 0.1, 0.1], 0.99),
    ([1.0, 0.5], 0.99),
    ([0.02], 0.99),
    ([0.25, 0.5, 0.245, 0.9, 0.9], 0.99),
    ([0.01, 0.5, 0.02, 0.7], 0.99),
    ([0.5, 0.25, 0.125, 0.5], 0.75),  # the threshold is met exactly
    ([0.5, 0.25, 0.125, 0.5], 0.5),
)
"""Halting probabilities of a token, and a threshold."""
_EXACTLY_MET = "a total that reaches the threshold exactly halts the token: at least, not more than"


def _fault_in_act_weights(answer: Callable) -> str | None:
    for case, threshold in _TOKENS:
        got = answer(list(case), threshold)
        if not isinstance(got, Tensor) or got.ndim != 1:
            return f"it is {got!r}, and a list of weights is asked for"
        where = f"for the probabilities {case} and the threshold {threshold}"
        if len(got) != len(case):
            return f"{where}: {len(got)} weights, and one per loop is asked for, {len(case)}, zeros included"
        wanted = act_weights(case, threshold)
        if fault := difference(got, torch.tensor(wanted, dtype=torch.double)):
            total, halted = got.double().sum().item(), sum(case) >= threshold
            if total < 1 - 1e-6 and not halted:
                return f"{where} the weights sum to {total:g}: when the loops run out, the last one takes what remains"
            if total > 1 + 1e-6:
                return f"{where} the weights sum to {total:g}: a loop that passes the threshold takes only what remains"
            if total < 1 - 1e-6:
                return f"{where} the weights sum to {total:g}: the loop at which the token halts takes what remains"
            if same(got, torch.tensor(act_weights(case, math.nextafter(threshold, 2.0)), dtype=torch.double)):
                return f"{where}: {fault}; {_EXACTLY_MET}"
            if same(got, torch.tensor(act_weights(case, 0.99), dtype=torch.double)):
                return f"{where}: {fault}; use the threshold that is given"
            return f"{where}: {fault}; it should be {[round(w, 3) for w in wanted]}"
    return None


# ---------------------------------------------------------------- 5.2


def ponder_cost(probabilities: list[float], threshold: float = 0.99) -> float:
    """Loops used plus remainder, ρ = N + R (Graves 2016, §2.1)."""
    spent = 0.0
    for loop, p in enumerate(probabilities, start=1):
        if spent + p >= threshold or loop == len(probabilities):
            return loop + 1.0 - spent
        spent += p
    raise ValueError("there are no loops")


def _fault_in_ponder_cost(answer: Callable) -> str | None:
    for case, threshold in _TOKENS:
        got, wanted = answer(list(case), threshold), ponder_cost(case, threshold)
        if fault := difference(got, wanted):
            where = f"for the probabilities {case} and the threshold {threshold}"
            loops = math.ceil(wanted) - 1  # the remainder is above 0 and at most 1
            if same(got, loops):
                return f"{where}: the loops are counted, the remainder R is missing"
            if same(got, wanted - loops):
                return f"{where}: that is the remainder alone, the loops N are missing"
            if is_number(got) and got > len(case) + 1:
                return f"{where}: it is {got:g}, more than all loops and a whole remainder"
            if same(got, ponder_cost(case, math.nextafter(threshold, 2.0))):
                return f"{where}: {fault}; {_EXACTLY_MET}"
            if same(got, ponder_cost(case, 0.99)):
                return f"{where}: {fault}; use the threshold that is given"
            return f"{where}: {fault}"
    return None


# ---------------------------------------------------------------- 5.3


def exit_loop(answers: Tensor, tolerance: float, patience: int) -> int:
    """Loop at which to stop, given a position's answer after each loop (L, V); L if it never settles."""
    quiet = 0
    for loop in range(1, len(answers)):
        change = 0.5 * (answers[loop] - answers[loop - 1]).abs().sum()  # total variation
        quiet = quiet + 1 if change <= tolerance else 0
        if quiet == patience:
            return loop + 1
    return len(answers)


_START = (0.16, 0.1, 0.1, 0.1, 0.15, 0.13, 0.13, 0.13)
_DYADIC_START = (0.1875, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.0625)


def _make_answers(moves: list[float], start: tuple[float, ...] = _START) -> Tensor:
    """Distributions over eight answers (L, 8), each ``moves[i]`` in total variation away from the one before.

    The first four rise by a quarter of a move each while the others fall, or the reverse, so that neither the largest
    change nor the length of the change is the total variation.
    """
    rows = [torch.tensor(start, dtype=torch.double)]
    direction = torch.tensor([0.25] * 4 + [-0.25] * 4, dtype=torch.double)
    for move in moves:
        if (rows[-1] + move * direction).min() < 0:
            direction = -direction
        rows.append(rows[-1] + move * direction)
    return torch.stack(rows)


_MOVES = (
    [0.3, 0.004, 0.2, 0.003, 0.002, 0.001, 0.4],
    [0.004, 0.003, 0.3, 0.3, 0.3, 0.3],
    [0.3, 0.2, 0.3, 0.2],
    [0.007, 0.008, 0.007, 0.008, 0.0],
    [0.012, 0.011, 0.012, 0.013],
    [0.001],
    [],
)
_EXITS = (
    *(
        (_make_answers(moves), tolerance, patience)
        for moves in _MOVES
        for tolerance, patience in ((0.01, 1), (0.01, 2), (0.01, 3), (0.0025, 2))
    ),
    *((_make_answers([0.25, 0.125, 0.25], _DYADIC_START), 0.25, patience) for patience in (1, 2, 3)),
)
"""Answers after each loop, tolerance, patience; the last ones meet the tolerance exactly."""


def _variation(answers: Tensor) -> Tensor:
    return 0.5 * answers.diff(dim=0).abs().sum(dim=-1)


def _stop(changes: Tensor, tolerance: float, patience: int, *, in_a_row: bool = True) -> int:
    quiet = 0
    for loop, change in enumerate(changes.tolist(), start=2):
        quiet = quiet + 1 if change <= tolerance else (0 if in_a_row else quiet)
        if quiet == patience:
            return loop
    return len(changes) + 1


_EXIT_SUSPECTS = {
    "the quiet loops must follow each other without a loud one between them": lambda answers, tolerance, patience: (
        _stop(_variation(answers), tolerance, patience, in_a_row=False)
    ),
    "total variation is half the sum of the absolute differences": lambda answers, tolerance, patience: _stop(
        2 * _variation(answers), tolerance, patience
    ),
    "a change of exactly the tolerance is quiet: at most, not less than": lambda answers, tolerance, patience: _stop(
        _variation(answers), math.nextafter(tolerance, 0.0), patience
    ),
    "all probabilities count: the likeliest answer can stay while they move": lambda answers, tolerance, patience: (
        _stop((answers.argmax(dim=-1).diff() != 0).double(), tolerance, patience)
    ),
    "add up the changes of all answers, in place of taking the largest": lambda answers, tolerance, patience: _stop(
        answers.diff(dim=0).abs().amax(dim=-1), tolerance, patience
    ),
    "total variation adds absolute differences, it squares nothing": lambda answers, tolerance, patience: _stop(
        answers.diff(dim=0).norm(dim=-1), tolerance, patience
    ),
    "compare each loop with the one before it, not with the first": lambda answers, tolerance, patience: _stop(
        0.5 * (answers[1:] - answers[0]).abs().sum(dim=-1), tolerance, patience
    ),
    "stop at as many quiet loops as `patience`, not at one more": lambda answers, tolerance, patience: _stop(
        _variation(answers), tolerance, patience + 1
    ),
}


def _fault_in_exit_loop(answer: Callable) -> str | None:
    found = [answer(answers.clone(), tolerance, patience) for answers, tolerance, patience in _EXITS]
    for got, (answers, tolerance, patience) in zip(found, _EXITS, strict=True):
        wanted = exit_loop(answers, tolerance, patience)
        if fault := difference(got, wanted):
            changes = [round(change, 4) for change in _variation(answers).tolist()]
            where = f"changes {changes}, tolerance {tolerance}, patience {patience}: {fault}"
            if not is_number(got) or got != int(got):
                return f"{where}; a loop's number is asked for"
            if hint := fitting_hint(_EXIT_SUSPECTS, _EXITS, found):
                return f"{where}; {hint}"
            if same(got, wanted - 1):
                return f"{where}; the first change is known after loop 2, not after loop 1"
            return where
    return None


# ---------------------------------------------------------------- 5.4


def share_saved(loops_used: list[int], fixed: int, check_share: float) -> float:
    """Share of the loops' compute that an exit saves; looking at the answer costs ``check_share`` of a loop."""
    with_exit = sum(loops_used) * (1.0 + check_share)
    without = len(loops_used) * (fixed + check_share)  # the answer is read once
    return 1.0 - with_exit / without


def _fault_in_share_saved(answer: Callable) -> str | None:
    for used, fixed, check_share in (([4, 8], 16, 0.0), ([8, 10, 12], 32, 1.0), ([16, 15], 16, 0.5), ([3], 8, 0.25)):
        got, wanted = answer(list(used), fixed, check_share), share_saved(used, fixed, check_share)
        if fault := difference(got, wanted):
            where = f"for loops_used={used}, fixed={fixed}, check_share={check_share}: {fault}"
            if same(got, 1 - wanted):
                return f"{where}; that is the share spent, and the share saved is asked for"
            if same(got, 1 - sum(used) / (len(used) * fixed)):
                return f"{where}; the exit reads the answer after every loop, and that is not free"
            if same(got, 1 - sum(used) * (1 + check_share) / (len(used) * fixed)):
                return f"{where}; without an exit the answer is read too, once"
            if same(got, 100 * wanted):
                return f"{where}; a share lies at 1 or below, this is a percentage"
            return where
    return None


EXERCISES = (
    Exercise(
        number="5.1", title="ACT's weights", minutes=6, difficulty=2,
        find_fault=_fault_in_act_weights, solution=act_weights,
    ),
    Exercise(
        number="5.2", title="ponder cost", minutes=4, difficulty=1,
        find_fault=_fault_in_ponder_cost, solution=ponder_cost,
    ),
    Exercise(
        number="5.3", title="an exit rule", minutes=7, difficulty=2,
        find_fault=_fault_in_exit_loop, solution=exit_loop,
    ),
    Exercise(
        number="5.4", title="what the exit saves", minutes=5, difficulty=2,
        find_fault=_fault_in_share_saved, solution=share_saved,
    ),
)  # fmt: skip
