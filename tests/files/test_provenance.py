"""Where a number comes from: which source, which commit, and that asking never fails."""

import subprocess

import pytest
import torch

from mythos_lite.files import provenance as files
from mythos_lite.files.provenance import git_version, provenance, source_hash


def git(folder, *arguments):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    return subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules and a room."""
    package = tmp_path / "checkout" / "package"
    (package / "room").mkdir(parents=True)
    for name in ("one.py", "other.py", "room/three.py"):
        (package / name).write_text(f"# {name}\n")
    monkeypatch.setattr(files, "PACKAGE", package)
    return package


def test_a_record_says_where_its_numbers_come_from():
    record = provenance(["python", "-m", "a b"], "0123", torch.device("cpu"), {"training": 1.26})
    assert record["command"] == "python -m 'a b'"
    assert record["seconds"] == {"training": 1.3}
    assert record["git"] == git_version()
    assert record["cpu"]
    assert record.keys() == {
        "command", "source", "git", "python", "torch", "numpy", "cpu", "threads", "device", "seconds"
    }  # fmt: skip


def test_the_hash_is_of_all_python_files_or_of_the_parts_asked_for(package):
    whole, part = source_hash(), source_hash("one.py", "room/")
    assert len(whole) == 16
    assert whole != part
    (package / "other.py").write_text("# edited\n")
    assert source_hash() != whole
    assert source_hash("one.py", "room/") == part
    (package / "room" / "three.py").write_text("# edited\n")
    assert source_hash("one.py", "room/") != part


def test_the_commit_is_that_of_the_checkout_and_says_whether_it_was_edited(package):
    checkout = package.parent
    assert git_version() is None  # before there is any
    git(checkout, "init")
    assert git_version() is None  # before its first commit
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    commit = git(checkout, "rev-parse", "--short", "HEAD").strip()
    assert git_version() == commit
    (package / "one.py").write_text("# edited\n")
    assert git_version() == f"{commit}-dirty"


def test_a_package_that_is_installed_inside_another_checkout_has_no_commit(package, monkeypatch):
    git(package.parent.parent, "init")
    git(package.parent.parent, "commit", "--allow-empty", "-m", "of something else")
    assert git_version() is None
    monkeypatch.setenv("GIT_DIR", str(package.parent.parent / ".git"))
    assert git_version() is None


def test_without_git_there_is_no_commit(package, monkeypatch, tmp_path):
    git(package.parent, "init")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_version() is None
