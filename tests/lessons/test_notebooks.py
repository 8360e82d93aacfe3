"""The committed notebooks: executed, in step with the manifest, every quoted number bound to a measured one."""

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
_spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
MANIFEST = build.read_manifest()
EVERY = build.every(MANIFEST)
LESSONS = list(enumerate(MANIFEST["lessons"]))
each_lesson = pytest.mark.parametrize(("index", "lesson"), LESSONS, ids=[lesson["file"] for _, lesson in LESSONS])
each_notebook = pytest.mark.parametrize(
    ("index", "lesson"), list(enumerate(EVERY)), ids=[lesson["file"] for lesson in EVERY]
)

SKIPPED = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<code>.*?</code>|\]\([^)]*\)|!\[[^\]]*\]"  # code, formulas, addresses
    r"|\*\d+ minutes|Exercise \d\.\d|pull request \d+|95 % interval|[Ll]essons? \d+(?: (?:and|to) \d+)*"
    r"|§+[\d.–, ]+(?:and [\d.]+)?|(?:19|20)\d\d",
    re.S,
)
NUMBER = re.compile(r"\d*[.,]\d+|\d+ ?%|\b\d{2,}\b")


def read(lesson):
    return nbformat.read(build.notebook_path(lesson), as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(output.text for cell in code(notebook) for output in cell.outputs if output.output_type == "stream")


@each_notebook
def test_notebook_is_committed_executed_and_normalised(index, lesson):
    notebook = read(lesson)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert dict(notebook.metadata) == build.KERNEL
    assert all(dict(cell.metadata) == build.metadata_of(cell) for cell in notebook.cells)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]


@each_notebook
def test_shared_cells_are_those_of_the_manifest(index, lesson):
    found = {cell.id: cell.source for cell in read(lesson).cells}
    for name, source in (build.shared_cells(MANIFEST, index) | build.solution_cells(index)).items():
        assert found[name] == source, "run: python notebooks/build.py"


def test_links_and_readme_are_those_of_the_manifest():
    assert (ROOT / "colab_links.md").read_text(encoding="utf-8") == build.colab_links(MANIFEST)
    assert (FOLDER / "exercises.md").read_text(encoding="utf-8") == build.exercise_table(MANIFEST)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- lessons: begin -->\n{build.lesson_table(MANIFEST)}<!-- lessons: end -->" in readme
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == [lesson["file"] for lesson in EVERY]


def is_folded(cell):
    return cell.source.startswith(build.TITLE)


def exercise_cell(notebook, number, name):
    """The place of the cell in which an exercise is checked: its answer goes on under its own name."""
    places = [
        place
        for place, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and f'{name} = check("{number}", {name})' in cell.source
    ]
    assert len(places) == 1, f"no cell, or more than one, says {name} = check({number!r}, {name})"
    return places[0]


@each_lesson
def test_every_exercise_has_its_parts_and_is_built_upon(index, lesson):
    notebook = read(lesson)
    exercises = build.exercises_of(index)
    source = "\n".join(cell.source for cell in code(notebook))
    assert re.findall(r'= check\("([\d.]+)"', source) == list(exercises)
    for number, exercise in exercises.items():
        place = exercise_cell(notebook, number, exercise.name)
        before, after = notebook.cells[place - 1], notebook.cells[place + 1]
        assert f"### Exercise {number} · {exercise.title}" in before.source
        effort = f"*{exercise.minutes} minutes, {('easy', 'medium', 'hard')[exercise.difficulty - 1]}.*"
        assert effort in before.source
        hints = before.source.count("<details><summary>Hint")
        assert hints >= (1 if exercise.minutes <= 5 else 3), f"{number} has {hints} hints"
        assert after.id == f"solution-{number.replace('.', '-')}"
        assert not is_folded(notebook.cells[place])
        assert f"Exercise {number}: … not done yet" in printed(notebook)
        later = [cell.source for cell in notebook.cells[place + 2 :] if cell.cell_type == "code"]
        assert any(build.reads(text, exercise.name) for text in later), f"nothing is built upon {exercise.name}"


@each_lesson
def test_solutions_run_on_what_the_notebook_has_imported(index, lesson):
    notebook = read(lesson)
    for number, exercise in build.exercises_of(index).items():
        place = exercise_cell(notebook, number, exercise.name)
        trees = [ast.parse(cell.source) for cell in notebook.cells[: place + 1] if cell.cell_type == "code"]
        known = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        known |= {node.name for tree in trees for node in ast.walk(tree) if hasattr(node, "name") and node.name}
        known |= {
            alias.asname or alias.name.partition(".")[0]
            for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }  # fmt: skip
        needed = {name for name in exercise.solution.__code__.co_names if name in exercise.solution.__globals__} if (
            hasattr(exercise.solution, "__code__")
        ) else set()  # fmt: skip
        assert needed <= known, f"{number}: the notebook does not know {needed - known}"


