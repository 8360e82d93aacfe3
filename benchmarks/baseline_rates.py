"""How a learning rate suits a baseline, on a seed that no table uses, for weights, batches and chains.

    python benchmarks/baseline_rates.py GRU --lr 5e-4 --steps 2000

Prints one line of JSON; the lines behind the numbers in ``results/README.md`` are in ``results/tuning.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.baselines import answer_loss, build_baseline, count_correct
from mythos_lite.study.plan import BASELINES, final_train
from mythos_lite.task.chains import ChainTask
from mythos_lite.training.trainer import train

LENGTHS = (6, 7, 8, 16, 32, 64, 128)
SEED = 10
"""Of training and of the chains: the study uses 0 to 4, and 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("baseline", choices=BASELINES)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, model, started = ChainTask(), build_baseline(BASELINES[args.baseline][0], SEED), time.process_time()
    config = final_train(SEED, lr=args.lr, steps=args.steps)
    train(model, task, config, objective=answer_loss, progress=False)
    took = time.process_time() - started
    chains = {n: evaluation_chains(task, n, 1000, SEED) for n in LENGTHS}
    accuracy = {n: round(count_correct(model, task, c) / len(c), 3) for n, c in chains.items()}
    print(json.dumps({**vars(args), "seed": SEED, "cpu_seconds": round(took), "accuracy": accuracy}))


if __name__ == "__main__":
    main()
