"""What a model costs, counted from its configuration: weights, operations, cache, and what training has to keep.

A multiplication and an addition are two operations. All pairs of positions that a kernel is handed count, masked ones
too. Norms, activations and the other things done channel by channel are left out of the operations, as is usual (Kaplan
et al. 2020, §2.1); a training step costs three times its forward pass. What autograd keeps is what the layers here keep
with a fused attention kernel, in float32.

Numbers for a stack of different layers are those of a model with one loop: ``n_core_layers=32, n_loops=1``.

Symbols: B sequences of T new tokens each behind ``cached`` earlier ones, D width, V vocabulary, L loops.
"""

import math
from typing import NamedTuple

from mythos_lite.checks import check_int
from mythos_lite.config import ModelConfig
from mythos_lite.model.attention import BLOCK, cached_numbers_per_token


class Cost(NamedTuple):
    """Of one call of a model."""

    parameters: int
    flops: int  # of the forward pass
    weight_bytes: int
    cache_bytes: int  # after the call
    kept_bytes: int  # by autograd, for the way back


def cost(
    config: ModelConfig, n_loops: int | None = None, *, batch: int = 1, length: int = 1, cached: int = 0,
    bytes_per_number: int = 4, shared_slot: bool = False,
) -> Cost:  # fmt: skip
    """What one call on ``batch`` sequences of ``length`` new tokens costs, each behind ``cached`` ones.

    Args:
        n_loops: ``config.n_loops`` if not given.
        bytes_per_number: 4 for float32, 2 for bfloat16, of weights and cache.
        shared_slot: the loops of a layer write over each other's keys (Huginn, Geiping et al. 2025, §6.2) where this
            package's cache, and those of the inference engines, have a slot per loop.

    Raises:
        ValueError: for counts that are no whole numbers from 1 (``cached``: from 0), and for a dilated window with
            cached tokens, since such a model keeps none.
    """
    n_loops = check_int("n_loops", config.n_loops if n_loops is None else n_loops, 1)
    for name, value in (("batch", batch), ("length", length), ("bytes_per_number", bytes_per_number)):
        check_int(name, value, 1)
    check_int("cached", cached, 0)
    if cached and config.dilated:
        raise ValueError(f"cached={cached} is not possible: a model with a dilated window keeps no cache")
    outer, n_outputs = config.n_prelude_layers + config.n_coda_layers, config.output_size or config.vocab_size
    once = config.injection == "lti"  # its input term is computed before the loop
    core = [_core_shape(config, t, length, cached) for t in range(n_loops)]  # per loop: sequences, tokens, cached
    flops = outer * _block_flops(config, length, cached, sparse=False) + 2 * length * config.d_model * n_outputs
    flops += length * 2 * config.d_model**2 * once
    kept = outer * _block_kept(config, batch, length, sparse=False) + batch * length * (3 * config.d_model + 1)
    kept += batch * length * config.d_model * once
    for sequences, tokens, before in core:
        flops += config.n_core_layers * sequences * _block_flops(config, tokens, before, sparse=config.n_experts > 0)
        flops += length * _loop_flops(config)
        kept += config.n_core_layers * _block_kept(config, batch * sequences, tokens, sparse=config.n_experts > 0)
        kept += batch * length * _loop_kept(config)
    n_weights = parameters(config)
    slots = outer + config.n_core_layers * (1 if shared_slot else n_loops)
    held = cached + length if config.window is None else min(cached + length, config.window - 1)
    n_cached = 0 if config.dilated else slots * held * batch * cached_numbers_per_token(config)
    return Cost(n_weights, batch * flops, n_weights * bytes_per_number, n_cached * bytes_per_number, 4 * kept)


def parameters(config: ModelConfig) -> int:
    """Trainable numbers of a model; equal to ``RecurrentDepthTransformer(config).n_parameters()``."""
    D, E, f = config.d_model, config.n_experts, config.d_expert
    if config.attention == "mla":
        R, q, nope, rope, v = _latent_widths(config)
        attention = D * q + q + q * config.n_heads * (nope + rope) + D * (R + rope) + R
        attention += config.n_heads * R * (nope + v) + config.n_heads * v * D
    else:
        attention = 2 * D * D + 2 * D * config.n_kv_heads * config.head_dim
    dense = 3 * D * config.d_ff
    sparse = D * E + 3 * D * f * (E + config.n_shared_experts) if E else dense
    outer = (config.n_prelude_layers + config.n_coda_layers) * (attention + 2 * D + dense)
    core = config.n_core_layers * (attention + 2 * D + sparse)
    extras = {"lti": D * D + 2 * D, "additive": 3 * D + 1, "none": 0}[config.injection]
    extras += D + 1 if config.halting == "act" else 0
    extras += config.depth_lora_rank * (2 * D + config.n_loops)
    return config.vocab_size * D + outer + core + extras + D


