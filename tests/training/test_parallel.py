"""Several processes that train together do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import together as together_script

from mythos_lite.__main__ import main

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return together_script.main(folder), files(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    told = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, *TORCHRUN, together_script.__file__, str(folder)]
    done = subprocess.run(command, env={**os.environ, **told}, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), files(folder)


def test_two_processes_really_share_the_work(alone, together):
    assert (alone[0]["processes"], together[0]["processes"]) == (1, 2)


@pytest.mark.parametrize("what", ["dense", "experts", "fixed set"])
def test_two_processes_have_the_losses_of_one(alone, together, what):
    one, two = alone[0][what], together[0][what]
    assert len(one["loss"]) == 12
    assert one["loss"][-1] < one["loss"][0]
    assert two["loss"] == pytest.approx(one["loss"], abs=2e-5)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.07)  # one chain of sixteen that rounding decides
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)
    assert two["biases"] == pytest.approx(one["biases"])


def test_experts_are_balanced_by_the_load_of_both(alone, together):
    assert any(alone[0]["experts"]["biases"])
    assert together[0]["experts"]["biases"] == pytest.approx(alone[0]["experts"]["biases"])


def test_two_processes_go_on_where_they_were_stopped(together):
    found, _ = together
    assert found["resumed"] == found["dense"]


def test_record_comes_from_the_first_process_alone(alone, together):
    one, two = alone[0]["record"], together[0]["record"]
    assert two["curve"] == [pytest.approx(point, abs=1e-3) for point in one["curve"]]
    assert two["counts"] == [pytest.approx(row, abs=1) for row in one["counts"]]
    assert one["provenance"]["command"].startswith("python")
    assert two["provenance"]["command"].startswith("torchrun --nproc-per-node 2 -m mythos_lite study passing")
    assert together[0]["again"]
    assert together[1] == alone[1]


def test_batch_that_cannot_be_shared_is_refused(alone, together):
    assert "error" not in alone[0]
    assert together[0]["error"] == "batch_size=15 cannot be shared by 2 processes; it must be a multiple of 2"


def listed(capsys, *options):
    assert main(["study", "ladder", "doubling", *options, "--list"]) == 0
    return capsys.readouterr().out.splitlines()


def test_shards_are_all_runs_and_none_twice(capsys):
    every = listed(capsys)
    parts = [listed(capsys, "--shard", f"{k}/7") for k in range(1, 8)]
    assert sorted(line for part in parts for line in part) == sorted(every)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert listed(capsys, "--shard", "1/1") == every
    assert listed(capsys, "--shard", "999/999") == []


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "", " 1/2"])
def test_shard_that_is_none_is_refused(capsys, part):
    assert main(["study", "ladder", "--shard", part, "--list"]) == 2
    assert f"shard={part!r} is not possible: write K/N, such as 3/8" in capsys.readouterr().err
