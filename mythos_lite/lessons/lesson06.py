"""Exercises of lesson 6, digit chains modulo 7."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, fitting_hint, is_number, same
from mythos_lite.measure.sweep import wilson_interval

# ---------------------------------------------------------------- 6.1


def running_sums(digits: Tensor) -> Tensor:
    """(B, n) digits → (B, n): after each digit, the sum so far modulo 7."""
    return digits.cumsum(dim=1) % 7


def _fault_in_running_sums(answer: Callable) -> str | None:
    for digits in (
        torch.tensor([[3, 5, 6], [0, 0, 1]]),
        torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(0)),
    ):
        got, wanted = answer(digits.clone()), running_sums(digits)
        if same(got, digits.cumsum(dim=1)):
            return "these are the sums, and not yet what is left of them modulo 7"
        if same(got, digits.cumsum(dim=0) % 7):
            return "it sums over the chains; sum along each chain"
        if isinstance(got, Tensor) and got.shape == digits.shape[:1]:
            return "that is the last sum of each chain; one for each digit is asked for"
        if fault := difference(got, wanted):
            return f"for {digits[0].tolist()}: {fault}"
    return None


# ---------------------------------------------------------------- 6.2


def loops_needed(n_digits: int) -> int:
    """Fewest loops at which EQ can depend on the first digit: window 2, one prelude and one coda layer."""
    return max(1, n_digits - 2)


def _fault_in_loops_needed(answer: Callable) -> str | None:
    for n_digits in (8, 5, 32, 3, 2, 1):
        got, wanted = answer(n_digits), loops_needed(n_digits)
        if fault := difference(got, wanted):
            where = f"for {n_digits} digits: {fault}"
            hints = {
                n_digits: "prelude and coda each move information one position, too",
                n_digits - 1: "both prelude and coda move information one position",
                n_digits - 3: "EQ stands one position after the last digit",
            }
            if is_number(got) and got < 1:
                return f"{where}; at least one loop is always run"
            return next((f"{where}; {hint}" for loops, hint in hints.items() if same(got, loops)), where)
    return None


# ---------------------------------------------------------------- 6.3


def expected_accuracy(lengths: Sequence[int], n_loops: int) -> float:
    """Mean accuracy if chains within reach are always right, and the others at chance."""
    return sum(1.0 if n_loops >= loops_needed(n) else 1 / 7 for n in lengths) / len(lengths)


def _fault_in_expected_accuracy(answer: Callable) -> str | None:
    for lengths, n_loops in (((6, 7, 8), 4), ((6, 7, 8), 1), ((6, 7, 8), 6), ((2, 3, 4, 5), 2), ((16,), 128)):
        got, wanted = answer(lengths, n_loops), expected_accuracy(lengths, n_loops)
        if fault := difference(got, wanted):
            where = f"for lengths {list(lengths)} at {n_loops} loops: {fault}"
            within, sooner = (sum(t >= loops_needed(n) for n in lengths) / len(lengths) for t in (n_loops, n_loops - 1))
            if same(got, within):
                return "chains out of reach are not always wrong: a guess is right once in seven"
            if is_number(got) and got > 1:
                return "an accuracy is a share; divide by the number of lengths"
            if same(got, sooner + (1 - sooner) / 7):
                return f"{where}; a chain that needs as many loops as there are is within reach"
            return where
    return None


# ---------------------------------------------------------------- 6.4


def intervals_overlap(correct_a: int, correct_b: int, n: int) -> bool:
    """Whether the 95 % intervals of two accuracies, each measured on n chains, overlap."""
    low_a, high_a = wilson_interval(correct_a, n)
    low_b, high_b = wilson_interval(correct_b, n)
    return low_a <= high_b and low_b <= high_a


def _fault_in_intervals_overlap(answer: Callable) -> str | None:
    cases = (
        *((150, 160, 1000), (150, 250, 1000), (250, 150, 1000), (1000, 1000, 1000), (15, 25, 100), (1000, 990, 1000)),
        *((150, 190, 1000), (190, 150, 1000), (0, 0, 10), (0, 10, 10), (0, 1, 1)),
    )
    found = [answer(*case) for case in cases]
    for got, (a, b, n) in zip(found, cases, strict=True):
        if fault := difference(got, intervals_overlap(a, b, n)):
            hint = fitting_hint(_OVERLAP_SUSPECTS, cases, found)
            return f"{a} and {b} right of {n}: {fault}" + (f"; {hint}" if hint else "")
    return None


def _holds(correct_a: int, correct_b: int, n: int) -> bool:
    low, high = wilson_interval(correct_a, n)
    return low <= correct_b / n <= high


_OVERLAP_SUSPECTS = {
    "that says whether they lie apart": lambda a, b, n: not intervals_overlap(a, b, n),
    "two intervals can overlap though neither holds the other's accuracy": lambda a, b, n: (
        _holds(a, b, n) or _holds(b, a, n)
    ),
    "either of the two may lie above the other": lambda a, b, n: wilson_interval(a, n)[1] >= wilson_interval(b, n)[0],
}


EXERCISES = (
    Exercise(
        number="6.1", title="running sums", minutes=3, difficulty=1,
        find_fault=_fault_in_running_sums, solution=running_sums,
    ),
    Exercise(
        number="6.2", title="loops that a chain needs", minutes=5, difficulty=2,
        find_fault=_fault_in_loops_needed, solution=loops_needed,
    ),
    Exercise(
        number="6.3", title="the curve to expect", minutes=6, difficulty=2,
        find_fault=_fault_in_expected_accuracy, solution=expected_accuracy,
    ),
    Exercise(
        number="6.4", title="is the difference real?", minutes=5, difficulty=2,
        find_fault=_fault_in_intervals_overlap, solution=intervals_overlap,
    ),
)  # fmt: skip
