"""One transformer block, pre-norm: x + attention(norm x), then + feed-forward(norm x).

Source: Xiong et al. 2020 (pre-norm), fig. 1b. The residual stream itself is never normalised.
"""

from torch import Tensor, nn

from mythos_lite.config import ModelConfig
from mythos_lite.model.attention import AttentionContext, make_attention
from mythos_lite.model.cache import CacheKey
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
        self, x: Tensor, context: AttentionContext, slot: CacheKey | None = None
    ) -> tuple[Tensor, RouterStats | None]:
        """(B, T, D) → (B, T, D), and what the router did if there is one."""
        x = x + self.attention(self.attention_norm(x), context, slot)
        if isinstance(self.ffn, SparseMoE):
            y, stats = self.ffn(self.ffn_norm(x), context.counted)
            return x + y, stats
        return x + self.ffn(self.ffn_norm(x)), None
