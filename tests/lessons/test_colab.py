"""Which package a lesson takes, what a standalone file carries, and what is compared with Colab's list.

Whole lessons under Colab's own versions are run by ``make test-colab``.
"""

import base64
import hashlib
import importlib.util
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import yaml
from IPython.display import Image

from mythos_lite.lessons import display

ROOT = Path(__file__).parents[2]
SITE = Path(pytest.__file__).parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load(ROOT / "notebooks" / "build.py")
versions = load(ROOT / "tests" / "colab" / "versions.py")
lessons = load(ROOT / "tests" / "colab" / "lessons.py")
MANIFEST = build.read_manifest()
LESSONS = build.every(MANIFEST)
NOBODY = MANIFEST | {"repository": None, "commit": None}
FORK = MANIFEST | {"repository": "me/fork", "commit": "0123abc"}
WHERE = "\nimport mythos_lite\nprint(mythos_lite.__file__)"


def plant(folder, label):
    """A small package of the lessons' name that says whose it is."""
    lessons = folder / "mythos_lite" / "lessons"
    lessons.mkdir(parents=True)
    (lessons / "session.py").touch()
    (lessons.parent / "__init__.py").touch()
    (lessons.parent / "config.py").touch()
    (lessons / "__init__.py").write_text(
        "import mythos_lite.config\nfrom mythos_lite.lessons import session\n"
        "built = check = compare = explore = facts = predict = show = show_table = None\n"
        f"start = lambda lesson: print('{label}', lesson)\n"
    )
    return folder


def archive(**entries):
    """Text as a standalone file carries it: bytes by name, or the target of a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return base64.b85encode(lzma.compress(buffer.getvalue())).decode()


def carry(packed):
    return build.CARRIED.format(packed=packed, sha256=hashlib.sha256(packed.encode()).hexdigest()) + "\n"


def carried_package(folder):
    files = [path for path in plant(folder, "carried").rglob("*") if path.is_file()]
    return carry(archive(**{path.relative_to(folder).as_posix(): path.read_bytes() for path in files}))


def setup_cell(manifest=NOBODY, carried=False):
    return build.shared_cells(manifest, 0, carried)["setup"]


def run(source, folder, *path, **environment):
    """As a kernel would that was started in ``folder``, with these folders in place of installed packages."""
    return subprocess.run(
        [sys.executable, "-S", "-c", "import sys; exec(sys.stdin.read())"], input=source, cwd=folder,
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment},
    )  # fmt: skip


def empty(folder):
    folder.mkdir(parents=True)
    return folder


SOURCES = ["installed", "clone", "carried", "repository"]


@pytest.fixture
def pip(tmp_path):
    """A pip that writes down how it was called and installs what was published."""
    (tool := tmp_path / "tools" / "pip").mkdir(parents=True)
    site, published = empty(tmp_path / "site"), plant(tmp_path / "published", "repository")
    (tool / "__init__.py").touch()
    (tool / "__main__.py").write_text(
        "import json, pathlib, shutil, sys\n"
        f"pathlib.Path({str(tmp_path / 'called')!r}).write_text(json.dumps(sys.argv[1:]))\n"
        f"shutil.copytree({str(published)!r}, {str(site)!r}, dirs_exist_ok=True)\n"
    )
    return [tool.parent, site]


@pytest.mark.parametrize("first", SOURCES)
def test_package_is_taken_from_the_first_source_that_has_it(first, tmp_path, pip):
    there = SOURCES[SOURCES.index(first) :]
    path = [*([plant(tmp_path / "installed", "installed")] if "installed" in there else []), *pip]
    folder = plant(tmp_path / "clone", "clone") if "clone" in there else tmp_path / "nowhere"
    before = carried_package(tmp_path / "packed") if "carried" in there else ""
    done = run(before + setup_cell(FORK, carried=True), empty(folder / "notebooks"), *path)
    assert (done.stdout, done.stderr) == (f"{first} 1\n", "")
    assert (tmp_path / "called").exists() == (first == "repository")
    if first == "repository":
        asked = ["install", "--quiet", "--no-deps", "git+https://github.com/me/fork@0123abc"]
        assert json.loads((tmp_path / "called").read_text()) == asked


def test_package_that_is_installed_leaves_the_path_alone(tmp_path):
    source = f"import sys\nbefore = list(sys.path)\n{setup_cell()}\nprint(sys.path == before)"
    done = run(source, empty(tmp_path / "empty"), plant(tmp_path / "installed", "installed"))
    assert done.stdout == "installed 1\nTrue\n"


NAMESAKES = {
    "an empty folder": {"mythos_lite/notes.txt": ""},
    "another package": {
        "mythos_lite/__init__.py": "print('namesake')",
        "mythos_lite/config.py": "print('namesake')",
        "mythos_lite/lessons/__init__.py": "",
    },
    "a module": {"mythos_lite.py": "print('namesake')"},
}


TRIED = """
import contextlib, importlib, io
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(ImportError):
    importlib.import_module("mythos_lite")
    importlib.import_module("mythos_lite.config")
