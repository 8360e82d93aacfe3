"""Every lesson's setup cell in a simulated Colab: an empty folder, torch already there, the package not."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SITE = Path(pytest.__file__).parents[1]

# Without the module site the package's editable install is out of sight; everything beside it comes by PYTHONPATH.
COLAB = """
import sys, types
sys.modules["google"], sys.modules["google.colab"] = types.ModuleType("google"), types.ModuleType("google.colab")
import numpy, torch
before = {name: (id(sys.modules[name]), sys.modules[name].__file__) for name in ("numpy", "torch")}
exec(sys.stdin.read())
import mythos_lite
from mythos_lite.study.summary import load_summary
load_summary()
assert mythos_lite.__file__.startswith(sys.argv[1]), mythos_lite.__file__
assert before == {name: (id(sys.modules[name]), sys.modules[name].__file__) for name in ("numpy", "torch")}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as pip would fetch it, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "mythos_lite"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in [*names, "pyproject.toml", "README.md", "LICENSE"]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", folder]
    subprocess.run(pip, check=True)
    return next((folder / "dist").glob("*.whl"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_setup_cell_installs_the_package_alone(path, wheel, tmp_path):
    source = next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.id == "setup")
    installed, empty = tmp_path / "installed", tmp_path / "content"
    installed.mkdir()
    empty.mkdir()
    env = {
        **os.environ, "MYTHOS_LITE_SOURCE": str(wheel), "PIP_TARGET": str(installed), "PIP_NO_INDEX": "1",
        "PYTHONPATH": os.pathsep.join([str(installed), str(SITE)]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-S", "-c", COLAB, str(installed)],
        input=source, env=env, cwd=empty, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Lesson {int(path.stem[:2])} is ready.\n"
    assert {entry.name.partition("-")[0] for entry in installed.iterdir()} == {"mythos_lite"}
    assert not list(empty.iterdir())
