"""The command line, run in process on a recipe of a few steps."""

import dataclasses
import functools
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mythos_lite
from mythos_lite import ModelConfig, RecurrentDepthTransformer, TrainConfig
from mythos_lite.__main__ import build_parser, main
from mythos_lite.checks import NonFiniteError
from mythos_lite.files.checkpoint import open_checkpoint
from mythos_lite.files.provenance import source_hash
from mythos_lite.lessons import grading
from mythos_lite.measure.sweep import sweep
from mythos_lite.study import experiment, plan, run
from mythos_lite.study.plan import experiment_run
from mythos_lite.study.records import rows_of
from mythos_lite.study.report import seed_tables
from mythos_lite.study.workers import MOST_AT_ONCE
from mythos_lite.task.chains import ChainTask
from mythos_lite.training import recipes, trainer
from mythos_lite.training.recipes import Recipe, Sweep

FIGURES = ["loop_scaling.png", "loops_by_length.png", "stability.png"]
FILES = sorted(["config.json", "metrics.jsonl", "model.safetensors", "sweep.json", *FIGURES])
TINY = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, d_ff=16)
SWEEPS = tuple(Sweep(lengths=group, loops=(1, 2, 4), n_chains=20) for group in ((2, 3), (4,)))
TRAIN = TrainConfig(steps=8, batch_size=8, max_digits=3, log_every=2, checkpoint_every=2, warmup_steps=2)
TINY_RECIPE = Recipe(help="a tiny one", model=TINY, train=TRAIN, sweeps=SWEEPS)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "fixed", TINY_RECIPE)
        patch.setattr(plan, "QUICK_STEPS", 4)
        patch.setattr(
            plan,
            "mod7_moe_model",
            lambda: dataclasses.replace(TINY, n_experts=2, n_experts_per_token=1, d_expert=8),
        )
        patch.setenv("CI", "1")
        yield


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run of seed 0; only looked at."""
    folder = tmp_path_factory.mktemp("finished")
    assert call("--out", folder) == 0
    return folder


def call(*arguments):
    return main(["experiment", "--threads", "1", *map(str, arguments)])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def result_in(folder):
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def same_weights(one, other):
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt(monkeypatch, error, step=4):
    """Let training fail with ``error`` at the record of ``step``, before that step is saved."""

    def on_record(record):
        if record["step"] == step:
            raise error

    monkeypatch.setattr(run, "train", functools.partial(run.train, on_record=on_record))


# ---------------------------------------------------------------- what a run leaves


def test_quick_run_writes_its_five_files_where_no_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("--quick") == 0
    assert sorted(contents(tmp_path / "runs" / "fixed-quick-seed0")) == FILES
    captured = capsys.readouterr()
    assert "means nothing" in captured.out
    assert captured.err == ""
    assert len((tmp_path / "runs/fixed-quick-seed0/metrics.jsonl").read_text().splitlines()) == 2


def test_quick_run_warms_up_and_is_saved_in_its_few_steps(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt())
        assert call("--quick", "--out", tmp_path) == 130
    assert (tmp_path / "training.safetensors").exists()
    assert call("--quick", "--out", tmp_path) == 0
    train = result_in(tmp_path)["train"]
    assert [train[name] for name in ("steps", "warmup_steps", "checkpoint_every", "log_every")] == [4, 1, 1, 2]


def test_run_prints_its_table_and_chart_and_names_its_files(tmp_path, capsys):
    assert call("--out", tmp_path) == 0
    out = capsys.readouterr().out
    result = result_in(tmp_path)
    for name in ("2–3 digits", "4 digits", "accuracy on 4 digits by loops", "chance 0.143", "← loops in training"):
        assert name in out
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert f"final loss {records[-1]['loss']:.4f}" in out
    assert str(tmp_path) in out
    assert all(name in out for name in FILES)
    four_digits = [row["accuracy"] for row in rows_of(result) if row["n_digits"] == 4]
    table_line = next(line for line in out.splitlines() if line.startswith("4 digits"))
    assert table_line.split()[2:] == [f"{accuracy:.3f}" for accuracy in four_digits]


def test_files_of_a_run_fit_together(finished):
    assert sorted(contents(finished)) == FILES
    result = result_in(finished)
    model = RecurrentDepthTransformer.from_pretrained(finished)
    assert model.config == TINY
    assert rows_of(result) == sweep(model, ChainTask(), (2, 3, 4), (1, 2, 4), n_chains=20, seed=0)
    expected = experiment_run("fixed", 0)
    assert (expected.model, expected.train, expected.sweeps) == (TINY, TRAIN, SWEEPS)
    assert open_checkpoint(finished).notes == expected.to_dict()
    assert {name: result[name] for name in expected.to_dict()} == expected.to_dict()
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert [point[0] for point in result["curve"]] == [2, 4, 6, 8]
    assert result["curve"][-1][1] == pytest.approx(records[-1]["loss"], rel=1e-3)
    assert (finished / "loop_scaling.png").read_bytes().startswith(b"\x89PNG")


def test_result_says_where_it_comes_from(finished):
    result = result_in(finished)
    found = result["provenance"]
    assert found.keys() == {
        "command", "source", "git", "python", "torch", "numpy", "cpu", "threads", "device", "seconds"
    }  # fmt: skip
    assert (found["source"], found["torch"], found["threads"]) == (source_hash(), torch.__version__, 1)
    assert found["device"] == "cpu" or torch.cuda.is_available()
    assert found["seconds"].keys() == {"training", "training, CPU", "sweep"}
    assert found["cpu"]


@pytest.mark.parametrize("flags", [[], ["--quick"], ["--experts", "--quick"], ["--seed", "5"]])
def test_recorded_command_gives_the_same_run_again(flags, tmp_path):
    assert call("--out", tmp_path, *flags) == 0
    result = result_in(tmp_path)
    program, *arguments = shlex.split(result["provenance"]["command"])
    assert program.startswith("python")
    assert arguments[:2] == ["-m", "mythos_lite"]
    again = build_parser().parse_args(arguments[2:])
    assert (again.command, again.recipe, again.seed) == ("experiment", "fixed", result["seed"])
    assert (again.experts, again.quick) == ("--experts" in flags, "--quick" in flags)


def test_run_with_experts_has_them_and_their_shares(tmp_path):
    assert call("--experts", "--out", tmp_path) == 0
    result = result_in(tmp_path)
    assert RecurrentDepthTransformer.from_pretrained(tmp_path).config.n_experts == result["model"]["n_experts"] == 2
    assert [sum(shares) for shares in result["expert_shares"]] == pytest.approx([1.0] * 4, abs=0.01)


def test_same_command_may_run_again_says_so_and_gives_the_same(finished, tmp_path, capsys):
    warning = f"{tmp_path} holds this run, finished; it is trained again and replaced\n"
    for again in (False, True):
        assert call("--out", tmp_path) == 0
        assert capsys.readouterr().out.startswith(warning) == again
    assert same_weights(finished, tmp_path)
    assert result_in(tmp_path)["counts"] == result_in(finished)["counts"]
    for name in ("config.json", "metrics.jsonl", "loop_scaling.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("flags", [["--seed", "1"], ["--quick"], ["--experts"], ["--recipe", "hold"]])
def test_folder_of_another_run_is_refused_and_left_alone(flags, finished, capsys):
    before = contents(finished)
    assert call("--out", finished, *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "another run (recipe fixed, seed 0)" in captured.err
    assert captured.out == ""
    assert contents(finished) == before


def test_folder_of_the_same_recipe_with_another_model_is_refused_and_left_alone(finished, monkeypatch, capsys):
    changed = dataclasses.replace(TINY, state_activation="none")
    monkeypatch.setitem(recipes.RECIPES, "fixed", dataclasses.replace(TINY_RECIPE, model=changed))
    before = contents(finished)
    assert call("--out", finished) == 2
    assert "another run (recipe fixed, seed 0): its model is" in capsys.readouterr().err
    assert contents(finished) == before


def test_folder_of_another_run_that_is_not_finished_is_refused_and_left_alone(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt())
        assert call("--out", tmp_path) == 130
    before = contents(tmp_path)
    capsys.readouterr()
    assert call("--out", tmp_path, "--seed", "1") == 2
    assert "another run" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--recipe", "nonsense"], r"recipe='nonsense'.*'fixed', 'hold', 'published'"),
        (["--recipe", "published", "--experts"], r"recipe='published' already has experts"),
        (["--device", "toaster"], r"device='toaster'.*auto, cpu or cuda"),
        (["--device", "meta"], r"device='meta' is not supported"),
        (["--threads", "0"], r"threads=0"),
        (["--threads", "-1"], r"threads=-1"),
        (["--threads", "100000"], rf"threads=100000 is not possible.* {MOST_AT_ONCE} at most"),
        (["--seed", "-1"], r"seed=-1"),
        (["--seed", str(2**32)], rf"seed={2**32}"),
        (["--out", ""], r"out='' is not possible: name a folder"),
        (["--out", "file"], r"'file' is a file"),
        (["--out", "file/below"], r"cannot write into this folder.*file/below"),
        (["--out", "foreign"], r"foreign holds files that are not a finished run.*foreign"),
    ],
)
def test_impossible_request_ends_with_code_2_and_writes_nothing(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    before = contents(tmp_path)
    assert call(*flags) == 2
    captured = capsys.readouterr()
    assert re.match(f"error: .*{named}", captured.err)
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device_is_refused(tmp_path, capsys):
    assert call("--device", "cuda", "--out", tmp_path / "run") == 2
    assert "sees 0 CUDA devices" in capsys.readouterr().err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("arguments", [[], ["bake"], ["experiment", "--sead", "1"], ["experiment", "--seed", "x"]])
def test_arguments_that_cannot_be_parsed_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


# ---------------------------------------------------------------- interruptions


def test_interrupted_run_says_so_and_the_same_command_goes_on(finished, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt())
        assert call("--out", tmp_path) == 130
    assert "same command goes on" in capsys.readouterr().err
    assert sorted(contents(tmp_path)) == ["metrics.jsonl.part", "training.safetensors"]

    first_steps = []
    batch_at = trainer.StepStream.at
    monkeypatch.setattr(trainer.StepStream, "at", lambda self, step: first_steps.append(step) or batch_at(self, step))
    assert call("--out", tmp_path) == 0
    assert first_steps == list(range(2, 8))
    assert sorted(contents(tmp_path)) == FILES
    assert same_weights(finished, tmp_path)
    assert result_in(tmp_path)["counts"] == result_in(finished)["counts"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_run_interrupted_before_its_first_checkpoint_says_that_nothing_was_saved(tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, KeyboardInterrupt(), step=2)
    assert call("--out", tmp_path) == 130
    assert capsys.readouterr().err == "\ninterrupted; nothing had been saved yet\n"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_run_that_is_ended_says_what_is_saved(tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        monkeypatch.setattr(
            run, "train",
            functools.partial(run.train, on_record=lambda record: os.kill(os.getpid(), signal.SIGTERM)),
        )  # fmt: skip
        assert call("--out", tmp_path) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "\ninterrupted; nothing had been saved yet\n"


def test_error_of_the_system_names_the_folder_where_it_does_not_itself(tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, OSError(28, "No space left on device"))
    assert call("--out", tmp_path) == 2
    assert capsys.readouterr().err == f"error: [Errno 28] No space left on device: '{tmp_path}'\n"


def test_figure_that_cannot_be_drawn_is_a_line_and_loses_no_number(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no font\nand more")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    assert call("--out", tmp_path) == 2
    assert capsys.readouterr().err == "error: the figures cannot be drawn: no font\n"
    assert rows_of(result_in(tmp_path))
    assert main(["table", str(tmp_path / "sweep.json")]) == 0


def test_run_that_fails_after_training_does_not_train_again(finished, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "figures", full)
        assert call("--out", tmp_path) == 2
    assert "error: no space left" in capsys.readouterr().err
    monkeypatch.setattr(trainer.StepStream, "at", None)
    assert call("--out", tmp_path) == 0
    assert sorted(contents(tmp_path)) == FILES
    assert same_weights(finished, tmp_path)


def test_training_that_blows_up_is_an_error_with_its_reason(tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, NonFiniteError("the loss is not finite at step 4"))
    assert call("--out", tmp_path) == 2
    assert capsys.readouterr().err == "error: the loss is not finite at step 4\n"


def test_run_succeeds_where_the_terminal_cannot_show_bars(tmp_path, monkeypatch):
    """As when Windows writes into a file or a pipe."""
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert call("--out", tmp_path, "--quick") == 0


# ---------------------------------------------------------------- streams


class Full(io.StringIO):
    """As a file on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), Full()], ids=["none", "closed", "full"])
