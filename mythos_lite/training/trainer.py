"""Training on digit chains: one flat loop that returns its history, and stops and resumes exactly.

Everything random at step s is drawn from a generator made from (seed, s). There is no generator state to save, and a
resumed run sees the very batches that the uninterrupted one saw. A *step* is one of training, a *turn* one of the loop.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.files.atomic import only_writer
from mythos_lite.files.checkpoint import checksum
from mythos_lite.files.provenance import source_hash
from mythos_lite.measure.spectral import monitor
from mythos_lite.model.loop import LoopStep, RecurrentDepthTransformer
from mythos_lite.model.modes import DrawFrom, check_differentiable, own_derivatives, unwrapped
from mythos_lite.task.chains import Batch, Task, make_generator
from mythos_lite.task.loss import chain_loss
from mythos_lite.training.parallel import (
    averaged,
    check_divisible,
    is_first,
    mean_over_processes,
    own_part,
    sum_over_processes,
    wait_for_all,
)
from mythos_lite.training.state import RunState

Objective = Callable[[nn.Module, TrainConfig, Batch, int], tuple[Tensor, Tensor, list[LoopStep]]]
"""``objective(model, config, batch, n_loops)``: loss (), logits (B, V) at EQ, and the turns of the loop, if any."""
SOURCE = ("checks.py", "config.py", "model/", "task/", "measure/spectral.py", "training/")
"""The part of the package that weights and records depend on."""
_STEPS, _POOL, _EPOCHS, _WEIGHTS = range(4)  # streams of a seed


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_device(name: str) -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU. ``ValueError`` for what is not there, or not supported.

    Of several processes that ``torchrun`` started on a machine, each gets a GPU of its own.
    """
    if name == "auto":
        name = default_device().type
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not known; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use auto or cpu"
        )
    return device


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


