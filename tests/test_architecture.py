"""The shape of the package: who imports whom, and what importing it does not do."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mythos_lite

PACKAGE = Path(mythos_lite.__file__).parent
ROOT = Path(__file__).parents[1]
ROOMS = {
    "": ["checks", "config"],
    "files": ["json_files", "atomic", "provenance", "checkpoint"],
    "model": ["modes", "layers", "cache", "attention", "moe", "block", "injection", "halting", "dilation", "loop"],
    "task": ["chains", "pointers", "loss"],
    "measure": ["cost", "spectral", "sweep", "left_to_right", "plots"],
    "training": ["recipes", "parallel", "state", "trainer"],
    "study": [
        "baselines", "cures", "run", "depth", "overthinking", "plan", "records", "workers", "report", "experiment",
    ],
    "lessons": [
        "display", "drawing", "exercise", "session", "holding", "summary", "study_figures",
        *(f"diagrams0{n}" for n in range(1, 7)), *(f"lesson0{n}" for n in range(1, 7)), "catalogue", "grading",
    ],
    "interop": ["extras", "onnx", "quantize"],
}  # fmt: skip
"""Rooms from the bottom up, their modules too."""
ORDER = [*(f"{room}.{name}".lstrip(".") for room, names in ROOMS.items() for name in names), "__main__"]
TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in PACKAGE.rglob("*.py")
}


def imported_modules(tree):
    """Modules of this package that a file imports anywhere, also inside functions; names of ``__init__`` as such."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("mythos_lite")}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("a relative import")
        elif isinstance(node, ast.ImportFrom) and node.module == "mythos_lite":
            found |= {alias.name if alias.name in TREES else "__init__" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.removeprefix("mythos_lite.") in ROOMS:
            found |= {f"{node.module.removeprefix('mythos_lite.')}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("mythos_lite."):
            found.add(node.module.removeprefix("mythos_lite."))
    return found


def names(tree):
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def test_every_module_has_its_place_and_no_other_exists():
    assert set(TREES) == {*ORDER, *(f"{room}.__init__".lstrip(".") for room in ROOMS)}


@pytest.mark.parametrize("name", ORDER)
def test_module_imports_only_from_those_below_it(name):
    below = set(ORDER[: ORDER.index(name)])
    allowed = below | {"__init__"} if name == "__main__" else below
    assert imported_modules(TREES[name]) <= allowed


@pytest.mark.parametrize("name", ["checks", "config"])
def test_configuration_is_checked_without_torch(name):
    imports = [node for node in ast.walk(TREES[name]) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names) | {"collections.abc", "mythos_lite.checks"}


TALKING = {"__main__", "lessons.session", "lessons.catalogue"}


def test_only_the_command_line_and_the_lessons_print():
    for name, tree in TREES.items():
        defaults = [
            default
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for default in [*node.args.defaults, *node.args.kw_defaults]
            if isinstance(default, ast.Name) and default.id == "print"
        ]
        if name not in TALKING:
            assert names(tree).count("print") == len(defaults), name
        assert not defaults or name == "study.experiment", name


def test_nothing_shows_a_figure():
    for name, tree in TREES.items():
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "show"], name


def test_public_names_exist_and_no_others_are_promised():
    imported = {
        alias.name for node in TREES["__init__"].body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(mythos_lite.__all__) == imported
    assert all(hasattr(mythos_lite, name) for name in mythos_lite.__all__)


def test_import_has_no_side_effects():
    program = """
import os, random, sys, warnings
import numpy, torch
def state():
    return (
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(), random.getstate(), numpy.random.get_state()[1].tolist(),
        dict(os.environ), os.getcwd(), list(warnings.filters),
    )
torch.set_num_threads(1)
before, of_torch = state(), set(sys.modules)
import mythos_lite
assert state() == before
heavy = {"matplotlib", "transformers", "tqdm", "scipy", "pandas", "IPython"}
assert not heavy & (set(sys.modules) - of_torch)
mythos_lite.RecurrentDepthTransformer.from_pretrained("mod7-experts")
assert not {"torch._dynamo", "torch._inductor"} & (set(sys.modules) - of_torch)  # seconds, and a folder of its own
warnings.simplefilter("ignore")  # what matplotlib of one year says of pyparsing of another is not ours
import mythos_lite.lessons.grading  # which says in a sentence that Jupyter is missing
assert not {"IPython", "ipywidgets", "nbformat", "nbclient"} & (set(sys.modules) - of_torch)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_function_fits_on_a_screen():
    long = [
        (name, node.name, node.end_lineno - node.lineno + 1)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    ]
    assert not long


TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("notebooks/*.ipynb"), *PACKAGE.rglob("*.py")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_what_texts_say_of_the_package_is_there(path):
    """Names such as mythos_lite.model.halting.ActState and paths such as mythos_lite/model/loop.py."""
    text = path.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?<![\w/.])mythos_lite((?:\.\w+)+)", text)):
        found = mythos_lite
        for part in name.strip(".").split("."):
            full = f"{getattr(found, '__name__', '')}.{part}"
            found = getattr(found, part, None) or importlib.import_module(full)
    for name in set(re.findall(r"(?<![\w/.])mythos_lite/[\w/]+(?:\.\w+)?", text)):
        assert (ROOT / name).exists(), name
