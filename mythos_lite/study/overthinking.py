"""What overthinks, and what cures it.

=======================  =================================================================================
study                    question
=======================  =================================================================================
``two-changes``          window and tanh on the published model, trained for longer: is it those two?
``cures``                what keeps the answer of a model without tanh, of parity, of the recipe ``fixed``?
=======================  =================================================================================
"""

import dataclasses

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.study.run import Run
from mythos_lite.task.chains import ChainTask, Task
from mythos_lite.training.recipes import Sweep, mod7_model, published_model, recipe

_DIGITS, _BITS = ChainTask(), ChainTask(modulus=2, n_symbols=2)
FAR = tuple(Sweep(lengths=(n,), loops=(n, 2 * n), n_chains=300) for n in (16, 64, 128))
TWO_CHANGES_SWEEPS = (
    Sweep(lengths=(2, 3, 4, 5), loops=(4, 8), n_chains=1000), Sweep(lengths=(6, 7, 8), loops=(4, 8, 32), n_chains=1000),
    *FAR,
)  # fmt: skip
CURES_SWEEPS = (
    Sweep(lengths=(3, 4, 5), loops=(4, 8), n_chains=1000), Sweep(lengths=(6, 7, 8), loops=(8, 32, 128), n_chains=1000),
    *FAR,
)  # fmt: skip
CURES = {
    "as it is": "chain_loss", "noise on the state": "noisy_loss", "fixed-point loss": "fixed_point_loss",
    "Jacobian penalty": "jacobian_loss",
}  # fmt: skip


def two_changes(seed: int) -> list[Run]:
    """The published model with grouped-query attention and 2,000 steps, with and without window and tanh."""
    steps = {"steps": 2000, "log_every": 100, "checkpoint_every": 250}
    train = dataclasses.replace(recipe("published", seed)[1], **steps)
    model = dataclasses.replace(published_model("gqa"), pad_token_id=_DIGITS.pad_id, max_seq_len=1024)
    return [
        _run("two-changes", f"{window_name}, {tanh_name}", seed, _DIGITS, changed, train, TWO_CHANGES_SWEEPS)
        for window_name, window in (("full attention", None), ("window of 2", 2))
        for tanh_name, activation in (("no tanh", "none"), ("tanh", "tanh"))
        for changed in (dataclasses.replace(model, window=window, state_activation=activation),)
    ]


def cures(seed: int) -> list[Run]:
    """Three additions to the loss, for three models of which some lose answers as the loop goes on."""
    hold, fixed = recipe("hold", seed)[1], recipe("fixed", seed)[1]
    model = mod7_model()
    bits = dataclasses.replace(model, vocab_size=_BITS.vocab_size, pad_token_id=_BITS.pad_id)
    settings: dict[str, tuple[Task, ModelConfig, TrainConfig]] = {
        "no tanh": (_DIGITS, dataclasses.replace(model, state_activation="none"), hold),
        "parity": (_BITS, bits, hold),
        "fixed": (_DIGITS, model, fixed),
    }
    return [
        _run("cures", f"{name}, {cure}", seed, *setting, CURES_SWEEPS, objective=objective)
        for name, setting in settings.items()
        for cure, objective in CURES.items()
    ]


def _run(
    study: str, rung: str, seed: int, task: Task, model: ModelConfig, train: TrainConfig, sweeps: tuple[Sweep, ...],
    objective: str = "chain_loss",
) -> Run:  # fmt: skip
    return Run(
        study=study, rung=rung, seed=seed, task=task, model=model, train=train, sweeps=sweeps, objective=objective
    )
