"""One run: what is trained and what it is asked, and the record of what came out.

A *record* is a plain dict: the run itself (``Run.to_dict``), ``n_parameters``, ``curve`` (points of step, loss,
accuracy, gradient norm), ``counts`` (rows of ``[n_digits, n_loops, n_chains, n_correct]`` in the order of the sweeps),
what the loop does when it is left running (``residuals``, ``radii``, ``gains``, ``expert_shares``), and ``provenance``.
``resumed`` says that the training was interrupted: its seconds are then those of the last part alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mythos_lite.checks import NonFiniteError, check_choice, check_int
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.spectral import gains_along_chain, loop_radii, make_loop_map
from mythos_lite.measure.sweep import evaluation_chains, expert_shares, sweep
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.study.baselines import BaselineConfig, answer_loss, build_baseline, count_correct
from mythos_lite.study.cures import fixed_point_loss, jacobian_loss, noisy_loss
from mythos_lite.task.chains import ChainTask, PermutationTask, Task
from mythos_lite.task.loss import chain_loss
from mythos_lite.task.pointers import PointerTask
from mythos_lite.training.parallel import is_first, process_count
from mythos_lite.training.recipes import Sweep
from mythos_lite.training.state import STATE_FILE
from mythos_lite.training.trainer import build_model, train

TASK_KINDS = {kind.__name__: kind for kind in (ChainTask, PermutationTask, PointerTask)}
OBJECTIVES = {one.__name__: one for one in (chain_loss, noisy_loss, fixed_point_loss, jacobian_loss)}
_REST_LOOPS = (4, 8, 16, 32, 64)
_RADII_LOOPS = (*range(1, 9), 16, 32, 64)
_GAIN_DISTANCES = (1, 2, 4, 8)
_CURVE = ("step", "loss", "accuracy", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, on what, and what it is asked."""

    study: str
    rung: str
    seed: int
    task: Task
    model: ModelConfig | BaselineConfig
    train: TrainConfig
    sweeps: tuple[Sweep, ...]
    before: tuple[TrainConfig, ...] = ()
    """Trainings that come first; each goes on from the weights of the one before it."""
    objective: str = "chain_loss"
    """What a model with a loop minimises: that, or one of ``study.cures``."""
    chains_seed: int = 1
    """Seed of the evaluation chains. The main job, which people tune with, has 0, so that the studies' are others."""

    @property
    def name(self) -> str:
        """A path without suffix, by which the files of the run are called."""
        return f"{self.study}/{re.sub('[^a-z0-9]+', '-', self.rung.lower()).strip('-')}-seed{self.seed}"

    def to_dict(self) -> dict:
        """The run as JSON values."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts |= {
            "task": {"kind": type(self.task).__name__, **dataclasses.asdict(self.task)},
            "model": self.model.to_dict(), "train": self.train.to_dict(),
            "sweeps": [dataclasses.asdict(asked) for asked in self.sweeps],
            "before": [config.to_dict() for config in self.before],
        }  # fmt: skip
        return json.loads(json.dumps(parts))  # which turns tuples into lists

    @classmethod
    def from_dict(cls, values: dict) -> Run:
        """Rebuild from ``to_dict`` or from a record. What an older record lacks takes its default.

        Raises:
            ValueError: for values that are not possible.
            KeyError, TypeError: for values that are missing, or laid out in another way.
        """
        kind = values["task"]["kind"]
        check_choice("task", kind, tuple(TASK_KINDS))
        objective = values.get("objective", "chain_loss")
        check_choice("objective", objective, tuple(OBJECTIVES))
        model = BaselineConfig if "kind" in values["model"] else ModelConfig
        return cls(
            study=values["study"],
            rung=values["rung"],
            seed=check_int("seed", values["seed"], 0, 2**32 - 1),
            task=TASK_KINDS[kind](**{name: value for name, value in values["task"].items() if name != "kind"}),
            model=model.from_dict(values["model"]),
            train=TrainConfig.from_dict(values["train"]),
            sweeps=tuple(Sweep(**asked) for asked in values["sweeps"]),
            before=tuple(map(TrainConfig.from_dict, values.get("before", ()))),
            objective=objective,
            chains_seed=check_int("chains_seed", values.get("chains_seed", 1), 0),
        )


def execute(
    run: Run,
    command: list[str],
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool | None = False,
) -> tuple[dict, nn.Module, list[dict]]:
    """Train and measure: the record, the model, and what the last training logged.

    ``command`` is what to type after ``python -m mythos_lite`` to get the run again. With a ``folder``, training goes
    on from there after an interruption. A training that blows up gives a record too, with what was said as ``error``
    and no right answer.

    Raises:
        ValueError, OSError: as ``train``.
    """
    source, clock = source_hash(), [(time.perf_counter(), time.process_time())]
    looped = isinstance(run.model, ModelConfig)
    model = build_model(run.model, run.seed, device) if looped else build_baseline(run.model, run.seed).to(device)
    record = {**run.to_dict(), "n_parameters": sum(p.numel() for p in model.parameters()), "curve": []}
    if folder is not None and any(folder.rglob(STATE_FILE)):
        record["resumed"] = True
    history: list[dict] = []
    try:
        for i, config in enumerate((*run.before, run.train)):
            own = folder if folder is None or i == len(run.before) else folder / f"before{i}"
            objective = OBJECTIVES[run.objective] if looped else answer_loss
            history = train(model, run.task, config, objective=objective, folder=own, progress=progress)
            record["curve"] += [[_rounded(point[key]) for key in _CURVE] for point in history]
    except NonFiniteError as error:
        said = str(error).partition(";")[0]  # what follows names a file
        record |= {"error": said, "curve": [], "counts": [[*asked, 0] for asked in _asked(run)]}
    if not is_first():
        return record, model, history
    clock.append((time.perf_counter(), time.process_time()))
    if "error" not in record:
        record["counts"] = [row for asked in run.sweeps for row in _count(model, run, asked)]
        record |= _left_running(model, run) if looped else {}
    (started, cpu_started), (trained, cpu_trained) = clock
    seconds = {"training": trained - started, "training, CPU": cpu_trained - cpu_started}
    seconds["sweep"] = time.perf_counter() - trained
    together = ["torchrun", "--nproc-per-node", str(process_count())]
    command = [*(together if process_count() > 1 else [Path(sys.executable).name]), "-m", "mythos_lite", *command]
    return {**record, "provenance": provenance(command, source, torch.device(device), seconds)}, model, history


def _asked(run: Run) -> list[list[int]]:
    """The questions in order: digits, loops, and how many chains there are for them."""
    found = {(n, s.n_chains): len(_chains(run, n, s.n_chains)) for s in run.sweeps for n in s.lengths}
    return [[n, t, found[n, s.n_chains]] for s in run.sweeps for n in s.lengths for t in s.loops]


def _count(model: nn.Module, run: Run, asked: Sweep) -> list[list[int]]:
    """Rows of counts for one sweep; that of a model without a loop asks for one loop."""
    if isinstance(model, RecurrentDepthTransformer):
        rows = sweep(
            model, run.task, asked.lengths, asked.loops, n_chains=asked.n_chains, seed=run.chains_seed,
            count_non_finite=True,
        )  # fmt: skip
        return [[row[key] for key in ("n_digits", "n_loops", "n_chains", "n_correct")] for row in rows]
    chains = {n: _chains(run, n, asked.n_chains) for n in asked.lengths}
    return [[n, t, len(c), count_correct(model, run.task, c, t)] for n, c in chains.items() for t in asked.loops]


def _chains(run: Run, n_digits: int, n_chains: int) -> torch.Tensor:
    return evaluation_chains(run.task, n_digits, n_chains, run.chains_seed)


@torch.no_grad()
def _left_running(model: RecurrentDepthTransformer, run: Run) -> dict:
    """What the loop does when it is left running, on held-out chains of 8, or on paths of 8 steps or of the most.

    At several loop counts the median residual at EQ of a hundred chains, and ρ(J) of the first one's map. Where the
    state comes to rest, what is left of a small error 1, 2, 4 and 8 positions further on.
    """
    length = min(8, run.task.n_nodes - run.task.n_ends) if isinstance(run.task, PointerTask) else 8
    token_ids = run.task.encode(_chains(run, length, 100)).token_ids.to(model.embedding.weight.device)
    residual = {
        turn.loop: turn.residual()[:, -1].median().item()
        for turn in model.loop(token_ids, _REST_LOOPS[-1])
        if turn.loop in _REST_LOOPS
    }
    found: dict = {"residuals": [[t, _rounded(value)] for t, value in residual.items()]}
    if all(map(math.isfinite, residual.values())):
        radii = loop_radii(model, token_ids[:1], _RADII_LOOPS)
        found["radii"] = [[t, round(radius, 4)] for t, radius in zip(_RADII_LOOPS, radii, strict=True)]
        if radii[-1] < 1 and not run.model.dilated and not isinstance(run.task, PointerTask):
            found["gains"] = _gains(model, run)
    if model.config.n_experts:
        lengths, n_loops = [run.train.max_digits], run.train.max_loops
        shares = expert_shares(model, run.task, lengths, n_loops, seed=run.chains_seed)
        found["expert_shares"] = [[round(share, 3) for share in row] for row in shares]
    return found


def _gains(model: RecurrentDepthTransformer, run: Run) -> list[list]:
    """``[distance, median, highest]`` of ``gains_along_chain`` from position 2 on, of four chains of 12.

    Position 2 is the second digit, behind START and the first one.
    """
    token_ids = run.task.encode(_chains(run, 12, 4)).token_ids.to(model.embedding.weight.device)
    *_, last = model.loop(token_ids, _REST_LOOPS[-1])
    maps = [make_loop_map(model, ids, _REST_LOOPS[-1] - 1)[0] for ids in token_ids.split(1)]
    gains = [gains_along_chain(*pair, 2) for pair in zip(maps, last.state.split(1), strict=True)]
    columns = list(zip(*gains, strict=True))
    return [[k, *map(_rounded, (statistics.median(columns[k - 1]), max(columns[k - 1])))] for k in _GAIN_DISTANCES]


def _rounded(value: float) -> float | None:
    """To four digits; ``None`` for what JSON has no number for."""
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