"""


@pytest.mark.parametrize("imported", [False, True], ids=["", "imported"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("namesake", NAMESAKES)
def test_namesake_is_not_taken_for_the_package(namesake, source, imported, tmp_path, pip):
    folder = empty(tmp_path / "work" / "notebooks")
    for name, text in NAMESAKES[namesake].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    path = [*([plant(tmp_path / "installed", "installed")] if source == "installed" else []), *pip]
    if source == "clone":
        plant(tmp_path / "work", "clone")
    before = carried_package(tmp_path / "packed") if source == "carried" else ""
    tried = TRIED if imported else ""
    done = run(tried + before + setup_cell(FORK, carried=True) + WHERE, folder, *path)
    said, package = done.stdout.splitlines()
    assert (said, done.stderr) == (f"{source} 1", "")
    assert folder not in Path(package).parents


@pytest.mark.parametrize("manifest", [NOBODY, FORK], ids=["nobody", "fork"])
@pytest.mark.parametrize("carried", [False, True], ids=["", "carried"])
@pytest.mark.parametrize("namesake", [False, True], ids=["", "namesake"])
def test_without_a_package_one_sentence_says_what_was_tried_and_what_to_do(manifest, carried, namesake, tmp_path):
    """Carried, and yet not there: the cell that unpacks it was not run."""
    folder = empty(tmp_path / "empty" / "notebooks")
    if namesake:
        (folder / "mythos_lite").mkdir()
    (tools := tmp_path / "tools").mkdir()
    (tools / "pip.py").write_text("raise SystemExit(1)")
    done = run(setup_cell(manifest, carried), folder, tools)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("The package mythos_lite is neither installed nor in the folder above")
    assert (done.stderr.count("\n"), done.stderr.count(". "), done.stderr[-2:]) == (1, 0, ".\n")
    assert ("pip could not install it from github.com/me/fork" in done.stderr) == (manifest is FORK)
    assert ("run that cell, then this one" in done.stderr) == carried
    assert ("take its standalone file" in done.stderr) == (not carried)


@pytest.mark.parametrize("source", ["installed", "clone", "carried"])
def test_cells_can_be_run_twice(source, tmp_path):
    folder = empty(tmp_path / "work" / "notebooks")
    path = [plant(tmp_path / "installed", "installed")] if source == "installed" else []
    if source == "clone":
        plant(tmp_path / "work", "clone")
    cells = (carried_package(tmp_path / "packed") if source == "carried" else "") + setup_cell(carried=True)
    again = "\nimport sys, mythos_lite.lessons\nbefore = mythos_lite.lessons, list(sys.path)\n"
    same = "\nprint(before == (sys.modules['mythos_lite.lessons'], sys.path), os.path.exists(mythos_lite.__file__))"
    done = run(cells + again + cells + same, folder, *path)
    assert (done.stdout, done.stderr) == (f"{source} 1\n{source} 1\nTrue True\n", "")


def test_damaged_file_is_not_unpacked(tmp_path):
    cell = carried_package(tmp_path / "packed")
    start = cell.index('PACKED = "') + 200
    damaged = cell[:start] + ("0" if cell[start] != "0" else "1") + cell[start + 1 :]
    temporary = empty(tmp_path / "temporary")
    done = run(damaged + setup_cell(carried=True), empty(tmp_path / "work"), TMPDIR=str(temporary))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "This file is damaged, and nothing that it carries is used: get it again.\n"
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["../evil.py", "mythos_lite/../../evil.py", "/{outside}/evil.py", "link"])
def test_nothing_is_unpacked_outside_the_folder(name, tmp_path):
    outside, temporary = empty(tmp_path / "outside"), empty(tmp_path / "outside" / "temporary")
    name = name.format(outside=str(outside).lstrip("/"))
    entries = {name: str(outside) if name == "link" else b"", "mythos_lite/lessons/session.py": b""}
    cells = carry(archive(**entries)) + setup_cell(carried=True)
    done = run(cells, empty(tmp_path / "work"), TMPDIR=str(temporary))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"This file carries {name!r}, which is no file of a package: it is not used.\n"
    assert list(outside.iterdir()) == [temporary]
    assert not list(temporary.iterdir())


def test_no_lesson_installs_from_a_name_that_nobody_has_set():
    for index in range(len(LESSONS)):
        for carried in (False, True):
            shared = build.shared_cells(NOBODY, index, carried)
            assert not [text for text in shared.values() if "github.com" in text or "pip" in text.split()]


def unpacked(notebook):
    """Content by path of what a standalone notebook carries."""
    source = next(cell.source for cell in notebook.cells if cell.id == "carried")
    packed = source.partition('PACKED = "')[2].partition('"')[0]
    with tarfile.open(fileobj=io.BytesIO(base64.b85decode(packed)), mode="r:xz") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.mark.parametrize("index", range(len(LESSONS)), ids=[lesson["file"] for lesson in LESSONS])
def test_standalone_file_carries_the_package_and_the_checkpoints_it_loads(index):
    notebook = build.standalone(NOBODY, index)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert ids.index("carried") + 1 == ids.index("setup")
    cell = notebook.cells.pop(ids.index("carried"))
    assert cell.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}
    code = "".join(one.source for one in notebook.cells if one.cell_type == "code")
    prose = "\n".join(one.source for one in notebook.cells if one.cell_type == "markdown")
    assert not any(one.get("outputs") or one.get("execution_count") for one in notebook.cells)
    assert ".ipynb)" not in prose
    assert ".md)" not in prose
    assert notebook.cells[-1].source.startswith("# Glossary")

    carried = unpacked(nbformat.v4.new_notebook(cells=[cell]))
    package = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "mythos_lite").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert carried.pop("mythos_lite/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert carried.items() <= package.items()
    left_out = {name for name in package.keys() - carried.keys() if "/checkpoints/" not in name}
    unread = set() if "load_summary" in code else {"summary.json"}
    unread |= {f"diagrams0{n}.py" for n in range(1, 7) if n != index + 1}
    unread = {f"lessons/{name}" for name in unread}
    if LESSONS[index] != MANIFEST["appendix"]:
        unread |= {f"interop/{path.name}" for path in (ROOT / "mythos_lite" / "interop").glob("*.py")}
    assert left_out == {f"mythos_lite/{name}" for name in unread}
    names = {name.split("/")[2] for name in carried if "/checkpoints/" in name}
    assert names == {one.name for one in (ROOT / "mythos_lite" / "checkpoints").iterdir() if f'"{one.name}"' in code}
    assert len(cell.source) < (1.5e6 if len(names) > 1 else 0.9e6)


def test_what_is_carried_depends_on_the_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "mythos_lite")
    files = sorted(path for path in plant(tmp_path, "x").rglob("*") if path.is_file())
    first = build.pack(files)
    for path in files:
        os.utime(path, (0, 0))
        path.chmod(0o600)
    assert build.pack(files) == first
    files[0].write_text("# changed")
    assert build.pack(files) != first


def test_standalone_file_is_the_same_when_built_again():
    assert nbformat.writes(build.standalone(NOBODY, 0)) == nbformat.writes(build.standalone(NOBODY, 0))


def test_carried_package_is_the_whole_package(tmp_path):
    """Under the real torch, with the checkpoints that lesson 6 loads and an ordinary error for one that it does not."""
    cells = [cell.source for cell in build.standalone(NOBODY, 5).cells if cell.id in ("carried", "setup")]
    program = """
