"""The shipped models run token by token beside the loop: answers, work and time.

    python benchmarks/left_to_right.py   # writes results/left_to_right.json; about 10 minutes

One row per model, length and way: the loop at as many loops as digits, and ``run_left_to_right`` with one and with two
calls per token, on the same held-out chains. ``same_answers``: on how many the answer is the loop's, right or wrong.
Of one chain: ``calls`` of the core, all of them one after the other; ``token_evaluations``, positions that the core was
given in these calls together; ``ms_alone``, milliseconds of one thread when it is run by itself (the median of five
chains), and ``ms_among_many``, its share of batches of a size that suits the way.
"""

from __future__ import annotations

import json
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
from mythos_lite.measure.sweep import evaluation_chains, wilson_interval

RESULT = Path(__file__).resolve().parents[1] / "results" / "left_to_right.json"
MODELS = ("mod7", "mod7-experts")
LENGTHS = {8: 1000, 64: 1000, 128: 1000, 512: 200}
"""Digits, and how many chains."""
CHAINS_SEED = 1  # as in the study
TOKENS_AT_ONCE = 2048
"""Positions that a call of the core is given at most: more do not fit the processor's cache."""
Way = Callable[[Tensor], Tensor]
"""Tokens (B, T) → logits (B, V) at EQ, which stands last."""


def ways(model: RecurrentDepthTransformer, n_digits: int) -> dict[str, Way]:
    """Each way by name: the loop, and left to right with one and two calls."""
    return {
        "loop": lambda ids: model(ids, n_loops=n_digits).logits[:, -1],
        "left to right, 1 call": lambda ids: run_left_to_right(model, ids)[:, -1],
        "left to right, 2 calls": lambda ids: run_left_to_right(model, ids, calls_per_token=2)[:, -1],
    }


def count_calls(model: RecurrentDepthTransformer, way: Way, ids: Tensor) -> tuple[int, int]:
    """Calls of the core and positions evaluated in them, for one chain (1, T)."""
    given: list[int] = []
    hook = model.core[0].register_forward_pre_hook(lambda _, args: given.append(args[0].shape[1]))
    way(ids)
    hook.remove()
    return len(given), sum(given)


@torch.no_grad()
def measure(name: str, n_digits: int, n_chains: int) -> list[dict]:
    """The rows of one model and length."""
    model, task = RecurrentDepthTransformer.from_pretrained(name), ChainTask()
    batch, rows = task.encode(evaluation_chains(task, n_digits, n_chains, CHAINS_SEED)), []
    of_loop = torch.empty(0)
    for way_name, way in ways(model, n_digits).items():
        parts = batch.token_ids.split(max(1, TOKENS_AT_ONCE // (n_digits + 2 if way_name == "loop" else 2)))
        started = time.process_time()  # other processes on the machine do not count in it
        answers = torch.cat([way(ids).argmax(-1) for ids in parts])
        among_many = (time.process_time() - started) / len(answers)
        alone = []
        for ids in batch.token_ids[:5].split(1):
            started = time.process_time()
            way(ids)
            alone.append(time.process_time() - started)
        of_loop = answers if way_name == "loop" else of_loop  # which is the first
        n_correct = int((answers == batch.answers).sum())
        low, high = wilson_interval(n_correct, len(answers))
        calls, evaluations = count_calls(model, way, batch.token_ids[:1])
        rows.append({
            "model": name, "n_digits": n_digits, "way": way_name, "n_chains": len(answers), "n_correct": n_correct,
            "low": low, "high": high, "same_answers": int((answers == of_loop).sum()), "calls": calls,
            "token_evaluations": evaluations, "ms_alone": round(1e3 * sorted(alone)[2], 2),
            "ms_among_many": round(1e3 * among_many, 3),
        })  # fmt: skip
    return rows


def main() -> None:
    torch.set_num_threads(1)
    source, started, rows = source_hash(), time.process_time(), []
    for name in MODELS:
        for n_digits, n_chains in LENGTHS.items():
            rows += measure(name, n_digits, n_chains)
            print(*rows[-3:], sep="\n", file=sys.stderr)
    seconds = {"all, CPU": time.process_time() - started}
    command = ["python", "benchmarks/left_to_right.py"]
    found = {"rows": rows, "provenance": provenance(command, source, torch.device("cpu"), seconds)}
    text = json.dumps(found, indent=1) + "\n"
    write_files({RESULT: text.encode()})


if __name__ == "__main__":
    main()
