"""Training on digit chains: one flat loop that returns its history, and stops and resumes exactly.

Everything random at step s is drawn from a generator made from (seed, s). There is no generator
state to save, and a resumed run sees the very batches that the uninterrupted one saw.

A run's folder holds ``training.safetensors`` (weights, averages, optimiser moments, step and
history in one file, replaced in one step) and ``metrics.jsonl`` (one line per record). The lines are
collected in ``metrics.jsonl.part`` as they come; only a run that ends replaces those of an earlier one.
While a run writes into its folder, no other can.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mythos_lite.checks import NonFiniteError
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.files.checkpoint import (
    CheckpointError,
    check_shapes,
    make_folder,
    only_writer,
    pack,
    read_header,
    read_tensors,
    write_files,
)
from mythos_lite.files.provenance import source_hash
from mythos_lite.measure.spectral import monitor
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.modes import DrawFrom, check_differentiable, own_derivatives, unwrapped
from mythos_lite.task.chains import Batch, Task, make_generator
from mythos_lite.task.loss import chain_loss

STATE_FILE = "training.safetensors"
METRICS_FILE = "metrics.jsonl"
_STEPS, _POOL, _EPOCHS, _WEIGHTS = range(4)  # streams of a seed


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def can_show_progress() -> bool:
    """Whether there is a stderr to write to; a program without a terminal may have none, or a closed one."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False)


@contextlib.contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Within, torch makes tensors on the CPU and draws the initial weights of ``seed``.

    Its global generator, which other threads may be using, is left alone.
    """
    with torch.inference_mode(False), torch.device("cpu"), DrawFrom(make_generator(seed, _WEIGHTS)):
        yield


def build_model(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> RecurrentDepthTransformer:
    """A model whose initial weights depend on ``seed`` alone."""
    with initial_weights(seed):
        return RecurrentDepthTransformer(config).to(device)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine towards 0 at the last step (Loshchilov & Hutter 2017)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); norms, embeddings, vectors and the injection do not decay.

    Raises:
        ValueError: when there is nothing to train, since no parameter takes a gradient.
    """
    kept, decayed = [], []
    for name, p in unwrapped(model).named_parameters():
        if p.requires_grad:
            (kept if p.ndim < 2 or {"embedding", "injection"} & {*name.split(".")} else decayed).append(p)
    if not kept and not decayed:
        raise ValueError("there is nothing to train: no parameter of the model takes a gradient (requires_grad)")
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


class TrainStep(NamedTuple):
    """Everything random about one step."""

    batch: Batch
    n_loops: int


