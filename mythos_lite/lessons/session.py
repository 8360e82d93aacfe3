"""Start of a lesson, predictions, comparisons, and the numbers that its prose quotes."""

import html
from collections.abc import Mapping

import torch
from torch import Tensor

from mythos_lite.checks import check_int, plain
from mythos_lite.lessons.display import fold, hide, set_theme
from mythos_lite.lessons.exercise import difference
from mythos_lite.training.trainer import default_device

LESSONS = 6
APPENDIX = "A"


def start(lesson: int | str, theme: str = "light") -> torch.device:
    """Seed torch with the lesson's number, use at most two threads, and say where the lesson will run.

    The matrices are small: more than two threads do not pay. The figures in the text are the CPU's. ``theme="dark"``
    draws all figures for a dark page.
    """
    number = LESSONS + 1 if lesson == APPENDIX else check_int("lesson", lesson, 1, LESSONS)
    set_theme(theme)
    torch.manual_seed(number)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    device = default_device()
    print(f"Lesson {lesson} is ready.")
    return device


class Prediction:
    """A choice or a number, with a reason, made before the run; what the run gives is shown in a fold beside it."""

    def __init__(self, question: str, choices: Mapping[str, str] | None, choice: object, because: str) -> None:
        self.question, self.choices, self.because = question, choices, because.strip()
        self.choice = plain(choice)
        print(question, *(f"  {key}: {text}" for key, text in (choices or {}).items()), sep="\n")
        if not self._is_possible():  # said, not raised: the cells below go on, and would otherwise lack the prediction
            accepted = ", ".join(map(repr, choices)) if choices else "a number"
            print(f"choice={choice!r} is not possible: give {accepted}, or None for none yet.")
            self.choice = None
        print("No choice yet." if self.choice is None else self._said())

    def _is_possible(self) -> bool:
        if self.choice is None or self.choices is not None:
            return self.choice is None or (isinstance(self.choice, str) and self.choice in self.choices)
        return isinstance(self.choice, (int, float)) and not isinstance(self.choice, bool)

    def _said(self) -> str:
        choice = self.choice if self.choices else f"{self.choice:g}"
        return f"You say {choice}, because {self.because}" if self.because else f"You say {choice}. Because …?"

    def reveal(self, answer: object, why: str = "") -> None:
        """Show the answer, with a sentence on why, in a fold: open beside your choice, closed as long as there is none.

        Raises:
            ValueError: for an answer that is none of the choices.
        """
        answer = plain(answer)
        if self.choices is not None and answer not in self.choices:
            raise ValueError(f"answer={answer!r} is none of the choices {', '.join(self.choices)}")
        chosen = self.choice is not None
        print(self._said() if chosen else "You have not chosen yet: do so above, before you look.")
        told = f"{answer}: {self.choices[answer]}" if self.choices else f"{answer:g}"
        fold("What the run gave", f"<p><b>{html.escape(told)}</b> {html.escape(why)}</p>", is_open=chosen)


def predict(
    question: str, choices: Mapping[str, str] | None = None, *, choice: object = None, because: str = ""
) -> Prediction:
    """Print a question and write down what you expect, and why; ``reveal`` it once the answer is known.

    ``choices`` maps a letter to what it stands for, and ``choice`` is one of the letters; without ``choices`` it is a
    number. ``None`` means: not chosen yet. Any other choice is said to be none, and counts as ``None``.
    """
    return Prediction(question, choices, choice, because)


def compare(what: str, one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    """Say whether two tensors of one shape agree to ``tolerance``, and how they differ if not."""
    fault = difference(one.detach(), other.detach(), tolerance)
    print(f"{what}: " + (f"✗ {fault}" if fault else f"✓ the same to {tolerance:g}, shape {tuple(one.shape)}"))


def facts(**values: object) -> None:
    """Keep values by name in the output, where no reader sees them.

    Prose that quotes one marks it, as in ``576<!-- mla_floats -->``; a test compares the two.
    """
    hide("\n".join(f"{name} = {value}" for name, value in values.items()))
