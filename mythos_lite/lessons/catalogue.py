"""All exercises by number: check an answer, show a solution, keep the score."""

import inspect
import json
import os
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


def check(number: str, answer: object) -> None:
    """Judge an answer and say what is wrong with it. An open or wrong exercise does not stop the notebook."""
    verdict = find(number).examine(answer)
    print(f"Exercise {number}: {_SIGNS.get(verdict.status, '✗')} {verdict.message}")
    _record(number, verdict)


def solution(number: str) -> None:
    """Print one way to solve the exercise."""
    print(inspect.getsource(find(number).solution), end="")


_SIGNS = {OPEN: "…", SOLVED: "✓"}


def _record(number: str, verdict: Verdict) -> None:
    if path := os.environ.get(SCORE_FILE):
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"exercise": number, **verdict._asdict()}) + "\n")
        except OSError as error:
            print(f"This verdict is not kept: {path} cannot be written ({error.strerror})")
