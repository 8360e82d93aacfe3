"""Accuracy against loops and chain length, in one pass over the loops.

The state after eight loops passes through the state after four, so one run to the largest loop count
gives every smaller one: the coda reads the state out wherever a count was asked for.

A row is a plain dict: ``n_digits``, ``n_loops``, ``n_chains``, ``n_correct``, ``accuracy`` and its
95 % interval ``low`` to ``high`` (Wilson 1927), all shares between 0 and 1.
"""

import math
from collections.abc import Iterable, Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from mythos_lite.checks import NonFiniteError, check_int, check_ints, check_number
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.task.chains import Batch, Task, make_generator
from mythos_lite.task.loss import answer_logits

_CHAINS = 10  # stream of a seed, apart from those of training
_TOKENS_AT_ONCE = {"cpu": 2048}  # fastest while all activations of a loop stay in the CPU's cache
_MANY_TOKENS = 65_536  # on other devices


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
    if task.n_chains(n_digits) <= 100_000:
        chains = task.enumerate(n_digits, "held_out")
        if 0 < len(chains) <= n_chains:
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
    count_non_finite: bool = False,
) -> list[dict]:
    """One row per length and loop count, on held-out chains drawn with ``seed``.

    With ``count_non_finite``, a chain whose logits are not finite is counted as not correct; otherwise it is an error.

    Raises:
        NonFiniteError: when logits are not finite; says after which loop.
        ValueError: for a task that is not the model's, no lengths or loop counts, a loop count below 1, or a length
            that is too long for the model or has no chain held out.
    """
    loops = sorted(set(check_ints("loops", loops, 1)))
    model.eval()
    rows = []
    for n_digits, batches in _batches(model, task, lengths, n_chains, seed):
        correct = dict.fromkeys(loops, 0)
        for batch in batches:
            for turn in model.loop(batch.token_ids, loops[-1]):
                if turn.loop in correct:
                    logits = answer_logits(model, turn.output, batch.answer_positions)
                    finite = torch.isfinite(logits).all(dim=-1)
                    if not count_non_finite and not finite.all():
                        raise NonFiniteError(f"the logits are not finite after loop {turn.loop}; is the model damaged?")
                    correct[turn.loop] += int(((logits.argmax(-1) == batch.answers) & finite).sum())
        total = sum(len(batch.answers) for batch in batches)
        rows += [make_row(n_digits, n_loops, correct[n_loops], total) for n_loops in loops]
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
    load = torch.zeros(check_int("n_loops", n_loops, 1), model.config.n_experts, dtype=torch.float32, device="cpu")
    for _, batches in _batches(model, task, lengths, n_chains, seed):
        for batch in batches:
            for turn in model.loop(batch.token_ids, n_loops):
                load[turn.loop - 1] += sum(stats.load for stats in turn.routing).cpu()
    return (load / load.sum(dim=1, keepdim=True)).tolist()


def _batches(
    model: RecurrentDepthTransformer, task: Task, lengths: Iterable[int], n_chains: int, seed: int
) -> Iterator[tuple[int, list[Batch]]]:
    """Each length and its evaluation chains, in batches of a size that suits the model's device."""
    lengths, device = check_ints("lengths", lengths, 1), model.embedding.weight.device
    task.check_fit(model.config, max(lengths))
    for n_digits in lengths:
        at_once = max(1, _TOKENS_AT_ONCE.get(device.type, _MANY_TOKENS) // (n_digits + 2))
        parts = evaluation_chains(task, n_digits, n_chains, seed).split(at_once)
        yield n_digits, [task.encode(part).to(device) for part in parts]


def make_row(n_digits: int | str, n_loops: int, n_correct: int, n_chains: int) -> dict:
    low, high = wilson_interval(n_correct, n_chains)
    return {
        "n_digits": n_digits, "n_loops": n_loops, "n_chains": n_chains, "n_correct": n_correct,
        "accuracy": n_correct / n_chains, "low": low, "high": high,
    }  # fmt: skip


def pool(rows: list[dict], lengths: Iterable[int]) -> list[dict]:
    """Rows over several lengths together, one per loop count; every chain counts once."""
    lengths = check_ints("lengths", lengths, 1)
    name = f"{min(lengths)}–{max(lengths)}" if len(lengths) > 1 else str(lengths[0])
    counts: dict[int, tuple[int, int]] = {}
    for row in rows:
        if row["n_digits"] in lengths:
            n_correct, n_chains = counts.get(row["n_loops"], (0, 0))
            counts[row["n_loops"]] = n_correct + row["n_correct"], n_chains + row["n_chains"]
    if not counts:
        raise ValueError(f"no row has one of the lengths {lengths}")
    return [make_row(name, n_loops, *counts[n_loops]) for n_loops in sorted(counts)]
