"""Run a learner's notebook from the top in a fresh kernel and count the exercises it solves."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mythos_lite.checks import check_number
from mythos_lite.lessons.catalogue import EXERCISES, SCORE_FILE
from mythos_lite.lessons.exercise import OPEN, SOLVED, WRONG, Verdict

if TYPE_CHECKING:
    from nbformat import NotebookNode

JUPYTER = ("nbformat", "nbclient", "ipykernel", "IPython")
"""What grading needs beside the package; the requirements of the lessons bring it, the package alone does not."""
CHECK = re.compile(r"""\bcheck\s*\(\s*(?:number\s*=\s*)?(['"]+)(\d+\.\d+)\1""")
TOO_LONG = "a time-out"
"""Name of the error that stands for one, which no exception can have."""
SECONDS_TO_STOP = 10
"""A cell that has not stopped so long after its interrupt is taken for one that cannot be interrupted."""

_log = logging.getLogger(__name__)  # nbclient logs time-outs and dead kernels, which the report says once
_log.addHandler(logging.NullHandler())
_log.propagate = False


class Grade(NamedTuple):
    verdicts: dict[str, Verdict]
    """By exercise number, in order; ``"open"`` for those that the notebook no longer checks."""
    causes: tuple[str, ...]
    """What went wrong on the way, in order: cells that failed or took too long, a kernel that ended, an interrupt."""

    @property
    def solved(self) -> int:
        return sum(verdict.status == SOLVED for verdict in self.verdicts.values())

    def report(self) -> str:
        """A line for each exercise and each cause, and the count."""
        lines = [
            f"{number}  {v.status:<7} {EXERCISES[number].title}: {_one_line(v.message)}"
            for number, v in self.verdicts.items()
        ]
        return "\n".join([*lines, *map(_one_line, self.causes), f"solved {self.solved} of {len(self.verdicts)}"])


def grade(path: str | os.PathLike, *, timeout: float = 600.0) -> Grade:
    """Execute the notebook at ``path`` (it is not changed) and collect the last verdict on each exercise.

    It runs the notebook's code as you, with all that you may do: grade what you would run yourself. A cell that takes
    longer than ``timeout`` seconds is interrupted, and the cells after it still run. Where the kernel ends, or you
    interrupt, the verdicts up to there count; ``causes`` says so.

    Raises:
        ValueError: for a file that is not a notebook, a notebook without exercises of this series, a ``timeout`` that
            is no number above 0 and at most a million, and where Jupyter is not installed.
    """
    timeout = check_number("timeout", timeout, 0.0, 1e6, open_low=True)  # Jupyter's sockets wait no longer
    if missing := [name for name in JUPYTER if importlib.util.find_spec(name) is None]:
        raise ValueError(f"grading needs Jupyter, and this is not installed: pip install {' '.join(missing)}")
    path = Path(path)
    notebook = _read_notebook(path)
    lessons = {
        number.partition(".")[0]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for _, number in CHECK.findall(cell.source)
        if number in EXERCISES
    }
    if not lessons:
        raise ValueError(f"{path} checks no exercise of this series; give one of its lessons")
    numbers = [number for number in EXERCISES if number.partition(".")[0] in lessons]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        scores = Path(folder) / "scores.jsonl"
        causes = _run(notebook, path.resolve().parent, scores, timeout)
        verdicts, unread = _read_scores(scores, numbers)
    return Grade(verdicts, (*causes, *unread))


def _one_line(text: str) -> str:
    return textwrap.shorten(text, 300, placeholder=" …")


def _read_notebook(path: Path) -> NotebookNode:
    import nbformat  # here, because training and evaluation do without Jupyter

    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except RecursionError as error:
        raise ValueError(f"{path} is not a Jupyter notebook: it is nested too deeply") from error
    except (nbformat.ValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a Jupyter notebook: {str(error).partition(chr(10))[0]}") from error
    return notebook


def _run(notebook: NotebookNode, folder: Path, scores: Path, timeout: float) -> list[str]:
    """Execute the cells one by one, as far as it goes; return what went wrong, a line for each."""
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_core.utils import ensure_event_loop
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    causes, replies, number = [], [], 0
    client = NotebookClient(
        notebook, log=_log, kernel_name="python3", allow_errors=True, record_timing=False,
        timeout_func=lambda cell: timeout, interrupt_on_timeout=True, error_on_timeout={"ename": TOO_LONG},
        iopub_timeout=SECONDS_TO_STOP, raise_on_iopub_timeout=True, shutdown_kernel="immediate",
        on_cell_executed=lambda execute_reply, **_: replies.append(execute_reply["content"]),
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.output = lambda *_: None  # what cells print is not kept: one that never ends would fill the memory
    too_long, the_rest = f"took longer than {timeout:g} s", "the cells after it were not run"
    try:
        with client.setup_kernel(env={**os.environ, SCORE_FILE: str(scores), "CI": "1"}):
            for index, cell in enumerate(notebook.cells):
                number += cell.cell_type == "code" and bool(cell.source.strip())
                client.execute_cell(cell, index)
                reply = replies.pop() if replies else {}  # there is none for text and empty cells
                if reply.get("status") == "error" and reply["ename"] == TOO_LONG:
                    causes.append(f"cell {number} {too_long} and was interrupted")
                elif reply.get("status") == "error":
                    causes.append(f"cell {number} failed: {reply['ename']}: {reply['evalue']}")
                if any(payload["source"] == "ask_exit" for payload in reply.get("payload", [])):
                    raise DeadKernelError
    except DeadKernelError:
        causes.append(f"the kernel ended in cell {number}; {the_rest}")
    except CellTimeoutError:
        causes.append(f"cell {number} {too_long} and could not be interrupted; {the_rest}")
    except KeyboardInterrupt:
        if not (loop := ensure_event_loop()).is_running():
            loop.set_exception_handler(lambda *_: None)  # the task that waits for the cell would end with a traceback
        causes.append(f"interrupted in cell {number}; {the_rest}" if number else "interrupted before the first cell")
    except (NoSuchKernel, RuntimeError) as error:
        causes.append(f"the kernel did not start: {error}")
    return causes


def _read_scores(path: Path, numbers: list[str]) -> tuple[dict[str, Verdict], list[str]]:
    """The last verdict on each exercise, and a line on what could not be read."""
    verdicts, unread = {number: Verdict(OPEN, "not checked") for number in numbers}, 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        return verdicts, [f"the verdicts could not be read: {error.strerror}"]
    for line in lines:
        try:
            record = json.loads(line)
            number, verdict = str(record["exercise"]), Verdict(str(record["status"]), str(record["message"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            unread += 1
            continue
        if number in verdicts and verdict.status in (OPEN, WRONG, SOLVED):
            verdicts[number] = verdict
    return verdicts, [f"{unread} of {len(lines)} verdicts could not be read"] if unread else []
