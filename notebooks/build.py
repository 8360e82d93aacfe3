"""Write what all lessons share, and run them.

    python notebooks/build.py                       # badges, setup cells, navigation, colab_links.md
    python notebooks/build.py --repository me/fork  # the same, pointing at another GitHub repository
    python notebooks/build.py --run 01 04           # also execute these lessons ("all" for all of them)

Everything comes from ``lessons.json``. The first markdown cell, the first code cell and the last cell of a
notebook are written by this script; the rest is the author's. Without ``--repository`` the GitHub repository is
that of the git remote "origin", or, where there is none, the one in ``lessons.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
MANIFEST = FOLDER / "lessons.json"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BOUND = re.compile(r"([^\s(|]+)<!-- (\w+) -->")
"""A number in prose, with what may stand around it, and the name that its cell prints it under."""
AROUND = "*~≈+±"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}

SETUP = """\
# Setup. It works in Colab, in a clone and where the package is installed, and leaves torch as it is.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mythos_lite") is None:
    if os.path.isdir("../mythos_lite"):
        sys.path.insert(0, os.path.abspath(".."))
    else:
        source = os.environ.get("MYTHOS_LITE_SOURCE", "git+https://github.com/{repository}")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", source], check=True)
        importlib.invalidate_caches()

from mythos_lite.lessons import check, facts, predict, show, slider, solution, start

device = start({number})"""


def read_manifest() -> dict:
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def remote_repository() -> str | None:
    """owner/name of the git remote on GitHub, if there is one."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", done.stdout.strip())
    return found.group(1) if found else None


def notebook_path(lesson: dict) -> Path:
    return FOLDER / f"{lesson['file']}.ipynb"


def colab_url(manifest: dict, lesson: dict) -> str:
    return (
        f"https://colab.research.google.com/github/{manifest['repository']}/blob/main/notebooks/{lesson['file']}.ipynb"
    )


def navigation(manifest: dict, index: int) -> str:
    lessons, links = manifest["lessons"], []
    if index:
        links.append(f"← [{lessons[index - 1]['title']}]({lessons[index - 1]['file']}.ipynb)")
    links.append("[glossary](glossary.md)")
    if index + 1 < len(lessons):
        links.append(f"[{lessons[index + 1]['title']}]({lessons[index + 1]['file']}.ipynb) →")
    return " · ".join(links)


def header(manifest: dict, index: int) -> str:
    lesson = manifest["lessons"][index]
    learn = "\n".join(f"- {item}" for item in lesson["learn"])
    minutes = lesson["minutes"]
    return (
        f"# {index + 1}. {lesson['title']}\n\n"
        f"[![Open in Colab]({BADGE})]({colab_url(manifest, lesson)})\n\n"
        f"**What you will learn**\n\n{learn}\n\n"
        f"**Prerequisites:** {lesson['prerequisites']}\n\n"
        f"**Time:** its cells run in about {minutes} minute{'s' if minutes > 1 else ''} on a CPU.\n\n"
        f"{navigation(manifest, index)}"
    )


def shared_cells(manifest: dict, index: int) -> dict[str, str]:
    """Source of the cells that this script writes, by cell id."""
    return {
        "header": header(manifest, index),
        "setup": SETUP.format(repository=manifest["repository"], number=index + 1),
        "footer": navigation(manifest, index),
    }


def colab_links(manifest: dict) -> str:
    rows = [
        f"| {index} | [{lesson['title']}](notebooks/{lesson['file']}.ipynb) | {lesson['summary']} | "
        f"{lesson['minutes']} | [open in Colab]({colab_url(manifest, lesson)}) |"
        for index, lesson in enumerate(manifest["lessons"], start=1)
    ]
    return "\n".join(
        [
            "# The lessons in Colab", "",
            "Written by `notebooks/build.py` from `notebooks/lessons.json`; minutes are of a CPU.", "",
            "| | lesson | | minutes | |", "| --- | --- | --- | --- | --- |", *rows, "",
        ]
    )  # fmt: skip


def lesson_table(manifest: dict) -> str:
    """The lessons as README lists them."""
    rows = [
        f"| {index} | [{one['title']}](notebooks/{one['file']}.ipynb) | {one['summary']} | {one['minutes']} |"
        for index, one in enumerate(manifest["lessons"], start=1)
    ]
    return "\n".join(["| | lesson | | minutes |", "| --- | --- | --- | --- |", *rows, ""])


def write_shared(manifest: dict) -> None:
    """Put the shared cells into the notebooks, the table into README, and write ``colab_links.md``."""
    for index, lesson in enumerate(manifest["lessons"]):
        path = notebook_path(lesson)
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if (source := shared_cells(manifest, index).get(cell.id)) is not None:
                cell.source = source
        write(path, notebook)
    (ROOT / "colab_links.md").write_text(colab_links(manifest), encoding="utf-8")
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- lessons: begin -->\n")
    _, end, after = rest.partition("<!-- lessons: end -->")
    readme.write_text(before + begin + lesson_table(manifest) + end + after, encoding="utf-8")


def write(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Write with the metadata that all lessons share and nothing that changes from run to run."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat_minor = 5
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def put_facts_into_prose(notebook: nbformat.NotebookNode) -> None:
    """Write what ``facts(name=value)`` printed before each ``<!-- name -->``."""
    printed = "\n".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    facts = dict(re.findall(r"^(\w+) = (.+)$", printed, re.M))

    def bind(found: re.Match) -> str:
        number = found[1].strip(AROUND)
        return found[0].replace(number, facts.get(found[2], number), 1)

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = BOUND.sub(bind, cell.source)


def run(path: Path) -> float:
    """Execute a lesson in place, prose included; return its seconds. A failing cell leaves the file as it was."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", store_widget_state=False, resources={"metadata": {"path": FOLDER}}
    )
    client.execute(env={**os.environ, "CI": "1"})
    put_facts_into_prose(notebook)
    write(path, notebook)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", metavar="OWNER/NAME", help="GitHub repository that badges and links point at")
    parser.add_argument("--run", nargs="+", default=[], metavar="NUMBER", help='lessons to execute, or "all"')
    args = parser.parse_args()
    manifest = read_manifest()
    repository = args.repository or remote_repository() or manifest["repository"]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        sys.exit(f"error: repository={repository!r} is not possible: it must be OWNER/NAME")
    if repository != manifest["repository"]:
        manifest["repository"] = repository
        MANIFEST.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_shared(manifest)
    numbers = [lesson["file"][:2] for lesson in manifest["lessons"]]
    if unknown := set(args.run) - {*numbers, "all"}:
        sys.exit(f"error: there is no lesson {sorted(unknown)[0]!r}; there are {', '.join(numbers)}")
    for number, lesson in zip(numbers, manifest["lessons"], strict=True):
        if number in args.run or "all" in args.run:
            print(f"{lesson['file']}: {run(notebook_path(lesson)):.0f} s", flush=True)


if __name__ == "__main__":
    main()
