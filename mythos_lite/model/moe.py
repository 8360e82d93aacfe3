"""Sparse mixture of experts with shared experts and loss-free balancing.

==================  ====================================================================
name here           symbol and source
==================  ====================================================================
``scores``          s = σ(x·eᵢ), the affinity of token and expert; DeepSeek-V3, eq. 15
``bias``            b, added for the choice only, never to the weights; Wang et al. 2024,
                    §3 (loss-free balancing); DeepSeek-V3, eq. 16
``weights``         g = s / Σ s over the chosen; DeepSeek-V3, eq. 13
``shared``          experts for every token, one SwiGLU of their joint width; DeepSeekMoE, §3.2
``update_bias``     b += u·sign(mean load − load); Wang et al. 2024, algorithm 1
==================  ====================================================================

No token is dropped. Each expert in turn answers the tokens that chose it, which makes a GPU wait for the host once
per expert; where fewer experts are called than there are, as for one new token, their weights are fetched instead.
Where no values can be read (``torch.compile``, ``torch.export``, ``vmap``, the device "meta") each answers all tokens,
those that did not choose it with weight zero.

Shapes: B batch, T positions, N = B·T tokens, k experts per token, E experts, D width, F expert width.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.model.layers import SwiGLU


class RouterStats(NamedTuple):
    """What the router did in one layer and one loop. Padding is not counted; nothing is computed unless it is read."""

    scores: Tensor  # (B, T, E) affinities of tokens and experts, without a gradient
    chosen: Tensor  # (B, T, k) experts of each token, the strongest first
    counted: Tensor | None  # (B, T) bool, False at padding; None: all are counted

    @property
    def load(self) -> Tensor:
        """(E,) tokens sent to each expert; sums to k times the tokens."""
        picks = torch.zeros_like(self.scores).scatter(-1, self.chosen, 1.0)  # (B, T, E)
        picks = picks if self.counted is None else picks * self.counted.unsqueeze(-1)
        return picks.sum(dim=(0, 1)).long()

    @property
    def entropy(self) -> Tensor:
        """() mean over tokens of the entropy of the normalised scores, in nats; ln E when undecided."""
        share = self.scores / self.scores.sum(dim=-1, keepdim=True).clamp(min=1e-30)  # every score can underflow to 0
        entropy = torch.special.entr(share).sum(dim=-1)  # (B, T)
        counts = torch.ones_like(entropy) if self.counted is None else self.counted.to(entropy.dtype)
        return (entropy * counts).sum() / counts.sum().clamp(min=1)


Routing = tuple[RouterStats, ...]
"""One entry per core layer; empty without experts."""


class SparseMoE(nn.Module):
    """Top-k of ``n_experts`` SwiGLU experts per token, plus the shared ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f, e = config.d_model, config.d_expert, config.n_experts
        self.n_experts_per_token, self.initial_std = config.n_experts_per_token, config.initial_std
        self.router = nn.Linear(d, e, bias=False)
        self.register_buffer("bias", torch.zeros(e))
        self.gate = nn.Parameter(torch.empty(e, d, f))
        self.up = nn.Parameter(torch.empty(e, d, f))
        self.down = nn.Parameter(torch.empty(e, f, d))
        self.shared = SwiGLU(d, f * config.n_shared_experts) if config.n_shared_experts else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)
        for weight in (self.gate, self.up, self.down):
            nn.init.normal_(weight, std=self.initial_std)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, RouterStats]:
        """(B, T, D) → (B, T, D) and statistics over the tokens where ``counted`` (B, T) is True."""
        scores = torch.sigmoid(self.router(x).float())  # (B, T, E)
        chosen = self.choose(scores)
        weights = scores.gather(-1, chosen)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        y = self._run_experts(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1).to(x.dtype)).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        return y, RouterStats(scores.detach(), chosen, counted)

    def choose(self, scores: Tensor) -> Tensor:
        """Scores (B, T, E) → the experts of each token, the strongest first: (B, T, k)."""
        return (scores + self.bias).topk(self.n_experts_per_token, dim=-1).indices

    def _run_experts(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Tokens (N, D), the experts of each and their weights (N, k) → weighted sums of answers (N, D)."""
        if not torch.compiler.is_compiling() and chosen.numel() <= len(self.gate):  # fetch each one's experts
            gate, up, down = (weight[chosen] for weight in (self.gate, self.up, self.down))  # (N, k, …)
            answers = _expert(tokens[:, None, None], gate, up, down).squeeze(2)  # (N, k, D)
            return (answers * weights.unsqueeze(-1)).sum(dim=1)
        nothing = torch.zeros(tokens.shape[0], len(self.gate), dtype=weights.dtype, device=weights.device)
        of_expert = nothing.scatter(1, chosen, weights)  # (N, E)
        if torch.compiler.is_compiling():
            return torch.einsum("end,ne->nd", _expert(tokens, self.gate, self.up, self.down), of_expert)
        y = torch.zeros_like(tokens)
        for weight, *expert in zip(of_expert.unbind(1), self.gate, self.up, self.down, strict=True):
            mine = _nonzero(weight)
            y.index_add_(0, mine, _expert(tokens[mine], *expert) * weight[mine].unsqueeze(1))
        return y

    @torch.no_grad()
    def update_bias(self, load: Tensor, rate: float) -> None:
        """Make experts with less than the mean ``load`` (E,) likelier to be chosen, the others less likely.

        Needs a bias in float32: in bfloat16 it is too coarse for the usual rate of .001.
        """
        load = load.float()
        self.bias += rate * torch.sign(load.mean() - load)


def _expert(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A SwiGLU, (…, N, D) → (…, N, D)."""
    return (F.silu(x @ gate) * (x @ up)) @ down


def _nonzero(weights: Tensor) -> Tensor:
    """Indices of the tokens whose weight (N,) is not zero; of all tokens where no values can be read."""
    with contextlib.suppress(RuntimeError):  # under vmap, and on the device "meta"
        return weights.nonzero().squeeze(1)
    return torch.arange(weights.shape[0], device=weights.device)
