"""Colab's versions beside those that its test runs with and those of constraints.txt.

    python tests/colab/versions.py [pip-freeze.txt]

To be run by the interpreter of Colab's test, whose packages it reads; `make colab-versions` does. Ends with 1 where
the test runs with another version than the list asks for, and, given a newer list of Colab's, where a pin is out of
date or missing. (On Python 3.11, which no Colab has, the list asks for another torch than Colab's.)
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
LIST = HERE / "colab.txt"
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
COLAB = {"python_version": "3.13", "python_full_version": "3.13.0"}
"""What Colab's own interpreter says to a marker."""
TOOLS = {"pip", "mythos-lite"}
"""Installed beside the list, whatever it says."""


def read_versions(path: Path, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Version by package of a list of pins or of what ``pip freeze`` prints, as an interpreter reads its markers."""
    versions = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # a comment, or an option of pip
        if requirement.marker is None or requirement.marker.evaluate(environment):
            wheel = re.search(r"/[^/]+?-([^-/]+)-[^/]*\.whl$", requirement.url or "")
            version = wheel[1] if wheel else "".join(one.version for one in requirement.specifier)
            versions[canonicalize_name(requirement.name)] = public(version.replace("%2B", "+"))
    return versions


def public(version: str) -> str:
    """Without the part that only says how it was built, as in 2.11.0+cpu."""
    return version.partition("+")[0]


def compare(colab: dict, asked: dict, tested: dict, constraints: dict) -> tuple[list[str], list[str]]:
    """A table of versions by package, and where those tested are not those that the list asks of this interpreter."""
    rows = [f"{'package':<26} {'Colab':<14} {'tested':<14} constraints.txt"]
    for name, version in colab.items():
        rows.append(f"{name:<26} {version:<14} {tested.get(name, 'none'):<14} {constraints.get(name, 'none')}")
    faults = [
        f"{name} was tested with {tested.get(name, 'none')}, and the list asks for {version}"
        for name, version in asked.items()
        if tested.get(name) != version
    ]
    return rows, faults


def outdated(pinned: dict[str, str], tested: dict[str, str], freeze: dict[str, str]) -> list[str]:
    """Where a newer list of Colab's says something else than the pins, or has what is tested and not pinned."""
    faults = [
        f"{name} is pinned at {version}, and Colab has {freeze.get(name, 'none')}"
        for name, version in pinned.items()
        if freeze.get(name) != version
    ]
    loose = sorted(tested.keys() & freeze.keys() - pinned.keys() - TOOLS)
    return [*faults, *(f"{name} is not pinned, and Colab has {freeze[name]}" for name in loose)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("freeze", nargs="?", type=Path, metavar="pip-freeze.txt", help="a newer list of Colab's")
    args = parser.parse_args()
    tested = {canonicalize_name(one.metadata["Name"]): public(one.version) for one in distributions()}
    colab = read_versions(LIST, COLAB)
    rows, faults = compare(colab, read_versions(LIST), tested, read_versions(CONSTRAINTS))
    if args.freeze:
        faults += outdated(colab, tested, read_versions(args.freeze))
    print(f"Python {platform.python_version()}", *rows, *faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
