"""What loops buy that a recurrent network has not: depth that grows as log n, and steps whose order no text gives.

===================  =================================================================================
study                question
===================  =================================================================================
``doubling``         with a dilated window: are ⌈log₂(n + 1)⌉ loops enough for n elements?
``words``            products of all elements of A5 and S5: the loop beside what one would use instead
``pointers``         paths through a graph that is whole in sight: does k steps take k loops?
===================  =================================================================================

Lengths grow in the course of a training: what one level of the sum is made of has to be there before the next. The
models have no prelude and no coda, and the read-out shares its matrix with the embedding. So what is read out at the
end is coded as what comes in, and the step can be repeated on what it has made.
"""

import dataclasses

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.study.baselines import BaselineConfig
from mythos_lite.study.run import Run
from mythos_lite.task.chains import ChainTask, PermutationTask, Task
from mythos_lite.task.pointers import PointerTask
from mythos_lite.training.recipes import Sweep

_BARE = {"n_prelude_layers": 0, "n_coda_layers": 0}
DOUBLING = ModelConfig(n_kv_heads=2, dilated=True, injection="none", max_seq_len=2048, **_BARE)
_GROWING = (  # up to 2, 6 and 16 elements; a loop more than they need, so that the answer is held
    {"steps": 400, "max_digits": 2, "min_loops": 2, "max_loops": 3},
    {"steps": 400, "max_digits": 6, "min_loops": 3, "max_loops": 4},
    {"steps": 1000, "max_digits": 16, "min_loops": 5, "max_loops": 6},
)
DOUBLING_SWEEPS = (
    Sweep(lengths=(2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128), loops=tuple(range(1, 10)), n_chains=1000),
    Sweep(lengths=(16, 128), loops=(8, 16, 32), n_chains=1000),
    Sweep(lengths=(256, 512, 1024), loops=(7, 8, 9, 10, 11, 12), n_chains=300),
    Sweep(lengths=(1024,), loops=(11, 22, 44), n_chains=300),
)
S3, A5, S5 = (
    PermutationTask(degree=3, n_symbols=6),
    PermutationTask(degree=5, n_symbols=60, even=True),
    PermutationTask(degree=5, n_symbols=120),
)


def _train(seed: int, **fields: object) -> TrainConfig:
    common = {"min_digits": 1, "loss": "from_needed", "ema_decay": 0.999, "checkpoint_every": 200}
    return TrainConfig(seed=seed, **{**common, **fields})


def _for(task: Task, model: ModelConfig, **fields: object) -> ModelConfig:
    return dataclasses.replace(model, vocab_size=task.vocab_size, pad_token_id=task.pad_id, **fields)


def doubling(seed: int) -> list[Run]:
    """The sum in log n loops, on two groups, and modulo 7 less one thing at a time."""
    digits = ChainTask()
    growing = [{"batch_size": 128, **training} for training in _GROWING]
    at_once = [{**growing[-1], "steps": sum(training["steps"] for training in growing)}]
    variants: dict[str, tuple[Task, dict, list[dict]]] = {
        "sum modulo 7": (digits, {}, growing),
        "S3": (S3, {}, growing),
        "no tanh": (digits, {"state_activation": "none"}, growing),
        "LTI injection": (digits, {"injection": "lti"}, growing),
        "prelude and coda": (digits, {"n_prelude_layers": 1, "n_coda_layers": 1}, growing),
        "no START token": (ChainTask(start_token=False), {}, growing),
        "all lengths at once": (digits, {}, at_once),
    }
    runs = []
    for name, (task, fields, trainings) in variants.items():
        *before, last = (_train(seed, **training) for training in trainings)
        runs.append(_run("doubling", name, seed, task, _for(task, DOUBLING, **fields), last, before, DOUBLING_SWEEPS))
    return runs


_WORDS = dataclasses.replace(DOUBLING, d_model=128, d_ff=512, n_kv_heads=4)
_LEVELS = ((2, 2, 3), (3, 2, 3), (6, 3, 4), (16, 5, 6))
"""Most elements, fewest loops and most loops of each training. The products of two that three elements are made of are
as many as the factors' own, and have to be coded alike before longer chains can be learned."""
_WORDS_STEPS = {"A5": ((800, 1024), (1200, 1024), (1600, 1024), (1500, 256)),
                "S5": ((1000, 2048), (1500, 2048), (3000, 1024), (1500, 256))}  # fmt: skip
