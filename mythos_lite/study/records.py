"""Records on disk: one file a run, ``STUDY/RUNG-seedN.json``, checked whenever it is read."""

from collections.abc import Sequence
from pathlib import Path

from mythos_lite.checks import check_choice, check_int, check_number
from mythos_lite.files.json_files import read_json
from mythos_lite.measure.sweep import make_row, pool, wilson_interval
from mythos_lite.study.plan import STUDIES
from mythos_lite.study.run import Run


def read_record(path: Path) -> dict:
    """A record; errors are those of ``read_json``, for what ``check_record`` refuses too."""
    return read_json(path, "the record of a run", check_record)


def check_record(record: dict) -> None:
    """Refuse what ``execute`` does not give; the rows of counts are those that the record's own sweeps ask for.

    Raises:
        ValueError: for values that cannot be.
        KeyError, TypeError: for values that are missing, or laid out in another way.
    """
    check_choice("study", record["study"], tuple(STUDIES))
    run = Run.from_dict(record)
    check_int("n_parameters", record["n_parameters"], 1)
    asked = [(n, t, s.n_chains) for s in run.sweeps for n in s.lengths for t in s.loops]
    if not asked or len(record["counts"]) != len(asked):
        raise ValueError(f"its sweeps ask for {len(asked)} rows of counts, and it has {len(record['counts'])}")
    for (n_digits, n_loops, n_chains, n_correct), (n, t, most) in zip(record["counts"], asked, strict=True):
        check_int("n_digits", n_digits, 1)
        check_int("n_loops", n_loops, 1)
        if (n_digits, n_loops) != (n, t):
            raise ValueError(f"its sweeps ask for {n} digits at {t} loops where it has {n_digits} at {n_loops}")
        check_int("n_chains", n_chains, 1, most)
        check_int("n_correct", n_correct, 0, n_chains)
    rows_of(record)
    for name, columns in (("radii", 1), ("residuals", 1), ("gains", 2)):
        for at, *measured in record.get(name, []):
            check_int(name, at, 1)
            check_int(f"columns of {name}", len(measured), columns, columns)
            for value in measured:
                if value is not None:
                    check_number(name, value, 0.0)
    took = record["provenance"]["seconds"]
    for name in {"training", "sweep", *took}:
        check_number(name, took[name], 0.0)


def rows_of(record: dict) -> list[dict]:
    """The counts as rows with accuracy and 95 % interval."""
    return [make_row(n_digits, n_loops, correct, chains) for n_digits, n_loops, chains, correct in record["counts"]]


def grouped_rows(record: dict) -> dict[str, list[dict]]:
    """The rows of each sweep with its lengths pooled, under the name that tables and figures use."""
    rows, groups = rows_of(record), {}
    for asked in record["sweeps"]:
        n = len(asked["lengths"]) * len(asked["loops"])
        own, rows = rows[:n], rows[n:]
        pooled = pool(own, asked["lengths"])
        groups.setdefault(f"{pooled[0]['n_digits']} digits", []).extend(pooled)
    return groups


def find_record(run: Run, results: Path) -> dict | None:
    """The run's record in ``results``, if it is there; ``ValueError`` if it is damaged, or of another configuration."""
    path = results / f"{run.name}.json"
    what_now = "remove the file, or choose another folder"
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        raise ValueError(f"{error}; {what_now}") from error
    if Run.from_dict(record) != run:
        raise ValueError(f"{path} holds this run with another configuration; {what_now}")
    return record


def check_together(records: Sequence[dict], names: Sequence[str]) -> None:
    """``ValueError`` if records cannot stand in one table: a run twice, or a rung that was asked in two ways.

    ``names`` say what the message calls them, such as their files.
    """
    runs: dict = {}
    sweeps: dict = {}
    for name, record in zip(names, records, strict=True):
        rung, seed = record["rung"], record["seed"]
        if other := runs.get((rung, seed)):
            raise ValueError(f"{other} and {name} are both {rung}, seed {seed}; give each run once")
        runs[rung, seed] = name
        other, asked = sweeps.setdefault(rung, (name, record["sweeps"]))
        if record["sweeps"] != asked:
            raise ValueError(f"{other} and {name}, both {rung}, were swept over different lengths or loops")


def disagreements(record: dict, other: dict) -> list[str]:
    """Where two records of a run were not asked the same, or their intervals do not overlap, in words.

    The intervals are so wide that all of a record's hold its true values with a chance of 95 % (Bonferroni):
    otherwise two honest runs would disagree somewhere among dozens of rows.
    """
    ours, theirs = (
        {(row["n_digits"], row["n_loops"], row["n_chains"]): row for row in rows_of(one)} for one in (record, other)
    )
    confidence = 1 - 0.05 / max(1, len(ours.keys() & theirs.keys()))
    found = []
    for question in sorted(ours.keys() | theirs.keys()):
        n_digits, n_loops, n_chains = question
        where = f"{record['rung']}, seed {record['seed']}, {n_digits} digits at {n_loops} loops"
        if question not in ours or question not in theirs:
            found.append(f"{where}: only one of the two was asked {n_chains} chains")
            continue
        a, b = ours[question], theirs[question]
        (low, high), (other_low, other_high) = (
            wilson_interval(row["n_correct"], row["n_chains"], confidence) for row in (a, b)
        )
        if low > other_high or other_low > high:
            found.append(f"{where}: {a['accuracy']:.3f}, {b['accuracy']:.3f}")
    return found