@each_lesson
def test_lesson_has_all_its_parts(index, lesson):
    notebook = read(lesson)
    source = "\n".join(cell.source for cell in code(notebook))
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    predictions = re.findall(r"^(\w+) = predict\(", source, re.M)
    assert len(predictions) >= 2
    assert all(f"{name}.reveal(" in source for name in predictions)
    explored = re.findall(r"\bexplore\(\s*(\w+)", source)
    assert explored
    assert all(re.search(rf"\bshow\(\s*{name}\(", source) for name in explored), "controls have no static twin"
    assert "compare(" in source or "torch.equal(" in source, "no proof by another implementation"
    assert f"built({index + 1})" in source
    diagrams = importlib.import_module(f"mythos_lite.lessons.diagrams0{index + 1}").DIAGRAMS
    unseen = [draw.__name__ for draw in diagrams if not re.search(rf"\bshow\(\s*{draw.__name__}\(", source)]
    assert not unseen, "diagrams that the lesson does not show"
    assert "## Takeaways" in prose
    readings = re.findall(r"^- .+(?:\n  .+)*", prose.partition("## Read on")[2], re.M)
    assert readings
    assert all("](http" in reading or "`" in reading for reading in readings), "a reading without its address"


@each_notebook
def test_scaffolding_is_folded(index, lesson):
    exercises = build.exercises_of(index)
    for cell in code(read(lesson)):
        assert "NBVAL" not in cell.source, "use the tag nbval-ignore-output"
        if not is_folded(cell):
            is_exercise = any(f'check("{number}"' in cell.source for number in exercises)
            scaffolding = re.findall(r"\bassert\b|\bfacts\(|\bshow\(|\bexplore\(|subplots\(", cell.source)
            assert is_exercise or not scaffolding, f"{cell.id}: {scaffolding} in a cell that is not folded"
        assert (
            "explore(" not in cell.source
            or cell.id == "setup"
            or "nbval-ignore-output" in cell.metadata.get("tags", [])
        )


def figures(cell):
    """Alternative text of each figure in a cell's outputs, folded ones too, and how many takeaways there are."""
    texts, takeaways = [], 0
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            texts.append(output.metadata.get("image/png", {}).get("alt", ""))
        if (text := data.get("text/markdown", "|")) and not text.startswith("|"):
            takeaways += 1
        for folded in re.findall(r"<img [^>]*>", data.get("text/html", "")):
            texts.append(re.search(r'alt="([^"]*)"', folded)[1])
            takeaways += "<p><i>" in data["text/html"]
    return texts, takeaways


@each_notebook
def test_every_figure_has_alternative_text_and_a_takeaway(index, lesson):
    for cell in code(read(lesson)):
        texts, takeaways = figures(cell)
        assert len(texts) == takeaways
        assert all(len(text) > 20 for text in texts)
        assert not re.search(r"plt\.show|\bdisplay\(", cell.source)


def test_building_a_lesson_writes_its_numbers_into_the_prose():
    kept = nbformat.v4.new_output("display_data", data={"text/html": "<!--\nspeed = 7,000\nleft = -1.5\n-->"})
    code_cell = nbformat.v4.new_code_cell(outputs=[kept])
    prose = nbformat.v4.new_markdown_cell("A ~6,500<!-- speed --> and (-2<!-- left -->) and 3<!-- other -->.")
    build.put_facts_into_prose(nbformat.v4.new_notebook(cells=[code_cell, prose]))
    assert prose.source == "A ~7,000<!-- speed --> and (-1.5<!-- left -->) and 3<!-- other -->."


@each_notebook
def test_every_number_in_the_prose_is_measured_by_a_cell(index, lesson):
    notebook = read(lesson)
    facts = build.facts_of(notebook)
    loose = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown" or cell.id in (
            build.shared_cells(MANIFEST, index) | build.solution_cells(index)
        ):
            continue
        for text, name in build.BOUND.findall(cell.source):
            assert name in facts, f"{name} is quoted and never measured"
            assert text.strip(build.AROUND) == facts[name], f"{name}: the text says {text}, the cell {facts[name]}"
        loose += NUMBER.findall(SKIPPED.sub(" ", build.BOUND.sub(" ", cell.source)))
    settings = re.findall(r"\d[\d_]*\.?\d*|\.\d+", "\n".join(cell.source for cell in code(notebook)))
    settings = {float(number.replace("_", "")) for number in settings}
    loose = [number for number in loose if "%" in number or float(number.replace(",", "")) not in settings]
    assert not loose, f"numbers bound to nothing: {loose}"


