"""Write what all lessons share, run them, and write each as one file that needs nothing beside it.

    python notebooks/build.py                       # badges, setup cells, navigation, colab_links.md
    python notebooks/build.py --repository me/fork  # the same, pointing at another GitHub repository
    python notebooks/build.py --run 01 04           # also execute these lessons ("all" for all of them)
    python notebooks/build.py --standalone DIR      # only this: every lesson with the package in it, into DIR

Everything comes from ``lessons.json``. The first markdown cell, the first code cell, the last cell and the solutions
(cells named ``solution-1-2``, from the package's exercises) of a notebook are written by this script; the rest is the
author's. It also folds every code cell that begins with ``# @title``. Without ``--repository`` the GitHub repository is
that of the git remote "origin", or, where there is none, the one in ``lessons.json``. Where that names none
either, no lesson installs anything: a name that nobody has taken can be taken by anybody.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import inspect
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
PACKAGE = ROOT / "mythos_lite"
MANIFEST = FOLDER / "lessons.json"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BOUND = re.compile(r"([^\s(|]+)<!-- (\w+) -->")
"""A number in prose, with what may stand around it, and the name that its cell prints it under."""
AROUND = "*~≈+±"
NEIGHBOUR = re.compile(r"\[([^\]]+)\]\([^):]*\.(?:ipynb|md)(?:#[^)]*)?\)")
"""A link to a file beside a notebook."""
UPLOAD = (
    "`python notebooks/build.py --standalone DIR` writes every lesson as one file that carries the package; "
    "*File → Upload notebook* opens it."
)
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


SETUP = '''\
# @title Setup: finds the package of these lessons ({ways}) and leaves torch as it is.
import importlib.util
import os
{subprocess}import sys
{source}

def find(*folders):
    """The first of these folders that holds the package, not merely something of its name."""
    held = (f for f in folders if os.path.isfile(os.path.join(f, "mythos_lite", "lessons", "session.py")))
    return next(map(os.path.abspath, held), None)

{install}
folder = {places}
if folder is None:
    raise SystemExit(
{failure}
    )
if "mythos_lite.lessons.session" not in sys.modules:  # the first time: nothing else of that name is to be taken
    for name in [name for name in sys.modules if name.partition(".")[0] == "mythos_lite"]:
        del sys.modules[name]
    spec = importlib.util.find_spec("mythos_lite")
    if spec is None or spec.origin != os.path.join(folder, "mythos_lite", "__init__.py"):
        sys.path.insert(0, folder)

from mythos_lite.lessons import built, check, compare, explore, facts, predict, show, show_table, start

device = start({lesson})  # or start({lesson}, theme="dark"), for figures on a dark page'''
INSTALL = '''
def install():
    """Have pip install the package alone; return where Python looks for packages."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", SOURCE], check=False)
    importlib.invalidate_caches()
    return sys.path

'''
CARRIED = '''\
# @title The package of these lessons, carried by this file
import atexit
import base64
import hashlib
import io
import shutil
import tarfile
import tempfile
from pathlib import Path

PACKED = "{packed}"
SHA256 = "{sha256}"


def unpack():
    """Put the carried package into a new folder, which goes with the kernel, and return the folder."""
    if hashlib.sha256(PACKED.encode()).hexdigest() != SHA256:
        raise SystemExit("This file is damaged, and nothing that it carries is used: get it again.")
    folder = Path(tempfile.mkdtemp(prefix="mythos_lite_")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(base64.b85decode(PACKED)), mode="r:xz") as archive:
        for member in archive:
            path = (folder / member.name).resolve()
            if not (member.isfile() and path.is_relative_to(folder)):
                raise SystemExit(f"This file carries {{member.name!r}}, which is no file of a package: it is not used.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    return folder'''
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
"""What hides a cell's code in Colab and in JupyterLab. VS Code keeps no such mark; the package is one line there."""
TITLE = "# @title "
"""What the code of a folded cell begins with; Colab shows the rest of the line in place of the code."""
TAGS = {"nbval-ignore-output"}
"""Tags that a cell may have: its output differs from run to run, and is not compared."""
SMALLEST = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 2, "pb": 2}
"""For weights of four bytes, of which the last holds the exponent and is much the same from weight to weight."""


