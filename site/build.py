"""Build the site: the lessons as they are committed, the texts, and the playground with its models.

    make site    # into site/_build/html, which any static host serves

Nothing is executed: pages show the outputs that the notebooks have. The built pages load nothing from other servers.
A GitHub repository, where one is known (``notebooks/build.py`` says how), gives each lesson a button for Colab, and
links to files that are no pages a target; without one such links become plain text.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from models import make_models

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
BUILT = SITE / "_build"
MODELS, SOURCE, EXTRA, STATIC, HTML = (BUILT / name for name in ("models", "source", "extra", "static", "html"))
MODULES = SITE / "node_modules"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What onnxruntime-web needs for WebAssembly on one thread."""
TEXTS = [
    "README.md", "colab_links.md", "results/README.md", "notebooks/glossary.md", "notebooks/exercises.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("mythos_lite/checkpoints/*/MODEL_CARD.md"))),
]  # fmt: skip
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^()\s#:]+)(#[^()\s]*)?\)")
"""A link to a file of the repository: its words, its path, and where in the file."""
TITLE = "# @title "


MENDED = {
    r'role="heading"(?! aria-level)': 'role="heading" aria-level="2"',
    r'<aside class="sidebar-drawer"': r'\g<0> aria-label="Pages"',
    r'<aside class="toc-drawer"': r'\g<0> aria-label="Contents of this page"',
    r'<summary aria-label="Toggle hidden content"': "<summary",
    r"<th( class=\"head[^>]*)><p></p></th>": r"<td\1></td>",
}
"""What theme and builder leave unclear to those who hear a page: pattern in its HTML → replacement."""


def load_lessons():
    """``notebooks/build.py``, which knows the lessons and the repository."""
    spec = importlib.util.spec_from_file_location("lessons_build", ROOT / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keep_links(text: str, folder: Path, repository: str | None) -> str:
    """The text of a file in ``folder`` with links to what is no page turned to GitHub, or into plain words."""

    def turned(found: re.Match) -> str:
        words, path, anchor = found.groups()
        target = (ROOT / folder / path).resolve()
        if not target.exists():
            sys.exit(f"error: {folder / path} is linked, and is not there")
        inside = target.relative_to(ROOT).as_posix()
        if inside in TEXTS or target.suffix == ".ipynb":
            return found[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"[{words}](https://github.com/{repository}/{kind}/main/{inside}{anchor or ''})" if repository else words

    return LINK.sub(turned, text)


def lesson_links(lessons, manifest: dict, lesson: dict) -> str:
    """Buttons that open a lesson elsewhere."""
    links = [f'<a class="button primary" href="../downloads/{lesson["file"]}.ipynb" download>Download to run</a>']
    if manifest["repository"]:
        links.insert(0, f'<a class="button primary" href="{lessons.colab_url(manifest, lesson)}">Open in Colab</a>')
    links.append(f'<a class="button" href="{lesson["file"]}.ipynb" download>Download with outputs</a>')
    how = "The first download carries the package and runs in Jupyter, VS Code or Colab; the other needs a clone."
    return f'<p class="actions">\n{" ".join(links)}\n</p>\n\n{how}'


def dress(cell: nbformat.NotebookNode) -> None:
    """Say to the page what the notebook says to JupyterLab: folded code, alternative texts, no controls."""
    cell.outputs = [o for o in cell.outputs if not o.get("data", {}).get("text/html", "").startswith("<!--")]
    for output in cell.outputs:
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        if alt:
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    if cell.source.startswith(TITLE):
        title = cell.source.partition("\n")[0].removeprefix(TITLE)
        cell.metadata["tags"] = ["hide-input"]
        cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = f"Code: {title}"
        cell.metadata["mystnb"]["code_prompt_hide"] = f"Code: {title}"


def write_lesson(lessons, manifest: dict, index: int) -> None:
    """A lesson's page source, and its two downloads."""
    lesson = lessons.every(manifest)[index]
    path = lessons.notebook_path(lesson)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.id == "header":
            cell.source = lessons.header({**manifest, "repository": None}, index, carried=True)
            cell.source += f"\n\n{lesson_links(lessons, manifest, lesson)}"
        if cell.cell_type == "markdown":
            cell.source = keep_links(cell.source, Path("notebooks"), manifest["repository"])
        else:
            dress(cell)
    nbformat.write(notebook, SOURCE / "notebooks" / path.name)
    shutil.copy(path, EXTRA / "notebooks")
    nbformat.write(lessons.standalone(manifest, index), EXTRA / "downloads" / path.name)


def assemble(lessons, manifest: dict) -> None:
    """The sources of all pages, laid out as in the repository."""
    for folder in (SOURCE, EXTRA, STATIC, HTML):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (SOURCE / "notebooks", EXTRA / "notebooks", EXTRA / "downloads", STATIC):
        folder.mkdir(parents=True)
    for name in TEXTS:
        target = SOURCE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        target.write_text(keep_links(text, Path(name).parent, manifest["repository"]), encoding="utf-8")
    for image in (ROOT / "results").glob("*.png"):
        shutil.copy(image, SOURCE / "results")
    for index in range(len(lessons.every(manifest))):
        write_lesson(lessons, manifest, index)
    index = (SITE / "index.md").read_text(encoding="utf-8")
    (SOURCE / "index.md").write_text(index.replace("LESSONS", lessons.lesson_table(manifest)), encoding="utf-8")
    katex = MODULES / "katex" / "dist"
    shutil.copytree(katex / "fonts", STATIC / "katex" / "fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
    shutil.copy(katex / "katex.min.css", STATIC / "katex")


def add_playground() -> None:
    """The playground beside the pages: its three files, the runtime, the models."""
    target, runtime = EXTRA / "playground", MODULES / "onnxruntime-web" / "dist"
    shutil.copytree(SITE / "playground", target)
    (target / "runtime").mkdir()
    for name in RUNTIME:
        shutil.copy(runtime / name, target / "runtime")
    shutil.copytree(MODELS, target / "models")


def mend() -> None:
    """Apply ``MENDED`` to every page of the builder."""
    for path in HTML.rglob("*.html"):
        if path.parent.name != "playground":
            text = path.read_text(encoding="utf-8")
            for pattern, replacement in MENDED.items():
                text = re.sub(pattern, replacement, text)
            path.write_text(text, encoding="utf-8")


def main() -> None:
    lessons = load_lessons()
    manifest = lessons.read_manifest()
    manifest["repository"] = lessons.remote_repository() or manifest["repository"]
    make_models(MODELS)
    assemble(lessons, manifest)
    add_playground()
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", SITE, "-d"]
    subprocess.run([*command, BUILT / "doctrees", SOURCE, HTML], check=True)
    mend()


if __name__ == "__main__":
    main()
