"""All exercises by number: check an answer, let the solution stand in for it, keep the score."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from mythos_lite.lessons import lesson01, lesson02, lesson03, lesson04, lesson05, lesson06
from mythos_lite.lessons.exercise import OPEN, SOLVED, Exercise, Verdict

SCORE_FILE = "MYTHOS_LITE_SCORE_FILE"
"""Environment variable: where ``check`` appends its verdicts, one JSON line each, while a notebook is graded."""

EXERCISES: dict[str, Exercise] = {
    exercise.number: exercise
    for lesson in (lesson01, lesson02, lesson03, lesson04, lesson05, lesson06)
    for exercise in lesson.EXERCISES
}


def find(number: str) -> Exercise:
    """The exercise of that number; ``ValueError`` lists those there are."""
    if number not in EXERCISES:
        raise ValueError(f"there is no exercise {number!r}; there are {', '.join(EXERCISES)}")
    return EXERCISES[number]


def check(number: str, answer: Callable) -> Callable:
    """Judge an answer, say what is wrong with it, and return what the cells below go on with.

    That is the answer if it is right. If it is open or wrong, the series' own solution stands in for it, and the
    verdict says so; the notebook does not stop.
    """
    verdict, usable = find(number).judge(answer)
    print(f"Exercise {number}: {_SIGNS.get(verdict.status, '✗')} {verdict.message}")
    _record(number, verdict)
    if verdict.status == SOLVED:
        _solved[number] = usable
        return usable
    _solved.pop(number, None)
    print("The solution of this series stands in for yours below.")
    return find(number).solution


def built(lesson: int) -> None:
    """Print of each exercise of a lesson whether your code ran, or the solution stood in for it."""
    numbers = [number for number in EXERCISES if number.startswith(f"{lesson}.")]
    for number in numbers:
        whose = "yours" if number in _solved else "the solution"
        print(f"{number}  {whose:<12}  {EXERCISES[number].name}: {EXERCISES[number].title}")
    print(f"{sum(number in _solved for number in numbers)} of {len(numbers)} parts of this lesson are your own.")


_solved: dict[str, Callable] = {}
"""What this session's right answers are, by exercise number."""
_SIGNS = {OPEN: "…", SOLVED: "✓"}


def _record(number: str, verdict: Verdict) -> None:
    if path := os.environ.get(SCORE_FILE):
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"exercise": number, **verdict._asdict()}) + "\n")
        except OSError as error:
            print(f"This verdict is not kept: {path} cannot be written ({error.strerror})")