import mythos_lite, mythos_lite.lessons.summary
mythos_lite.lessons.summary.load_summary()
for name in ("mod7", "mod7-experts"):
    try:
        print(type(mythos_lite.RecurrentDepthTransformer.from_pretrained(name)).__name__)
    except ValueError as error:
        print(error)
print(mythos_lite.__file__)"""
    folder, temporary = empty(tmp_path / "empty"), empty(tmp_path / "temporary")
    done = run("\n".join([*cells, program]), folder, SITE, TMPDIR=str(temporary))
    *said, package = done.stdout.splitlines()
    missing = "'mod7-experts' is neither a folder nor a shipped checkpoint ('mod7', 'mod7-doubling', 'pointers')"
    assert said == ["Lesson 6 is ready.", "RecurrentDepthTransformer", missing]
    assert temporary in Path(package).parents
    assert not list(folder.iterdir())
    assert not list(temporary.glob("mythos_lite_*")), "what was unpacked goes with the kernel"


def test_standalone_files_do_not_replace_the_lessons():
    with pytest.raises(SystemExit, match="name another folder"):
        build.write_standalone(NOBODY, ROOT / "notebooks" / "." / "")


def test_alternative_text_needs_nothing_that_ipython_of_colab_has_not(monkeypatch):
    """IPython 7's Image takes metadata, and no alt."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr("IPython.display.Image", lambda data, metadata=None: Image(data, metadata=metadata))
    figure, axes = plt.subplots()
    axes.set_title("a title")
    display.show(figure, alt="a line", takeaway="it rises")
    data, metadata = shown[0]._repr_mimebundle_()
    assert data["image/png"]
    assert metadata["image/png"]["alt"] == "a line"


