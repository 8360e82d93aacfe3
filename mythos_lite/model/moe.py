"""Sparse mixture of experts with shared experts and loss-free balancing.

========================  ==============================================================
name here                 symbol and source
========================  ==============================================================
``scores``                s = σ(x·eᵢ), the affinity of token and expert; DeepSeek-V3, eq. 15
``bias``                  b, added for the choice only, never to the gate; Wang et al. 2024,
                          §3 (loss-free balancing); DeepSeek-V3, eq. 16
gates                     g = s / Σ s over the chosen; DeepSeek-V3, eq. 13
shared experts            always on, one fused SwiGLU of their joint width; DeepSeekMoE, §3.2
``update_bias``           b += u·sign(mean load − load); Wang et al. 2024, algorithm 1
========================  ==============================================================

No token is dropped. The (token, expert) pairs are sorted by expert and laid out as one block per
expert, as long as the busiest expert's, so that all experts are three batched matrix products.
Reading that length makes a GPU wait for the host once per layer and loop. Where no value can be read
(``torch.compile``, ``torch.export``, ``vmap``, the device "meta") every block has room for all tokens.

Shapes: B batch, T positions, N = B·T tokens, k experts per token, E experts, D width, F expert
width, C pairs of the busiest expert.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.checks import check_int
from mythos_lite.config import ModelConfig
from mythos_lite.model.layers import SwiGLU


class RouterStats(NamedTuple):
    """What the router did in one layer and one loop. Padding is not counted."""

    load: Tensor
    """(E,) tokens sent to each expert; sums to k times the tokens."""
    entropy: Tensor
    """() mean over tokens of the entropy of the normalised scores, in nats; ln E when undecided."""
    chosen: Tensor
    """(B, T, k) experts of each token, the strongest first."""


class SparseMoE(nn.Module):
    """Top-k of ``n_experts`` SwiGLU experts per token, plus the shared ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f, e = config.d_model, config.d_expert, config.n_experts
        self.n_experts_per_token = config.n_experts_per_token
        self.router = nn.Linear(d, e, bias=False)
        self.register_buffer("bias", torch.zeros(e))
        self.gate = nn.Parameter(torch.empty(e, d, f))
        self.up = nn.Parameter(torch.empty(e, d, f))
        self.down = nn.Parameter(torch.empty(e, f, d))
        self.shared = SwiGLU(d, f * config.n_shared_experts) if config.n_shared_experts else None
        self.hold: _Hold | None = None  # set by ``hold_experts`` while it lasts

    def forward(self, x: Tensor, counted: Tensor | None = None, loop: int = 0) -> tuple[Tensor, RouterStats]:
        """(B, T, D) → (B, T, D) and statistics over the tokens where ``counted`` (B, T) is True.

        ``loop``, from 0, is read by ``hold_experts`` alone.
        """
        scores = torch.sigmoid(self.router(x).float())  # (B, T, E)
        chosen = self.choose(scores)
        if self.hold is not None:
            chosen = self.hold.choose(self, chosen, loop)
        gates = scores.gather(-1, chosen)
        gates = gates / (gates.sum(dim=-1, keepdim=True) + 1e-20)
        mixed = self._run_experts(x.flatten(0, 1), chosen.flatten(0, 1))  # (N, k, D)
        y = (mixed * gates.flatten(0, 1).unsqueeze(-1).to(x.dtype)).sum(dim=1).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        return y, _router_stats(scores.detach(), chosen, counted)

    def choose(self, scores: Tensor) -> Tensor:
        """Scores (B, T, E) → the experts of each token, the strongest first: (B, T, k)."""
        return (scores + self.bias).topk(self.n_experts_per_token, dim=-1).indices

    def _run_experts(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Tokens (N, D) and their experts (N, k) → each chosen expert's answer, (N, k, D)."""
        n_tokens, k = chosen.shape
        expert, order = chosen.flatten().sort(stable=True)  # pairs, grouped by expert
        load = expert.new_zeros(len(self.gate)).scatter_add(0, expert, torch.ones_like(expert))
        capacity = _busiest(load, n_tokens)
        place = torch.arange(expert.shape[0], device=expert.device) - (load.cumsum(0) - load)[expert]
        seat = expert * capacity + place  # where each pair sits among the E·C seats
        nobody = torch.full((len(self.gate) * capacity,), n_tokens, device=expert.device)
        occupant = nobody.scatter(0, seat, order // k)
        seats = F.pad(tokens, (0, 0, 0, 1))[occupant].view(len(self.gate), capacity, -1)  # (E, C, D), empty ones zero
        hidden = F.silu(torch.bmm(seats, self.gate)) * torch.bmm(seats, self.up)  # (E, C, F)
        answers = torch.bmm(hidden, self.down).flatten(0, 1)  # (E·C, D)
        seat_of_pair = torch.zeros_like(seat).scatter(0, order, seat)
        return answers[seat_of_pair].view(n_tokens, k, -1)

    @torch.no_grad()
    def update_bias(self, load: Tensor, rate: float) -> None:
        """Make experts with less than the mean ``load`` (E,) likelier to be chosen, the others less likely.

        Needs a bias in float32: in bfloat16 it is too coarse for the usual rate of .001.
        """
        load = load.float()
        self.bias += rate * torch.sign(load.mean() - load)


def _busiest(load: Tensor, n_tokens: int) -> int:
    """Pairs of the busiest expert; where that cannot be read, the most that an expert can have."""
    if torch.compiler.is_compiling():
        return n_tokens
    try:
        return int(load.max())
    except RuntimeError:  # under vmap, and on the device "meta"
        return n_tokens


class _Hold:
    """The experts that tokens have at the moment, layer by layer, and from which loop on they stay."""

    def __init__(self, from_loop: int) -> None:
        self.from_loop = from_loop
        self.last: dict[tuple[SparseMoE, int], tuple[int, Tensor]] = {}  # by layer and thread

    def __reduce__(self) -> tuple:
        """A copy of the model is not held, whichever way it was made: nobody would let it go."""
        return type(None), ()

    def choose(self, layer: SparseMoE, chosen: Tensor, loop: int) -> Tensor:
        if loop >= self.from_loop:
            before = self.last.get((layer, threading.get_ident()))
            if before is None or before[0] != loop - 1 or before[1].shape != chosen.shape:
                raise ValueError(
                    f"hold_experts does not know these tokens' experts of loop {loop}; run them through the loop "
                    "from its start, one batch after the other"
                )
            chosen = before[1]
        self.last[layer, threading.get_ident()] = loop, chosen
        return chosen


@contextlib.contextmanager
def hold_experts(core: nn.Module, from_loop: int) -> Iterator[None]:
    """While it lasts, every token keeps from ``from_loop`` on the experts that it had in that loop; gates may change.

    ``with hold_experts(model.core, 8): model(token_ids, n_loops=16)``. Each pass through the loop starts anew. It
    holds for the layers of ``core`` itself, not for copies of them; of two that are nested the inner one counts.

    Raises:
        ValueError: if ``core`` has no sparse layer, or ``from_loop`` is below 1; within, for a pass that does not
            begin at the first loop.
    """
    from_loop = check_int("from_loop", from_loop, 1)
    layers = [layer for layer in core.modules() if isinstance(layer, SparseMoE)]
    if not layers:
        raise ValueError("hold_experts needs a core with routed experts; this one has none (n_experts is 0)")
    outer, own = [layer.hold for layer in layers], _Hold(from_loop)
    try:
        for layer in layers:
            layer.hold = own
        yield
    finally:
        for layer, hold in zip(layers, outer, strict=True):
            layer.hold = hold


@torch.no_grad()
def _router_stats(scores: Tensor, chosen: Tensor, counted: Tensor | None) -> RouterStats:
    picks = torch.zeros_like(scores).scatter(-1, chosen, 1.0)  # (B, T, E)
    share = scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-30)  # every score can underflow to 0
    entropy = torch.special.entr(share).sum(dim=-1)  # (B, T)
    weight = torch.ones_like(entropy) if counted is None else counted.to(entropy.dtype)
    load = (picks * weight.unsqueeze(-1)).sum(dim=(0, 1)).long()
    return RouterStats(load, (entropy * weight).sum() / weight.sum().clamp(min=1), chosen)
