"""The checks of the exercises are checked: planted wrong answers, the stub, the solution, another right answer."""

import importlib

import pytest
import torch

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
        assert 3 <= sum(number.startswith(f"{lesson}.") for number in EXERCISES) <= 5


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
        verdict = EXERCISES[number].examine(answer)
        assert verdict.status == SOLVED, f"right answer {place}: {verdict.message}"


def test_absorbed_queries_give_the_scores_of_the_explicit_form():
    query, key_up, latent = torch.randn(2, 3, 4, 5), torch.randn(3, 5, 7), torch.randn(2, 1, 4, 7)
    explicit = query @ (latent @ key_up.mT).mT
    torch.testing.assert_close(EXERCISES["1.3"].solution(query, key_up) @ latent.mT, explicit, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("radius", [0.5, 0.625, 0.75, 0.875])  # their powers are exact
def test_an_exact_power_takes_as_many_steps_as_its_exponent(radius):
    assert [EXERCISES["4.2"].solution(radius, 1.0, radius**steps) for steps in range(16)] == list(range(16))