def _latent_widths(config: ModelConfig) -> tuple[int, int, int, int, int]:
    return (
        config.kv_lora_rank, config.q_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim,
    )  # fmt: skip


def _core_shape(config: ModelConfig, t: int, length: int, cached: int) -> tuple[int, int, int]:
    """How a sequence comes to the core in loop t: as how many sequences of how many new tokens behind how many."""
    if not config.dilated:
        return 1, length, cached
    dilation = min(config.window**t, length)
    return dilation, 1 + math.ceil(length / dilation), 0


def _pairs(config: ModelConfig, length: int, cached: int) -> int:
    """Pairs of a query and a key that the kernel is handed."""
    if config.window is None:
        return length * (length + cached)
    past = min(cached, config.window - 1)
    size = max(config.window, BLOCK)
    if length < 4 * size:
        return length * (length + past)
    ends = [*range(size, length, size), length]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return sum(n * (n + (past if i == 0 else config.window - 1)) for i, n in enumerate(sizes))


def _block_flops(config: ModelConfig, length: int, cached: int, *, sparse: bool) -> int:
    """Of one block, for one sequence."""
    D, H, T, pairs = config.d_model, config.n_heads, length, _pairs(config, length, cached)
    if config.attention == "mla":
        R, q, nope, rope, v = _latent_widths(config)
        flops = 2 * T * (D * q + q * H * (nope + rope) + D * (R + rope) + H * v * D)
        flops += 2 * T * H * R * (nope + v)  # of keys and values from the latent, or of queries into it and back
        # Explicit, the narrower of keys and values are padded; absorbed, both are the latent.
        widths = 2 * R + rope if cached else 2 * max(nope + rope, v)
        flops += 2 * pairs * H * widths
    else:
        flops = 2 * T * (2 * D * D + 2 * D * config.n_kv_heads * config.head_dim) + 4 * pairs * D
    if not sparse:
        return flops + 6 * T * D * config.d_ff
    experts = config.n_experts_per_token + config.n_shared_experts
    return flops + 2 * T * D * config.n_experts + 6 * T * D * config.d_expert * experts


def _loop_flops(config: ModelConfig) -> int:
    """Of one loop beside its blocks, for one token."""
    D = config.d_model
    return 4 * D * config.depth_lora_rank + (2 * D if config.halting == "act" else 0)


def _block_kept(config: ModelConfig, sequences: int, length: int, *, sparse: bool) -> int:
    """Numbers that autograd keeps of one block."""
    D, H = config.d_model, config.n_heads
    if config.attention == "mla":
        R, q, nope, rope, v = _latent_widths(config)
        query = seen = mixed = H * max(nope + rope, v)
        seen *= 2
        around = 3 * q + 3 * R + rope + 2 + H * v  # around the norms of both latents; the mixture, cut to its width
    else:
        query, seen, mixed, around = D, 2 * config.n_kv_heads * config.head_dim, D, 0
    # Input, normalised and scaled, of both norms; their scales; what the kernel works with, and its sums.
    kept = 6 * D + 2 + around + query + seen + mixed + H
    mask = 0
    if config.window is not None:  # once for all sequences
        pairs = _pairs(config, length, 0)
        mask = pairs if length > 1 and config.window < length else 0
        if length >= 4 * max(config.window, BLOCK):  # in blocks, each with a copy of what it sees before itself
            kept += mixed + seen * (config.window - 1) // max(config.window, BLOCK)
    if sparse:
        picks = config.n_experts_per_token
        kept += picks * (3 * D + 4 * config.d_expert + 6) + config.n_experts + 1
        kept += 4 * config.d_expert * config.n_shared_experts
    else:
        kept += 4 * config.d_ff
    return sequences * length * kept + mask


def _loop_kept(config: ModelConfig) -> int:
    """Of one loop beside its blocks, for one token."""
    D, act = config.d_model, config.halting == "act"
    state = D if config.state_activation == "tanh" or config.injection != "none" or act else 0
    injection = 2 * D + 1 if config.injection == "additive" else 0
    lora = D + 2 * config.depth_lora_rank if config.depth_lora_rank else 0
    return state + injection + lora + (3 if act else 0)
