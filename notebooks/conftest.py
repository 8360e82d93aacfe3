"""A lesson may take half as long again as it says, not more."""

import json
from collections import defaultdict
from pathlib import Path

SLACK = 1.5
MANIFEST = json.loads((Path(__file__).parent / "lessons.json").read_text(encoding="utf-8"))
MINUTES = {lesson["file"]: lesson["minutes"] for lesson in [*MANIFEST["lessons"], MANIFEST["appendix"]]}
_seconds: dict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report):
    _seconds[Path(report.nodeid.partition("::")[0]).stem] += report.duration


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):  # a worker sees only its share; the controller sees all
        return
    for lesson, seconds in sorted(_seconds.items()):
        if seconds > SLACK * 60 * MINUTES.get(lesson, float("inf")):
            session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    for lesson, seconds in sorted(_seconds.items()):
        stated = MINUTES.get(lesson)
        if stated is not None:
            late = "   TOO LONG" if seconds > SLACK * 60 * stated else ""
            terminalreporter.write_line(f"{lesson:<26} {seconds / 60:4.1f} min, says {stated}{late}")
