"""What ``test_parallel`` compares: done in its own process, or by several of torchrun, the first of which prints it."""

import dataclasses
import json
import sys
from pathlib import Path

import torch

from mythos_lite import ChainTask, ModelConfig, TrainConfig
from mythos_lite.study.records import read_record
from mythos_lite.study.run import Run
from mythos_lite.study.workers import carry_out, run_study
from mythos_lite.training.parallel import is_first, process_count, process_group
from mythos_lite.training.recipes import Sweep, published_model
from mythos_lite.training.trainer import build_model, train

DENSE = ModelConfig(d_model=16, n_heads=2, n_kv_heads=2, d_ff=32)
EXPERTS = dataclasses.replace(published_model(), vocab_size=10, d_model=16, n_heads=2, pad_token_id=9, d_expert=8)
TRAIN = TrainConfig(steps=12, batch_size=16, warmup_steps=2, log_every=1, checkpoint_every=4, ema_decay=0.9, lr=1e-2)


class Stopped(Exception):
    pass


def stop_after_six(record: dict) -> None:
    if record["step"] == 6:
        raise Stopped


def losses(config: ModelConfig, training: TrainConfig, folder: Path | None = None, **more: object) -> dict:
    model = build_model(config, 3)
    history = train(model, ChainTask(), training, folder=folder, progress=False, **more)
    weights = sum(p.double().abs().sum().item() for p in model.parameters())
    biases = [float(value) for name, buffer in model.named_buffers() if name.endswith("bias") for value in buffer]
    return {"loss": [r["loss"] for r in history], "accuracy": [r["accuracy"] for r in history], "weights": weights,
            "biases": biases}  # fmt: skip


def main(folder: Path) -> dict:
    """What training gave, and, but for later processes, the record of a run that was done and asked for again."""
    found = {
        "dense": losses(DENSE, TRAIN),
        "experts": losses(EXPERTS, dataclasses.replace(TRAIN, min_loops=1, router_bias_rate=0.01)),
        "fixed set": losses(DENSE, dataclasses.replace(TRAIN, n_train_chains=40)),
    }
    try:
        losses(DENSE, TRAIN, folder / "resumed", on_record=stop_after_six)
    except Stopped:
        found["resumed"] = losses(DENSE, TRAIN, folder / "resumed")
    try:
        losses(DENSE, dataclasses.replace(TRAIN, batch_size=15))
    except ValueError as error:
        found["error"] = str(error)
    asked = (Sweep(lengths=(3,), loops=(2, 4), n_chains=20),)
    run = Run(
        study="passing", rung="two", seed=1, task=ChainTask(), model=DENSE, train=TRAIN, sweeps=asked, before=(TRAIN,)
    )
    if process_count() == 1:
        carry_out(run, folder / "results", folder / "weights")
    for _ in range(2):
        records = run_study([run], folder / "results", folder / "weights")
    if is_first():
        found["record"] = read_record(folder / "results" / f"{run.name}.json")
        found |= {"again": records == [found["record"]], "processes": process_count()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        printed = json.dumps(main(Path(sys.argv[1])))
        if is_first():
            print(printed)
