"""Accuracy against loops and chain length, in one pass over the loops.

The state after eight loops passes through the state after four, so one run to the largest loop count
gives every smaller one: the coda reads the state out wherever a count was asked for.

A row is a plain dict: ``n_digits``, ``n_loops``, ``n_chains``, ``n_correct``, ``accuracy`` and its
95 % interval ``low`` to ``high`` (Wilson 1927), all shares between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import torch
from torch import Tensor

from mythos_lite.checks import NonFiniteError, check_int, check_ints, check_number
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.task.chains import Task, make_generator
from mythos_lite.task.loss import answer_logits

_CHAINS = 10  # stream of a seed, apart from those of training
_TOKENS_AT_ONCE = {"cpu": 2048}
"""Per device, of others ``_MANY_TOKENS``. A CPU is fastest while all activations of a loop stay in its cache."""
_MANY_TOKENS = 65_536


def wilson_interval(n_correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share, 95 % by default; stays inside [0, 1] and is not empty at 0 or ``n`` correct."""
    n = check_int("n", n, 1)
    n_correct = check_int("n_correct", n_correct, 0, n)
    confidence = check_number("confidence", confidence, 0.0, 0.999999, open_low=True)
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), n_correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not move a bound past the share itself.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def evaluation_chains(task: Task, n_digits: int, n_chains: int, seed: int = 0) -> Tensor:
    """Held-out chains (B, n): all of them if there are at most ``n_chains``, else that many at random."""
    n_digits, n_chains = check_int("n_digits", n_digits, 1), check_int("n_chains", n_chains, 1)
    if task.n_symbols**n_digits <= 100_000:
        chains = task.enumerate(n_digits, "held_out")
        if len(chains) <= n_chains:
            if not len(chains):
                raise ValueError(f"no chain of n_digits={n_digits} is held out for evaluation; use more digits")
            return chains
    return task.sample(n_chains, n_digits, make_generator(seed, _CHAINS, n_digits), "held_out")


@torch.no_grad()
def sweep(
    model: RecurrentDepthTransformer,
    task: Task,
    lengths: Iterable[int],
    loops: Iterable[int],
    *,
    n_chains: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """One row per length and loop count, on held-out chains drawn with ``seed``.

    Raises:
        NonFiniteError: when logits are not finite; says after which loop.
        ValueError: for a task that is not the model's, no lengths or loop counts, a loop count below 1, or a length
            that is too long for the model or has no chain held out.
    """
    loops, lengths = sorted(set(check_ints("n_loops", loops, 1))), check_ints("n_digits", lengths, 1)
    task.check_fit(model.config, max(lengths))
    device = model.embedding.weight.device
    model.eval()
    rows = []
    for n_digits in lengths:
        chains = evaluation_chains(task, n_digits, n_chains, seed)
        correct = dict.fromkeys(loops, 0)
        for part in chains.split(max(1, _TOKENS_AT_ONCE.get(device.type, _MANY_TOKENS) // (n_digits + 2))):
            batch = task.encode(part).to(device)
            for step in model.loop(batch.token_ids, loops[-1]):
                if step.loop in correct:
                    logits = answer_logits(model, step.output, batch.answer_positions)
                    if not torch.isfinite(logits).all():
                        raise NonFiniteError(f"the logits are not finite after loop {step.loop}; is the model damaged?")
                    correct[step.loop] += int((logits.argmax(-1) == batch.answers).sum())
        rows += [make_row(n_digits, n_loops, correct[n_loops], len(chains)) for n_loops in loops]
    return rows


@torch.no_grad()
def expert_shares(
    model: RecurrentDepthTransformer,
    task: Task,
    lengths: Iterable[int],
    n_loops: int,
    *,
    n_chains: int = 1000,
    seed: int = 0,
) -> list[list[float]]:
    """Share of the routed tokens that each expert gets, per loop: (L, E), core layers together, on held-out chains."""
    if not model.config.n_experts:
        raise ValueError("the model has no experts (n_experts=0), so there are no shares to measure")
    n_loops, lengths = check_int("n_loops", n_loops, 1), check_ints("n_digits", lengths, 1)
    task.check_fit(model.config, max(lengths))
    load = torch.zeros(n_loops, model.config.n_experts, dtype=torch.float32, device="cpu")
    for n_digits in lengths:
        batch = task.encode(evaluation_chains(task, n_digits, n_chains, seed)).to(model.embedding.weight.device)
        for step in model.loop(batch.token_ids, n_loops):
            load[step.loop - 1] += sum(stats.load for stats in step.routing).cpu()
    return (load / load.sum(dim=1, keepdim=True)).tolist()


def make_row(n_digits: int | str, n_loops: int, n_correct: int, n_chains: int) -> dict:
    low, high = wilson_interval(n_correct, n_chains)
    return {
        "n_digits": n_digits, "n_loops": n_loops, "n_chains": n_chains, "n_correct": n_correct,
        "accuracy": n_correct / n_chains, "low": low, "high": high,
    }  # fmt: skip


def pool(rows: list[dict], lengths: Iterable[int]) -> list[dict]:
    """Rows over several lengths together, one per loop count; every chain counts once."""
    lengths = check_ints("n_digits", lengths, 1)
    wanted = [row for row in rows if row["n_digits"] in lengths]
    if not wanted:
        raise ValueError(f"no row has one of the lengths {lengths}")
    name = f"{min(lengths)}–{max(lengths)}" if len(lengths) > 1 else str(lengths[0])
    pooled = []
    for n_loops in sorted({row["n_loops"] for row in wanted}):
        same = [row for row in wanted if row["n_loops"] == n_loops]
        pooled.append(make_row(name, n_loops, sum(r["n_correct"] for r in same), sum(r["n_chains"] for r in same)))
    return pooled