def test_what_is_wrong_with_a_saved_lesson_is_found():
    picture = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {"image/png": {"alt": "a line"}}}
    bare = {**picture, "metadata": {}}
    error = {"output_type": "error", "ename": "E", "evalue": "broken", "traceback": []}
    warning = {"output_type": "stream", "name": "stderr", "text": "old"}

    def faults(*outputs):
        cell = nbformat.v4.new_code_cell(id="x", outputs=[nbformat.from_dict(output) for output in outputs])
        return lessons.faults(nbformat.v4.new_notebook(cells=[cell]))

    assert faults(picture) == []
    assert faults(picture, bare, error, warning) == ["x: a figure has no alternative text", "x: broken", "x: old"]
    assert faults() == ["no figure was saved"]
    failed = nbformat.v4.new_output("stream", text="Exercise 1.1: ✗ off by one\nlogits: ✓ the same\n")
    assert faults(picture, failed) == ["x: Exercise 1.1: ✗ off by one"]


def test_a_lesson_is_solved_by_the_solutions_that_it_shows(tmp_path):
    stub = nbformat.v4.new_code_cell('def f(x):\n    return ...\n\n\nf = check("1.2", f)', id="a")
    shown = "<details><summary><b>Solution</b></summary>\n\n```python\ndef f(x):\n    return x\n```\n\n</details>"
    cells = [stub, nbformat.v4.new_markdown_cell(shown, id="solution-1-2"), nbformat.v4.new_code_cell("f(1)", id="b")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path := tmp_path / "lesson.ipynb")
    lessons.solve(path)
    solved = nbformat.read(path, as_version=4)
    assert solved.cells[0].source == 'def f(x):\n    return x\n\n\nf = check("1.2", f)'
    assert solved.cells[2].source == "f(1)"
    solved.cells[0].outputs = [nbformat.v4.new_output("stream", text="Exercise 1.2: … not done yet.\n")]
    assert lessons.faults(solved)[0] == "a: Exercise 1.2: … not done yet."


def test_a_package_that_brings_another_is_refused(monkeypatch):
    before = {"torch": "2.11.0", "torch's files": "a"}
    for after, said in (
        ({**before, "mythos-lite": "0.1.0"}, None),
        ({**before, "mythos-lite": "0.1.0", "numpy": "9"}, "numpy"),
        ({"torch": "2.13.0", "torch's files": "b", "mythos-lite": "0.1.0"}, "2.13.0"),
        ({**before, "torch's files": "b", "mythos-lite": "0.1.0"}, "torch's files"),
    ):
        monkeypatch.setattr(lessons, "installed", lambda after=after: after)
        if said is None:
            lessons.brings_the_package_alone(before, "the wheel")
        else:
            with pytest.raises(SystemExit, match=said):
                lessons.brings_the_package_alone(before, "the wheel")