class StepStream:
    """Batch and loop count of any step, from the seed and the step alone."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.task, self.config = task, config
        self.pool = None
        if config.n_train_chains is not None:
            generator = make_generator(config.seed, _POOL)
            self.pool = task.batch(config.n_train_chains, config.min_digits, config.max_digits, generator)

    def at(self, step: int) -> TrainStep:
        config, generator = self.config, make_generator(self.config.seed, _STEPS, step)
        n_loops = int(torch.randint(config.min_loops, config.max_loops + 1, (), generator=generator, device="cpu"))
        if self.pool is None:
            batch = self.task.batch(config.batch_size, config.min_digits, config.max_digits, generator)
        else:
            batch = self._from_pool(step)
        return TrainStep(batch, n_loops)

    def _from_pool(self, step: int) -> Batch:
        """The step's part of its epoch's order."""
        config = self.config
        per_epoch = math.ceil(config.n_train_chains / config.batch_size)
        generator = make_generator(config.seed, _EPOCHS, step // per_epoch)
        order = torch.randperm(config.n_train_chains, generator=generator, device="cpu")
        start = step % per_epoch * config.batch_size
        chosen = order[start : start + config.batch_size].sort().values  # the pool goes from short to long
        return Batch(*(tensor[chosen] for tensor in self.pool))


@own_derivatives()
def train(
    model: RecurrentDepthTransformer,
    task: Task,
    config: TrainConfig,
    *,
    folder: str | os.PathLike | None = None,
    on_record: Callable[[dict], None] | None = None,
    progress: bool | None = None,
) -> list[dict]:
    """Train ``model`` in place and return one record per ``log_every`` steps.

    With ``ema_decay`` the model ends with the averaged weights. With a ``folder``, the run is saved
    every ``checkpoint_every`` steps and at its end, and resumes from there if it finds its own state.
    ``progress`` is shown unless the environment variable CI is set or there is no stderr. A model that went
    through ``torch.compile`` is trained as the module that it was made of; gradients are on and autocast is
    off, whatever the caller set.

    Raises:
        NonFiniteError: when loss, gradient or weights are not finite; says at which step and loop. The
            last good checkpoint stays.
        CheckpointError: when the folder holds the state of another run or of other code, or a damaged one.
        ValueError: when model, task and training do not fit together, or the model cannot be trained.
        OSError: when another run is writing into the folder.
    """
    model = unwrapped(model)
    if not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(
            f"train takes a RecurrentDepthTransformer, not {type(model).__name__}; hand in the module itself"
        )
    check_differentiable(model)
    if other := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise ValueError(f"the model is in {other.pop()}; train in float32 and convert it afterwards, with .to()")
    _check_fit(model.config, task, config)
    stream = StepStream(task, config)
    optimizer = make_optimizer(model, config)
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if config.ema_decay else {}
    state = RunState(model, task, config, optimizer, average, folder)
    hidden = not can_show_progress() or (bool(os.environ.get("CI")) if progress is None else not progress)
    with contextlib.nullcontext() if folder is None else only_writer(state.folder):
        history = _train(state, stream, on_record, hidden)
    model.load_state_dict(average, strict=False)
    model.eval()
    return history


def _train(state: RunState, stream: StepStream, on_record: Callable[[dict], None] | None, hidden: bool) -> list[dict]:
    """The loop of ``train``."""
    model, config, optimizer = state.model, state.config, state.optimizer
    device = model.embedding.weight.device
    first, history = state.load()
    state.write_history(history)
    model.train()
    bar = tqdm(
        range(first, config.steps), initial=first, total=config.steps, disable=hidden, desc="training", unit="step"
    )
    for step in bar:
        batch, n_loops = stream.at(step)
        batch = batch.to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)

        loss, logits, steps = chain_loss(model, config, batch, n_loops)
        if not torch.isfinite(loss):
            raise NonFiniteError(_explain(steps, step, n_loops, state))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not torch.isfinite(grad_norm):
            raise NonFiniteError(
                f"the gradient is not finite at step {step + 1}, through {n_loops} loops; {state.describe()}"
            )
        optimizer.step()
        _balance(model, steps, config.router_bias_rate)
        average_weights(state.average, model, config.ema_decay, step)

        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            accuracy = (logits.argmax(-1) == batch.answers).float().mean().item()
            record = {
                "step": step + 1, "loss": loss.item(), "accuracy": accuracy, "n_loops": n_loops,
                "lr": learning_rate(config, step), "grad_norm": grad_norm.item(),
                **monitor(model, config, batch, config.max_loops), **_loads(steps),
            }  # fmt: skip
            if not _is_finite(record):
                raise NonFiniteError(f"the loop map is not finite after step {step + 1}: {record}; {state.describe()}")
            history.append(record)
            state.append_history(record)
            bar.set_postfix(loss=f"{record['loss']:.3f}", rho=f"{record['decay_radius']:.3f}")
            if on_record is not None:
                on_record(record)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state.save(step + 1, history)
    state.finish_history()
    return history


class RunState:
    """What a run needs to go on, in one file."""

    def __init__(self, model, task, config, optimizer, average, folder) -> None:
        self.model, self.optimizer, self.average = model, optimizer, average
        self.config = config
        self.folder = make_folder(folder) if folder is not None else None
        identity = {
            "model": model.config.to_dict(),
            "train": config.to_dict(),
            "task": repr(task),
            "source": source_hash(),
        }
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.saved_at: int | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors, by name. The optimiser's appear once it has made a step."""
        names = {p: name for name, p in self.model.named_parameters()}
        moments = {
            f"optimizer.{names[p]}.{key}": value
            for p, values in self.optimizer.state.items()
            for key, value in values.items()
        }
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return {**weights, **moments, **{f"average.{name}": tensor for name, tensor in self.average.items()}}

    def save(self, step: int, history: list[dict]) -> None:
        """Replace the file; ``NonFiniteError`` before that if a tensor is not finite. Without a folder, nothing."""
        if self.folder is None:
            return
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors().values()):
            raise NonFiniteError(f"the weights are not finite after step {step}; {self.describe()}")
        metadata = {"run": self.identity, "step": str(step), "history": json.dumps(history)}
        write_files({self.folder / STATE_FILE: pack(self.tensors(), metadata)})
        self.saved_at = step

    def load(self) -> tuple[int, list[dict]]:
        """Put the saved tensors in place; return the step to go on from and the history so far."""
        if self.folder is None or not (self.folder / STATE_FILE).exists():
            return 0, []
        path = self.folder / STATE_FILE
        shapes, metadata = read_header(path)
        if metadata.get("run") != self.identity:
            raise CheckpointError(
                f"{path} is the state of another run, or of another version of the code; "
                "choose another folder, or remove the file to start anew"
            )
        step, history = self._read_progress(metadata, path)
        self._create_moments()
        check_shapes(shapes, self.tensors(), where=str(path))
        saved = read_tensors(path)
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(saved[name])
        self.saved_at = step
        return step, history

    def _read_progress(self, metadata: dict[str, str], path: Path) -> tuple[int, list[dict]]:
        """Step and history; ``CheckpointError`` unless they are those of a run with this configuration."""
        try:
            step, history = int(metadata["step"]), json.loads(metadata["history"])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} has no readable step and history") from error
        if not 1 <= step <= self.config.steps:
            raise CheckpointError(f"{path}: its step is {step}; this run goes from 1 to {self.config.steps}")
        logged = [s for s in range(1, step + 1) if s % self.config.log_every == 0 or s == self.config.steps]
        known = isinstance(history, list) and all(isinstance(record, dict) for record in history)
        if not known or [record.get("step") for record in history] != logged:
            raise CheckpointError(f"{path}: its history is not a list with a record of each step that was logged")
        return step, history

    def _create_moments(self) -> None:
        """Let the optimiser make its moments, which it does at its first step: one without effect."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def write_history(self, history: list[dict]) -> None:
        """Begin the lines anew with these records."""
        if self.folder is not None:
            lines = "".join(json.dumps(record) + "\n" for record in history)
            write_files({self._part: lines.encode()})

    def append_history(self, record: dict) -> None:
        if self.folder is not None:
            try:
                with open(self._part, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                raise type(error)(error.errno, error.strerror, str(self._part)) from error

    def finish_history(self) -> None:
        """Put the lines in the place of an earlier run's."""
        if self.folder is not None:
            os.replace(self._part, self.folder / METRICS_FILE)

    @property
    def _part(self) -> Path:
        return self.folder / f"{METRICS_FILE}.part"

    def describe(self) -> str:
        if self.saved_at is None:
            return "nothing had been saved yet"
        return f"the weights after step {self.saved_at} are kept in {self.folder / STATE_FILE}"


