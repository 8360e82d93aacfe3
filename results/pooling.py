"""From records to the summary that ships with the package; its form is described in ``mythos_lite.lessons.summary``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mythos_lite.lessons.summary import accuracies
from mythos_lite.measure.sweep import make_row, wilson_interval
from mythos_lite.study.plan import STUDIES
from mythos_lite.study.records import read_record
from mythos_lite.study.run import Run

AT_REST = 1e-5
"""Median residual at EQ below which a run counts as at rest: a gain is about a state that stays where it is. Earlier
tokens may move more: in ``mod7-experts`` START goes round for ever, and its neighbours a little with it."""
ENOUGH_LOOPS = {"2–5": 4, "3–5": 4, "5": 4, "6–8": 8, "8": 8, "16": 16, "32": 32, "64": 64, "128": 128}
"""Groups of lengths that most studies ask, with loops that are enough for them."""
_GROUPS = {"2–5": (2, 3, 4, 5), "3–5": (3, 4, 5), "6–8": (6, 7, 8)}


def read_records(folder: Path) -> list[dict]:
    """Every record below ``folder``, in the order of the plan and of the seeds.

    Raises:
        ValueError: for a file that is no record, or the record of another run than its name says, or of one that is
            not in the plan as it is now.
        OSError: for a file that cannot be read.
    """
    order = {(study, run.rung): i for study in STUDIES for i, run in enumerate(STUDIES[study][0](0))}
    records = []
    for path in sorted(folder.glob("*/*.json")):
        record = read_record(path)
        held = Run.from_dict(record)
        names = [run.name for run in STUDIES[held.study][0](held.seed) if run == held]
        if not names:
            raise ValueError(f"{path} is not the record of a run that the plan has now; remove it")
        if path != folder / f"{names[0]}.json":  # a copy would let its seed count twice
            raise ValueError(f"{path} holds the record of {names[0]}; give it this name, or remove it")
        records.append(record)
    studies = list(STUDIES)
    return sorted(records, key=lambda r: (studies.index(r["study"]), order[r["study"], r["rung"]], r["seed"]))


def summarise(records: Iterable[dict]) -> dict:
    """Records, in order, → summary."""
    summary: dict = {}
    for record in records:
        new = {
            "seeds": [], "n_parameters": record["n_parameters"], "seconds": [], "cpu_seconds": [], "errors": [],
            "radii": [], "residuals": [], "gains": [], "correct": {},
        }  # fmt: skip
        entry = summary.setdefault(record["study"], {}).setdefault(record["rung"], new)
        entry["seeds"].append(record["seed"])
        took = record["provenance"]["seconds"]
        entry["seconds"].append(round(took["training"] + took["sweep"]))
        whole_on_cpu = record["provenance"].get("device", "cpu") == "cpu" and not record.get("resumed")
        entry["cpu_seconds"].append(took.get("training, CPU") if whole_on_cpu else None)
        entry["errors"] += [record["error"]] if "error" in record else []
        for name, n_loops in (("radii", 32), ("residuals", 64)):
            entry[name].append(dict(record.get(name, [])).get(n_loops))
        residual = entry["residuals"][-1]
        rests = residual is not None and residual < AT_REST
        gains = {k: highest for k, _, highest in record.get("gains", [])}
        entry["gains"].append(gains.get(8) if rests else None)
        pooled: dict = {}
        asked = {n_digits for n_digits, *_ in record["counts"]}
        for n_digits, n_loops, n_chains, n_correct in record["counts"]:
            for group in _groups_of(n_digits, asked):
                pairs = pooled.setdefault(group, {}).setdefault(str(n_loops), {})
                if n_chains > pairs.get(n_digits, (0, 0))[1]:  # the larger of two questions alike
                    pairs[n_digits] = (n_correct, n_chains)
        for group, loops in pooled.items():
            for n_loops, by_length in loops.items():
                if len(by_length) < max(len(other) for other in loops.values()):
                    continue  # not asked of all lengths of the group
                total = [sum(pair[i] for pair in by_length.values()) for i in (0, 1)]
                entry["correct"].setdefault(group, {}).setdefault(n_loops, []).append(total)
    return summary


def _groups_of(n_digits: int, asked: set[int]) -> list[str]:
    """Names of the groups that a length counts in: the widest that was asked as a whole, and itself."""
    whole = [name for name, lengths in _GROUPS.items() if asked.issuperset(lengths) and n_digits in lengths]
    return [*whole[:1], str(n_digits)]


def worst_interval(entry: dict, group: str, n_loops: int) -> tuple[float, float]:
    """95 % interval of the worst seed's accuracy."""
    return wilson_interval(*min(entry["correct"][group][str(n_loops)], key=lambda pair: pair[0] / pair[1]))


def accuracies_with_enough_loops(entry: dict, group: str) -> list[float]:
    """One accuracy per seed; of a model without loops, as it is."""
    return accuracies(entry, group, 1 if list(entry["correct"][group]) == ["1"] else ENOUGH_LOOPS[group])


def rows(entry: dict, group: str) -> list[dict]:
    """Rows of a group, one per loop count, as ``measure.sweep`` makes them.

    Of several seeds: their chains together, and as interval the lowest and the highest seed, which lie further apart
    than chains alone would make them.
    """
    found = []
    for n_loops, pairs in sorted(entry["correct"][group].items(), key=lambda item: int(item[0])):
        row = make_row(group, int(n_loops), *map(sum, zip(*pairs, strict=True)))
        if len(pairs) > 1:
            shares = accuracies(entry, group, int(n_loops))
            row |= {"low": min(shares), "high": max(shares)}
        found.append(row)
    return found
