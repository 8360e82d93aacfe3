"""A missing library."""

import json

import pytest

from mythos_lite.interop.extras import need


def test_a_library_that_is_there_is_imported():
    assert need("json") is json


def test_a_missing_library_is_named_with_the_line_that_installs_it():
    with pytest.raises(ImportError, match=r"no_such_library is needed .*: pip install no_such_library$"):
        need("no_such_library.part")


def test_what_a_library_misses_is_not_taken_for_the_library(tmp_path, monkeypatch):
    (tmp_path / "half_a_library.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'no_such_library'"):
        need("half_a_library")
