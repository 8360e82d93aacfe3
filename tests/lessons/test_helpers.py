"""What the notebooks import: predictions, facts, figures, controls, verdicts."""

import math
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mythos_lite.lessons import catalogue, display
from mythos_lite.lessons.exercise import Exercise, as_answer, difference, fitting_hint, gradient_fault, is_number
from mythos_lite.lessons.session import compare, facts, predict, start


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
    start("A")
    assert capsys.readouterr().out == "Lesson A is ready.\n"


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, in order."""
    objects = []
    monkeypatch.setattr("IPython.display.display", objects.append)
    return objects


def test_a_dark_theme_draws_on_a_dark_page():
    with plt.rc_context():
        start(1, theme="dark")
        assert plt.rcParams["figure.facecolor"] == "#111111"
        start(1)
        assert plt.rcParams["figure.facecolor"] == "white"
    with pytest.raises(ValueError, match="theme must be one of 'light', 'dark'"):
        start(1, theme="grey")


def test_a_prediction_is_a_choice_with_a_reason_and_its_answer_is_folded(shown, capsys):
    choices = {"a": "it grows", "b": "it shrinks"}
    predict("And then?", choices, choice="a", because="it must").reveal("b", "since 1 < 2")
    assert capsys.readouterr().out.splitlines() == [
        "And then?", "  a: it grows", "  b: it shrinks", "You say a, because it must", "You say a, because it must",
    ]  # fmt: skip
    assert shown[0].data == (
        "<details open><summary>What the run gave</summary><p><b>b: it shrinks</b> since 1 &lt; 2</p></details>"
    )
    predict("And then?", choices).reveal("b")
    assert shown[1].data.startswith("<details><summary>")
    out = capsys.readouterr().out
    assert "No choice yet." in out
    assert "You have not chosen yet" in out
    for wrong in ("c", 1, [], True):
        assert predict("And then?", choices, choice=wrong).choice is None
        assert "is not possible: give 'a', 'b', or None" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of the choices a, b"):
        predict("And then?", choices).reveal("c")


def test_a_prediction_may_be_a_number(shown, capsys):
    for guess in (np.float32(0.5), np.array(0.5), torch.tensor(0.5, requires_grad=True)):
        predict("share", choice=guess).reveal(np.float32(0.25))
        assert "You say 0.5. Because …?" in capsys.readouterr().out
        assert "<b>0.25</b>" in shown[-1].data
    for guess in ("half", True, [0.5, 1.0], ..., 1j):
        assert predict("share", choice=guess).choice is None
        assert "is not possible: give a number, or None" in capsys.readouterr().out


def test_compare_says_whether_two_tensors_are_the_same(capsys):
    compare("ones", torch.ones(2), torch.ones(2, requires_grad=True))
    compare("others", torch.ones(2), torch.zeros(2))
    assert capsys.readouterr().out.splitlines() == [
        "ones: ✓ the same to 0.0001, shape (2,)", "others: ✗ it is off by up to 1",
    ]  # fmt: skip


def test_facts_are_kept_where_no_reader_sees_them(shown):
    facts(a=1, b="2 GB")
    assert shown[0].data == "<!--\na = 1\nb = 2 GB\n-->"


def a_figure(k=1):
    figure, axes = plt.subplots()
    axes.plot([0, k])
    axes.set_title(f"to {k}")
    return figure


def test_show_table_takes_a_table(shown):
    display.show_table("| a |\n| --- |\n| 1 |\n")
    assert shown[0].data.startswith("| a |")
    with pytest.raises(ValueError, match="Markdown table"):
        display.show_table("a, 1")


def test_show_needs_a_title_a_text_and_a_takeaway(shown):
    display.show(a_figure(), alt="a line", takeaway="it rises")
    assert shown[0].alt == "a line"
    assert shown[0].data[:4] == b"\x89PNG"
    assert shown[1].data == "*it rises*"
    assert not plt.get_fignums()
    display.show(a_figure(), alt="a <line>", takeaway="it rises", folded="the answer")
    assert shown[2].data.startswith(
        '<details><summary>the answer</summary><img alt="a &lt;line&gt;" src="data:image/png'
    )
    with pytest.raises(ValueError, match="alt is empty"):
        display.show(a_figure(), alt=" ", takeaway="it rises")
    with pytest.raises(ValueError, match="takeaway is empty"):
        display.show(a_figure(), alt="a line", takeaway="")
    with pytest.raises(ValueError, match="no title"):
        display.show(plt.figure(), alt="nothing", takeaway="nothing")
    plt.close("all")


def test_controls_redraw_and_raise_what_draw_raises():
    drawn = []

    def draw(k, digits, size, scale):
        drawn.append((k, digits, size))
        if k == 3:
            raise RuntimeError("not three")
        if not digits.isdigit():
            raise ValueError(f"digits={digits!r} are no digits")
        return a_figure(k)

    box = display.explore(draw, k=(1, 4, 2), digits="12", size=[5, 7], scale=(0.0, 1.0, 0.5))
    k, digits, size, scale, fault, image = box.children
    before = image.value
    k.value = 4
    size.value = 7
    assert drawn == [(2, "12", 5), (4, "12", 5), (4, "12", 7)]
    assert image.value[:4] == b"\x89PNG"
    assert image.value != before
    assert scale.step == 0.025
    digits.value = "1x"
    assert fault.value == "digits='1x' are no digits"
    digits.value = "13"
    assert fault.value == ""
    with pytest.raises(RuntimeError, match="not three"):
        k.value = 3
    with pytest.raises(ValueError, match="the start must lie in the range"):
        display.explore(draw, k=(1, 4, 5))


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


def an_exercise(**stages):
    def doubled(x):
        return 2 * x

    return Exercise(number="9.1", title="", minutes=1, difficulty=1, stages=stages, solution=doubled)


def test_an_error_in_an_answer_is_a_verdict():
    verdict = an_exercise(values=lambda answer: answer(0) and None).examine(lambda x: 1 / x)
    assert verdict.status == "wrong"
    assert "ZeroDivisionError: division by zero" in verdict.message
    assert "(at `" in verdict.message

    class Raises:
        def __init__(self, x):
            raise RuntimeError("no")

    verdict = an_exercise(values=lambda answer: answer(0) and None).examine(Raises)
    assert verdict.message.endswith('(at `raise RuntimeError("no")` in __init__)')
    assert "(at" not in an_exercise(values=lambda answer: answer("x") and None).examine(math.sqrt).message


def test_stages_are_checked_in_order():
    x = torch.ones(2)
    exercise = an_exercise(
        shape=lambda answer: None if answer(x).shape == x.shape else "it has another shape",
        values=lambda answer: difference(answer(x), 2 * x),
        gradient=lambda answer: gradient_fault(answer, lambda x: 2 * x, x),
    )
    assert exercise.examine(lambda x: 2 * x) == ("solved", "right (shape, values, gradient).")
    assert exercise.examine(lambda x: x[:1]).message == "shape ✗: it has another shape"
    assert exercise.examine(lambda x: x).message == "shape ✓, values ✗: it is off by up to 1"
    for loses in (lambda x: 2 * x.detach(), lambda x: 2 * x.detach().numpy()):
        assert exercise.examine(loses).message.startswith("shape ✓, values ✓, gradient ✗: ")
    halved = exercise.examine(lambda x: x + x.detach()).message
    assert "gradient ✗: the gradient by x: it is off by up to" in halved


def test_gradients_are_compared_relative_to_their_size():
    x = torch.full((3,), 1e4)
    assert gradient_fault(lambda x: x * x, lambda x: x**2, x) is None
    assert gradient_fault(lambda x: x * x * (1 + 1e-6), lambda x: x**2, x) is None
    assert "the gradient by x: it is off" in gradient_fault(lambda x: x * x * 1.01, lambda x: x**2, x)
    assert gradient_fault(lambda x, y: x * y.detach(), lambda x, y: x * y, x, x) == "no gradient reaches y"


def test_an_answer_in_numpy_goes_on_as_tensors():
    x = torch.ones(2)
    exercise = an_exercise(values=lambda answer: difference(answer(x), 2 * x))
    verdict, usable = exercise.judge(lambda x: 2 * x.numpy())
    assert verdict.status == "solved"
    assert torch.equal(usable(x), 2 * x)

    def own(x):
        return 2 * x

    assert exercise.judge(own)[1] is own

    def two(x):
        return x, 2 * x

    assert an_exercise(values=lambda answer: difference(answer(x)[1], 2 * x)).judge(two)[1] is two


def test_what_torch_has_not_implemented_is_a_mistake_and_not_an_open_answer():
    exercise = an_exercise(values=lambda answer: difference(answer(1), 2))
    verdict = exercise.examine(lambda x: torch.nn.ModuleList()(x))
    assert verdict.status == "wrong"
    assert "ModuleList" in verdict.message
    half = an_exercise(shape=lambda answer: None, values=lambda answer: difference(answer(1), 2))
    assert half.examine(lambda x: ...) == ("open", "shape ✓, then not done yet.")


def test_a_module_that_answers_with_dots_is_open():
    class Unwritten(torch.nn.Module):
        def forward(self, x):
            return ...

    exercise = an_exercise(values=lambda answer: difference(answer()(1), 2))
    assert exercise.examine(Unwritten).status == "open"


def test_check_speaks_and_the_solution_stands_in_until_an_answer_is_right(capsys):
    number, exercise = next(iter(catalogue.EXERCISES.items()))
    right = exercise.solution
    assert catalogue.check(number, ...) is right
    assert catalogue.check(number, lambda *arguments: "wrong") is right
    assert catalogue.check(number, right) is right
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Exercise {number}: … not done yet."
    assert lines[1] == lines[3] == "The solution of this series stands in for yours below."
    assert lines[2].startswith(f"Exercise {number}: ✗ ")
    assert lines[4].startswith(f"Exercise {number}: ✓ right")
    with pytest.raises(ValueError, match=r"there is no exercise '9\.9'"):
        catalogue.check("9.9", ...)
    catalogue.built(1)
    assert f"{number}  yours" in capsys.readouterr().out
    catalogue.check(number, ...)
    catalogue.built(1)
    out = capsys.readouterr().out
    assert f"{number}  the solution" in out
    assert "0 of " in out


def test_check_says_in_one_line_that_its_verdict_is_not_kept(monkeypatch, tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none" / "scores.jsonl"):
        monkeypatch.setenv(catalogue.SCORE_FILE, str(path))
        catalogue.check("1.1", ...)
        verdict, said, _ = capsys.readouterr().out.splitlines()
        assert verdict == "Exercise 1.1: … not done yet."
        assert said.startswith(f"This verdict is not kept: {path} cannot be written (")
