"""An exercise: a question, a check that says what is wrong, and a solution.

A check sees an answer as ``as_answer`` makes it, so that NumPy's numbers and arrays, lists, and tensors of one number
are taken where their values are right.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mythos_lite.checks import plain

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
        if not callable(answer):
            return Verdict(WRONG, f"it is {answer!r}; hand over the function itself, without calling it")
        try:
            fault = self.find_fault(_watch(answer))
        except NotImplementedError:
            return Verdict(OPEN, "not done yet")
        except Exception as error:
            return Verdict(WRONG, f"it raised {type(error).__name__}: {error}")
        return Verdict(SOLVED, "right") if fault is None else Verdict(WRONG, fault)


def _watch(function: Callable) -> Callable:
    """The same function, answering as ``as_answer`` makes it; an answer of three dots counts as not done."""

    def watched(*args, **kwargs):
        answer = function(*args, **kwargs)
        if answer is ... or (isinstance(answer, tuple) and any(part is ... for part in answer)):
            raise NotImplementedError
        return as_answer(answer)

    return watched


def as_answer(answer: object) -> object:
    """An answer as the checks compare it: a number, ``True`` or ``False``, or a tensor on the CPU.

    NumPy's scalars and tensors without axes become numbers; arrays, and lists or tuples of numbers, become tensors, in
    double precision where they hold Python's floats. Anything else stays as it is.
    """
    answer = plain(answer)
    if isinstance(answer, (list, tuple, range)):
        parts = [as_answer(part) for part in answer]
        if parts and all(isinstance(part, Tensor) for part in parts):
            return torch.stack(parts) if len({part.shape for part in parts}) == 1 else answer
        answer = np.array(parts) if all(isinstance(part, (int, float, complex)) for part in parts) else answer
    if isinstance(answer, np.ndarray):
        with suppress(TypeError):  # texts, objects, and numbers that torch has no dtype for
            answer = torch.from_numpy(np.array(answer, order="C"))  # a copy: torch takes no negative strides
    if isinstance(answer, Tensor):
        return answer.detach().cpu()
    return float(answer) if isinstance(answer, Real) and not isinstance(answer, (int, float)) else answer


def is_number(got: object) -> bool:
    """Whether an answer is one finite number, which a check may compare with others."""
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    return isinstance(got, (int, float)) and not isinstance(got, bool) and math.isfinite(got)


def same(got: object, wanted: object, tolerance: float = 1e-5) -> bool:
    """Whether ``difference`` finds none."""
    return difference(got, wanted, tolerance) is None


def fitting_hint(suspects: dict[str, Callable], cases: Sequence[tuple], answers: list, tolerance: float = 1e-5) -> str:
    """The hint whose wrong rule gives all of these answers; "" if none does.

    For a single case several rules may give the same, and the hint would be a guess.
    """
    for hint, rule in suspects.items():
        if all(same(answer, rule(*case), tolerance) for case, answer in zip(cases, answers, strict=True)):
            return hint
    return ""


def difference(got: object, wanted: object, tolerance: float = 1e-5) -> str | None:
    """How an answer differs from the number or tensor ``wanted``, in words; ``None`` if it does not."""
    wanted = wanted.item() if isinstance(wanted, Tensor) and not wanted.ndim else wanted
    if isinstance(wanted, Tensor):
        if isinstance(got, (int, float)):
            return f"it is one number, {got}, and a tensor of shape {tuple(wanted.shape)} is asked for"
        if not isinstance(got, Tensor):
            return f"it is {type(got).__name__}, and a tensor is asked for"
        if got.shape != wanted.shape:
            return f"its shape is {tuple(got.shape)}, and {tuple(wanted.shape)} is asked for"
        if got.is_complex():
            return "it holds complex numbers"
        if not torch.isfinite(got).all():
            return "it holds numbers that are not finite"
        off = (got.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
        return None if off <= tolerance else f"it is off by up to {off:.2g}"
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(got, bool) != isinstance(wanted, bool) or not isinstance(got, (int, float)):
        it = f"a tensor of shape {tuple(got.shape)}" if isinstance(got, Tensor) else repr(got)
        return f"it is {it}, and {'True or False' if isinstance(wanted, bool) else 'a number'} is asked for"
    if isinstance(wanted, bool):
        return None if got == wanted else f"it is {got} and should be {wanted}"
    return None if abs(got - wanted) <= tolerance * max(1.0, abs(wanted)) else f"it is {got:g} and should be {wanted:g}"
