"""What might keep an answer while the loop goes on, other than a tanh on the state: three additions to the loss.

=====================  ==================================================================================
name here              what is added, and its source
=====================  ==================================================================================
``noisy_loss``         nothing, but noise is added to the state after every loop (Schwarzschild et al. and
                       Anil et al. 2022 start from random states; here the noise is in every turn)
``fixed_point_loss``   ‖F(h_L) − h_L‖² / ‖h_L‖² at the last loop: the state should rest there (deep
                       equilibrium models ask for it exactly; Bai et al. 2019)
``jacobian_loss``      σ² for σ = ‖J v‖, J = ∂F/∂h at h_L and v its top singular direction (Bai et al. 2021
                       and Yoshida & Miyato 2017 penalise the norm of J and of weights)
=====================  ==================================================================================

Each is an objective of ``train``, and otherwise the loss of ``chain_loss``.

Shapes: B chains, T positions, D width.
"""

import torch
from torch import Tensor

from mythos_lite.config import TrainConfig
from mythos_lite.model.attention import attention_context
from mythos_lite.model.loop import LoopStep, RecurrentDepthTransformer
from mythos_lite.task.chains import Batch, make_generator
from mythos_lite.task.loss import chain_loss, loss_of_turns

NOISE = 0.2
"""Standard deviation, where the states of a trained model with a tanh lie near ±1."""
REST_WEIGHT, JACOBIAN_WEIGHT = 0.01, 0.01
_POWER_STEPS, _STEP = 3, 1e-2
_NOISE, _DIRECTIONS = 20, 21  # streams of a seed, apart from those of training


def noisy_loss(
    model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int
) -> tuple[Tensor, Tensor, list[LoopStep]]:
    generator = _generator(train, batch, _NOISE)
    context = attention_context(model.config, batch.token_ids.shape[1], None, batch.token_ids.device)
    h = e = model.encode(batch.token_ids, context)
    turns = []
    for t in range(n_loops):
        previous = h
        h, routing = model.loop_map(h, e, t, context)
        h = h + NOISE * torch.randn(h.shape, generator=generator, device="cpu").to(h)
        turns.append(LoopStep(t + 1, previous, h, routing, None))
    return loss_of_turns(model, train, batch, turns)


def fixed_point_loss(
    model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int
) -> tuple[Tensor, Tensor, list[LoopStep]]:
    *turns, further = model.loop(batch.token_ids, n_loops + 1)
    loss, logits, turns = loss_of_turns(model, train, batch, turns)
    moved = (further.state - further.previous).square().sum(-1) / further.previous.square().sum(-1)
    return loss + REST_WEIGHT * moved[_read(model, batch)].mean(), logits, turns


def jacobian_loss(
    model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int
) -> tuple[Tensor, Tensor, list[LoopStep]]:
    loss, logits, turns = chain_loss(model, train, batch, n_loops)
    context = attention_context(model.config, batch.token_ids.shape[1], None, batch.token_ids.device)
    e, read = model.encode(batch.token_ids, context), _read(model, batch).unsqueeze(-1)
    h = turns[-1].state.detach()

    def unit(v: Tensor) -> Tensor:  # one direction per chain, without its padding
        return v * read / (v * read).flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1)

    size = _STEP * h.flatten(1).norm(dim=1).view(-1, 1, 1)

    def stretched(v: Tensor, e: Tensor) -> Tensor:  # J v by a difference quotient
        there, here = (model.loop_map(x, e, n_loops, context)[0] for x in (h + size * v, h))
        return (there - here) * read / size

    noise = torch.randn(h.shape, generator=_generator(train, batch, _DIRECTIONS), device="cpu").to(h)
    v, e_fixed = unit(noise), e.detach()
    for _ in range(_POWER_STEPS):
        x = h.clone().requires_grad_()
        u = unit(stretched(v, e_fixed).detach())
        (pulled,) = torch.autograd.grad((model.loop_map(x, e_fixed, n_loops, context)[0] * u).sum(), x)
        v = unit(pulled)
    return loss + JACOBIAN_WEIGHT * stretched(v, e).square().sum((1, 2)).mean(), logits, turns


def _read(model: RecurrentDepthTransformer, batch: Batch) -> Tensor:
    """(B, T) bool, False at padding."""
    return batch.token_ids != model.config.pad_token_id


def _generator(train: TrainConfig, batch: Batch, stream: int) -> torch.Generator:
    """One for each seed and batch, so that a run that goes on after a stop draws what it would have drawn."""
    return make_generator(train.seed, stream, int(batch.token_ids.sum()), int(batch.answers.sum()))
