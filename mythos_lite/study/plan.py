"""Which runs there are: every rung of every study, as configurations.

==================  ======================================================================================
study               question
==================  ======================================================================================
``ladder``          from the published setting to the final one, one change after the other: what mends it?
``removal``         the final setting less one thing: what does it need?
``final``           the final setting with three models, five seeds, many chains: how far does it go?
``baselines``       plain transformers and recurrent networks on the same batches: what would one use instead?
``tasks``           the same code on other groups: is it a counting trick?
``baseline-tasks``  recurrent networks on some of these groups: do they go as far?
``windows``         wider windows: are the loops needed those that the window predicts?
``passing``         parity, asked after every loop: does the right answer stay?
``experiment``      the recipes of the main job, as they are
``doubling``        these three are in ``study.depth``: depth that grows as log n,
``words``           products of all elements of A5 and S5,
``pointers``        and paths through a graph
``two-changes``     these two in ``study.overthinking``: window and tanh on the published model,
``cures``           and what keeps an answer besides a tanh
==================  ======================================================================================

The final setting is the training of recipe ``hold``. Its model is grouped-query attention with two key/value
heads, four routed experts of which two are chosen, and a shared one; ``final`` also runs the other two models.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from mythos_lite.checks import check_choice, check_int
from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.study.baselines import BaselineConfig
from mythos_lite.study.depth import doubling, pointers, words
from mythos_lite.study.overthinking import cures, two_changes
from mythos_lite.study.run import Run
from mythos_lite.task.chains import ChainTask, PermutationTask, Task
from mythos_lite.training.recipes import RECIPES, Sweep, mod7_model, mod7_moe_model, published_model, recipe

THREE_SEEDS, FIVE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)
LATER_SEEDS = (50, 51, 52, 53, 54)
"""Of rows that were added once the others were known."""
_DIGITS = ChainTask()


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
FARTHER_SWEEPS = (*BASELINE_SWEEPS, Sweep(lengths=(512,), loops=(1,), n_chains=300))
CONVOLUTION_SWEEPS = (*_SHORT, *(Sweep(lengths=(n,), loops=(4, 8, n, 2 * n), n_chains=300) for n in (16, 32, 64, 128)))

_EXPERTS = {"n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "d_expert": 64}
AS_PUBLISHED, DENSE, FINAL_RUNG = "as published", "GQA, dense", "GQA with experts"
MODELS = {
    FINAL_RUNG: ModelConfig(n_kv_heads=2, **_EXPERTS), "MLA with experts": mod7_moe_model(), DENSE: mod7_model()
}  # fmt: skip
FINAL = MODELS[FINAL_RUNG]


def final_train(seed: int, **changes: object) -> TrainConfig:
    return dataclasses.replace(recipe("hold", seed)[1], **changes)


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
    model = dataclasses.replace(published_model("gqa"), pad_token_id=_DIGITS.pad_id, max_seq_len=FINAL.max_seq_len)
    return model, recipe("published", seed)[1]


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
    runs.append(
        _run("removal", ROPE_KEPT, seed, dataclasses.replace(FINAL, window=None), final_train(seed, loss="last"))
    )
    runs.append(_run("removal", NO_START, seed, FINAL, final_train(seed), task=ChainTask(start_token=False)))
    return runs


def final(seed: int) -> list[Run]:
    return [_run("final", name, seed, model, final_train(seed), FINAL_SWEEPS) for name, model in MODELS.items()]


CONVOLUTION = "convolution with recall"
_TEN_LAYERS = {"kind": "transformer", "n_layers": 10, "d_ff": 176}
BASELINES = {
    "transformer, same parameters": (BaselineConfig(kind="transformer", n_layers=3, d_ff=178), 5e-3),
    "transformer, same FLOPs": (BaselineConfig(**_TEN_LAYERS), 1e-3),
    "transformer, same FLOPs, window of 2": (BaselineConfig(**_TEN_LAYERS, window=2), 5e-3),
    "LSTM": (BaselineConfig(kind="lstm", d_model=136), 1e-2),
    "GRU": (BaselineConfig(kind="gru", d_model=157), 5e-4),
    "Elman RNN": (BaselineConfig(kind="rnn", d_model=270), 1e-3),
    "tanh RNN": (BaselineConfig(kind="tanh_rnn", d_model=112, d_ff=448), 5e-3),
    CONVOLUTION: (BaselineConfig(kind="convolution", d_model=104), 2e-3),
}
"""Models and learning rates. Those of ten layers have the FLOPs of the final model at eight loops, the others its
parameters. A rate is the best on long chains of 5e-4, 1e-3, 2e-3 and 5e-3 on seed 10, and beyond where the best stood
at an end; with ten layers, the best on 7 and 8 digits of 5e-4, 1e-3 and 5e-3 (none does more on 16 than guess)."""


LATER_BASELINES = {"Elman RNN": FARTHER_SWEEPS, "tanh RNN": FARTHER_SWEEPS, CONVOLUTION: CONVOLUTION_SWEEPS}
"""Those that came later, when the others had been trained, and what they are asked."""


def baselines(seed: int) -> list[Run]:
    return [
        _run("baselines", name, seed, model, final_train(seed, lr=lr), LATER_BASELINES.get(name, BASELINE_SWEEPS))
        for name, (model, lr) in BASELINES.items()
    ]


_PARITY = ChainTask(modulus=2, n_symbols=2)
_S5 = PermutationTask(degree=5, n_symbols=11)  # the identity and the transpositions
_WIDER = {"d_model": 128, "d_ff": 256, "n_experts": 0, "n_experts_per_token": 0, "n_shared_experts": 0, "d_expert": 0}
_LONGER = {"steps": 5000, "lr": 1e-3}
_TO_EIGHT = {"max_digits": 8, "min_loops": 6, "max_loops": 7}
TASKS: dict[str, tuple[Task, dict, list[dict]]] = {
    "parity": (_PARITY, {}, [{}]),
    "parity, trained on 8 bits": (_PARITY, {}, [_TO_EIGHT]),
    "sum modulo 5": (ChainTask(modulus=5, n_symbols=5), {}, [{}]),
    "S3": (PermutationTask(degree=3, n_symbols=6), {}, [{}]),
    "S5, trained on 5 elements": (_S5, _WIDER, [_LONGER]),
    "S5, then on 8 elements": (_S5, _WIDER, [_LONGER, {"steps": 4000, "lr": 1e-3} | _TO_EIGHT]),
}
"""Tasks, and the fields in which their model and their trainings, one after the other, differ from the final setting.
S5 has 120 states where the others have at most seven: its model is wider, dense, and trained for longer. Parity has
only 62 chains of at most five bits; its second row has 510, of at most eight."""


def tasks(seed: int) -> list[Run]:
    runs = []
    for name, (task, changes, trainings) in TASKS.items():
        model = dataclasses.replace(FINAL, vocab_size=task.vocab_size, pad_token_id=task.pad_id, **changes)
        *before, train = (final_train(seed, **training) for training in trainings)
        runs.append(_run("tasks", name, seed, model, train, TASK_SWEEPS, task=task, before=tuple(before)))
    return runs


RECURRENT = ("LSTM", "GRU", "Elman RNN", "tanh RNN")
BASELINE_TASKS = ("parity", "parity, trained on 8 bits", "S3", "S5, then on 8 elements")
BASELINE_TASK_SWEEPS = (
    *(Sweep(lengths=asked.lengths, loops=(1,), n_chains=asked.n_chains) for asked in TASK_SWEEPS),
    *(Sweep(lengths=(n,), loops=(1,), n_chains=300) for n in (128, 512)),
)
WIDER_BASELINES = {
    "LSTM": ({"d_model": 228}, 5e-3),
    "GRU": ({"d_model": 261}, 2e-3),
    "Elman RNN": ({"d_model": 429}, 1e-3),
    "tanh RNN": ({"d_model": 192, "d_ff": 744}, 1e-3),
    CONVOLUTION: ({"d_model": 176}, 1e-3),
}
"""Widths with the parameters of the looped model of S5, and learning rates, one tried on it on seed 10 each."""


def baseline_tasks(seed: int) -> list[Run]:
    """On the batches of the looped model: its steps and lengths."""
    runs = []
    for task_name in BASELINE_TASKS:
        task, changes, trainings = TASKS[task_name]
        for name in WIDER_BASELINES if changes else RECURRENT:
            model, lr = BASELINES[name]
            wider, lr = WIDER_BASELINES[name] if changes else ({}, lr)
            model = dataclasses.replace(model, vocab_size=task.vocab_size, **wider)
            *before, train = (final_train(seed, **{**training, "lr": lr}) for training in trainings)
            sweeps = TASK_SWEEPS if name == CONVOLUTION else BASELINE_TASK_SWEEPS
            given = (f"{task_name}: {name}", seed, model, train, sweeps)
            runs.append(_run("baseline-tasks", *given, task=task, before=tuple(before)))
    return runs


def passing(seed: int) -> list[Run]:
    """The first row of the tasks, trained again and asked more."""
    (parity,) = (run for run in tasks(seed) if run.rung == "parity")
    return [dataclasses.replace(parity, study="passing", sweeps=PASSING_SWEEPS)]


def windows(seed: int) -> list[Run]:
    """Trained on chains that need up to three loops at every window: 5, 10 and 15 digits. More than one digit per loop
    takes longer to learn."""
    runs = []
    for w, steps in ((2, 2000), (3, 5000), (4, 5000)):
        model, train = dataclasses.replace(FINAL, window=w), final_train(seed, max_digits=5 * (w - 1), steps=steps)
        runs.append(_run("windows", f"window of {w}", seed, model, train, WINDOW_SWEEPS))
    return runs


def experiment(seed: int) -> list[Run]:
    """The main job with every recipe, and the first one's training with experts."""
    return [*(experiment_run(name, seed) for name in RECIPES), experiment_run("fixed", seed, experts=True)]