def read_manifest() -> dict:
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def git(*arguments: str) -> str | None:
    """What git prints about this checkout; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def remote_repository() -> str | None:
    """owner/name of the git remote on GitHub, if there is one."""
    found = re.search(r"[/@]github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", git("remote", "get-url", "origin") or "")
    return found.group(1) if found else None


def package_commit() -> str | None:
    """The last commit that changed the package.

    None while files differ from it, and in a shallow clone, whose history does not tell.
    """
    parts = ("--", "mythos_lite", "pyproject.toml")
    if git("rev-parse", "--is-shallow-repository") != "false" or git("status", "--porcelain", *parts) != "":
        return None
    return git("log", "-1", "--format=%H", *parts) or None


def every(manifest: dict) -> list[dict]:
    """The lessons, and the appendix behind them."""
    return [*manifest["lessons"], manifest["appendix"]]


def label(lesson: dict) -> str:
    """What a lesson is called: "1" to "6", or "A"."""
    return lesson["file"].partition("_")[0].lstrip("0")


def notebook_path(lesson: dict) -> Path:
    return FOLDER / f"{lesson['file']}.ipynb"


def colab_url(manifest: dict, lesson: dict) -> str:
    return (
        f"https://colab.research.google.com/github/{manifest['repository']}/blob/main/notebooks/{lesson['file']}.ipynb"
    )


def navigation(manifest: dict, index: int) -> str:
    lessons, links = every(manifest), []
    if index:
        links.append(f"← [{lessons[index - 1]['title']}]({lessons[index - 1]['file']}.ipynb)")
    links.append("[glossary](glossary.md)")
    if index + 1 < len(lessons):
        links.append(f"[{lessons[index + 1]['title']}]({lessons[index + 1]['file']}.ipynb) →")
    return " · ".join(links)


def in_colab(manifest: dict, lesson: dict, carried: bool) -> str:
    """How to open the lesson in Colab, as a paragraph; none where it is a file that carries the package."""
    if manifest["repository"]:
        return f"[![Open in Colab]({BADGE})]({colab_url(manifest, lesson)})\n\n"
    return "" if carried else f"**In Colab:** {UPLOAD}\n\n"


def header(manifest: dict, index: int, carried: bool) -> str:
    lesson = every(manifest)[index]
    learn = "\n".join(f"- {item}" for item in lesson["learn"])
    minutes = lesson["minutes"]
    effort = "read and to build, and half an hour more for the hardest exercise"
    effort = "read" if lesson is manifest["appendix"] else effort
    return (
        f"# {label(lesson)}. {lesson['title']}\n\n"
        f"**What you will learn**\n\n{learn}\n\n"
        f"**Prerequisites:** {lesson['prerequisites']}\n\n"
        f"**Time:** about {lesson['reading']} minutes to {effort}; its cells run in about {minutes} "
        f"minute{'s' if minutes > 1 else ''} on a CPU.\n\n"
        f"{in_colab(manifest, lesson, carried)}"
        f"{navigation(manifest, index)}"
    )


def setup_cell(manifest: dict, index: int, carried: bool) -> str:
    """The cell that finds the package: installed, in a clone, carried, from the repository; the last two if any."""
    repository, at = manifest["repository"], f"@{manifest['commit']}" if manifest["commit"] else ""
    ways, places = ["installed", "in a clone"], ["find(*sys.path)", 'find("..")']
    failed = ["neither installed nor in the folder above"]
    advice = "open the lesson in a clone, or take its standalone file, which carries the package"
    if carried:
        ways.append("carried by this file")
        places.append('find(unpack() if "unpack" in globals() else "")')
        failed.append("the folded cell that carries it has not been run")
        advice = "run that cell, then this one"
    if repository:
        ways.append("from GitHub")
        places.append("find(*install())")
        failed.append(f"pip could not install it from github.com/{repository}")
    sentence = f"The package mythos_lite is {', and '.join(failed)}: {advice}."
    return SETUP.format(
        lesson=index + 1 if index < len(manifest["lessons"]) else f'"{label(manifest["appendix"])}"',
        ways=", ".join(ways),
        places=" or ".join(places),
        failure="\n".join(f"        {json.dumps(line)}" for line in wrapped(sentence)),
        subprocess="import subprocess\n" if repository else "",
        source=f'\nSOURCE = "git+https://github.com/{repository}{at}"\n' if repository else "",
        install=INSTALL if repository else "",
    )


def wrapped(sentence: str) -> list[str]:
    """Lines that fit into a cell and give the sentence when put together."""
    *lines, last = textwrap.wrap(sentence, 108)
    return [*(f"{line} " for line in lines), last]


def shared_cells(manifest: dict, index: int, carried: bool = False) -> dict[str, str]:
    """Source of the cells that this script writes, by cell id; ``carried`` if the file is to carry the package."""
    return {
        "header": header(manifest, index, carried),
        "setup": setup_cell(manifest, index, carried),
        "footer": navigation(manifest, index),
    }


def solution_cells(index: int) -> dict[str, str]:
    """Source of the cells that hold a lesson's solutions, by cell id."""
    return {
        f"solution-{number.replace('.', '-')}": "<details><summary><b>Solution</b></summary>\n\n"
        f"```python\n{inspect.getsource(exercise.solution).rstrip()}\n```\n\n</details>"
        for number, exercise in exercises_of(index).items()
    }


