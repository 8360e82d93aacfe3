"""How a learning rate suits a baseline, on a seed that no table uses, for weights, batches and chains.

    python benchmarks/baseline_rates.py "baselines: GRU" --lr 5e-4
    python benchmarks/baseline_rates.py "words: A5: GRU" --lr 5e-4 --device cuda

A model with a loop is asked with as many loops as digits. Prints one line of JSON; the lines behind the numbers in
``results/README.md`` are in ``results/tuning.jsonl``, earlier ones without the study's name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

import torch

from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.baselines import BaselineConfig, answer_loss, build_baseline, count_correct
from mythos_lite.study.depth import pointers, words
from mythos_lite.study.plan import baseline_tasks, baselines
from mythos_lite.training.trainer import train

LONGEST = 128
SEED = 10
"""Of training and of the chains: the study uses 0 to 4 and 50 to 54, and 1."""


def main() -> None:
    runs = (*baselines(SEED), *baseline_tasks(SEED), *words(SEED), *pointers(SEED))
    runs = {f"{run.study}: {run.rung}": run for run in runs if isinstance(run.model, BaselineConfig)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("baseline", choices=runs, metavar="ROW", help="; ".join(runs))
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--steps", type=int, help="of the last training; by default the row's")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, started = runs[args.baseline], time.process_time()
    args.steps = args.steps or run.train.steps
    model = build_baseline(run.model, SEED).to(args.device)
    for config in (*run.before, dataclasses.replace(run.train, steps=args.steps)):
        train(model, run.task, dataclasses.replace(config, lr=args.lr), objective=answer_loss, progress=False)
    took = time.process_time() - started
    lengths = sorted({n for asked in run.sweeps for n in asked.lengths if 4 <= n <= LONGEST})
    chains = {n: evaluation_chains(run.task, n, 1000, SEED) for n in lengths}
    accuracy = {n: round(count_correct(model, run.task, c, n) / len(c), 3) for n, c in chains.items()}
    print(json.dumps({**vars(args), "seed": SEED, "cpu_seconds": round(took), "accuracy": accuracy}))


if __name__ == "__main__":
    main()
