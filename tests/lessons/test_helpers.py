"""What the notebooks import: predictions, facts, figures, sliders, verdicts."""

from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mythos_lite.lessons import catalogue, display
from mythos_lite.lessons.exercise import Exercise, as_answer, difference, fitting_hint, is_number
from mythos_lite.lessons.session import facts, predict, start


def test_start_seeds_torch_and_says_so(capsys):
    threads = torch.get_num_threads()
    start(3)
    first = torch.rand(2)
    start(3)
    assert torch.equal(torch.rand(2), first)
    assert torch.get_num_threads() == min(2, threads)
    assert capsys.readouterr().out == "Lesson 3 is ready.\n" * 2
    with pytest.raises(ValueError, match="lesson=7"):
        start(7)


def test_predictions_show_the_gap(capsys):
    predict("share", 0.5).reveal(0.25)
    predict("share", None).reveal(0.25)
    assert capsys.readouterr().out.splitlines() == [
        "share: you say 0.5", "share: you said 0.5, it is 0.25", "share: no guess yet", "share: it is 0.25",
    ]  # fmt: skip
    for guess in ("half", True, [0.5, 1.0], ..., 1j):
        with pytest.raises(ValueError, match="a prediction is a number, or None"):
            predict("share", guess)


@pytest.mark.parametrize("guess", [np.float32(0.5), np.array(0.5), torch.tensor(0.5, requires_grad=True)])
def test_a_prediction_may_be_any_number(guess, capsys):
    predict("share", guess).reveal(np.float32(0.25))
    assert capsys.readouterr().out.splitlines() == ["share: you say 0.5", "share: you said 0.5, it is 0.25"]


def test_facts_print_one_per_line(capsys):
    facts(a=1, b="2 GB")
    assert capsys.readouterr().out == "a = 1\nb = 2 GB\n"


def a_figure(k=1):
    figure, axes = plt.subplots()
    axes.plot([0, k])
    axes.set_title(f"to {k}")
    return figure


def test_show_table_takes_a_table(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    display.show_table("| a |\n| --- |\n| 1 |\n")
    assert shown[0].data.startswith("| a |")
    with pytest.raises(ValueError, match="Markdown table"):
        display.show_table("a, 1")


def test_show_needs_a_title_a_text_and_a_takeaway(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    display.show(a_figure(), alt="a line", takeaway="it rises")
    assert shown[0].alt == "a line"
    assert shown[0].data[:4] == b"\x89PNG"
    assert shown[1].data == "*it rises*"
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="alt is empty"):
        display.show(a_figure(), alt=" ", takeaway="it rises")
    with pytest.raises(ValueError, match="takeaway is empty"):
        display.show(a_figure(), alt="a line", takeaway="")
    with pytest.raises(ValueError, match="no title"):
        display.show(plt.figure(), alt="nothing", takeaway="nothing")
    plt.close("all")


def test_slider_redraws_and_raises_what_draw_raises():
    drawn = []

    def draw(k):
        drawn.append(k)
        if k == 3:
            raise RuntimeError("not three")
        return a_figure(k)

    box = display.slider(draw, k=(1, 4, 2))
    control, image = box.children
    before = image.value
    control.value = 4
    assert drawn == [2, 4]
    assert image.value[:4] == b"\x89PNG"
    assert image.value != before
    with pytest.raises(RuntimeError, match="not three"):
        control.value = 3
    with pytest.raises(ValueError, match="the start must lie in the range"):
        display.slider(draw, k=(1, 4, 5))


@pytest.mark.parametrize(
    ("got", "wanted", "said"),
    [
        (torch.ones(2), torch.ones(2), None),
        ([1, 1], torch.ones(2), "list"),
        (torch.ones(3), torch.ones(2), "(3,), and (2,)"),
        (torch.tensor([1.0, torch.nan]), torch.ones(2), "not finite"),
        (torch.tensor([1.0, 3.0]), torch.ones(2), "off by up to 2"),
        (2, 2.0, None),
        (torch.tensor(2.0), 2, None),
        (3, 2, "is 3 and should be 2"),
        ("2", 2, "a number is asked for"),
        (True, 1, "a number is asked for"),
        (1, True, "True or False"),
        (False, True, "is False and should be True"),
        (True, True, None),
        (3, torch.ones(2), "it is one number, 3, and a tensor of shape (2,)"),
        (torch.ones(2) + 1j, torch.ones(2), "complex"),
        (torch.ones(2, 2), 1, "a tensor of shape (2, 2), and a number"),
        (float("nan"), 2, "is nan and should be 2"),
        (1.0, torch.tensor(1.0), None),
    ],
)
def test_difference_says_how(got, wanted, said):
    found = difference(got, wanted)
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.longdouble(0.5), 0.5),
        (Fraction(1, 4), 0.25),
        (torch.tensor(2.0, requires_grad=True), 2.0),
        (np.array(3), 3),
        (3 + 1j, 3 + 1j),
        ("three", "three"),
        (["three"], ["three"]),
        (None, None),
    ],
)
def test_answers_that_are_numbers_become_pythons(answer, made):
    assert as_answer(answer) == made
    assert type(as_answer(answer)) is type(made)


