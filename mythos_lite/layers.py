"""The small layers: SwiGLU and rotary positions. RMSNorm is ``torch.nn.RMSNorm``.

====================  ==========================================================
name here             symbol and source
====================  ==========================================================
``SwiGLU``            (SiLU(x W) ⊙ x V) W₂; Shazeer 2020, eq. 6
``rotary_tables``     cos mθᵢ and sin mθᵢ, θᵢ = base^(−2i/d); Su et al. 2021, §3.2.2
``apply_rotary``      R_m x on adjacent pairs (2i, 2i+1); Su et al. 2021, eq. 34
====================  ==========================================================

Rotary tables are real and computed in float32 at each forward pass, so a model that is cast to
bfloat16 keeps exact angles.

Shapes: B batch, T positions, H heads, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


def rms_norm(width: int) -> nn.RMSNorm:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019)."""
    return nn.RMSNorm(width, eps=NORM_EPS)


class SwiGLU(nn.Module):
    """Gated feed-forward, (…, d_model) → (…, d_model), without biases."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rotary_tables(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Positions (T,) → cosines and sines, each (T, dim / 2), float32."""
    frequencies = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions.float().unsqueeze(1) * frequencies
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels of x (B, H, T, dim) by its position's angle; same shape and dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, T, dim / 2) each
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
