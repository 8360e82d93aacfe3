"""An exercise: a question, a check that says what is wrong, and a solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

OPEN, WRONG, SOLVED = "open", "wrong", "solved"


class Verdict(NamedTuple):
    status: str
    """``"open"``, ``"wrong"`` or ``"solved"``."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Exercise:
    number: str
    """Lesson and place in it, as in ``"1.2"``."""
    title: str
    minutes: int
    difficulty: int
    """1 to 3."""
    find_fault: Callable[[object], str | None]
    """Takes the learner's answer; returns what is wrong with it in one sentence, or ``None``."""
    solution: object

    def examine(self, answer: object) -> Verdict:
        """Judge an answer. Three dots, returned or given, and ``NotImplementedError`` mean: not done yet."""
        if answer is ...:
            return Verdict(OPEN, "not done yet")
        try:
            fault = self.find_fault(_watch(answer) if callable(answer) else answer)
        except NotImplementedError:
            return Verdict(OPEN, "not done yet")
        except Exception as error:
            return Verdict(WRONG, f"it raised {type(error).__name__}: {error}")
        return Verdict(SOLVED, "right") if fault is None else Verdict(WRONG, fault)


def _watch(function: Callable) -> Callable:
    """The same function, except that an answer of three dots counts as not done."""

    def watched(*args, **kwargs):
        answer = function(*args, **kwargs)
        if answer is ...:
            raise NotImplementedError
        return answer

    return watched


def difference(got: object, wanted: object, tolerance: float = 1e-5) -> str | None:
    """How ``got`` differs from the number or tensor ``wanted``, in words; ``None`` if it does not."""
    if isinstance(wanted, Tensor):
        if not isinstance(got, Tensor):
            return f"it is {type(got).__name__}, and a tensor is asked for"
        if got.shape != wanted.shape:
            return f"its shape is {tuple(got.shape)}, and {tuple(wanted.shape)} is asked for"
        if got.dtype.is_floating_point and not torch.isfinite(got).all():
            return "it holds numbers that are not finite"
        off = (got.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
        return None if off <= tolerance else f"it is off by up to {off:.2g}"
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(got, bool) != isinstance(wanted, bool) or not isinstance(got, (int, float)):
        return f"it is {got!r}, and {'True or False' if isinstance(wanted, bool) else 'a number'} is asked for"
    if isinstance(wanted, bool):
        return None if got == wanted else f"it is {got} and should be {wanted}"
    return None if abs(got - wanted) <= tolerance * max(1.0, abs(wanted)) else f"it is {got:g} and should be {wanted:g}"