def test_list_of_colab_says_where_it_is_from_and_pins_everything():
    head, pins = (ROOT / "tests" / "colab" / "colab.txt").read_text().split("\n", 1)
    assert "googlecolab/backend-info" in pins
    assert head.startswith("#")
    pinned = versions.read_versions(versions.LIST, versions.COLAB)
    assert {"torch", "numpy", "ipython", "ipykernel", "ipywidgets", "notebook", "matplotlib"} <= pinned.keys()
    assert all(pinned.values())
    assert all("==" in line for line in pins.splitlines() if not line.startswith("#"))


def test_versions_are_compared_with_a_newer_list(tmp_path):
    freeze = tmp_path / "pip-freeze.txt"
    freeze.write_text(
        "# Do not modify\nnumpy==2.9\nPyYAML==6.0\njedi==1.0\nsix==1.0\n"
        "torch @ https://example.org/whl/cpu/torch-2.11.0%2Bcpu-cp313-cp313-manylinux_2_28_x86_64.whl\n"
        "tool @ git+https://example.org/tool@0123\n"
    )
    newer = versions.read_versions(freeze)
    assert newer == {"numpy": "2.9", "pyyaml": "6.0", "jedi": "1.0", "six": "1.0", "torch": "2.11.0", "tool": ""}
    pinned = {"numpy": "2.1", "torch": "2.11.0", "pyyaml": "6.0", "gone": "1.0"}
    assert versions.outdated(pinned, {"numpy": "2.1", "jedi": "1.0", "pip": "1"}, newer | {"pip": "2"}) == [
        "numpy is pinned at 2.1, and Colab has 2.9",
        "gone is pinned at 1.0, and Colab has none",
        "jedi is not pinned, and Colab has 1.0",
    ]


def test_versions_that_were_not_tested_are_named():
    rows, faults = versions.compare({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1"}, {"b": "4"})
    assert [row.split() for row in rows[1:]] == [["a", "1", "1", "none"], ["b", "2", "none", "4"]]
    assert faults == ["b was tested with none, and the list asks for 3"]


def test_lists_leave_torch_to_colab():
    """A pin, or a floor above the oldest torch that Colab's pinned runtimes have, would replace it."""
    for name, text in {
        "requirements.txt": (ROOT / "requirements.txt").read_text(),
        "pyproject.toml": (ROOT / "pyproject.toml").read_text(),
    }.items():
        floor = [line for line in text.replace('"', "\n").splitlines() if line.startswith("torch>")]
        assert len(floor) == 1, name
        assert floor[0].startswith("torch>=2."), name
        assert int(floor[0].split(".")[1]) <= 9, name


def test_floors_are_the_same_for_the_package_and_the_lessons():
    asked = versions.Requirement
    lessons = {r.name: str(r.specifier) for line in (ROOT / "requirements.txt").read_text().splitlines()
               if not line.startswith("#") for r in [asked(line)]}  # fmt: skip
    text = (ROOT / "pyproject.toml").read_text()
    package = text.partition("dependencies = [")[2].partition("]")[0].replace('"', "").split(", ")
    assert {asked(one).name: str(asked(one).specifier) for one in package}.items() <= lessons.items()


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_test_every_push_and_publish_releases_and_pages():
    assert [path.name for path in WORKFLOWS] == ["pages.yml", "release.yml", "tests.yml"]
    pages, release, tests = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS)
    assert set(tests[True]) == {"push", "pull_request"}  # "on" is yes in YAML
    assert tests["permissions"] == {"contents": "read"}
    assert ".ci/run" in [step.get("run") for step in tests["jobs"]["tests"]["steps"]]
    assert release[True] == {"release": {"types": ["published"]}}
    assert release["permissions"] == {}
    assert release["jobs"]["attach"]["permissions"] == {"contents": "write"}
    commands = "\n".join(step.get("run", "") for step in release["jobs"]["attach"]["steps"])
    assert "--standalone" in commands
    assert "gh release upload" in commands
    assert "${{" not in commands, "what a tag is called must not be run"
    assert pages["permissions"] == {}
    assert pages["jobs"]["build"]["permissions"] == {"contents": "read"}
    assert "make site" in [step.get("run") for step in pages["jobs"]["build"]["steps"]]
