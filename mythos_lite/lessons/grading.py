"""Run a learner's notebook from the top in a fresh kernel and count the exercises it solves."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from mythos_lite.lessons.catalogue import EXERCISES, SCORE_FILE
from mythos_lite.lessons.exercise import OPEN, SOLVED, Verdict


class Grade(NamedTuple):
    verdicts: dict[str, Verdict]
    """By exercise number, in order; ``"open"`` for those that the notebook no longer checks."""
    errors: tuple[str, ...]
    """Errors of cells, in order."""

    @property
    def solved(self) -> int:
        return sum(verdict.status == SOLVED for verdict in self.verdicts.values())

    def report(self) -> str:
        lines = [
            f"{number}  {v.status:<7} {EXERCISES[number].title}: {v.message}" for number, v in self.verdicts.items()
        ]
        lines += [f"a cell failed: {error}" for error in self.errors]
        return "\n".join([*lines, f"solved {self.solved} of {len(self.verdicts)}"])


def grade(path: str | os.PathLike) -> Grade:
    """Execute the notebook at ``path`` (it is not changed) and collect the last verdict on each exercise.

    Raises:
        ValueError: for a file that is not a notebook, or a notebook without exercises of this series.
    """
    import nbformat  # here, because training and evaluation do without Jupyter
    from nbclient import NotebookClient

    path = Path(path)
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except (
        nbformat.ValidationError,
        nbformat.reader.NotJSONError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path} is not a Jupyter notebook: {str(error).splitlines()[0]}") from error
    sources = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    lessons = {number.partition(".")[0] for number in EXERCISES if f'check("{number}"' in sources}
    if not lessons:
        raise ValueError(f"{path} checks no exercise of this series; give one of its lessons")
    numbers = [number for number in EXERCISES if number.partition(".")[0] in lessons]

    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.jsonl"
        client = NotebookClient(
            notebook, timeout=None, allow_errors=True, kernel_name="python3",
            resources={"metadata": {"path": str(path.resolve().parent)}},
        )  # fmt: skip
        client.execute(env={**os.environ, SCORE_FILE: str(scores), "CI": "1"})
        lines = scores.read_text(encoding="utf-8").splitlines() if scores.exists() else []
    verdicts = {number: Verdict(OPEN, "not checked") for number in numbers}
    for record in map(json.loads, lines):
        if record["exercise"] in verdicts:
            verdicts[record["exercise"]] = Verdict(record["status"], record["message"])
    errors = tuple(
        f"{output.ename}: {output.evalue}"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    )
    return Grade(verdicts, errors)
