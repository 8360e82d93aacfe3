"""What the notebooks import: predictions, facts, figures, sliders, verdicts, grades."""

import json
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from mythos_lite.lessons import catalogue, display
from mythos_lite.lessons.exercise import Exercise, difference
from mythos_lite.lessons.grading import grade
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
    with pytest.raises(ValueError, match="guess='half'"):
        predict("share", "half")


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
    monkeypatch.setattr(display, "display", shown.append)
    display.show_table("| a |\n| --- |\n| 1 |\n")
    assert shown[0].data.startswith("| a |")
    with pytest.raises(ValueError, match="Markdown table"):
        display.show_table("a, 1")


def test_show_needs_a_title_a_text_and_a_takeaway(monkeypatch):
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
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
    ],
)
def test_difference_says_how(got, wanted, said):
    found = difference(got, wanted)
    assert found is None if said is None else said in found


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


def write_notebook(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_grade_counts_what_a_notebook_solves(tmp_path):
    path = write_notebook(
        tmp_path / "mine.ipynb",
        "from mythos_lite.lessons import check",
        'check("1.1", lambda n_layers, n_kv_heads, head_dim: 2 * n_layers * n_kv_heads * head_dim)',
        'check("1.2", lambda kv, n_heads: kv)',
        "1 / 0",
        'check("1.4", ...)',
    )
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-m", "mythos_lite", "grade", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["1.1", "solved"], ["1.2", "wrong"], ["1.3", "open"], ["1.4", "open"],
    ]  # fmt: skip
    assert lines[4] == "a cell failed: ZeroDivisionError: division by zero"
    assert lines[5] == "solved 1 of 4"
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "not json", json.dumps({"cells": 1, "nbformat": 4, "nbformat_minor": 5})])
def test_grade_refuses_what_is_no_notebook(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is not a Jupyter notebook"):
        grade(path)


def test_grade_refuses_a_notebook_without_exercises(tmp_path):
    with pytest.raises(ValueError, match="checks no exercise of this series"):
        grade(write_notebook(tmp_path / "x.ipynb", "print(1)"))
