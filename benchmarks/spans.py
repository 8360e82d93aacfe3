"""Wall time against chain length: the loop with a window of two, the dilated one, and recurrent networks.

    python benchmarks/spans.py   # writes results/spans.json; about 5 minutes

One row per length and way: ``span``, how many calls of a step come one after the other; ``n_correct`` of ``n_chains``
held-out chains, for the shipped models; milliseconds of one thread for one chain (``ms_alone``) and per chain in a
batch of 8 (``ms_in_batch``), medians of five rounds in which the ways take turns. The tanh RNN is not trained: what a
step takes does not depend on its weights. Its width gives it the parameters of ``mod7-doubling``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mythos_lite import ChainTask, RecurrentDepthTransformer
from mythos_lite.files.atomic import write_files
from mythos_lite.files.provenance import provenance, source_hash
from mythos_lite.measure.left_to_right import run_left_to_right
from mythos_lite.measure.sweep import evaluation_chains
from mythos_lite.study.baselines import BaselineConfig, build_baseline

RESULT = Path(__file__).resolve().parents[1] / "results" / "spans.json"
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1000)
BATCH, ROUNDS, CHAINS_SEED = 8, 5, 1
TANH_RNN = BaselineConfig(kind="tanh_rnn", d_model=64, d_ff=190)  # 37,834 parameters
Way = Callable[[Tensor], Tensor]
"""Tokens (B, T) → logits (B, V) at EQ, which stands last."""


def ways(n_digits: int) -> dict[str, tuple[int, Way]]:
    """Each way by name: its span, and how to run it."""
    mod7, doubling = map(RecurrentDepthTransformer.from_pretrained, ("mod7", "mod7-doubling"))
    slow, fast = mod7.config.loops_needed(n_digits), doubling.config.loops_needed(n_digits)
    network = build_baseline(TANH_RNN, 0)
    return {
        "loop, window of 2": (slow, lambda ids: mod7(ids, n_loops=slow).logits[:, -1]),
        "loop, dilated window": (fast, lambda ids: doubling(ids, n_loops=fast).logits[:, -1]),
        "mod7 from left to right": (n_digits + 2, lambda ids: run_left_to_right(mod7, ids)[:, -1]),
        "tanh RNN": (n_digits + 2, lambda ids: network(ids)[:, -1]),
    }


@torch.no_grad()
def measure(n_digits: int) -> list[dict]:
    """The rows of one length."""
    task = ChainTask()
    batch = task.encode(evaluation_chains(task, n_digits, BATCH, CHAINS_SEED))
    found = ways(n_digits)
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name, (_, way) in found.items():
            for size in (1, BATCH):
                started = time.process_time()  # other processes on the machine do not count in it
                way(batch.token_ids[:size])
                times.setdefault((name, size), []).append((time.process_time() - started) / size)
    rows = []
    for name, (span, way) in found.items():
        answers = None if name == "tanh RNN" else way(batch.token_ids).argmax(-1)
        rows.append({
            "n_digits": n_digits, "way": name, "span": span, "n_chains": len(batch.answers),
            "n_correct": None if answers is None else int((answers == batch.answers).sum()),
            "ms_alone": round(1e3 * statistics.median(times[name, 1]), 3),
            "ms_in_batch": round(1e3 * statistics.median(times[name, BATCH]), 3),
        })  # fmt: skip
    return rows


def main() -> None:
    torch.set_num_threads(1)
    source, started, rows = source_hash(), time.process_time(), []
    for n_digits in LENGTHS:
        rows += measure(n_digits)
        print(*rows[-4:], sep="\n", file=sys.stderr)
    seconds = {"all, CPU": time.process_time() - started}
    command = ["python", "benchmarks/spans.py"]
    found = {"rows": rows, "provenance": provenance(command, source, torch.device("cpu"), seconds)}
    write_files({RESULT: (json.dumps(found, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
