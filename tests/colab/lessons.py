"""Run every lesson whole where nothing of the repository is around.

    python tests/colab/lessons.py colab    # by the interpreter of Colab's test (`make test-colab`)
    python tests/colab/lessons.py newest   # by that of the newest versions (`make test`), outputs compared
    python tests/colab/lessons.py appendix # the appendix, by one that has its libraries (`make test-out`)

"colab" runs all lessons twice in empty folders: as they are, with the package installed from its wheel; and as
standalone files with every exercise solved, with the package not installed and the network off. Setup cells alone also
run in a clone and from a repository.
"newest" runs them once, with the wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import distribution, distributions
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
CELL_SECONDS = 600
APPENDIX = "A_leaving_the_notebook.ipynb"
KEPT = ("torch", "numpy")
"""What Colab brings and must not be replaced."""
OFFLINE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""Runs a command where there is no network but the machine's own loop, over which kernels are spoken to."""
NOWHERE = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
PROBE = "import mythos_lite, numpy, torch\nprint(mythos_lite.__file__, numpy.__file__, torch.__file__, sep='\\n')"


def copy_tree(folder: Path) -> Path:
    """The package and the notebooks as a clone has them, so that no build leaves anything in the checkout."""
    for name in ("mythos_lite", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build_wheel(clone: Path, folder: Path) -> Path:
    pip("wheel", "--no-deps", "--wheel-dir", folder, clone)
    return next(folder.glob("*.whl"))


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]], check=True)


def installed() -> dict[str, str]:
    """Version by package, and of those to be kept what their every file is."""
    versions = {one.metadata["Name"]: one.version for one in distributions()}
    files = {name: distribution(name).read_text("RECORD") or "" for name in KEPT}
    return versions | {f"{name}'s files": hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}


def changed(before: dict[str, str]) -> dict[str, str | None]:
    after = installed()
    return {name: after.get(name) for name, _ in after.items() ^ before.items()}


def brings_the_package_alone(before: dict[str, str], how: str) -> None:
    if (brought := changed(before)).keys() != {"mythos-lite"}:
        sys.exit(f"{how} changed more than mythos-lite: {brought}")


def setup_cell(path: Path) -> str:
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.id == "setup")


def check_setup_cell(source: str, folder: Path, expected: Path, **environment: str) -> None:
    """Run a setup cell alone in a folder; the package must come from ``expected``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\n{PROBE}"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ready, package, *_ = [*done.stdout.splitlines(), "", ""]
    if done.returncode or not ready.endswith("is ready.") or expected not in Path(package).parents:
        sys.exit(f"the setup cell failed in {folder}:\n{done.stdout}{done.stderr}")


def check_repository(build, clone: Path, scratch: Path) -> None:
    """The setup cell installs the pinned commit of the repository that the manifest names, and nothing else."""
    git = ["git", "-C", clone, "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "right"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    (clone / "mythos_lite" / "__init__.py").write_text("raise SystemExit('not the pinned commit')")
    subprocess.run([*git, "commit", "--quiet", "--all", "--message", "later"], check=True)

    manifest = build.read_manifest() | {"repository": "someone/fork", "commit": commit}
    redirect = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/someone/fork",
    }
    before = installed()
    (folder := scratch / "repository").mkdir()
    check_setup_cell(build.shared_cells(manifest, 0)["setup"], folder, Path(sys.prefix), **redirect)
    brings_the_package_alone(before, "the setup cell")


def solve(path: Path) -> None:
    """Put the solution that a lesson shows for an exercise in the place of the stub, as a learner may."""
    notebook = nbformat.read(path, as_version=4)
    solutions = {cell.id: cell.source for cell in notebook.cells if cell.id.startswith("solution-")}
    for cell in notebook.cells:
        if cell.cell_type == "code" and (check := re.search(r"^\w+ = check\(\"([\d.]+)\".*$", cell.source, re.M)):
            solution = re.search(r"```python\n(.*)```", solutions[f"solution-{check[1].replace('.', '-')}"], re.S)[1]
            cell.source = f"{solution}\n\n{check[0]}"
    notebook.metadata["solved"] = True
    nbformat.write(notebook, path)


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Errors, warnings, comparisons that fail, verdicts that should be others, and figures without alternative text."""
    found, figures = [], 0
    unwanted = ("✗", "not done yet") if notebook.metadata.get("solved") else ("✗",)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{cell.id}: {output.get('text') or output.get('evalue')}")
            lines = output.get("text", "").splitlines()
            found += [f"{cell.id}: {line}" for line in lines if any(sign in line for sign in unwanted)]
            if "image/png" in output.get("data", {}):
                figures += 1
                if not output.metadata.get("image/png", {}).get("alt"):
                    found.append(f"{cell.id}: a figure has no alternative text")
    return found if figures else [*found, "no figure was saved"]


