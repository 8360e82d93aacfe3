"""From records to tables and figures, on records made up by hand and on the committed ones."""

import io
import json
from pathlib import Path

import build
import figures
import matplotlib
import pytest
import tables
from matplotlib.image import imread
from pooling import accuracies_with_enough_loops, read_records, rows, summarise, worst_interval

from mythos_lite.lessons import summary
from mythos_lite.study.plan import STUDIES, chosen_runs
from mythos_lite.study.records import read_record

ROOT = Path(__file__).parents[2]


def made_up(run, share):
    """A record of ``run`` in which this share of the chains is right everywhere."""
    counts = [[n, t, s.n_chains, round(share * s.n_chains)] for s in run.sweeps for n in s.lengths for t in s.loops]
    provenance = {"seconds": {"training": 10.0, "training, CPU": 9.0, "sweep": 1.0}}
    return {
        **run.to_dict(),
        "n_parameters": 5,
        "counts": counts,
        "provenance": provenance,
        "radii": [[32, 0.5]],
        "residuals": [[64, 1e-6]],
        "gains": [[1, 0.5, 0.7], [8, 0.1, 0.2]],
    }


@pytest.fixture(scope="module")
def whole_plan():
    """The first two seeds of each rung, right on .4 and on .8 of the chains."""
    rungs: dict = {}
    for run in chosen_runs(study for study in STUDIES if study != "experiment"):
        rungs.setdefault((run.study, run.rung), []).append(run)
    records = [made_up(run, share) for runs in rungs.values() for run, share in zip(runs[:2], (0.4, 0.8), strict=False)]
    return summarise(sorted(records, key=lambda r: list(STUDIES).index(r["study"])))


def test_summary_pools_lengths_and_keeps_seeds_apart(whole_plan):
    entry = whole_plan["final"]["GQA with experts"]
    assert entry["seeds"] == [0, 1]
    assert entry["correct"]["6–8"]["8"] == [[6000, 15000], [12000, 15000]]
    assert summary.accuracies(entry, "2–5", 4) == [0.4, 0.8]
    assert accuracies_with_enough_loops(entry, "128") == [0.4, 0.8]
    assert set(entry["correct"]["6–8"]) == {"1", "2", "4", "6", "8", "16", "32", "64"}  # beyond, only 8 was asked
    assert "512" in entry["correct"]["8"]
    low, high = worst_interval(entry, "6–8", 8)
    assert low < 0.4 < high


def test_rows_take_all_seeds_together(whole_plan):
    found = rows(whole_plan["final"]["GQA with experts"], "6–8")
    assert [row["n_loops"] for row in found] == [1, 2, 4, 6, 8, 16, 32, 64]
    assert {(row["n_correct"], row["n_chains"]) for row in found} == {(18_000, 30_000)}
    assert {(row["low"], row["accuracy"], row["high"]) for row in found} == {(0.4, 0.6, 0.8)}  # from seed to seed
    dense = rows(whole_plan["final"]["GQA, dense"], "6–8")  # one seed, so an interval over its chains
    assert all(0.39 < row["low"] < 0.4 < row["high"] < 0.41 for row in dense)


def test_gain_counts_only_where_the_state_rests():
    (run,) = (run for run in STUDIES["final"][0](0) if run.rung == "GQA, dense")
    still = made_up(run, 1.0) | {"residuals": [[64, 0.0]]}
    restless = made_up(run, 1.0) | {"residuals": [[64, 1e-3]]}
    blown_up = made_up(run, 1.0) | {"residuals": [[64, None]]}
    first = {key: value for key, value in made_up(run, 1.0).items() if key != "gains"}
    entry = summarise([made_up(run, 1.0), still, restless, blown_up, first])["final"]["GQA, dense"]
    assert entry["gains"] == [0.2, 0.2, None, None, None]
    assert "| 0.2 (2 of 5 seeds) |" in tables._table("", {"": entry}, [("", tables._range_of("gains"))])


def test_gains_stand_beside_accuracy_and_runs_that_do_not_know_short_chains_apart():
    """Also where 3 to 5 digits were asked for 2 to 5; other tasks are left out, and tiny gains drawn at the edge."""
    runs = [run for name in ("ladder", "removal", "final") for run in STUDIES[name][0](0)]
    cure, *_ = (run for run in STUDIES["cures"][0](50) if run.rung.startswith("fixed"))
    parity, *_ = (run for run in STUDIES["cures"][0](50) if run.rung.startswith("parity"))
    records = [made_up(run, 0.98 if run.rung == "GQA, dense" else 0.995) for run in (*runs, parity)]
    records.append(made_up(cure, 0.995) | {"gains": [[8, 0.0, 1e-19]]})
    found = figures.gains_and_accuracies(summarise(records))
    full = [run for run in runs if run.model.window is None]
    assert {name: len(pairs) for name, pairs in found.items()} == {
        "window of 2": len(runs) - len(full), "full attention": len(full), figures.UNLEARNED: 1
    }  # fmt: skip
    assert {pair for pairs in found.values() for pair in pairs} == {(0.2, 0.995), (0.2, 0.98), (1e-7, 298 / 300)}


