"""The checks of the exercises are checked: planted wrong answers, the stub, the solution, another right answer."""

import importlib

import pytest

from mythos_lite.lessons.catalogue import EXERCISES
from mythos_lite.lessons.exercise import OPEN, SOLVED, WRONG

WRONG_ANSWERS, RIGHT_ANSWERS = {}, {}
for lesson in range(1, 7):
    planted = importlib.import_module(f"planted0{lesson}")
    WRONG_ANSWERS |= planted.WRONG
    RIGHT_ANSWERS |= planted.RIGHT


def test_every_exercise_has_planted_answers():
    assert WRONG_ANSWERS.keys() == RIGHT_ANSWERS.keys() == EXERCISES.keys()
    assert all(len(answers) >= 3 for answers in WRONG_ANSWERS.values())
    assert list(EXERCISES) == sorted(EXERCISES)
    for lesson in range(1, 7):
        minutes = sorted(exercise.minutes for number, exercise in EXERCISES.items() if number.startswith(f"{lesson}."))
        assert minutes[0] <= 5
        assert sum(10 <= spent <= 20 for spent in minutes) >= 2
        assert minutes[-1] == 30


@pytest.mark.parametrize("number", EXERCISES)
def test_an_unfinished_answer_is_open(number):
    def unwritten(*args, **kwargs):
        raise NotImplementedError

    for answer in (..., lambda *args, **kwargs: ..., lambda *args, **kwargs: (..., ...), unwritten):
        assert EXERCISES[number].examine(answer).status == OPEN


@pytest.mark.parametrize(
    ("number", "place"), [(number, place) for number, answers in WRONG_ANSWERS.items() for place in range(len(answers))]
)
def test_a_wrong_answer_is_told_what_is_wrong(number, place):
    answer, said = WRONG_ANSWERS[number][place]
    verdict = EXERCISES[number].examine(answer)
    assert verdict.status == WRONG
    assert said in verdict.message


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_and_other_right_answers_are_accepted(number):
    assert len(RIGHT_ANSWERS[number]) >= 2
    for place, answer in enumerate((EXERCISES[number].solution, *RIGHT_ANSWERS[number])):
        verdict, usable = EXERCISES[number].judge(answer)
        assert verdict.status == SOLVED, f"right answer {place}: {verdict.message}"
        assert callable(usable)