QUICK_STEPS, QUICK_CHAINS = 60, 100


def experiment_run(name: str, seed: int, *, experts: bool = False, quick: bool = False) -> Run:
    """The main job: a recipe with its own model, or the one with latent attention and ``experts``.

    ``quick``: in ``QUICK_STEPS`` steps and on few chains of at most 32 digits, to see that everything runs; warm-up and
    checkpoint interval shrink in proportion.

    Raises:
        ValueError: for an unknown recipe, a seed that is not one, or experts where the recipe has them already.
    """
    model, train = recipe(name, seed)
    sweeps, rung = RECIPES[name].sweeps, name
    if experts:
        if model.n_experts:
            raise ValueError(f"recipe={name!r} already has experts; leave out --experts")
        model, rung = mod7_moe_model(), f"{name} with experts"
    if quick:
        share, rung = QUICK_STEPS / train.steps, f"{rung} (quick)"
        train = dataclasses.replace(
            train, steps=QUICK_STEPS, warmup_steps=round(share * train.warmup_steps), log_every=QUICK_STEPS // 2,
            checkpoint_every=max(1, round(share * train.checkpoint_every)),
        )  # fmt: skip
        sweeps = tuple(dataclasses.replace(s, n_chains=QUICK_CHAINS) for s in sweeps if max(s.lengths) <= 32)
    return Run(
        study="experiment",
        rung=rung,
        seed=seed,
        task=ChainTask(),
        model=model,
        train=train,
        sweeps=sweeps,
        chains_seed=0,
    )


