"""The committed notebooks: executed, in step with the manifest, every quoted number bound to a printed one."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

from mythos_lite.lessons.catalogue import EXERCISES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
_spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
MANIFEST = build.read_manifest()
LESSONS = list(enumerate(MANIFEST["lessons"]))
each_lesson = pytest.mark.parametrize(("index", "lesson"), LESSONS, ids=[lesson["file"] for _, lesson in LESSONS])

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


@each_lesson
def test_notebook_is_committed_executed_and_normalised(index, lesson):
    notebook = read(lesson)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert dict(notebook.metadata) == build.KERNEL
    assert all(not cell.metadata for cell in notebook.cells)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]


@each_lesson
def test_shared_cells_are_those_of_the_manifest(index, lesson):
    found = {cell.id: cell.source for cell in read(lesson).cells}
    for name, source in build.shared_cells(MANIFEST, index).items():
        assert found[name] == source, "run: python notebooks/build.py"


def test_links_and_readme_are_those_of_the_manifest():
    assert (ROOT / "colab_links.md").read_text(encoding="utf-8") == build.colab_links(MANIFEST)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- lessons: begin -->\n{build.lesson_table(MANIFEST)}<!-- lessons: end -->" in readme
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == [lesson["file"] for lesson in MANIFEST["lessons"]]


@each_lesson
def test_lesson_has_all_its_parts(index, lesson):
    notebook = read(lesson)
    source = "\n".join(cell.source for cell in code(notebook))
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert source.count("predict(") >= 2
    assert "slider(draw" in source
    assert re.search(r"^show\(\n? *draw\(", source, re.M), "the slider has no static twin"
    assert "assert_close(" in source or "torch.equal(" in source, "no proof by another implementation"
    numbers = [number for number in EXERCISES if number.startswith(f"{index + 1}.")]
    assert re.findall(r'^check\("([\d.]+)"', source, re.M) == numbers
    for number in numbers:
        assert f"### Exercise {number} · {EXERCISES[number].title}" in prose
        assert (
            f"*{EXERCISES[number].minutes} minutes, {('easy', 'medium', 'hard')[EXERCISES[number].difficulty - 1]}.*"
            in prose
        )
        assert f'solution("{number}")' in prose
        assert f"Exercise {number}: … not done yet" in printed(notebook)
    assert prose.count("<summary>Hint</summary>") == len(numbers)
    assert "## Takeaways" in prose
    assert "## Read on" in prose


@each_lesson
def test_markers_of_nbval_stand_alone(index, lesson):
    for cell in code(read(lesson)):
        for line in cell.source.splitlines():
            if "NBVAL" in line.upper():
                assert line == "# NBVAL_IGNORE_OUTPUT"
        assert ("slider(" not in cell.source) or cell.id == "setup" or "# NBVAL_IGNORE_OUTPUT" in cell.source


@each_lesson
def test_every_figure_has_alternative_text_and_a_takeaway(index, lesson):
    for cell in code(read(lesson)):
        shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        texts = [
            output["data"]["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})
        ]
        assert len(shown) == len([text for text in texts if not text.startswith("|")])
        assert all(len(output.metadata["image/png"]["alt"]) > 20 for output in shown)
        assert not re.search(r"plt\.show|\bdisplay\(", cell.source)


def test_building_a_lesson_writes_its_numbers_into_the_prose():
    printed = nbformat.v4.new_output("stream", text="speed = 7,000\nleft = -1.5\n")
    code_cell = nbformat.v4.new_code_cell(outputs=[printed])
    prose = nbformat.v4.new_markdown_cell("A ~6,500<!-- speed --> and (-2<!-- left -->) and 3<!-- other -->.")
    build.put_facts_into_prose(nbformat.v4.new_notebook(cells=[code_cell, prose]))
    assert prose.source == "A ~7,000<!-- speed --> and (-1.5<!-- left -->) and 3<!-- other -->."


@each_lesson
def test_every_number_in_the_prose_is_printed_by_a_cell(index, lesson):
    notebook = read(lesson)
    facts = dict(re.findall(r"^(\w+) = (.+)$", printed(notebook), re.M))
    loose = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown" or cell.id in build.shared_cells(MANIFEST, index):
            continue
        for text, name in build.BOUND.findall(cell.source):
            assert name in facts, f"{name} is quoted and never printed"
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
    keys = {"file", "title", "summary", "learn", "prerequisites", "minutes"}
    assert all(lesson.keys() == keys for lesson in json.loads(build.MANIFEST.read_text(encoding="utf-8"))["lessons"])
