"""Grades: what a notebook solves, and that nothing a cell does loses the verdicts before it."""

import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mythos_lite.lessons import grading
from mythos_lite.lessons.catalogue import EXERCISES
from mythos_lite.lessons.grading import Grade, grade

QUICK_CHECK = """\
import json, os
def check(number, status):
    with open(os.environ["MYTHOS_LITE_SCORE_FILE"], "a") as file:
        file.write(json.dumps({"exercise": number, "status": status, "message": "told"}) + "\\n")
check("1.1", "solved")"""
"""It writes what the package's ``check`` writes, and spares a kernel the import of torch."""


def write_notebook(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


@pytest.fixture
def graded(tmp_path):
    def run(*sources, timeout=30.0):
        return grade(write_notebook(tmp_path / "mine.ipynb", QUICK_CHECK, *sources), timeout=timeout)

    return run


OF_LESSON_1 = [number for number in EXERCISES if number.startswith("1.")]


SOLVED_ONE = f"solved 1 of {len(OF_LESSON_1)}"


def statuses(result):
    """Of the first four exercises of lesson 1; the others are open."""
    assert list(result.verdicts) == OF_LESSON_1
    first, others = OF_LESSON_1[:4], OF_LESSON_1[4:]
    assert {result.verdicts[number].status for number in others} == {"open"}
    return [result.verdicts[number].status for number in first]


def test_grade_counts_what_a_notebook_solves(tmp_path):
    path = write_notebook(
        tmp_path / "mine.ipynb",
        "from mythos_lite.lessons import check",
        'check("1.7", lambda distance, window: -(-distance // (window - 1)))',
        "check( '1.1', lambda q, k, v, mask=None, scale=None: q @ k.mT @ v )",
        "1 / 0",
        'check("1.2", ...)',
    )
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-m", "mythos_lite", "grade", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    *others, last = OF_LESSON_1
    found = dict(line.split()[:2] for line in lines[: len(others) + 1])
    assert found == {**dict.fromkeys(others, "open"), "1.1": "wrong", last: "solved"}
    assert lines[-2] == "cell 4 failed: ZeroDivisionError: division by zero"
    assert lines[-1] == f"solved 1 of {len(found)}"
    assert path.read_bytes() == before


def test_a_cell_that_takes_too_long_is_interrupted_and_the_rest_counts(graded):
    result = graded("while True:\n    print('on')", 'check("1.4", "solved")', timeout=1.0)
    assert statuses(result) == ["solved", "open", "open", "solved"]
    assert result.causes == ("cell 2 took longer than 1 s and was interrupted",)


def test_a_cell_that_cannot_be_interrupted_ends_the_run(graded, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS_TO_STOP", 1)
    result = graded(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", "1 / 0", timeout=1.0
    )
    assert result.solved == 1
    assert result.causes == (
        "cell 2 took longer than 1 s and could not be interrupted; the cells after it were not run",
    )


@pytest.mark.parametrize("ending", ["exit()", "os._exit(0)"])
def test_a_cell_that_ends_the_process_keeps_the_verdicts_before_it(graded, ending):
    result = graded(ending, 'check("1.4", "solved")')
    assert statuses(result) == ["solved", "open", "open", "open"]
    assert result.causes == ("the kernel ended in cell 2; the cells after it were not run",)


def test_bad_lines_among_the_scores_and_long_errors_cost_nothing_else(graded):
    result = graded(
        "file = open(os.environ['MYTHOS_LITE_SCORE_FILE'], 'ab')\n"
        "file.write(b'nonsense\\n[]\\n{}\\n\\xff\\n' + 100_000 * b'[' + b'\\n'); file.close()",
        'check("1.2", "unheard of"); check("7.7", "solved")',
        "raise ValueError('one\\ntwo ' * 1000)",
        'check("1.3", "wrong")',
        "",
        "import sys; sys.exit(3)",
    )
    assert statuses(result) == ["solved", "open", "wrong", "open"]
    error, stop, unread = result.causes
    assert error.startswith("cell 4 failed: ValueError: one\ntwo one\ntwo")
    assert stop == "cell 6 failed: SystemExit: 3"
    assert unread == "5 of 9 verdicts could not be read"
    lines = result.report().splitlines()
    assert [line[:6] for line in lines[:4]] == ["1.1  s", "1.2  o", "1.3  w", "1.4  o"]
    assert [line[:6] for line in lines[-4:]] == ["cell 4", "cell 6", "5 of 9", "solved"]
    assert max(map(len, lines)) <= 300


def test_scores_that_cannot_be_read_are_a_cause(graded):
    result = graded("path = os.environ['MYTHOS_LITE_SCORE_FILE']; os.remove(path); os.mkdir(path)")
    assert result.causes == ("the verdicts could not be read: Is a directory",)
    assert statuses(result) == ["open"] * 4


def test_an_interrupt_keeps_what_was_graded(tmp_path):
    path = write_notebook(
        tmp_path / "mine.ipynb", QUICK_CHECK,
        "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(100)", 'check("1.4", "solved")',
    )  # fmt: skip
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job of a shell ignores it
        "from mythos_lite.lessons.grading import grade; print(grade(sys.argv[1]).report())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-2:] == ["interrupted in cell 2; the cells after it were not run", SOLVED_ONE]


def test_a_kernel_that_does_not_start_is_a_cause(graded, tmp_path, monkeypatch):
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit(1)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = graded()
    assert result.solved == 0
    assert result.causes[0].startswith("the kernel did not start: Kernel died")


@pytest.mark.parametrize("name", grading.JUPYTER)
def test_without_jupyter_grade_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"this is not installed: pip install {name}$"):
        grade("mine.ipynb")


@pytest.mark.parametrize("timeout", [0, -1.0, 1e7, float("inf"), None, "60"])
def test_a_time_limit_is_a_number_of_seconds(graded, timeout):
    with pytest.raises(ValueError, match="timeout must be a finite number above 0"):
        graded(timeout=timeout)


@pytest.mark.parametrize(
    "source",
    [
        "check('1.1', f)",
        'check( "1.1" , f)',
        "check(\n    '1.1',\n    f)",
        'check(number="1.1", answer=f)',
        'x=check ("1.1",f)',
    ],
)
def test_a_check_is_found_however_it_is_written(source):
    assert [number for _, number in grading.CHECK.findall(source)] == ["1.1"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "not json",
        json.dumps({"cells": 1, "nbformat": 4, "nbformat_minor": 5}),
        '{"cells": ' + 100_000 * "[",
        "[" * 1000 + "]" * 1000,
    ],
    ids=["empty", "no json", "no cells", "deep", "nested"],
)
def test_grade_refuses_what_is_no_notebook(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not a Jupyter notebook: .") as refused:
        grade(path)
    assert "\n" not in str(refused.value)


def test_grade_refuses_a_notebook_without_exercises(tmp_path):
    for source in ("print(1)", 'recheck("1.1", f)', 'check("9.9", f)'):
        with pytest.raises(ValueError, match="checks no exercise of this series"):
            grade(write_notebook(tmp_path / "x.ipynb", source))


def test_a_report_of_nothing_wrong_has_no_causes():
    assert Grade({}, ()).report() == "solved 0 of 0"