def execute(path: Path) -> tuple[str, float, list[str]]:
    """Run a notebook from its own folder and save it there: its name, seconds, and what is wrong with it."""
    started = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE, id="probe"))
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, allow_errors=True, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    nbformat.write(notebook, path)
    saved = nbformat.read(path, as_version=4)
    found = faults(saved)
    if not found:
        package, *kept = saved.cells[-1].outputs[0].text.splitlines()
        found += [f"{name} is not the environment's" for name in kept if Path(sys.prefix) not in Path(name).parents]
        found += ["the package is the checkout's"] if Path(package).parent == ROOT / "mythos_lite" else []
    found += [f"{one.name} was left behind" for one in path.parent.iterdir() if one != path]
    return path.stem, time.perf_counter() - started, found


def execute_all(folder: Path) -> int:
    """Run the notebooks of a folder, two at once, each from an empty folder of its own; how many failed."""
    print("network:", ", ".join(name for _, name in socket.if_nameindex()), flush=True)
    paths = []
    for source in sorted(folder.glob("*.ipynb"), reverse=True):  # the last lesson is the longest
        (alone := folder / source.stem).mkdir()
        paths.append(Path(shutil.move(source, alone)))
    failed = 0
    with ProcessPoolExecutor(2) as pool:
        for name, seconds, found in pool.map(execute, paths):
            print(f"{name:<26} {seconds:5.0f} s  {'; '.join(found) or 'right'}", flush=True)
            failed += bool(found)
    return failed


def run_apart(folder: Path, prefix: list[str], environment: dict[str, str]) -> None:
    """``execute_all`` as a command of its own, so that it can be run without a network."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", **environment}
    if subprocess.run([*prefix, sys.executable, __file__, "execute", folder], env=settings, check=False).returncode:
        sys.exit(1)


def network_off() -> tuple[list[str], dict[str, str]]:
    """What to put before a command and into its environment, and say which."""
    if shutil.which(OFFLINE[0]) and not subprocess.run([*OFFLINE, "true"], capture_output=True, check=False).returncode:
        print("in a network namespace of its own")
        return OFFLINE, {}
    print("with proxies that lead nowhere, since no network namespace is allowed here")
    return [], NOWHERE


def run_in_colab(scratch: Path) -> None:
    sys.path.insert(0, str(ROOT / "notebooks"))
    import build

    started = time.perf_counter()
    before = installed()
    if "mythos-lite" in before:  # of a run that was cut off
        pip("uninstall", "--yes", "mythos-lite")
        before = installed()
    clone = copy_tree(scratch / "clone")
    wheel = build_wheel(clone, scratch)
    try:
        print("Setup cells: in a clone", flush=True)
        for path in sorted((clone / "notebooks").glob("*.ipynb")):
            check_setup_cell(setup_cell(path), path.parent, clone)

        print("Whole lessons: the package from its wheel", flush=True)
        pip("install", "--no-index", wheel)
        brings_the_package_alone(before, "the wheel")
        shutil.copytree(clone / "notebooks", scratch / "wheel")
        (scratch / "wheel" / APPENDIX).unlink()  # Colab lacks its libraries
        run_apart(scratch / "wheel", [], {"CI": "1"})
        pip("uninstall", "--yes", "mythos-lite")

        build.write_standalone(build.read_manifest(), scratch / "standalone")
        (scratch / "standalone" / APPENDIX).unlink()
        for path in (scratch / "standalone").glob("*.ipynb"):
            solve(path)
        print("Whole lessons: standalone files, every exercise solved, ", end="", flush=True)
        prefix, environment = network_off()
        run_apart(scratch / "standalone", prefix, environment)

        print("Setup cell: from a repository", flush=True)
        check_repository(build, clone, scratch)
    finally:
        pip("uninstall", "--yes", "mythos-lite")
    if brought := changed(before):
        sys.exit(f"packages were changed: {brought}")
    print(f"All lessons are right with these versions; {time.perf_counter() - started:.0f} s")


def run_newest(scratch: Path, pattern: str = "0*.ipynb") -> None:
    site, notebooks = scratch / "site", scratch / "notebooks"
    pip("install", "--no-deps", "--target", site, build_wheel(copy_tree(scratch / "clone"), scratch))
    shutil.move(scratch / "clone" / "notebooks", notebooks)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    settings = {**os.environ, "PYTHONPATH": path, "CI": "1", "OMP_NUM_THREADS": "1"}
    check_setup_cell(setup_cell(next(notebooks.glob("01*.ipynb"))), notebooks, site, PYTHONPATH=path)
    for path in set(notebooks.glob("*.ipynb")) - set(notebooks.glob(pattern)):
        path.unlink()
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadscope"]
    sanitize = Path(__file__).with_name("sanitize.cfg")
    nbval = [*pytest, "--nbval", "--nbval-current-env", "--nbval-sanitize-with", sanitize, "."]
    sys.exit(subprocess.run(nbval, cwd=notebooks, env=settings, check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["colab", "newest", "appendix", "execute"])
    parser.add_argument("folder", nargs="?", type=Path, help='of "execute": the notebooks to run, in place')
    args = parser.parse_args()
    if args.what == "execute":
        sys.exit(execute_all(args.folder))
    with tempfile.TemporaryDirectory(prefix="lessons_") as scratch:
        runs = {"colab": run_in_colab, "newest": run_newest, "appendix": partial(run_newest, pattern=APPENDIX)}
        runs[args.what](Path(scratch).resolve())


if __name__ == "__main__":
    main()