"""Steps and batch size of each training."""
WORD_SWEEPS = (
    Sweep(lengths=(4, 8, 16, 32, 64, 128), loops=tuple(range(1, 10)), n_chains=1000),
    Sweep(lengths=(16, 128), loops=(8, 16, 32), n_chains=1000),
    Sweep(lengths=(256, 512, 1024), loops=(8, 9, 10, 11, 12), n_chains=300),
    Sweep(lengths=(1024,), loops=(11, 22, 44), n_chains=300),
)
WORD_BASELINES = {
    "LSTM": (BaselineConfig(kind="lstm", d_model=176), 5e-3),
    "GRU": (BaselineConfig(kind="gru", d_model=202), 2e-3),
    "Elman RNN": (BaselineConfig(kind="rnn", d_model=340), 2e-3),
    "tanh RNN": (BaselineConfig(kind="tanh_rnn", d_model=128, d_ff=640), 1e-3),
    "transformer": (BaselineConfig(kind="transformer", d_model=96, n_layers=3, d_ff=192), 1e-3),
}
"""Models of the looped one's size, 270,592 parameters within five per cent, and their learning rates: of those tried
on seed 10 (``results/tuning.jsonl``) the best on 16 and 32 elements."""
BASELINE_SWEEPS = (
    Sweep(lengths=(4, 8, 16, 32, 64, 128), loops=(1,), n_chains=1000),
    Sweep(lengths=(256, 512, 1024), loops=(1,), n_chains=300),
)


def words(seed: int) -> list[Run]:
    """The word problem of A5 and S5, every element a factor: the loop, and what one would use instead."""

    def trainings(group: str, lr: float) -> list[TrainConfig]:
        return [
            _train(seed, lr=lr, steps=steps, batch_size=size, max_digits=digits, min_loops=low, max_loops=high)
            for (digits, low, high), (steps, size) in zip(_LEVELS, _WORDS_STEPS[group], strict=True)
        ]

    runs = []
    for group, task in (("A5", A5), ("S5", S5)):
        *before, last = trainings(group, 1e-3)
        runs.append(_run("words", f"{group}: loop", seed, task, _for(task, _WORDS), last, before, WORD_SWEEPS))
    for name, (model, lr) in WORD_BASELINES.items():
        *before, last = trainings("A5", lr)
        model = dataclasses.replace(model, vocab_size=A5.vocab_size)
        runs.append(_run("words", f"A5: {name}", seed, A5, model, last, before, BASELINE_SWEEPS))
    return runs


POINTERS = PointerTask()
_POINTERS = ModelConfig(
    vocab_size=POINTERS.vocab_size, pad_token_id=POINTERS.pad_id, output_size=POINTERS.n_answers, window=None,
    rope_theta=1e12, **_BARE,
)  # fmt: skip
"""Where an edge stands says nothing: with a base this large hardly anything of the rotary angles is left. Were edges
among the answers, Adam would move their embeddings, which share the head's matrix, away from them all together."""
_STEPS = tuple(
    {"steps": steps, "max_digits": k, "min_loops": k, "max_loops": min(k + 1, 4), "loss": "from_length"}
    for k, steps in ((1, 600), (2, 450), (3, 300), (4, 1800))
)
POINTER_SWEEPS = (
    Sweep(lengths=tuple(range(1, 19)), loops=tuple(range(1, 21)), n_chains=1000),
    Sweep(lengths=(4, 8, 16), loops=(32, 64, 128), n_chains=1000),
)
POINTER_BASELINES = {
    "LSTM": (BaselineConfig(kind="lstm", d_model=80), 1e-3),
    "transformer of 4 layers": (BaselineConfig(kind="transformer", d_model=64, n_layers=4, d_ff=128), 1e-3),
}


def pointers(seed: int) -> list[Run]:
    """Paths of at most four steps in training, and of up to eighteen when it is asked."""
    runs = []
    for name, fields in (
        ("loop", {}),
        ("no injection", {"injection": "none"}),
        ("no tanh", {"state_activation": "none"}),
    ):
        *before, last = (_train(seed, lr=1e-3, batch_size=2048, log_every=300, **training) for training in _STEPS)
        model = dataclasses.replace(_POINTERS, **fields)
        runs.append(_run("pointers", name, seed, POINTERS, model, last, before, POINTER_SWEEPS))
    for name, (model, lr) in POINTER_BASELINES.items():
        *before, last = (_train(seed, lr=lr, batch_size=2048, log_every=300, **training) for training in _STEPS)
        model = dataclasses.replace(model, vocab_size=POINTERS.vocab_size)
        sweeps = (Sweep(lengths=POINTER_SWEEPS[0].lengths, loops=(1,), n_chains=1000),)
        runs.append(_run("pointers", name, seed, POINTERS, model, last, before, sweeps))
    return runs


def _run(
    study: str, rung: str, seed: int, task: Task, model: ModelConfig | BaselineConfig, train: TrainConfig,
    before: list[TrainConfig], sweeps: tuple[Sweep, ...],
) -> Run:  # fmt: skip
    return Run(study=study, rung=rung, seed=seed, task=task, model=model, train=train, sweeps=sweeps, before=(*before,))
