"""One transformer block, pre-norm: x + attention(norm x), then + feed-forward(norm x).

Source: Xiong et al. 2020 (pre-norm), fig. 1b. The residual stream itself is never normalised, so a
block adds to what it is given.
"""

from __future__ import annotations

from torch import Tensor, nn

from mythos_lite.config import ModelConfig
from mythos_lite.model.attention import AttentionContext, make_attention
from mythos_lite.model.cache import Cache, CacheKey
from mythos_lite.model.layers import SwiGLU, rms_norm
from mythos_lite.model.moe import RouterStats, SparseMoE


class Block(nn.Module):
    """Attention and a feed-forward, which is a mixture of experts where ``sparse``."""

    def __init__(self, config: ModelConfig, *, sparse: bool = False) -> None:
        super().__init__()
        self.attention_norm = rms_norm(config.d_model)
        self.attention = make_attention(config)
        self.ffn_norm = rms_norm(config.d_model)
        self.ffn = SparseMoE(config) if sparse else SwiGLU(config.d_model, config.d_ff)

    def forward(
        self,
        x: Tensor,
        positions: AttentionContext,
        cache: Cache | None = None,
        slot: CacheKey | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """(B, T, D) → (B, T, D), and what the router did if there is one."""
        x = x + self.attention(self.attention_norm(x), positions, cache, slot)
        if isinstance(self.ffn, SparseMoE):
            y, stats = self.ffn(self.ffn_norm(x), counted, slot.loop if slot is not None else 0)
            return x + y, stats
        return x + self.ffn(self.ffn_norm(x)), None
