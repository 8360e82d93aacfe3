"""Grouped-query and multi-head latent attention, both over a sliding window if there is one.

========================  ==============================================================
name here                 symbol and source
========================  ==============================================================
``n_kv_heads``            G groups; Ainslie et al. 2023 (GQA). G = H is multi-head
                          (Vaswani et al. 2017, §3.2.2), G = 1 multi-query (Shazeer 2019)
``query_down``, ``_up``   W^DQ, W^UQ and W^QR; DeepSeek-V2, §2.1.2–2.1.3, eq. 12–14
``kv_down``               W^DKV and W^KR side by side; DeepSeek-V2, eq. 9 and 15
``latent``                c^KV, after its norm: what the cache holds; eq. 9
``rotary_key``            k^R, one per token, shared by all heads; eq. 15
``key_up``, ``value_up``  W^UK, W^UV per head; eq. 10 and 11
``window``                w; Beltagy et al. 2020 (Longformer), §3.1, causal
========================  ==============================================================

Latent attention has two forms with the same weights. The *explicit* form builds keys and values from the latent for
every position. The *absorbed* form (§2.1.2, after eq. 11) moves queries into the space of the latent, as q·(W^UK c) =
(W^UKᵀ q)·c; all heads then attend to the latent itself as to one key/value head. The explicit form is cheaper while
every position is new, as in training. Once the cache holds positions the absorbed form is used, so that cached
positions are never expanded again.

DeepSeek-V2 scales both compressed vectors by a learned norm, as here; its biases are off by default. Its code turns
adjacent rotary channels, ``layers`` those half a head apart, which is the same up to their order.

Shapes: B batch, T query positions, S key positions (S − T of them cached), D model width, H heads,
K kv heads, d head width, n/r/v no-position, rotary and value widths of a head, R latent rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.model.cache import Cache, CacheKey
from mythos_lite.model.layers import apply_rotary, rms_norm, rotary_tables

BLOCK = 128
"""Queries per block under a window; a longer window makes longer blocks."""


class AttentionContext(NamedTuple):
    """What all layers of one forward pass share: rotary tables of the new tokens, who sees whom, and the cache."""

    cos: Tensor  # (T, 1, rotary_dim), or (B, T, 1, rotary_dim) where sequences stand at different positions
    sin: Tensor  # as cos
    mask: Tensor | None
    """(T, S) or (B, 1, T, S) bool, True where a query sees a key; None where the next two fields say it all."""
    causal: bool  # the plain causal triangle, which the kernel masks by itself
    window: int | None = None  # attend in blocks, where a mask of all pairs would be too large
    cache: Cache | None = None  # what earlier tokens left for these
    counted: Tensor | None = None  # (B, T) bool, False at padding, which routers do not count; None: all are counted


def visible(n_queries: int, n_keys: int, window: int | None, device: torch.device | str = "cpu") -> Tensor:
    """(T, S) bool: whether each of the last T of S tokens sees each of the S."""
    query = torch.arange(n_keys - n_queries, n_keys, device=device).unsqueeze(1)
    key = torch.arange(n_keys, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def attention_context(config: ModelConfig, n_new: int, cache: Cache | None, device: torch.device) -> AttentionContext:
    """The context of ``n_new`` tokens that follow those in ``cache``."""
    start, n_kept = (cache.length, cache.n_kept) if cache is not None else (0, 0)
    cos, sin = rotary_tables(torch.arange(start, start + n_new, device=device), config.rotary_dim, config.rope_theta)
    mask, causal, in_blocks = None, False, False
    by_length = not torch.compiler.is_compiling()  # an exported graph must hold for any length
    if n_kept == 0 and (config.window is None or (by_length and config.window >= n_new)):
        causal = True
    elif config.window is not None and by_length and n_new >= 4 * max(config.window, BLOCK):
        in_blocks = True
    elif n_new > 1:  # a single token sees all that is kept, since the cache drops what the window hides
        mask = visible(n_new, n_kept + n_new, config.window, device)
    return AttentionContext(cos, sin, mask, causal, config.window if in_blocks else None, cache)


def attend(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, **options) -> Tensor:
    """Queries (B, H, T, d) over keys (B, K, S, d) and values (B, K, S, v) → (B, H, T, v).

    ``options`` go to ``torch.nn.functional.scaled_dot_product_attention``. In blocks, time and memory are proportional
    to T instead of T².
    """
    if query.shape[2] == 1 and key.shape[1] != query.shape[1]:  # heads of one group, as if they were positions
        query = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # (B, K, H / K, d)
        mixed = F.scaled_dot_product_attention(query, key, value, context.mask, scale=options.get("scale"))
        return mixed.flatten(1, 2).unsqueeze(2)
    if context.window is None:
        return F.scaled_dot_product_attention(query, key, value, context.mask, is_causal=context.causal, **options)
    size, n_past = max(context.window, BLOCK), key.shape[2] - query.shape[2]
    past = [x[:, :, :n_past] for x in (key, value)]  # what a block sees of the tokens before it
    fresh = [x[:, :, n_past:].split(size, dim=2) for x in (key, value)]
    mixed = []
    for block, *own in zip(query.split(size, dim=2), *fresh, strict=True):
        near = [torch.cat(pair, dim=2) for pair in zip(past, own, strict=True)]
        mask = visible(block.shape[2], near[0].shape[2], context.window, query.device)
        mixed.append(F.scaled_dot_product_attention(block, *near, mask, **options))
        past = [x[:, :, max(0, x.shape[2] - context.window + 1) :] for x in near]
    return torch.cat(mixed, dim=2)


class GroupedQueryAttention(nn.Module):
    """Attention with ``n_kv_heads`` shared key/value heads; the cache holds 2·K·d numbers per token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.query = nn.Linear(config.d_model, self.n_heads * self.head_dim, bias=False)
        self.key = nn.Linear(config.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(config.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.n_heads * self.head_dim, config.d_model, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, slot: CacheKey | None = None) -> Tensor:
        """(B, T, D) → (B, T, D). ``slot`` is where this layer and loop keep their keys in the context's cache."""
        query = self.query(x).unflatten(-1, (self.n_heads, self.head_dim))  # (B, T, H, d)
        key = self.key(x).unflatten(-1, (self.n_kv_heads, self.head_dim))  # (B, T, K, d)
        value = self.value(x).unflatten(-1, (self.n_kv_heads, self.head_dim)).transpose(1, 2)  # (B, K, T, d)
        query = apply_rotary(query, context.cos, context.sin).transpose(1, 2)  # (B, H, T, d)
        key = apply_rotary(key, context.cos, context.sin).transpose(1, 2)  # (B, K, T, d)
        if context.cache is not None:
            key, value = context.cache.put(slot, key, value)  # (B, K, S, d)
        mixed = attend(query, key, value, context, enable_gqa=self.n_kv_heads != self.n_heads)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MultiHeadLatentAttention(nn.Module):
    """Attention through a compressed latent; the cache holds R + r numbers per token, whatever H is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.rank, self.initial_std = config.n_heads, config.kv_lora_rank, config.initial_std
        self.nope, self.rope, self.v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.scale = (self.nope + self.rope) ** -0.5
        self.query_down = nn.Linear(config.d_model, config.q_lora_rank, bias=False)
        self.query_norm = rms_norm(config.q_lora_rank)
        self.query_up = nn.Linear(config.q_lora_rank, self.n_heads * (self.nope + self.rope), bias=False)
        self.kv_down = nn.Linear(config.d_model, self.rank + self.rope, bias=False)
        self.kv_norm = rms_norm(self.rank)
        self.key_up = nn.Parameter(torch.empty(self.n_heads, self.nope, self.rank))
        self.value_up = nn.Parameter(torch.empty(self.n_heads, self.v, self.rank))
        self.out = nn.Linear(self.n_heads * self.v, config.d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.key_up, std=self.initial_std)
        nn.init.normal_(self.value_up, std=self.initial_std)

    def forward(self, x: Tensor, context: AttentionContext, slot: CacheKey | None = None) -> Tensor:
        """(B, T, D) → (B, T, D). ``slot`` is where this layer and loop keep their latents in the context's cache."""
        query = self.query_up(self.query_norm(self.query_down(x)))
        query = query.unflatten(-1, (self.n_heads, self.nope + self.rope))  # (B, T, H, n + r)
        query_nope, query_rope = query.split([self.nope, self.rope], dim=-1)
        query_nope = query_nope.transpose(1, 2)  # (B, H, T, n)
        query_rope = apply_rotary(query_rope, context.cos, context.sin).transpose(1, 2)  # (B, H, T, r)
        latent, rotary_key = self.kv_down(x).split([self.rank, self.rope], dim=-1)
        rotary_key = apply_rotary(rotary_key.unsqueeze(2), context.cos, context.sin).squeeze(2)  # (B, T, r)
        seen = torch.cat([self.kv_norm(latent), rotary_key], dim=-1).unsqueeze(1)  # (B, 1, T, R + r)
        attend = self.attend_explicit
        if context.cache is not None:
            attend = self.attend_absorbed if context.cache.n_kept else self.attend_explicit
            (seen,) = context.cache.put(slot, seen)  # (B, 1, S, R + r)
        mixed = attend(query_nope, query_rope, seen, context)  # (B, H, T, v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def attend_explicit(
        self, query_nope: Tensor, query_rope: Tensor, seen: Tensor, context: AttentionContext
    ) -> Tensor:
        """Build each head's keys and values from the latent, then attend: (B, H, T, v).

        ``seen`` (B, 1, S, R + r) is the latent of every position with its rotary key behind it.
        """
        latent, rotary_key = seen.split([self.rank, self.rope], dim=-1)
        key_nope, value = (
            F.linear(latent.squeeze(1), up.flatten(0, 1)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for up in (self.key_up, self.value_up)
        )  # (B, H, S, n) and (B, H, S, v)
        key = torch.cat([key_nope, rotary_key.expand(-1, self.n_heads, -1, -1)], dim=-1)
        query = torch.cat([query_nope, query_rope], dim=-1)
        # Fused kernels want values as wide as keys; the zeros added to either change nothing.
        wide = max(key.shape[-1], self.v)
        query, key, value = (
            F.pad(x, (0, wide - x.shape[-1])) if x.shape[-1] < wide else x for x in (query, key, value)
        )
        return attend(query, key, value, context, scale=self.scale)[..., : self.v]

    def attend_absorbed(
        self, query_nope: Tensor, query_rope: Tensor, seen: Tensor, context: AttentionContext
    ) -> Tensor:
        """Attend to the latent itself, one key/value head for all: (B, H, T, v). ``seen`` as above."""
        query_latent = torch.einsum("bhtn,hnr->bhtr", query_nope, self.key_up)
        query = torch.cat([query_latent, query_rope], dim=-1)  # (B, H, T, R + r)
        mixed = attend(query, seen, seen[..., : self.rank], context, scale=self.scale, enable_gqa=True)  # (B, H, T, R)
        return torch.einsum("bhtr,hvr->bhtv", mixed, self.value_up)


def make_attention(config: ModelConfig) -> GroupedQueryAttention | MultiHeadLatentAttention:
    return MultiHeadLatentAttention(config) if config.attention == "mla" else GroupedQueryAttention(config)


def cached_numbers_per_token(config: ModelConfig) -> int:
    """Numbers that one layer caches for one token (in a loop: once per loop)."""
    if config.attention == "mla":
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * config.n_kv_heads * config.head_dim