def exercises_of(index: int) -> dict:
    """The exercises of a lesson, by number."""
    from mythos_lite.lessons.catalogue import EXERCISES  # here: a standalone file is written without the package

    return {number: exercise for number, exercise in EXERCISES.items() if number.startswith(f"{index + 1}.")}


def lines_of(solution: object) -> int:
    """Lines of a function or class without its docstrings, comments and blank lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(solution)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return len(ast.unparse(tree).splitlines())


def reads(source: str, name: str) -> bool:
    """Whether a cell's code reads this name."""
    nodes = ast.walk(ast.parse(source))
    return any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in nodes)


def used_again(notebook: nbformat.NotebookNode, number: str, name: str) -> list[str]:
    """Headings under which cells after an exercise's own read what was built in it, in order."""
    found, heading, after = [], "", False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^##+ (.+)$", cell.source, re.M) or [heading])[-1]
        elif after and reads(cell.source, name):
            found.append(heading.replace("Exercise ", ""))
        after = after or (cell.cell_type == "code" and f'check("{number}"' in cell.source)
    return list(dict.fromkeys(found))


def exercise_table(manifest: dict) -> str:
    """``exercises.md``: what is built in which exercise, how long it takes, and where it is used again."""
    lines = [
        "# What you build", "",
        "Minutes are an estimate; lines are those of the solution. Written by `notebooks/build.py`.",
    ]  # fmt: skip
    for index, lesson in enumerate(manifest["lessons"]):
        notebook = nbformat.read(notebook_path(lesson), as_version=4)
        lines += ["", f"## {index + 1}. [{lesson['title']}]({lesson['file']}.ipynb)", ""]
        lines += [
            "| exercise | builds | title | minutes | lines | used again in |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {number} | `{exercise.name}` | {exercise.title} | {exercise.minutes} | {lines_of(exercise.solution)} | "
            f"{'; '.join(used_again(notebook, number, exercise.name))} |"
            for number, exercise in exercises_of(index).items()
        ]
    return "\n".join([*lines, ""])


def colab_links(manifest: dict) -> str:
    table, how = lesson_table(manifest), [UPLOAD, ""]
    if manifest["repository"]:
        links = [f"[open in Colab]({colab_url(manifest, lesson)})" for lesson in every(manifest)]
        rows = zip(table.splitlines(), ["link", "---", *links], strict=True)
        table, how = "".join(f"{row} {link} |\n" for row, link in rows), []
    said = "Written by `notebooks/build.py` from `notebooks/lessons.json`; the cells' minutes are of a CPU."
    return "\n".join(["# The lessons in Colab", "", said, "", *how, table])


