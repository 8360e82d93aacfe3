"""An exercise: a question, a check that says what is wrong, and a solution.

A check sees an answer as ``as_answer`` makes it, so that NumPy's numbers and arrays, lists, and tensors of one number
are taken where their values are right.
"""

import functools
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

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
    stages: Mapping[str, Callable[[Callable], str | None]]
    """What is checked, in order, by name, as in ``{"shape": …, "values": …, "gradient": …}``. Each takes the learner's
    answer and returns what is wrong with it in one sentence, or ``None``; the first fault ends the check. The answer
    gives what ``as_answer`` makes of its values; its attribute ``raw`` is what the learner wrote."""
    solution: Callable

    @property
    def name(self) -> str:
        """What the learner's function or class is called."""
        return self.solution.__name__

    def judge(self, answer: object) -> tuple[Verdict, Callable]:
        """The verdict on an answer, and the answer in a form that other cells can use.

        Three dots, returned or given, and ``NotImplementedError`` mean: not done yet.
        """
        if answer is ...:
            return Verdict(OPEN, "not done yet."), answer
        if not callable(answer):
            return Verdict(WRONG, f"it is {answer!r}; hand over {self.name} itself, without calling it."), answer
        watched, passed = _Watched(answer), []
        for stage, find_fault in self.stages.items():
            so_far = "".join(f"{name} ✓, " for name in passed) + (f"{stage} ✗: " if len(self.stages) > 1 else "")
            try:
                fault = find_fault(watched)
            except Exception as error:
                if isinstance(error, NotImplementedError) and not error.args:  # torch raises it too, and says why
                    return Verdict(OPEN, "".join(f"{name} ✓, then " for name in passed) + "not done yet."), answer
                fault = f"it raised {type(error).__name__}: {error}{_where(error, answer)}"
            if fault is not None:
                return Verdict(WRONG, so_far + fault), answer
            passed.append(stage)
        return Verdict(SOLVED, f"right ({', '.join(passed)})." if len(passed) > 1 else "right."), watched.usable()

    def examine(self, answer: object) -> Verdict:
        """The verdict alone."""
        return self.judge(answer)[0]


class _Watched:
    """A learner's function or class whose answers the checks can compare; three dots for one count as not done."""

    def __init__(self, raw: Callable) -> None:
        self.raw, self.converted = raw, False

    def __call__(self, *args, **kwargs) -> object:
        answer = self.raw(*args, **kwargs)
        if isinstance(answer, nn.Module):
            answer.register_forward_hook(lambda module, inputs, output: _not_open(output))
            return answer
        made = as_answer(_not_open(answer))
        several = isinstance(answer, tuple) and any(isinstance(part, Tensor) for part in answer)
        self.converted |= isinstance(made, Tensor) and not isinstance(answer, Tensor) and not several
        return made

    def usable(self) -> Callable:
        """The raw function, or, if it answers with arrays or lists, one that makes tensors of them for other cells."""
        return functools.wraps(self.raw)(lambda *a, **k: as_answer(self.raw(*a, **k))) if self.converted else self.raw


def _not_open(answer: object) -> object:
    if answer is ... or (isinstance(answer, tuple) and any(part is ... for part in answer)):
        raise NotImplementedError
    return answer


def _where(error: Exception, answer: Callable) -> str:
    """The line of the learner's own code at which an error arose, in words; "" if it did not arise there."""
    functions = (
        [answer] if inspect.isfunction(answer) else filter(inspect.isfunction, getattr(answer, "__dict__", {}).values())
    )
    files = {function.__code__.co_filename for function in functions}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files and frame.line]
    return f" (at `{lines[-1].line}` in {lines[-1].name})" if lines else ""


def gradient_fault(answer: Callable, reference: Callable, *inputs: object, tolerance: float = 1e-4) -> str | None:
    """How the gradients of an answer's sum of squares differ from the reference's, by the floating-point ``inputs``.

    ``answer`` may be the watched one; what is differentiated is its ``raw``. The ``tolerance`` is relative for
    gradients above 1. ``None`` if they do not differ.
    """

    def gradients(function: Callable) -> list[Tensor | None] | str:
        own = [x.detach().clone().requires_grad_() if _differentiable(x) else x for x in inputs]
        result = function(*own)
        if not isinstance(result, Tensor) or not result.requires_grad:
            return "its answer carries no gradient: stay with tensors, without .item(), .detach(), NumPy or no_grad"
        wanted = [x for x in own if _differentiable(x)]
        return list(torch.autograd.grad(result.pow(2).sum(), wanted, allow_unused=True))

    got, wanted = gradients(getattr(answer, "raw", answer)), gradients(reference)
    if isinstance(got, str):
        return got
    names = [
        name for name, x in zip(_argument_names(reference, len(inputs)), inputs, strict=True) if _differentiable(x)
    ]
    for name, one, other in zip(names, got, wanted, strict=True):
        if other is None:
            continue
        if one is None:
            return f"no gradient reaches {name}"
        if fault := difference(one, other, tolerance * max(1.0, other.abs().max().item())):
            return f"the gradient by {name}: {fault}"
    return None


def _argument_names(function: Callable, n: int) -> list[str]:
    """What a function calls its first n arguments, or their places where it takes any number."""
    given = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][:n]
    return [*given, *(f"argument {place}" for place in range(len(given) + 1, n + 1))]


def _differentiable(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


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
            return f"it is one number, {got:g}, and a tensor of shape {tuple(wanted.shape)} is asked for"
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