def _run(study, rung, seed, model, train, sweeps=LADDER_SWEEPS, *, task: Task = _DIGITS, before=()) -> Run:
    return Run(
        study=study, rung=rung, seed=seed, task=task, model=model, train=train, sweeps=sweeps, before=before
    )  # fmt: skip


STUDIES = {
    "ladder": (ladder, THREE_SEEDS), "removal": (removal, THREE_SEEDS), "final": (final, FIVE_SEEDS),
    "baselines": (baselines, FIVE_SEEDS), "tasks": (tasks, THREE_SEEDS),
    "baseline-tasks": (baseline_tasks, LATER_SEEDS[:3]), "windows": (windows, (0,)),
    "passing": (passing, THREE_SEEDS), "experiment": (experiment, FIVE_SEEDS),
    "doubling": (doubling, LATER_SEEDS[:3]), "words": (words, LATER_SEEDS[:3]), "pointers": (pointers, LATER_SEEDS[:3]),
    "two-changes": (two_changes, LATER_SEEDS), "cures": (cures, LATER_SEEDS[:3]),
}  # fmt: skip
"""Each study's runs of one seed, and its seeds."""
OTHER_SEEDS = {
    ("ladder", AS_PUBLISHED): FIVE_SEEDS, ("final", DENSE): (0,), ("experiment", "fixed with experts"): (0,),
    **{("baselines", name): LATER_SEEDS for name in LATER_BASELINES},
    ("doubling", "sum modulo 7"): LATER_SEEDS, ("doubling", "S3"): LATER_SEEDS,
}  # fmt: skip
"""The dense model is that of recipe ``hold``, whose five seeds the main job ran."""


def chosen_runs(studies: Iterable[str], rungs: Iterable[str] = (), seeds: Iterable[int] | None = None) -> list[Run]:
    """The plan's runs of these studies, seed by seed, so that each rung has one seed before any has two.

    Without ``seeds`` each rung has those that the plan gives it.

    Raises:
        ValueError: for a study that does not exist, a rung that none of them has, or a seed that is not one.
    """
    studies, rungs = list(dict.fromkeys(studies)), list(rungs)
    for study in studies:
        check_choice("study", study, tuple(STUDIES))
    if seeds is not None:
        seeds = list(dict.fromkeys(check_int("seed", seed, 0, 2**32 - 1) for seed in seeds))
    usual = [*(own for _, own in STUDIES.values()), *OTHER_SEEDS.values()]
    planned = sorted({seed for own in usual for seed in own})
    runs = [
        run
        for seed in (planned if seeds is None else seeds)
        for study in studies
        for run in STUDIES[study][0](seed)
        if seeds is not None or seed in OTHER_SEEDS.get((study, run.rung), STUDIES[study][1])
    ]
    known = list(dict.fromkeys(run.rung for run in runs))
    for rung in rungs:
        check_choice("rung", rung, tuple(known))
    return [run for run in runs if not rungs or run.rung in rungs]