class StepStream:
    """Batch and loop count of any step, from the seed and the step alone."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.task, self.config, self.pool = task, config, None
        if config.n_train_chains is not None:
            generator = make_generator(config.seed, _POOL)
            self.pool = task.batch(config.n_train_chains, config.min_digits, config.max_digits, generator)

    def at(self, step: int) -> tuple[Batch, int]:
        """Everything random about one step. From a fixed set it takes the step's part of the epoch's order."""
        config, generator = self.config, make_generator(self.config.seed, _STEPS, step)
        n_loops = int(torch.randint(config.min_loops, config.max_loops + 1, (), generator=generator, device="cpu"))
        if self.pool is None:
            return self.task.batch(config.batch_size, config.min_digits, config.max_digits, generator), n_loops
        epoch, part = divmod(step, math.ceil(config.n_train_chains / config.batch_size))
        generator = make_generator(config.seed, _EPOCHS, epoch)
        order = torch.randperm(config.n_train_chains, generator=generator, device="cpu")
        chosen = order.split(config.batch_size)[part].sort().values  # the pool goes from short to long
        return Batch(*(tensor[chosen] for tensor in self.pool)), n_loops


@own_derivatives()
def train(
    model: nn.Module, task: Task, config: TrainConfig, *, objective: Objective = chain_loss,
    folder: str | os.PathLike | None = None, on_record: Callable[[dict], None] | None = None,
    progress: bool | None = None,
) -> list[dict]:  # fmt: skip
    """Train ``model`` in place and return one record per ``log_every`` steps.

    ``chain_loss`` is for a ``RecurrentDepthTransformer``; other models need an ``objective`` of their own. Where that
    returns no turns of a loop, the records hold no measurements of one.

    With ``ema_decay`` the model ends with the averaged weights. With a ``folder``, the run is saved every
    ``checkpoint_every`` steps and at its end, and resumes from there if it finds its own state. ``progress`` is shown
    unless the environment variable CI is set or there is no stderr. A model that went through ``torch.compile`` is
    trained as the module that it was made of; gradients are on and autocast is off, whatever the caller set. Within a
    ``training.parallel.process_group`` its processes train together.

    Raises:
        NonFiniteError: when loss, gradient or weights are not finite; says at which step and loop. The last good state
            stays.
        CheckpointError: when the folder holds the state of another run or of other code, or a damaged one.
        ValueError: when model, task and training do not fit together, or the model cannot be trained.
        OSError: when another run is writing into the folder.
    """
    model = unwrapped(model)
    _check_fit(model, task, config, objective)
    stream, optimizer = StepStream(task, config), make_optimizer(model, config)
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if config.ema_decay else {}
    state = RunState(folder, _identity(model, task, config, objective), model, optimizer, average)
    seen = is_first() and can_show_progress()
    hidden = not seen or (bool(os.environ.get("CI")) if progress is None else not progress)
    alone = state.folder is not None and is_first()
    with only_writer(state.folder) if alone else contextlib.nullcontext():
        history = _run(state, stream, objective, on_record, hidden)
    model.load_state_dict({**model.state_dict(), **average})
    model.eval()
    return history


def _run(
    state: RunState, stream: StepStream, objective: Objective, on_record: Callable[[dict], None] | None, hidden: bool
) -> list[dict]:
    """The loop of ``train``."""
    model, config, optimizer = state.model, stream.config, state.optimizer
    device = next(model.parameters()).device
    first, history = state.load()
    wait_for_all()  # before the first process writes anything that the others are to load
    state.log(history, "w")
    model.train()
    loss_of = averaged(model, objective)
    bar = tqdm(range(first, config.steps), "training", config.steps, initial=first, disable=hidden, unit="step")
    for step in bar:
        whole_batch, n_loops = stream.at(step)
        batch = own_part(whole_batch).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)

        loss, logits, turns = loss_of(model, config, batch, n_loops)
        mean_loss = mean_over_processes(loss.detach())
        if not torch.isfinite(mean_loss):
            raise state.not_finite(f"the loss is not finite at step {step + 1}{_where(turns)}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not torch.isfinite(grad_norm):
            raise state.not_finite(f"the gradient is not finite at step {step + 1}, through {n_loops} loops")
        optimizer.step()
        if turns:
            _balance(model, turns, config.router_bias_rate)
        average_weights(state.average, model, config.ema_decay, step)

        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            right = (logits.argmax(-1) == batch.answers).float().mean()
            record = {
                "step": step + 1, "loss": mean_loss.item(), "accuracy": mean_over_processes(right).item(),
                **({"n_loops": n_loops} if turns else {}),
                "lr": learning_rate(config, step), "grad_norm": grad_norm.item(),
                **({**monitor(model, config, whole_batch.to(device), config.max_loops), **_expert_load(turns)}
                   if turns else {}),
            }  # fmt: skip
            if any(word in json.dumps(record) for word in ("NaN", "Infinity")):
                raise state.not_finite(f"the loop map is not finite after step {step + 1}: {record}")
            history.append(record)
            state.log([record])
            bar.set_postfix({key: f"{record[key]:.3f}" for key in ("loss", "decay_radius") if key in record})
            if on_record is not None:
                on_record(record)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state.save(step + 1, history)
    state.finish_log()
    return history


def _check_fit(model: nn.Module, task: Task, config: TrainConfig, objective: Objective) -> None:
    """``ValueError`` for a model that cannot be trained, or not on this task in this way."""
    looped = isinstance(model, RecurrentDepthTransformer)
    if objective is chain_loss and not looped:
        kind = type(model).__name__
        raise ValueError(f"train takes a RecurrentDepthTransformer, not {kind}; hand in the module itself")
    check_differentiable(model)
    check_divisible("batch_size", config.batch_size)
    if config.n_train_chains is not None:
        check_divisible("n_train_chains", config.n_train_chains)
    if other := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise ValueError(f"the model is in {other.pop()}; train in float32 and convert it afterwards, with .to()")
    if looped:
        task.check_fit(model.config, config.max_digits)
        if config.ponder_cost and model.config.halting == "none":
            raise ValueError(f'ponder_cost={config.ponder_cost} needs a model that halts: halting="act"; or use 0')
        needs = {"last": lambda n: 1, "from_needed": model.config.loops_needed, "from_length": int}
        needed = needs[config.loss](config.max_digits)
        if config.max_loops < needed:
            n = config.max_digits
            raise ValueError(f"max_loops={config.max_loops} is too few to learn from: {n} digits need {needed} loops")


def _identity(model: nn.Module, task: Task, config: TrainConfig, objective: Objective) -> dict:
    """What must be the same in the run that saves a state and the one that loads it."""
    own = [f"{one.__module__.removeprefix('mythos_lite.').replace('.', '/')}.py" for one in (type(model), objective)]
    return {
        "model": repr(getattr(model, "config", model)),
        "weights": checksum(model.state_dict()),
        "trained": [name for name, p in model.named_parameters() if p.requires_grad],
        "train": config.to_dict(),
        "task": repr(task),
        "objective": getattr(objective, "__qualname__", repr(objective)),
        "source": source_hash(*SOURCE, *own),
    }


def _where(turns: list[LoopStep]) -> str:
    """Where in the loop the first number that is not finite appeared."""
    for turn in turns:
        if not torch.isfinite(turn.state).all():
            return f": the state is not finite from loop {turn.loop} of {len(turns)} on"
    return f": the state is finite up to loop {len(turns)}, the read-out after it is not" if turns else ""


def _balance(model: RecurrentDepthTransformer, turns: list[LoopStep], rate: float) -> None:
    """One step of loss-free balancing per core layer, on the load of all turns together."""
    if model.config.n_experts and rate:
        for layer, block in enumerate(model.core):
            load = sum_over_processes(sum(turn.routing[layer].load for turn in turns))
            block.ffn.update_bias(load, rate)


def _expert_load(turns: list[LoopStep]) -> dict:
    """Share of tokens per loop, core layer and expert, for the log; empty without experts."""
    shares = [[(router.load.float() / router.load.sum()).tolist() for router in turn.routing] for turn in turns]
    return {"expert_load": shares} if shares[0] else {}


@torch.no_grad()
def average_weights(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """average ← decay·average + (1 − decay)·weights; a smaller decay at first, so that the start is forgotten.

    An average that holds other names than the model does is an error, and an empty one stays empty.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, p in model.named_parameters() if average else ():
        average[name].lerp_(p, 1 - decay)
