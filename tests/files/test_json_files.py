"""JSON that people may have edited: a sentence with the file's name, whatever is wrong with it."""

import pytest

from mythos_lite.files.json_files import read_json

FLAWS = {
    "not JSON": (b"{", "line 1"),
    "empty": (b"", "line 1"),
    "not text": (b"\xff", "can't decode"),
    "not a number": (b'{"n": NaN}', "it holds NaN, which is no number"),
    "infinite": (b'{"n": -Infinity}', "it holds -Infinity"),
    "nested too deeply": (b"[" * 100_000, "nested too deeply"),
    "a value is missing": (b"{}", "'n' is missing"),
    "laid out in another way": (b"[1]", "laid out in another way"),
    "nothing": (b"null", "laid out in another way"),
    "division": (b'{"n": 0}', "laid out in another way"),
    "refused": (b'{"n": -1}', "n is negative"),
}


def check(value):
    if value["n"] < 0:
        raise ValueError("n is negative")
    1 / value["n"]


@pytest.mark.parametrize(("content", "flaw"), FLAWS.values(), ids=FLAWS)
def test_a_file_with_a_flaw_is_a_sentence_with_its_name(content, flaw, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is not a thing: .*{flaw}"):
        read_json(path, "a thing", check)


def test_a_file_without_one_is_its_value(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"n": 3, "ä": [null]}', encoding="utf-8")
    assert read_json(path, "a thing", check) == {"n": 3, "ä": [None]}


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_an_oserror_with_its_name(name, tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path}"):
        read_json(tmp_path / name, "a thing", check)