def test_run_needs_no_standard_error(stream, tmp_path, monkeypatch):
    monkeypatch.delenv("CI")  # so that the bar is shown
    monkeypatch.setattr(sys, "stderr", stream)
    assert call("--out", tmp_path, "--quick") == 0
    assert sorted(contents(tmp_path)) == FILES
    assert sys.stderr is stream
    assert call("--out", tmp_path / "config.json" / "below") == 2  # what it says is lost, and no error in its place


@pytest.mark.parametrize("stream", [None, closed()], ids=["none", "closed"])
def test_run_needs_no_standard_output(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    assert call("--out", tmp_path, "--quick") == 0
    assert sorted(contents(tmp_path)) == FILES


WITHOUT_STDERR = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_cli import TINY_RECIPE, main, recipes
recipes.RECIPES["fixed"] = TINY_RECIPE
status = main(["experiment", "--threads", "1", "--out", sys.argv[2]])
assert os.get_inheritable(2)  # and so it is no other file's number
sys.exit(status)
"""


@pytest.mark.skipif(os.name == "nt", reason="runs a shell")
def test_run_succeeds_where_the_shell_closes_standard_error(tmp_path):
    command = [
        "sh",
        "-c",
        'exec "$@" 2>&-',
        "sh",
        sys.executable,
        "-c",
        WITHOUT_STDERR,
        Path(__file__).parent,
        tmp_path,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert sorted(contents(tmp_path)) == FILES


@pytest.mark.parametrize("arguments", [["study", "ladder", "--list"], ["--help"]])
def test_reader_that_has_seen_enough_ends_the_program_without_a_word(arguments, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w", encoding="utf-8"))
    assert main(arguments) == 141
    assert capsys.readouterr().err == ""
    sys.stdout.close()  # nothing is left to write


@pytest.mark.skipif(os.name == "nt", reason="a broken pipe is another error there")
def test_reader_that_has_seen_enough_is_no_error_when_the_interpreter_ends():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mythos_lite", "study", "ladder", "removal", "--list"]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (141, "")


def test_output_that_cannot_be_written_is_an_error_that_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["study", "ladder", "--list"]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'standard output'\n"


# ---------------------------------------------------------------- table


@pytest.fixture(scope="module")
def second_seed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    assert call("--out", folder, "--seed", "1") == 0
    return folder


def test_table_prints_each_seed_and_their_mean_as_markdown(finished, second_seed, capsys):
    capsys.readouterr()
    assert main(["table", *(str(folder / "sweep.json") for folder in (second_seed, finished))]) == 0
    out = capsys.readouterr().out
    assert "seeds 0, 1" in out
    tables = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        assert set(table[1]) == set("| -")
        assert all(line.startswith("| ") and line.endswith(" |") for line in table if line != table[1])
    summary, each = ([[cell.strip() for cell in line.strip("|").split("|")] for line in table] for table in tables)
    four = {
        seed: [row["accuracy"] for row in rows_of(result_in(folder)) if row["n_digits"] == 4]
        for seed, folder in ((0, finished), (1, second_seed))
    }
    assert summary[0] == ["digits", "1", "2", "4"]
    assert summary[3] == ["4", *(f"{(a + b) / 2:.3f} ({min(a, b):.3f})" for a, b in zip(*four.values(), strict=True))]
    assert [row[:2] for row in each[2:]] == [["0", "2–3"], ["0", "4"], ["1", "2–3"], ["1", "4"]]
    assert each[3][2:5] == [f"{accuracy:.3f}" for accuracy in four[0]]
    assert each[5][2:5] == [f"{accuracy:.3f}" for accuracy in four[1]]


def test_table_with_the_same_run_twice_is_an_error(finished, tmp_path, capsys):
    again = tmp_path / "again.json"
    again.write_bytes((finished / "sweep.json").read_bytes())
    capsys.readouterr()
    assert main(["table", str(finished / "sweep.json"), str(again)]) == 2
    captured = capsys.readouterr()
    twice = f"{finished / 'sweep.json'} and {again} are both fixed, seed 0"
    assert captured.err == f"error: {twice}; give each run once\n"
    assert captured.out == ""
    with pytest.raises(ValueError, match="record 1 and record 2 are both fixed, seed 0"):
        seed_tables([result_in(finished)] * 2, per_seed=False)


def test_table_of_two_sweeps_of_a_recipe_is_an_error_that_names_both(finished, tmp_path, capsys):
    result = result_in(finished)
    result["seed"], result["train"]["seed"] = 1, 1
    result["counts"] = [row for row in result["counts"] if row[1] != 4]
    for asked in result["sweeps"]:
        asked["loops"] = [1, 2]
    (tmp_path / "short.json").write_text(json.dumps(result))
    assert main(["table", str(finished / "sweep.json"), str(tmp_path / "short.json")]) == 2
    assert re.fullmatch(
        r"error: .*sweep.json and .*short.json, both fixed, were swept over different .*\n",
        capsys.readouterr().err,
    )


def without(*path):
    def change(result):
        for key in path[:-1]:
            result = result[key]
        del result[path[-1]]

    return change


def with_value(value, *path):
    def change(result):
        for key in path[:-1]:
            result = result[key]
        result[path[-1]] = value

    return change


SPOILT = {
    "no rung": (without("rung"), "'rung' is missing"),
    "no count": (without("counts", 0, 3), "expected 4, got 3"),
    "too many right": (with_value(10**6, "counts", 0, 3), "n_correct=1000000"),
}
"""``tests/study/test_records.py`` has more."""


@pytest.mark.parametrize("damage", SPOILT)
def test_table_of_a_spoilt_result_is_an_error_that_names_the_file(damage, finished, second_seed, tmp_path, capsys):
    change, message = SPOILT[damage]
    result = result_in(finished)
    change(result)
    (tmp_path / "spoilt.json").write_text(json.dumps(result))
    capsys.readouterr()
    assert main(["table", str(second_seed / "sweep.json"), str(tmp_path / "spoilt.json")]) == 2
    captured = capsys.readouterr()
    said = rf"error: .*spoilt.json is not the record of a run: .*{re.escape(message)}.*\n"
    assert re.fullmatch(said, captured.err)
    assert captured.out == ""


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]", b"{}", b"null", b"[" * 100_000])
def test_table_of_a_file_that_is_no_result_is_an_error_that_names_it(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    assert main(["table", str(tmp_path / "file.json")]) == 2
    assert re.fullmatch(r"error: .*file\.json.*\n", capsys.readouterr().err)


def test_table_of_what_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    assert main(["table", str(tmp_path)]) == 2
    assert re.fullmatch(rf"error: .*'{tmp_path}'\n", capsys.readouterr().err)

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert main(["table", "sweep.json"]) == 2
    assert capsys.readouterr().err == "error: [Errno 5] Input/output error: 'sweep.json'\n"


# ---------------------------------------------------------------- grade


def test_grade_passes_its_time_limit_on(monkeypatch, capsys):
    given = []

    def grade(path, *, timeout):
        given.append((path, timeout))
        return grading.Grade({}, ())

    monkeypatch.setattr(grading, "grade", grade)
    assert main(["grade", "x.ipynb"]) == main(["grade", "x.ipynb", "--timeout", "2.5"]) == 0
    assert given == [("x.ipynb", 600.0), ("x.ipynb", 2.5)]
    assert capsys.readouterr().out == "solved 0 of 0\n" * 2


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_grade_needs_a_time_limit_above_zero(seconds, capsys):
    assert main(["grade", "x.ipynb", "--timeout", seconds]) == 2
    assert re.fullmatch(r"error: timeout=.* a finite number above 0.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", grading.JUPYTER)
def test_grade_without_jupyter_says_what_installs_it(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["grade", "x.ipynb"]) == 2
    assert re.fullmatch(rf"error: .*pip install {name}\n", capsys.readouterr().err)


# ---------------------------------------------------------------- help


def help_text(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_explains_every_recipe_and_its_examples_can_be_run(capsys):
    text = help_text(capsys, "experiment")
    assert all(f"\n  {name} " in text for name in recipes.RECIPES)
    examples = re.findall(r"^  python -m mythos_lite (.*?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        assert build_parser().parse_args(shlex.split(example)).recipe in recipes.RECIPES


def test_general_help_names_every_command(capsys):
    text = help_text(capsys)
    assert "experiment" in text
    assert "table" in text
    assert "python -m mythos_lite" in text


def test_help_of_grade_says_as_whom_the_code_runs(capsys):
    assert "runs as you" in " ".join(help_text(capsys, "grade").split())


def test_package_runs_as_a_module_and_knows_its_version():
    command = [sys.executable, "-m", "mythos_lite", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == mythos_lite.__version__ + "\n"
