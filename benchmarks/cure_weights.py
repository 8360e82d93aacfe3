"""How much of a cure suits a model (study ``cures``), on a seed that no table uses, for weights, batches and chains.

    python benchmarks/cure_weights.py "no tanh, noise on the state" --weight 0.1

Prints one line of JSON, accuracy by ``digits@loops``; the lines behind the constants of ``mythos_lite/study/cures.py``
are in ``results/tuning.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from mythos_lite.measure.sweep import sweep
from mythos_lite.study import cures as objectives
from mythos_lite.study.overthinking import cures
from mythos_lite.study.run import OBJECTIVES
from mythos_lite.training.trainer import build_model, train

SEED = 10
CONSTANTS = {"noisy_loss": "NOISE", "fixed_point_loss": "REST_WEIGHT", "jacobian_loss": "JACOBIAN_WEIGHT"}
ASKED = ((4, 8), (8, 8), (8, 32), (8, 128), (64, 64), (64, 128))


def main() -> None:
    runs = {run.rung: run for run in cures(SEED)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("row", choices=runs, metavar="ROW", help="; ".join(runs))
    parser.add_argument("--weight", type=float, help="by default the study's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, started = runs[args.row], time.process_time()
    if args.weight is not None:
        setattr(objectives, CONSTANTS[run.objective], args.weight)
    model = build_model(run.model, SEED)
    train(model, run.task, run.train, objective=OBJECTIVES[run.objective], progress=False)
    took = time.process_time() - started
    accuracy = {}
    for n, loops in ASKED:
        [row] = sweep(model, run.task, [n], [loops], n_chains=300, seed=SEED)
        accuracy[f"{n}@{loops}"] = round(row["accuracy"], 3)
    print(json.dumps({**vars(args), "seed": SEED, "cpu_seconds": round(took), "accuracy": accuracy}))


if __name__ == "__main__":
    main()
