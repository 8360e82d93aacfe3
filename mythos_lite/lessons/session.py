"""Start of a lesson, predictions, and the numbers that its prose quotes."""

import torch

from mythos_lite.checks import check_int, plain
from mythos_lite.training.trainer import default_device

LESSONS = 6


def start(lesson: int) -> torch.device:
    """Seed torch with the lesson's number, use at most two threads, and say where the lesson will run.

    The matrices are small: more than two threads do not pay. The figures in the text are the CPU's.
    """
    check_int("lesson", lesson, 1, LESSONS)
    torch.manual_seed(lesson)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    device = default_device()
    print(f"Lesson {lesson} is ready.")
    return device


class Prediction:
    """A guess made before the run, to be set beside what the run gives."""

    def __init__(self, about: str, guess: float | None) -> None:
        guess = plain(guess)
        if guess is not None and (isinstance(guess, bool) or not isinstance(guess, (int, float))):
            raise ValueError(f"guess={guess!r} is not possible: a prediction is a number, or None for none")
        self.about, self.guess = about, guess
        print(f"{about}: " + ("no guess yet" if guess is None else f"you say {guess:g}"))

    def reveal(self, measured: float) -> None:
        """Print what came out beside the guess."""
        if self.guess is None:
            print(f"{self.about}: it is {measured:g}")
        else:
            print(f"{self.about}: you said {self.guess:g}, it is {measured:g}")


def predict(about: str, guess: float | None) -> Prediction:
    """Write down a guess; ``reveal`` it once the number is known.

    Raises:
        ValueError: for a guess that is neither a number (Python's, NumPy's or a tensor's) nor ``None``.
    """
    return Prediction(about, guess)


def facts(**values: object) -> None:
    """Print values by name, one per line.

    Prose that quotes one marks it, as in ``576<!-- mla_floats -->``; a test compares the two.
    """
    for name, value in values.items():
        print(f"{name} = {value}")
