"""Grouped-query and multi-head latent attention, both over a sliding window if there is one.

======================  ================================================================
name here               symbol and source
======================  ================================================================
``n_kv_heads``          G groups; Ainslie et al. 2023 (GQA). G = H is multi-head
                        (Vaswani et al. 2017, §3.2.2), G = 1 multi-query (Shazeer 2019)
``query_down``, ``_up``  W^DQ, W^UQ and W^QR; DeepSeek-V2, §2.1.2–2.1.3, eq. 12–14
``kv_down``             W^DKV and W^KR side by side; DeepSeek-V2, eq. 9 and 15
``latent``              c^KV, after its norm: what the cache holds; eq. 9
``rotary_key``          k^R, one per token, shared by all heads; eq. 15
``key_up``, ``value_up``  W^UK, W^UV per head; eq. 10 and 11
``window``              w; Beltagy et al. 2020 (Longformer), §3.1, causal
======================  ================================================================

Latent attention has two forms with the same weights. *Explicit*: keys and values are built from the
latent for every position, then ordinary attention. *Absorbed* (§2.1.2, after eq. 11): since
q·(W^UK c) = (W^UKᵀ q)·c, queries move into the space of the latent instead, and all heads attend to
the latent itself as one key/value head. Training and prefill use the explicit form, which is cheaper
when every position is new; as soon as the cache holds positions the absorbed one is used, so cached
positions are never expanded again.

DeepSeek-V2 scales both compressed vectors by a learned norm, as here; its biases are off by default.
Its code turns adjacent rotary channels, ``layers`` those half a head apart: the same up to their order.

Shapes: B batch, T query positions, S key positions (S − T of them cached), D model width, H heads,
K kv heads, d head width, n/r/v no-position, rotary and value widths of a head, R latent rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.model.cache import Cache, CacheKey
from mythos_lite.model.layers import apply_rotary, rms_norm, rotary_tables


class AttentionContext(NamedTuple):
    """What every attention layer of one forward pass shares: angles of the new tokens, and who sees whom."""

    cos: Tensor  # (T, 1, rotary_dim)
    sin: Tensor  # (T, 1, rotary_dim)
    mask: Tensor | None  # (T, S) bool, True where a query sees a key; None: no mask is needed beyond what follows
    causal: bool  # the plain causal triangle, which the kernel draws itself
    window: int | None = None  # the window itself, where there are too many positions for a mask of all pairs


BLOCK = 128
"""Queries that are taken together under a window, if it is not longer itself."""


def visible(n_queries: int, n_keys: int, window: int | None, device: torch.device | str = "cpu") -> Tensor:
    """(T, S) bool: True where query i, the (S − T + i)-th key's token, sees key j."""
    query = torch.arange(n_keys - n_queries, n_keys, device=device).unsqueeze(1)
    key = torch.arange(n_keys, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def attention_context(config: ModelConfig, n_new: int, cache: Cache | None, device: torch.device) -> AttentionContext:
    """Angles and mask for ``n_new`` tokens that follow those in ``cache``."""
    start, n_kept = (cache.length, cache.n_kept) if cache is not None else (0, 0)
    positions = torch.arange(start, start + n_new, device=device)
    cos, sin = rotary_tables(positions, config.rotary_dim, config.rope_theta)
    n_keys = n_kept + n_new
    if n_new == 1:  # the cache has already let go of what the window hides
        return AttentionContext(cos, sin, None, False)
    if config.window is None and n_kept == 0:
        return AttentionContext(cos, sin, None, True)
    if config.window is not None and not torch.compiler.is_compiling():  # what is exported must do for any length
        if n_kept == 0 and config.window >= n_keys:
            return AttentionContext(cos, sin, None, True)
        if n_new >= 4 * max(config.window, BLOCK):
            return AttentionContext(cos, sin, None, False, config.window)
    return AttentionContext(cos, sin, visible(n_new, n_keys, config.window, device), False)


def attend(query: Tensor, key: Tensor, value: Tensor, positions: AttentionContext, **options) -> Tensor:
    """Queries (B, H, T, d) over keys (B, K, S, d) and values (B, K, S, v) → (B, H, T, v).

    ``options`` go to ``torch.nn.functional.scaled_dot_product_attention``.
    """
    if positions.window is not None:
        return _attend_in_blocks(query, key, value, positions.window, **options)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=positions.mask, is_causal=positions.causal, **options
    )


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, window: int, **options) -> Tensor:
    """``attend`` in time and memory that grow with T and not with T².

    Each of N blocks of c queries attends to its own c keys and the w − 1 before them.
    """
    batch, t = query.shape[0], query.shape[2]
    block = max(window, BLOCK)
    n_blocks, width = -(-t // block), block + window - 1
    missing = window - 1 - (key.shape[2] - t)  # keys before the first one that the first block has no use for
    rest = n_blocks * block - t
    query = F.pad(query, (0, 0, 0, rest)).unflatten(2, (n_blocks, block)).transpose(1, 2).flatten(0, 1)
    key, value = (
        F.pad(x, (0, 0, missing, rest)).unfold(2, width, block).permute(0, 2, 1, 4, 3).flatten(0, 1)
        for x in (key, value)
    )  # (B·N, K, w − 1 + c, d)
    place = torch.arange(width, device=query.device)
    ahead = place - torch.arange(block, device=query.device).unsqueeze(1)  # (c, w − 1 + c)
    there = torch.arange(n_blocks, device=query.device).unsqueeze(1) * block + place >= missing  # (N, w − 1 + c)
    seen = (ahead >= 0) & (ahead < window) & there.unsqueeze(1)  # (N, c, w − 1 + c)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen.repeat(batch, 1, 1).unsqueeze(1), **options
    )
    return mixed.unflatten(0, (batch, n_blocks)).transpose(1, 2).flatten(2, 3)[:, :, :t]


