"""Which runs there are: every rung of every study, as configurations.

=============  ======================================================================================
study          question
=============  ======================================================================================
``ladder``     from the published setting to the final one, one change after the other: what mends it?
``removal``    the final setting less one thing: what does it need?
``final``      the final setting with three models, five seeds, many chains: how far does it go?
``baselines``  a plain transformer, an LSTM, a GRU on the same batches: what would one use instead?
``tasks``      the same code on other groups: is it a counting trick?
``windows``    wider windows: are the loops needed those that the window predicts?
``passing``    parity, asked after every loop: does the right answer stay?
=============  ======================================================================================

The final setting is the training of recipe ``hold``. Its model is grouped-query attention with two key/value
heads, four routed experts of which two are chosen, and a shared one; ``final`` also runs the other two models.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.study.baselines import BaselineConfig
from mythos_lite.task.chains import ChainTask, PermutationTask, Task
from mythos_lite.training.recipes import hold_recipe, mod7_model, mod7_moe_model, published_model, published_recipe

THREE_SEEDS, FIVE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Held-out chains of each of ``lengths``, read out at each of ``loops``."""

    lengths: tuple[int, ...]
    loops: tuple[int, ...]
    n_chains: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row: what is trained, on what, and what it is asked."""

    study: str
    rung: str
    seed: int
    task: Task
    model: ModelConfig | BaselineConfig
    train: TrainConfig
    sweeps: tuple[Sweep, ...]
    before: tuple[TrainConfig, ...] = ()
    """Trainings that come first; each goes on from the weights of the one before it."""

    @property
    def name(self) -> str:
        return f"{self.study}/{re.sub('[^a-z0-9]+', '-', self.rung.lower()).strip('-')}-seed{self.seed}"


TRAINED_LOOPS = 4
_SHORT = (
    Sweep(lengths=(2, 3, 4, 5), loops=(1, 2, 4, 8), n_chains=1000),
    Sweep(lengths=(6, 7, 8), loops=(1, 2, 4, 6, 8, 16, 32), n_chains=1000),
)
LADDER_SWEEPS = (
    *_SHORT,
    *(Sweep(lengths=(n,), loops=(4, 8, n), n_chains=k) for n, k in ((16, 300), (32, 300), (64, 200), (128, 100))),
)
"""As many loops as digits are enough for any length: ``loops_needed`` is at most that."""
TASK_SWEEPS = (
    Sweep(lengths=(3, 4, 5), loops=(1, 2, 4, 8), n_chains=1000),  # no chain of two bits is held out
    _SHORT[1],
    *(Sweep(lengths=(n,), loops=(n, 2 * n), n_chains=1000) for n in (16, 32, 40, 64)),
)
FINAL_SWEEPS = (
    Sweep(lengths=(2, 3, 4, 5, 6, 7), loops=(1, 2, 4, 6, 8, 16, 32, 64), n_chains=5000),
    Sweep(lengths=(8,), loops=(1, 2, 4, 6, 8, 16, 32, 64, 128, 256, 512), n_chains=5000),
    *(Sweep(lengths=(n,), loops=(n,), n_chains=5000) for n in (16, 32, 64, 128)),
    Sweep(lengths=(128,), loops=(128, 256, 512), n_chains=1000),
)
WINDOW_SWEEPS = (Sweep(lengths=tuple(range(2, 25, 2)), loops=tuple(range(1, 25)), n_chains=300),)
PASSING_SWEEPS = (Sweep(lengths=tuple(range(6, 25, 2)), loops=tuple(range(1, 49)), n_chains=300),)
BASELINE_SWEEPS = (
    Sweep(lengths=(2, 3, 4, 5, 6, 7, 8, 16, 32), loops=(1,), n_chains=5000),
    Sweep(lengths=(64, 128), loops=(1,), n_chains=1000),
)

_EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 64}
AS_PUBLISHED, DENSE = "as published", "GQA, dense"
MODELS = {
    "GQA with experts": ModelConfig(n_kv_heads=2, **_EXPERTS),
    "MLA with experts": mod7_moe_model(),
    DENSE: mod7_model(),
}
FINAL = MODELS["GQA with experts"]


def final_train(seed: int) -> TrainConfig:
    return hold_recipe(seed)[1]


@dataclass(frozen=True)
class Change:
    """One difference between the published setting and the final one, and the fields that make it."""

    adding: str
    """What the ladder calls it when it is put in."""
    removing: str | None
    """What the removal study calls it when it is taken out again. ``None``: that is not run."""
    model: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


CHANGES = (
    Change("2,000 steps", "282 steps", train=("steps", "log_every", "checkpoint_every")),
    Change("narrower model", None, model=("d_model", "d_ff", "n_shared_experts", "vocab_size")),
    Change("larger initial weights", "published initial weights", model=("initializer_range",)),
    Change("published optimiser replaced", "published optimiser",
           train=("lr", "warmup_steps", "weight_decay", "beta2", "eps")),
    Change("fresh chains, batches of 256", "3,000 chains, batches of 64", train=("batch_size", "n_train_chains")),
    Change("last state in place of ACT's sum", "ACT's sum", model=("halting",)),
    Change("no loop number, no depth-wise LoRA", "loop number and depth-wise LoRA",
           model=("loop_index_embedding", "depth_lora_rank", "n_loops")),
    Change("LTI injection", "additive injection", model=("injection",)),
    Change("window of 2", "full attention, loss at the last loop", model=("window", "rope_theta")),
    Change("tanh on the state", "no tanh", model=("state_activation",)),
    Change("loss from the needed loop on, one digit too", "loss at the last loop", train=("loss", "min_digits")),
    Change("3 or 4 loops at random", "4 loops always", train=("min_loops",)),
    Change("averaged weights", "no average of weights", train=("ema_decay",)),
    Change("balanced experts", "experts not balanced", train=("router_bias_rate",)),
)  # fmt: skip
NO_START = "no START token"
ROPE_KEPT = "full attention, RoPE base kept"
"""The published model's rotary base goes with its full attention; this row has the final setting's."""


def _published(seed: int) -> tuple[ModelConfig, TrainConfig]:
    """The published setting with grouped-query attention, as the tutorial runs too, and room for long chains."""
    model = dataclasses.replace(published_model("gqa"), pad_token_id=ChainTask().pad_id, max_seq_len=FINAL.max_seq_len)
    return model, published_recipe(seed)[1]


def _with_fields(config, fields: Iterable[str], source):
    return dataclasses.replace(config, **{field: getattr(source, field) for field in fields})


def ladder(seed: int) -> list[Run]:
    """One change more in every run."""
    model, train = _published(seed)
    runs = [_run("ladder", AS_PUBLISHED, seed, model, train)]
    for change in CHANGES:
        model = _with_fields(model, change.model, FINAL)
        train = _with_fields(train, change.train, final_train(seed))
        runs.append(_run("ladder", f"+ {change.adding}", seed, model, train))
    return runs[:-2]  # the last is the final setting, the one before it the removal of balanced experts


def removal(seed: int) -> list[Run]:
    published_model_, published_train = _published(seed)
    runs = []
    for change in CHANGES:
        if change.removing is None:  # the wide model takes four times as long
            continue
        model = _with_fields(FINAL, change.model, published_model_)
        # The adapter has a scale per loop: with more than are trained, later loops would read untrained ones.
        model = dataclasses.replace(model, n_loops=FINAL.n_loops)
        train = _with_fields(final_train(seed), change.train, published_train)
        if model.window is None:  # every loop would count as enough, so the loss would ask for the answer at once
            train = dataclasses.replace(train, loss="last")
        runs.append(_run("removal", change.removing, seed, model, train))
    full, at_last = dataclasses.replace(FINAL, window=None), dataclasses.replace(final_train(seed), loss="last")
    runs.append(_run("removal", ROPE_KEPT, seed, full, at_last))
    runs.append(_run("removal", NO_START, seed, FINAL, final_train(seed), task=ChainTask(start_token=False)))
    return runs


def final(seed: int) -> list[Run]:
    return [_run("final", name, seed, model, final_train(seed), sweeps=FINAL_SWEEPS) for name, model in MODELS.items()]


def baselines(seed: int) -> list[Run]:
    return [
        _run(
            "baselines", name, seed, model, dataclasses.replace(final_train(seed), lr=_LR[name]), sweeps=BASELINE_SWEEPS
        )
        for name, model in BASELINES.items()
    ]


BASELINES = {
    "transformer, same parameters": BaselineConfig(kind="transformer", n_layers=3, d_ff=178),
    "transformer, same FLOPs": BaselineConfig(kind="transformer", n_layers=10, d_ff=176),
    "transformer, same FLOPs, window of 2": BaselineConfig(kind="transformer", n_layers=10, d_ff=176, window=2),
    "LSTM": BaselineConfig(kind="lstm", d_model=136),
    "GRU": BaselineConfig(kind="gru", d_model=157),
}
"""Those of ten layers have the FLOPs of the final model at eight loops, the others have its parameters."""
_LR = {
    "transformer, same parameters": 5e-3,
    "transformer, same FLOPs": 1e-3,
    "transformer, same FLOPs, window of 2": 5e-3,
    "LSTM": 1e-2,
    "GRU": 5e-4,
}
"""The best on long chains of 5e-4, 1e-3, 2e-3 and 5e-3 on seed 10, and beyond where the best stood at an end; with ten
layers, the best on 7 and 8 digits of 5e-4, 1e-3 and 5e-3 (none does more on 16 than guess)."""


@dataclass(frozen=True)
class Setting:
    """A task, and the fields in which its model and training differ from the final setting."""

    task: Task
    model: dict = dataclasses.field(default_factory=dict)
    train: dict = dataclasses.field(default_factory=dict)
    before: tuple[dict, ...] = ()
    """The same for trainings that come first."""


_PARITY = ChainTask(modulus=2, n_symbols=2)
_S5 = PermutationTask(degree=5, n_symbols=11)  # the identity and the transpositions
_WIDER = {"d_model": 128, "d_ff": 256, "n_experts": 0, "n_experts_per_token": 0, "n_shared_experts": 0, "d_expert": 0}
_LONGER = {"steps": 5000, "lr": 1e-3}
_TO_EIGHT = {"max_digits": 8, "min_loops": 6, "max_loops": 7}
TASKS = {
    "parity": Setting(_PARITY),
    "parity, trained on 8 bits": Setting(_PARITY, train=_TO_EIGHT),
    "sum modulo 5": Setting(ChainTask(modulus=5, n_symbols=5)),
    "S3": Setting(PermutationTask(degree=3, n_symbols=6)),
    "S5, trained on 5 elements": Setting(_S5, _WIDER, _LONGER),
    "S5, then on 8 elements": Setting(_S5, _WIDER, {"steps": 4000, "lr": 1e-3} | _TO_EIGHT, before=(_LONGER,)),
}
"""S5 has 120 states where the others have at most seven: its model is wider, dense, and trained for longer; its second
row goes on from the end of its first. Parity has only 62 chains of at most five bits; its second row has 510, of at
most eight."""


def tasks(seed: int) -> list[Run]:
    runs = []
    for name, setting in TASKS.items():
        task = setting.task
        fields = {"vocab_size": task.vocab_size, "pad_token_id": task.pad_id, **setting.model}
        model = dataclasses.replace(FINAL, **fields)
        *before, train = (dataclasses.replace(final_train(seed), **t) for t in (*setting.before, setting.train))
        run = _run("tasks", name, seed, model, train, task=task, sweeps=TASK_SWEEPS)
        runs.append(dataclasses.replace(run, before=tuple(before)))
    return runs


def passing(seed: int) -> list[Run]:
    """The first row of the tasks, trained again and asked more."""
    (parity,) = (run for run in tasks(seed) if run.rung == "parity")
    return [dataclasses.replace(parity, study="passing", sweeps=PASSING_SWEEPS)]


def windows(seed: int) -> list[Run]:
    """Trained on chains that need up to three loops at every window: 5, 10 and 15 digits. More than one digit per loop
    takes longer to learn."""
    return [
        _run("windows", f"window of {w}", seed, dataclasses.replace(FINAL, window=w),
             dataclasses.replace(final_train(seed), max_digits=5 * (w - 1), steps=steps), sweeps=WINDOW_SWEEPS)
        for w, steps in ((2, 2000), (3, 5000), (4, 5000))
    ]  # fmt: skip


def _run(study, rung, seed, model, train, *, task: Task | None = None, sweeps=LADDER_SWEEPS) -> Run:
    task = ChainTask() if task is None else task
    return Run(study=study, rung=rung, seed=seed, task=task, model=model, train=train, sweeps=sweeps)


STUDIES = {
    "ladder": (ladder, THREE_SEEDS), "removal": (removal, THREE_SEEDS), "final": (final, FIVE_SEEDS),
    "baselines": (baselines, FIVE_SEEDS), "tasks": (tasks, THREE_SEEDS), "windows": (windows, (0,)),
    "passing": (passing, THREE_SEEDS),
}  # fmt: skip
"""Each study's runs of one seed, and its seeds."""
OTHER_SEEDS = {("ladder", AS_PUBLISHED): FIVE_SEEDS, ("final", DENSE): (0,)}
"""The dense model is that of recipe ``hold``, whose five seeds the main job ran."""
