"""A run of four steps, and what is done with its record."""

import dataclasses
import json

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.study.baselines import BaselineConfig
from mythos_lite.study.run import Run
from mythos_lite.task.chains import ChainTask
from mythos_lite.training.recipes import Sweep

TINY = ModelConfig(
    d_model=16, n_heads=2, n_kv_heads=1, d_ff=16, n_experts=2, n_experts_per_token=1, n_shared_experts=1, d_expert=8
)
TRAIN = TrainConfig(steps=4, batch_size=8, log_every=2, warmup_steps=1)
SWEEPS = (Sweep(lengths=(2, 3), loops=(1, 4), n_chains=20), Sweep(lengths=(6,), loops=(8,), n_chains=10))
LOOPED = Run(study="ladder", rung="+ tiny, quick", seed=0, task=ChainTask(), model=TINY, train=TRAIN, sweeps=SWEEPS)
GRU = dataclasses.replace(
    LOOPED, rung="GRU", model=BaselineConfig(kind="gru", d_model=8),
    sweeps=tuple(dataclasses.replace(s, loops=(1,)) for s in SWEEPS),
)  # fmt: skip
ENDLESS = dataclasses.replace(TRAIN, steps=1_000_000)
COMMAND = ["study"]


def copy_of(record, **changes):
    return {**json.loads(json.dumps(record)), **changes}


def put(record, folder, name=LOOPED.name):
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path


def named(name, train=TRAIN):
    return dataclasses.replace(LOOPED, rung=name, train=train)
