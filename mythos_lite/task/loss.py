"""The answer's loss: cross-entropy at the position of EQ, over one loop or several.

Averaging over the loops past the needed one teaches the model to keep its answer. The loops before it are left out,
since the model could only guess there (Bansal et al. 2022, progressive loss, has the same aim).

Shapes: L loops, B chains, T positions, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.model.loop import LoopStep, RecurrentDepthTransformer
from mythos_lite.task.chains import Batch


def supervised_loops(
    model: ModelConfig, train: TrainConfig, n_loops: int, n_digits: Tensor
) -> tuple[list[int], Tensor]:
    """Which of the loops 1 … ``n_loops`` are read out, and how each chain weighs them.

    Returns the L loop numbers and weights (L, B) that sum to 1 over all, or to 0 where no chain can
    be answered in ``n_loops`` loops. Chains that need more loops than that weigh nothing.
    """
    # EQ stands n positions after the first digit. With "last" it is as if every chain needed all of the loops.
    needs = {"last": lambda n: n_loops, "from_needed": model.loops_needed, "from_length": int}[train.loss]
    first = {n: needs(n) for n in n_digits.unique().tolist()}
    needed = torch.tensor([first[n] for n in n_digits.tolist()], device=n_digits.device)
    loops = list(range(min(first.values()), n_loops + 1)) or [n_loops]
    counts = (torch.tensor(loops, device=n_digits.device).unsqueeze(1) >= needed).to(torch.float32)  # (L, B)
    per_chain = counts / counts.sum(dim=0).clamp(min=1)
    return loops, per_chain / per_chain.sum().clamp(min=1)


def chain_loss(
    model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int
) -> tuple[Tensor, Tensor, list[LoopStep]]:
    """Loss (), logits (B, V) at EQ after the last loop, and every turn of the loop."""
    return loss_of_turns(model, train, batch, list(model.loop(batch.token_ids, n_loops)))


def loss_of_turns(
    model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, turns: list[LoopStep]
) -> tuple[Tensor, Tensor, list[LoopStep]]:
    """``chain_loss`` of a loop that has been run."""
    loops, weights = supervised_loops(model.config, train, len(turns), batch.n_digits.cpu())
    outputs = torch.cat([turns[loop - 1].output for loop in loops])  # (L·B, T, D)
    logits = answer_logits(model, outputs, batch.answer_positions.repeat(len(loops)))  # (L·B, V)
    nll = F.cross_entropy(logits, batch.answers.repeat(len(loops)), reduction="none")
    loss = (nll * weights.flatten().to(nll.device)).sum()
    if train.ponder_cost:
        read = batch.token_ids != model.config.pad_token_id
        loss = loss + train.ponder_cost * turns[-1].ponder_cost[read].mean()
    return loss, logits[-len(batch.answers) :].detach(), turns


def answer_logits(model: RecurrentDepthTransformer, h: Tensor, answer_positions: Tensor) -> Tensor:
    """Read out states (B, T, D) at the positions of EQ (B,) alone: (B, V), float32.

    Under a window EQ sees only a few states through the coda, so the coda is run on those. That such an excerpt starts
    at another position changes nothing, since rotary positions are relative.
    """
    rows = torch.arange(len(h), device=h.device)
    window, layers = model.config.window, model.config.n_coda_layers
    seen = h.shape[1] if window is None else layers * (window - 1) + 1
    if seen >= h.shape[1] or seen > int(answer_positions.min()) + 1:
        return model.read_out(h)[rows, answer_positions].float()
    excerpt = answer_positions.unsqueeze(1) + torch.arange(1 - seen, 1, device=h.device)  # (B, seen)
    return model.read_out(h[rows.unsqueeze(1), excerpt])[:, -1].float()