@pytest.mark.parametrize(
    "answer",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        range(1, 4),
        np.arange(3, 0, -1)[::-1],
        np.array([1, 2, 3], dtype=np.uint16),
        [np.float32(1), torch.tensor(2), 3],
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
    ],
)
def test_answers_of_numbers_in_a_row_become_tensors(answer):
    made = as_answer(answer)
    assert isinstance(made, torch.Tensor)
    assert not made.requires_grad
    assert made.tolist() == [1, 2, 3]


def test_rows_become_a_matrix_and_ragged_ones_stay():
    assert as_answer([torch.ones(2), torch.zeros(2)]).shape == as_answer([[1, 2], [3, 4]]).shape == (2, 2)
    assert as_answer([[1, 2], [3]]) == [[1, 2], [3]]
    assert as_answer([0.1]).item() == 0.1  # in double precision, as it was given


def test_only_a_finite_number_can_be_compared():
    assert all(map(is_number, (1, 0.5, torch.tensor([2.0]))))
    assert not any(map(is_number, (True, float("inf"), torch.ones(2), "1", None, 1j)))


def test_a_hint_fits_all_answers_or_is_not_given():
    suspects = {"doubled": lambda x: 2 * x, "squared": lambda x: x**2}
    cases = [(2,), (3,)]
    assert fitting_hint(suspects, cases, [4, 9]) == "squared"
    assert fitting_hint(suspects, cases, [4, 8]) == ""


def test_an_error_in_an_answer_is_a_verdict():
    exercise = Exercise(
        number="9.1", title="", minutes=1, difficulty=1, find_fault=lambda answer: answer(0) and None, solution=None
    )
    verdict = exercise.examine(lambda x: 1 / x)
    assert verdict.status == "wrong"
    assert "ZeroDivisionError: division by zero" in verdict.message


def test_check_speaks_and_solution_prints_code(capsys):
    catalogue.check("1.1", ...)
    catalogue.check("1.1", catalogue.EXERCISES["1.1"].solution)
    catalogue.check("1.1", lambda *sizes: 0)
    catalogue.solution("1.1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Exercise 1.1: … not done yet"
    assert lines[1] == "Exercise 1.1: ✓ right"
    assert lines[2].startswith("Exercise 1.1: ✗ for n_layers")
    assert lines[3].startswith("def cached_numbers(")
    with pytest.raises(ValueError, match=r"there is no exercise '9\.9'"):
        catalogue.check("9.9", ...)


def test_check_says_in_one_line_that_its_verdict_is_not_kept(monkeypatch, tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none" / "scores.jsonl"):
        monkeypatch.setenv(catalogue.SCORE_FILE, str(path))
        catalogue.check("1.1", ...)
        verdict, said = capsys.readouterr().out.splitlines()
        assert verdict == "Exercise 1.1: … not done yet"
        assert said.startswith(f"This verdict is not kept: {path} cannot be written (")