class GroupedQueryAttention(nn.Module):
    """Attention with ``n_kv_heads`` shared key/value heads; the cache holds 2·K·d numbers per token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.query = nn.Linear(config.d_model, config.n_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.d_model, config.n_kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.d_model, config.n_kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)

    def forward(
        self, x: Tensor, positions: AttentionContext, cache: Cache | None = None, slot: CacheKey | None = None
    ) -> Tensor:
        """(B, T, D) → (B, T, D). With a ``cache``, ``slot`` says where this layer and loop keep their keys."""
        query = self.query(x).unflatten(-1, (self.n_heads, self.head_dim))  # (B, T, H, d)
        key = self.key(x).unflatten(-1, (self.n_kv_heads, self.head_dim))  # (B, T, K, d)
        value = self.value(x).unflatten(-1, (self.n_kv_heads, self.head_dim)).transpose(1, 2)  # (B, K, T, d)
        query = apply_rotary(query, positions.cos, positions.sin).transpose(1, 2)  # (B, H, T, d)
        key = apply_rotary(key, positions.cos, positions.sin).transpose(1, 2)  # (B, K, T, d)
        if cache is not None:
            key, value = cache.put(slot, key, value)  # (B, K, S, d)
        mixed = attend(query, key, value, positions, enable_gqa=self.n_kv_heads != self.n_heads)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MultiHeadLatentAttention(nn.Module):
    """Attention through a compressed latent; the cache holds R + r numbers per token, whatever H is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.nope, self.rope, self.v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rank = config.kv_lora_rank
        self.scale = (self.nope + self.rope) ** -0.5
        self.query_down = nn.Linear(config.d_model, config.q_lora_rank, bias=False)
        self.query_norm = rms_norm(config.q_lora_rank)
        self.query_up = nn.Linear(config.q_lora_rank, self.n_heads * (self.nope + self.rope), bias=False)
        self.kv_down = nn.Linear(config.d_model, self.rank + self.rope, bias=False)
        self.kv_norm = rms_norm(self.rank)
        self.key_up = nn.Parameter(torch.empty(self.n_heads, self.nope, self.rank))
        self.value_up = nn.Parameter(torch.empty(self.n_heads, self.v, self.rank))
        self.out = nn.Linear(self.n_heads * self.v, config.d_model, bias=False)

    def forward(
        self, x: Tensor, positions: AttentionContext, cache: Cache | None = None, slot: CacheKey | None = None
    ) -> Tensor:
        """(B, T, D) → (B, T, D). With a ``cache``, ``slot`` says where this layer and loop keep their latents."""
        query = self.query_up(self.query_norm(self.query_down(x)))
        query = query.unflatten(-1, (self.n_heads, self.nope + self.rope))  # (B, T, H, n + r)
        query_nope, query_rope = query.split([self.nope, self.rope], dim=-1)
        query_nope = query_nope.transpose(1, 2)  # (B, H, T, n)
        query_rope = apply_rotary(query_rope, positions.cos, positions.sin).transpose(1, 2)  # (B, H, T, r)
        latent, rotary_key = self.kv_down(x).split([self.rank, self.rope], dim=-1)
        latent = self.kv_norm(latent).unsqueeze(1)  # (B, 1, T, R)
        rotary_key = apply_rotary(rotary_key.unsqueeze(2), positions.cos, positions.sin).transpose(1, 2)  # (B, 1, T, r)
        attend = self.attend_explicit
        if cache is not None:
            attend = self.attend_absorbed if cache.n_kept else self.attend_explicit
            latent, rotary_key = cache.put(slot, latent, rotary_key)  # (B, 1, S, R) and (B, 1, S, r)
        mixed = attend(query_nope, query_rope, latent, rotary_key, positions)  # (B, H, T, v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def attend_explicit(
        self, query_nope: Tensor, query_rope: Tensor, latent: Tensor, rotary_key: Tensor, positions: AttentionContext
    ) -> Tensor:
        """Build each head's keys and values from the latent, then attend: (B, H, T, v)."""
        key_nope = latent @ self.key_up.transpose(1, 2)  # (B, 1, S, R) @ (H, R, n) → (B, H, S, n)
        value = latent @ self.value_up.transpose(1, 2)  # (B, H, S, v)
        key = torch.cat([key_nope, rotary_key.expand(-1, self.n_heads, -1, -1)], dim=-1)
        query = torch.cat([query_nope, query_rope], dim=-1)
        # Fused kernels want values as wide as keys; the added zeros come out as zeros.
        value = F.pad(value, (0, key.shape[-1] - self.v)) if key.shape[-1] > self.v else value
        return attend(query, key, value, positions, scale=self.scale)[..., : self.v]

    def attend_absorbed(
        self, query_nope: Tensor, query_rope: Tensor, latent: Tensor, rotary_key: Tensor, positions: AttentionContext
    ) -> Tensor:
        """Attend to the latent itself, one key/value head for all: (B, H, T, v)."""
        query = torch.cat([query_nope @ self.key_up, query_rope], dim=-1)  # (B, H, T, R + r)
        key = torch.cat([latent, rotary_key], dim=-1)  # (B, 1, S, R + r)
        mixed = attend(query, key, latent, positions, scale=self.scale, enable_gqa=True)  # (B, H, T, R)
        return mixed @ self.value_up.transpose(1, 2)


def make_attention(config: ModelConfig) -> GroupedQueryAttention | MultiHeadLatentAttention:
    return MultiHeadLatentAttention(config) if config.attention == "mla" else GroupedQueryAttention(config)


def cached_numbers_per_token(config: ModelConfig) -> int:
    """Numbers that one layer caches for one token (in a loop: once per loop)."""
    if config.attention == "mla":
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * config.n_kv_heads * config.head_dim