def test_question_asked_twice_counts_with_the_more_chains(whole_plan):
    assert whole_plan["final"]["GQA with experts"]["correct"]["128"]["128"][0] == [2000, 5000]


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_are_rectangular_and_show_mean_and_worst(name, whole_plan):
    lines = tables.TABLES[name](whole_plan).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) <= set("|- ")
    for line in lines[2:]:
        if name == "cost":  # eleven seconds a run
            runs, hours = map(float, line.split("|")[2:4])
            assert hours == pytest.approx(runs * 11 / 3600, abs=0.06)
        elif "GQA, dense" in line and name in ("rest", "spread"):  # one seed, so one value
            assert "| 0.400 |" in line
        elif name == "spread":
            assert line.endswith("| 0 of 2 | 0.400, 0.800 |")
        else:
            assert "0.600 (0.400)" in line or "0.4000 (0." in line


def test_ladder_ends_and_removal_begins_with_the_final_setting(whole_plan):
    assert "final" in tables.ladder_table(whole_plan).splitlines()[-1]
    assert "as it is" in tables.removal_table(whole_plan).splitlines()[2]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_have_titles_and_labels(name, whole_plan):
    axes = figures.FIGURES[name](whole_plan).axes
    assert any(one.get_title() or one.get_title("left") for one in axes)
    assert any(one.get_xlabel() for one in axes)


def test_how_far_draws_each_length_where_it_stands(whole_plan):
    """Mean over the seeds at 5, 8, … digits, as many loops as digits; 6–8 digits together are not those of 8."""
    entry = whole_plan["baselines"]["GRU"]
    entry["correct"]["8"]["1"] = [[1000, 5000], [2000, 5000]]
    (axes,) = figures.how_far(whole_plan).axes
    line = {one.get_label(): one for one in axes.lines}["GRU"]
    assert list(line.get_xdata()) == [5, 8, 16, 32, 64, 128]
    assert list(line.get_ydata()) == pytest.approx([0.6, 0.3, 0.6, 0.6, 0.6, 0.6])


def test_fewest_loops_are_those_from_which_on_every_seed_is_right(whole_plan):
    entry = whole_plan["doubling"]["sum modulo 7"]
    for loops, pairs in entry["correct"]["64"].items():
        pairs[:] = [[1000, 1000], [990 if int(loops) in (5, 7, 8, 9) else 400, 1000]]
    axes = figures.fewest_loops(whole_plan).axes[0]
    points = [
        zip(line.get_xdata(), line.get_ydata(), strict=True) for line in axes.lines if line.get_linestyle() == "None"
    ]
    assert [pair for pairs in points for pair in pairs] == [(64, 7)]


def test_ladder_figure_has_a_mean_and_every_seed_per_question(whole_plan):
    (axes,) = figures.what_is_needed(whole_plan).axes
    in_first_row = [list(line.get_xdata()) for line in axes.lines if abs(line.get_ydata()[0]) < 0.3][1:]
    assert in_first_row == [[0.4, 0.8], [pytest.approx(0.6)]] * 3


def test_passing_figure_has_a_map_a_seed(whole_plan):
    *panels, _ = figures.answers_pass(whole_plan).axes
    assert [axes.get_title() for axes in panels] == ["seed 0", "seed 1"]
    for axes, share in zip(panels, (0.4, 0.8), strict=True):
        (image,) = axes.images
        assert image.get_array().data == pytest.approx(share, abs=0.01)


def test_gain_figure_has_a_point_a_run(whole_plan):
    (axes,) = figures.errors_fade(whole_plan).axes
    drawn = {line.get_label(): len(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}
    assert drawn == {name: len(pairs) for name, pairs in figures.gains_and_accuracies(whole_plan).items() if pairs}


def test_record_that_the_plan_does_not_have_is_refused(tmp_path):
    record = made_up(STUDIES["tasks"][0](0)[0], 0.5) | {"rung": "sudoku"}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sudoku-seed0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="sudoku"):
        read_records(tmp_path)


def test_copy_of_a_record_does_not_count_twice(tmp_path):
    run = STUDIES["tasks"][0](0)[0]
    (tmp_path / "tasks").mkdir()
    for name in (f"{run.name}.json", "tasks/again.json"):
        (tmp_path / name).write_text(json.dumps(made_up(run, 0.5)))
    with pytest.raises(ValueError, match=rf"again.json holds the record of {run.name}; give it this name"):
        read_records(tmp_path)


def test_tables_and_shipped_summary_are_what_the_records_say():
    for path, content in build.built().items():
        assert path.read_bytes() == content, f"{path.name} is stale: run python results/build.py"


@pytest.mark.skipif(
    f"matplotlib=={matplotlib.__version__} " not in (ROOT / "constraints.txt").read_text(encoding="utf-8"),
    reason="the committed figures were drawn by the matplotlib of constraints.txt; another sets texts elsewhere",
)
def test_figures_are_what_the_records_say():
    """Up to what another processor's rounding may change of a pixel."""
    for path, content in build.drawn().items():
        shown, redrawn = imread(path), imread(io.BytesIO(content), format="png")
        stale = f"{path.name} is stale: run python results/build.py"
        assert shown.shape == redrawn.shape, stale
        assert abs(shown - redrawn).mean() < 1e-4, stale


def test_sources_of_the_records_have_a_commit():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "results" / "study").glob("*/*.json"):
        assert f"| `{read_record(path)['provenance']['source']}` |" in text, path.name


def test_every_table_has_its_place():
    text = "".join(path.read_text(encoding="utf-8") for path in build.DOCUMENTS)
    for name in tables.TABLES:
        assert f"<!-- study {name}: begin -->" in text, name