def lesson_table(manifest: dict) -> str:
    """The lessons as README lists them."""
    rows = [
        f"| {label(one)} | [{one['title']}](notebooks/{one['file']}.ipynb) | {one['summary']} | {one['reading']} | "
        f"{one['minutes']} |"
        for one in every(manifest)
    ]
    return "\n".join(
        [
            "| number | lesson | what it is about | your minutes | its cells' |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def write_shared(manifest: dict) -> None:
    """Put the shared cells into the notebooks, the table into README; write ``colab_links.md`` and ``exercises.md``."""
    for index, lesson in enumerate(every(manifest)):
        path = notebook_path(lesson)
        notebook = nbformat.read(path, as_version=4)
        shared = shared_cells(manifest, index) | solution_cells(index)
        for cell in notebook.cells:
            cell.source = shared.get(cell.id, cell.source)
        write(path, notebook)
    (FOLDER / "exercises.md").write_text(exercise_table(manifest), encoding="utf-8")
    (ROOT / "colab_links.md").write_text(colab_links(manifest), encoding="utf-8")
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- lessons: begin -->\n")
    _, end, after = rest.partition("<!-- lessons: end -->")
    readme.write_text(before + begin + lesson_table(manifest) + end + after, encoding="utf-8")


def metadata_of(cell: nbformat.NotebookNode) -> dict:
    """What a cell's metadata is to be: folded if it has a title, and its tags."""
    tags = sorted(TAGS & set(cell.metadata.get("tags", [])))
    folded = cell.cell_type == "code" and cell.source.startswith(TITLE)
    return (FOLDED if folded else {}) | ({"tags": tags} if tags else {})


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Leave the metadata that all lessons share and nothing that changes from run to run."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat_minor = 5
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(metadata_of(cell))


def name_controls(notebook: nbformat.NotebookNode) -> None:
    """Say in words what stands where controls do not work, in place of their Python object."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                output.data["text/plain"] = "Run this cell for the controls."


def write(path: Path, notebook: nbformat.NotebookNode) -> None:
    normalise(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def carried_files(notebook: nbformat.NotebookNode, lesson: str) -> list[Path]:
    """The licence and the package, without other lessons' diagrams; of the shipped checkpoints only those that the
    lesson or its exercises name, without their cards, and the study's summary only where it is read."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    sources += [path.read_text(encoding="utf-8") for path in PACKAGE.glob(f"lessons/lesson0{lesson}.py")]
    unused = {
        folder
        for folder in (PACKAGE / "checkpoints").iterdir()
        if not any(f'"{folder.name}"' in source for source in sources)
    }
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and not unused & set(path.parents)}
    caches = {path for path in files if re.search(r"/(__pycache__|\.)", f"/{path.relative_to(PACKAGE).as_posix()}")}
    cards = {path for path in files if path.name == "MODEL_CARD.md"}  # for people who look for models, not for lessons
    drawn = {path for path in files if path.match("lessons/diagrams0*.py") and path.name != f"diagrams0{lesson}.py"}
    unread = set() if any("load_summary" in source for source in sources) else {PACKAGE / "lessons" / "summary.json"}
    if not any("mythos_lite.interop" in source for source in sources):
        unread |= set(PACKAGE.glob("interop/*"))
    return sorted({ROOT / "LICENSE", *files - caches - cards - drawn - unread})


def pack(files: list[Path]) -> str:
    """The files as text, as small as they get, and the same text whenever the files are the same."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in files:
            inside = path.relative_to(ROOT)
            entry = tarfile.TarInfo((inside if path.is_relative_to(PACKAGE) else "mythos_lite" / inside).as_posix())
            content = path.read_bytes()
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return base64.b85encode(lzma.compress(archive.getvalue(), filters=[SMALLEST])).decode()


def standalone(manifest: dict, index: int) -> nbformat.NotebookNode:
    """A lesson without outputs that carries the package and the glossary, and links to no file beside it."""
    lesson = every(manifest)[index]
    notebook = nbformat.read(notebook_path(lesson), as_version=4)
    packed = pack(carried_files(notebook, label(lesson)))
    source = CARRIED.format(packed=packed, sha256=hashlib.sha256(packed.encode()).hexdigest())
    glossary = (FOLDER / "glossary.md").read_text(encoding="utf-8").rstrip()
    notebook.cells.append(nbformat.v4.new_markdown_cell(glossary, id="glossary"))
    shared = shared_cells(manifest, index, carried=True)
    for cell in notebook.cells:
        cell.source = shared.get(cell.id, cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = NEIGHBOUR.sub(r"\1", cell.source)
    normalise(notebook)
    carried = nbformat.v4.new_code_cell(source, id="carried", metadata=FOLDED)
    notebook.cells.insert([cell.id for cell in notebook.cells].index("setup"), carried)
    nbformat.validate(notebook)
    return notebook


def write_standalone(manifest: dict, folder: Path) -> None:
    if folder.resolve() == FOLDER:
        sys.exit(f"error: {folder} holds the lessons themselves; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for index, lesson in enumerate(every(manifest)):
        path = folder / notebook_path(lesson).name
        nbformat.write(standalone(manifest, index), path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def facts_of(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """What ``facts(name=value)`` left in the outputs."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    hidden = "\n".join(data["text/html"] for data in outputs if data.get("text/html", "").startswith("<!--"))
    return dict(re.findall(r"^(\w+) = (.+)$", hidden, re.M))


def put_facts_into_prose(notebook: nbformat.NotebookNode) -> None:
    """Write what ``facts(name=value)`` left before each ``<!-- name -->``."""
    facts = facts_of(notebook)

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
    name_controls(notebook)
    write(path, notebook)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", metavar="OWNER/NAME", help="GitHub repository that badges and links point at")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--run", nargs="+", default=[], metavar="NUMBER", help='lessons to execute, or "all"')
    task.add_argument("--standalone", type=Path, metavar="DIR", help="write every lesson with the package in it, here")
    args = parser.parse_args()
    manifest = read_manifest()
    repository = args.repository or remote_repository() or manifest["repository"]
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        sys.exit(f"error: repository={repository!r} is not possible: it must be OWNER/NAME")
    known = {"repository": repository, "commit": package_commit() if repository else None}
    manifest = {**manifest, **known}
    if args.standalone:
        return write_standalone(manifest, args.standalone)
    MANIFEST.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_shared(manifest)
    numbers = [lesson["file"].partition("_")[0] for lesson in every(manifest)]
    if unknown := set(args.run) - {*numbers, "all"}:
        sys.exit(f"error: there is no lesson {sorted(unknown)[0]!r}; there are {', '.join(numbers)}")
    for number, lesson in zip(numbers, every(manifest), strict=True):
        if number in args.run or "all" in args.run:
            print(f"{lesson['file']}: {run(notebook_path(lesson)):.0f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
