"""The small layers: SwiGLU and rotary positions. RMSNorm is ``torch.nn.RMSNorm``.

====================  ==========================================================
name here             symbol and source
====================  ==========================================================
``SwiGLU``            (SiLU(x W) ⊙ x V) W₂; Shazeer 2020, eq. 6
``rotary_tables``     cos mθᵢ and sin mθᵢ, θᵢ = base^(−2i/d); Su et al. 2021, §3.2.2
``apply_rotary``      R_m x = x ⊙ cos + swap(x) ⊙ sin; Su et al. 2021, eq. 34
====================  ==========================================================

Deviation: channel i is paired with channel i + d/2, as in GPT-NeoX and Llama, not with its neighbour. The
two differ only in the order of the channels, and this one is several times faster on a CPU. The tables are
computed in float32 at each forward pass, so a model that is cast to bfloat16 keeps exact angles.

Shapes: B batch, T positions, H heads, D width.
"""

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
    """Positions (…, T) → cosines and signed sines, each (…, T, 1, dim), float32, as ``apply_rotary`` takes them."""
    frequencies = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions.float()[..., None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channels i and i + dim/2 of x (B, T, H, dim) by their position's angle; same shape and dtype."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([second, first], dim=-1) * sin).to(x.dtype)
