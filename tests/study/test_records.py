"""Records on disk: which are read, which are refused and how, and when two agree."""

import re
from pathlib import Path

import pytest
from tiny import LOOPED, copy_of, put

from mythos_lite.__main__ import main
from mythos_lite.study import plan, workers
from mythos_lite.study.records import disagreements, find_record, grouped_rows, read_record, rows_of


def test_groups_are_the_lengths_of_each_sweep_together(record):
    groups = grouped_rows(record)
    assert {name: [row["n_loops"] for row in rows] for name, rows in groups.items()} == {
        "2–3 digits": [1, 4],
        "6 digits": [8],
    }
    of_two = [row for row in rows_of(record) if row["n_loops"] == 4 and row["n_digits"] < 6]
    assert groups["2–3 digits"][1]["n_correct"] == sum(row["n_correct"] for row in of_two)


def test_disagreement_is_where_intervals_do_not_overlap(record):
    assert disagreements(record, record) == []
    other = copy_of(record)
    row = other["counts"][-1]
    row[3] = 10 if row[3] < 5 else 0
    (line,) = disagreements(record, other)
    assert line.startswith("+ tiny, quick, seed 0, 6 digits at 8 loops: ")


def test_disagreement_is_between_rows_that_were_asked_the_same(record):
    counts = [[2, 1, 20, 0], [2, 4, 20, 20], [2, 4, 10, 5]]
    one = copy_of(record, counts=counts)
    assert disagreements(one, copy_of(record, counts=counts[::-1])) == []
    swapped = copy_of(record, counts=[[2, 4, 20, 0], [2, 1, 20, 20], [2, 4, 10, 5]])
    assert [line.partition(": ")[0] for line in disagreements(one, swapped)] == [
        "+ tiny, quick, seed 0, 2 digits at 1 loops", "+ tiny, quick, seed 0, 2 digits at 4 loops"
    ]  # fmt: skip
    assert disagreements(one, copy_of(record, counts=counts[:2])) == [
        "+ tiny, quick, seed 0, 2 digits at 4 loops: only one of the two was asked 10 chains"
    ]
    assert len(disagreements(one, copy_of(record, counts=[]))) == 3


def with_row(index, *row):
    return lambda record: record["counts"].__setitem__(index, list(row))


def without(*path):
    def change(record):
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return change


DAMAGES = {
    "no rows": (lambda record: record.update(counts=[]), "its sweeps ask for 5 rows of counts, and it has 0"),
    "a row less": (without("counts", 4), "5 rows of counts, and it has 4"),
    "a row more": (lambda record: record["counts"].append([6, 8, 10, 0]), "5 rows of counts, and it has 6"),
    "nothing asked": (lambda record: record.update(counts=[], sweeps=[]), "ask for 0 rows"),
    "other order": (lambda record: record["counts"].reverse(), "2 digits at 1 loops where it has 6 at 8"),
    "too many right": (with_row(0, 2, 1, 10, 11), "n_correct=11"),
    "negative": (with_row(0, 2, 1, 10, -1), "n_correct=-1"),
    "negative chains": (with_row(0, 2, 1, -10, -1), "n_chains=-10"),
    "more chains than asked": (with_row(0, 2, 1, 10**6, 1), "n_chains=1000000"),
    "chains beyond floats": (lambda r: (r["sweeps"][0].update(n_chains=10**400), with_row(0, 2, 1, 10**400, 1)(r)), ""),
    "not a number": (with_row(0, 2, 1, 10, float("nan")), "it holds NaN"),
    "share": (with_row(0, 2, 1, 10, 0.5), "n_correct=0.5"),
    "text": (with_row(0, 2, 1, "10", 0), "n_chains='10'"),
    "true": (with_row(0, 2, True, 10, 0), "n_loops=True"),
    "short row": (with_row(0, 2, 1, 10), "expected 4, got 3"),
    "rows are numbers": (lambda record: record.update(counts=[1] * 5), "laid out in another way"),
    "no provenance": (without("provenance"), "'provenance' is missing"),
    "no seconds": (without("provenance", "seconds", "sweep"), "'sweep' is missing"),
    "seconds are text": (lambda record: record["provenance"]["seconds"].update(sweep="1"), "sweep='1'"),
    "no parameters": (without("n_parameters"), "'n_parameters' is missing"),
    "no task": (without("task"), "'task' is missing"),
    "unknown study": (lambda record: record.update(study=["ladder"]), "study="),
    "seed is text": (lambda record: record.update(seed="0"), "seed='0'"),
    "radii are text": (lambda record: record.update(radii=[[32, "0.5"]]), "radii='0.5'"),
    "gains of two columns": (lambda record: record.update(gains=[[8, 0.5]]), "columns of gains=1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record_is_refused_in_a_sentence_with_its_name(damage, record, tmp_path, monkeypatch, capsys):
    change, message = DAMAGES[damage]
    spoilt = copy_of(record)
    change(spoilt)
    path = put(spoilt, tmp_path)
    monkeypatch.setitem(plan.STUDIES, "ladder", (lambda seed: [LOOPED], (0,)))
    monkeypatch.setattr(workers, "_Worker", None)
    sentence = rf"{re.escape(str(path))} is not the record of a run: .*{re.escape(message)}"
    for read in (lambda: read_record(path), lambda: find_record(LOOPED, tmp_path)):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            read()
    assert main(["study", "ladder", "--results", str(tmp_path)]) == 2
    assert re.fullmatch(f"error: {sentence}.*; remove the file, or .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b'{"counts": 3}', b'{"counts": []}', b"\xff", b"[" * 100_000],
)
def test_file_that_holds_no_record_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not the record of a run: "):
        read_record(tmp_path / "x.json")


def test_record_that_cannot_be_read_is_an_error_with_its_name(record, tmp_path, monkeypatch):
    (tmp_path / f"{LOOPED.name}.json").mkdir(parents=True)
    with pytest.raises(OSError, match=f"{LOOPED.name}.json"):
        find_record(LOOPED, tmp_path)

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match=f"Input/output error: .*{LOOPED.name}.json"):
        find_record(LOOPED, tmp_path)