def _check_fit(model: ModelConfig, task: Task, config: TrainConfig) -> None:
    """``ValueError`` for a model, task and training that cannot work together."""
    task.check_fit(model, config.max_digits)
    if config.ponder_cost and model.halting == "none":
        raise ValueError(
            f'ponder_cost={config.ponder_cost} needs a model that halts; use halting="act" or ponder_cost=0'
        )
    if config.loss == "from_needed" and config.max_loops < model.loops_needed(config.max_digits):
        raise ValueError(
            f"max_loops={config.max_loops} is too few: chains of {config.max_digits} digits need "
            f"{model.loops_needed(config.max_digits)} loops, so nothing would be learned from them"
        )


def _balance(model: RecurrentDepthTransformer, steps: list, rate: float) -> None:
    """One step of loss-free balancing per core layer, on the load of all loops together."""
    if model.config.n_experts and rate:
        for layer, block in enumerate(model.core):
            block.ffn.update_bias(sum(step.routing[layer].load for step in steps), rate)


def _loads(steps: list) -> dict:
    """Share of tokens per loop, core layer and expert, for the log; empty without experts."""
    if not steps[0].routing:
        return {}
    return {
        "expert_load": [[(stats.load.float() / stats.load.sum()).tolist() for stats in step.routing] for step in steps]
    }


@torch.no_grad()
def average_weights(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """average ← decay·average + (1 − decay)·weights; a smaller decay at first, so that the start is forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, p in model.named_parameters():
        if name in average:
            average[name].lerp_(p, 1 - decay)


def _is_finite(value: object) -> bool:
    """Whether every number in a record is finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return math.isfinite(value)


def _explain(steps: list, step: int, n_loops: int, state: RunState) -> str:
    """Where the first number that is not finite appeared."""
    for loop_step in steps:
        if not torch.isfinite(loop_step.state).all():
            where = f"the state is not finite from loop {loop_step.loop} of {n_loops} on"
            break
    else:
        where = f"the state is finite up to loop {n_loops}, the read-out after it is not"
    return f"the loss is not finite at step {step + 1}: {where}; {state.describe()}"