def test_glossary_names_only_lessons_there_are():
    rows = re.findall(r"^\| .* \| (\d) \|$", (FOLDER / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 20
    assert set(map(int, rows)) <= set(range(1, len(LESSONS) + 1))


def test_manifest_is_complete():
    manifest = json.loads(build.MANIFEST.read_text(encoding="utf-8"))
    assert list(manifest) == ["repository", "commit", "lessons", "appendix"]
    keys = {"file", "title", "summary", "learn", "prerequisites", "reading", "minutes"}
    assert all(lesson.keys() == keys for lesson in build.every(manifest))


def disagreement(manifest, remote, commit):
    """What git knows better than the manifest, if so; nothing where there is no remote on GitHub."""
    if remote is None:
        return None
    if manifest["repository"] != remote:
        return f"lessons.json names {manifest['repository']}, and the git remote is {remote}"
    if manifest["commit"] and commit and manifest["commit"] != commit:
        return f"lessons.json names the commit {manifest['commit']}, and the package's is {commit}"
    return None


def test_manifest_names_the_repository_and_the_commit_that_git_names():
    found = disagreement(MANIFEST, build.remote_repository(), build.package_commit())
    assert not found, "run: python notebooks/build.py"


@pytest.mark.parametrize(
    ("repository", "commit", "remote", "known", "said"),
    [
        (None, None, None, None, None),
        ("me/fork", "a", None, "b", None),
        ("me/fork", "a", "me/fork", "a", None),
        ("me/fork", None, "me/fork", "a", None),
        ("me/fork", "a", "me/fork", None, None),
        (None, None, "me/fork", "a", "lessons.json names None, and the git remote is me/fork"),
        ("you/fork", "a", "me/fork", "a", "lessons.json names you/fork, and the git remote is me/fork"),
        ("me/fork", "a", "me/fork", "b", "lessons.json names the commit a, and the package's is b"),
    ],
)
def test_disagreement_of_manifest_and_git_is_found(repository, commit, remote, known, said):
    found = disagreement({"repository": repository, "commit": commit}, remote, known)
    assert found is None if said is None else found.startswith(said)


def git(folder, *arguments):
    who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A repository with a package of one file, in place of this one."""
    (tmp_path / "mythos_lite").mkdir()
    (tmp_path / "mythos_lite" / "__init__.py").touch()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "package")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("https://github.com/me/fork", "me/fork"),
        ("https://github.com/me/fork.git", "me/fork"),
        ("git@github.com:me/fork.js.git", "me/fork.js"),
        ("ssh://git@github.com/me/fork", "me/fork"),
        ("https://example.org/me/fork", None),
        ("https://not-github.com/me/fork", None),
        ("/srv/github.com.git", None),
    ],
)
def test_repository_is_that_of_the_remote_on_github(address, found, fork):
    assert build.remote_repository() is None
    git(fork, "remote", "add", "origin", address)
    assert build.remote_repository() == found


def test_commit_is_the_last_that_changed_the_package(fork, monkeypatch):
    package = git(fork, "rev-parse", "HEAD")
    (fork / "notes.txt").touch()
    git(fork, "add", ".")
    git(fork, "commit", "--quiet", "--message", "notes")
    assert build.package_commit() == package
    (fork / "mythos_lite" / "more.py").touch()
    assert build.package_commit() is None, "files differ from the commit"
    (fork / "mythos_lite" / "more.py").unlink()
    git(fork, "clone", "--quiet", "--depth", "1", fork.as_uri(), fork / "shallow")
    monkeypatch.setattr(build, "ROOT", fork / "shallow")
    assert build.package_commit() is None, "a shallow clone does not know"
    monkeypatch.setattr(build, "ROOT", Path("/"))
    assert build.package_commit() is None, "no repository"


def test_build_points_everything_at_the_repository(fork, monkeypatch):
    (fork / "notebooks").mkdir()
    manifest = fork / "notebooks" / "lessons.json"
    shutil.copy(build.MANIFEST, manifest)
    monkeypatch.setattr(build, "FOLDER", fork / "notebooks")
    monkeypatch.setattr(build, "MANIFEST", manifest)
    for lesson in EVERY:
        cells = [nbformat.v4.new_markdown_cell("", id=name) for name in ("header", "footer")]
        cells.insert(1, nbformat.v4.new_code_cell("", id="setup"))
        nbformat.write(nbformat.v4.new_notebook(cells=cells), build.notebook_path(lesson))
    (fork / "README.md").write_text("<!-- lessons: begin -->\n<!-- lessons: end -->\n")
    commit = git(fork, "rev-parse", "HEAD")

    def built(*arguments):
        monkeypatch.setattr("sys.argv", ["build.py", *arguments])
        build.main()
        written = json.loads(manifest.read_text(encoding="utf-8"))
        files = [fork / "colab_links.md", *sorted(build.FOLDER.glob("*.ipynb"))]
        return (written["repository"], written["commit"]), [path.read_text(encoding="utf-8") for path in files]

    known, texts = built()
    assert known == (None, None)
    assert not any("github" in text for text in texts)
    assert all("--standalone DIR" in text for text in texts)

    known, texts = built("--repository", "me/fork")
    assert known == ("me/fork", commit)
    assert all("colab.research.google.com/github/me/fork/blob/main/notebooks/" in text for text in texts)
    assert all(f"git+https://github.com/me/fork@{commit}" in text for text in texts[1:])

    git(fork, "remote", "add", "origin", "git@github.com:you/fork.git")
    assert built("--repository", "me/fork")[0][0] == "me/fork", "what is asked for comes before the remote"
    assert built()[0] == ("you/fork", commit)
    with pytest.raises(SystemExit, match=r"repository='.+' is not possible"):
        built("--repository", "https://github.com/me/fork")
