"""Exercises of lesson 5, adaptive depth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference

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


def _fault_in_act_weights(answer: Callable) -> str | None:
    for case in ([0.5, 0.3, 0.6, 0.4], [0.2, 0.1, 0.1], [1.0, 0.5], [0.02], [0.25, 0.5, 0.245, 0.9, 0.9]):
        got = answer(list(case), 0.99)
        if isinstance(got, Tensor):
            got = got.tolist()
        if not isinstance(got, (list, tuple)):
            return f"it is {type(got).__name__}, and a list of weights is asked for"
        where = f"for the probabilities {case}"
        if len(got) != len(case):
            return f"{where}: {len(got)} weights, and one per loop is asked for, {len(case)}, zeros included"
        wanted = act_weights(case)
        if fault := difference(torch.tensor(got, dtype=torch.double), torch.tensor(wanted, dtype=torch.double)):
            total, halted = sum(got), sum(case) >= 0.99
            if total < 1 - 1e-6 and not halted:
                return f"{where} the weights sum to {total:g}: when the loops run out, the last one takes what remains"
            if total > 1 + 1e-6:
                return f"{where} the weights sum to {total:g}: a loop that passes the threshold takes only what remains"
            if total < 1 - 1e-6:
                return f"{where} the weights sum to {total:g}: the loop at which the token halts takes what remains"
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
    for case in ([0.5, 0.3, 0.6, 0.4], [0.2, 0.1, 0.1], [1.0, 0.5], [0.02], [0.25, 0.5, 0.245, 0.9, 0.9]):
        got, wanted = answer(list(case), 0.99), ponder_cost(case)
        if fault := difference(got, wanted):
            if isinstance(got, (int, float)):
                loops = int(wanted) if wanted != int(wanted) else int(wanted) - 1
                if got == loops:
                    return f"for {case}: the loops are counted, the remainder R is missing"
                if abs(got - (wanted - loops)) < 1e-6:
                    return f"for {case}: that is the remainder alone, the loops N are missing"
                if got > len(case) + 1:
                    return f"for {case}: it is {got:g}, more than all loops and a whole remainder"
            return f"for {case}: {fault}"
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


def _make_answers(moves: list[float]) -> Tensor:
    """Distributions over three answers, each ``moves[i]`` in total variation away from the one before."""
    rows, direction = [torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)], 1.0
    for move in moves:
        if rows[-1][0] + direction * move > 1 or rows[-1][0] + direction * move < 0:
            direction = -direction
        shift = direction * move
        rest = rows[-1][1:] * (1 - rows[-1][0] - shift) / (1 - rows[-1][0])
        rows.append(torch.cat([(rows[-1][0] + shift).view(1), rest]))
    return torch.stack(rows)


_MOVES = (
    [0.3, 0.004, 0.2, 0.003, 0.002, 0.001, 0.4],
    [0.004, 0.003, 0.3, 0.3, 0.3, 0.3],
    [0.3, 0.2, 0.3, 0.2],
    [0.007, 0.008, 0.007, 0.008, 0.0],
    [0.001],
)


def _fault_in_exit_loop(answer: Callable) -> str | None:
    for moves in _MOVES:
        for tolerance, patience in ((0.01, 1), (0.01, 2), (0.01, 3), (0.0025, 2)):
            answers = _make_answers(moves)
            got, wanted = answer(answers.clone(), tolerance, patience), exit_loop(answers, tolerance, patience)
            if fault := difference(got, wanted):
                where = f"changes {moves}, tolerance {tolerance}, patience {patience}: {fault}"
                if isinstance(got, bool) or not isinstance(got, (int, Tensor)):
                    return f"{where}; a loop's number is asked for"
                if got == _stop(moves, tolerance, patience, in_a_row=False):
                    return f"{where}; the quiet loops must follow each other without a loud one between them"
                if got == _stop([2 * move for move in moves], tolerance, patience):
                    return f"{where}; total variation is half the sum of the absolute differences"
                if got == wanted - 1:
                    return f"{where}; the first change is known after loop 2, not after loop 1"
                return where
    return None


def _stop(moves: list[float], tolerance: float, patience: int, *, in_a_row: bool = True) -> int:
    quiet = 0
    for loop, move in enumerate(moves, start=2):
        quiet = quiet + 1 if move <= tolerance else (0 if in_a_row else quiet)
        if quiet == patience:
            return loop
    return len(moves) + 1


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
            if not isinstance(got, (int, float)) or isinstance(got, bool):
                return where
            if abs(got - (1 - wanted)) < 1e-6:
                return f"{where}; that is the share spent, and the share saved is asked for"
            if abs(got - (1 - sum(used) / (len(used) * fixed))) < 1e-6:
                return f"{where}; the exit reads the answer after every loop, and that is not free"
            if abs(got - (1 - sum(used) * (1 + check_share) / (len(used) * fixed))) < 1e-6:
                return f"{where}; without an exit the answer is read too, once"
            if abs(got - 100 * wanted) < 1e-4:
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
