"""Presets and recipes: plain functions. ``RECIPES`` maps the names of the main job's recipes to functions that
take a seed and return ``(ModelConfig, TrainConfig)``.
"""

from __future__ import annotations

from collections.abc import Callable

from mythos_lite.checks import check_choice
from mythos_lite.config import ATTENTIONS, ModelConfig, TrainConfig


def published_model(attention: str = "mla") -> ModelConfig:
    """The model of the published tutorial: 370,306 parameters with ``"mla"``, 437,698 with ``"gqa"``.

    Its one shared expert is twice as wide as a routed one; that is two shared experts here. Its
    vocabulary of 64 is kept for the count, though the task uses ten of its tokens.
    """
    check_choice("attention", attention, ATTENTIONS)
    mla = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
    return ModelConfig(
        vocab_size=64, max_seq_len=32, d_model=128, n_heads=4, attention=attention,
        n_kv_heads=2 if attention == "gqa" else None, **(mla if attention == "mla" else {}),
        window=None, rope_theta=500_000.0, d_ff=170,
        n_experts=4, n_experts_per_token=2, n_shared_experts=2, d_expert=64,
        n_loops=8, injection="additive", state_activation="none", loop_index_embedding=True, depth_lora_rank=8,
        halting="act", initializer_range=0.02,
    )  # fmt: skip


def mod7_model() -> ModelConfig:
    """The model of the modulo-7 lesson: dense core, window of two, grouped-query attention."""
    return ModelConfig()


def mod7_moe_model() -> ModelConfig:
    """The model of the modulo-7 lesson with latent attention and four routed experts in the core."""
    return ModelConfig(
        attention="mla", n_kv_heads=None, kv_lora_rank=32, q_lora_rank=32,
        qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
        n_experts=4, n_experts_per_token=2, n_shared_experts=1, d_expert=64,
    )  # fmt: skip


def fixed_recipe(seed: int = 0) -> tuple[ModelConfig, TrainConfig]:
    """Chains of 2–5 digits, four loops in every batch, loss at the last: the training that the tutorial describes."""
    return mod7_model(), TrainConfig(seed=seed, steps=1800, ema_decay=0.99)


def hold_recipe(seed: int = 0) -> tuple[ModelConfig, TrainConfig]:
    """The training that teaches the model to hold its answer: loss from the needed loop on, to the last.

    Three or four loops at random: five digits need three, and the fourth is there to be held through.
    """
    train = TrainConfig(seed=seed, steps=2000, min_digits=1, min_loops=3, loss="from_needed", ema_decay=0.999)
    return mod7_model(), train


def published_recipe(seed: int = 0) -> tuple[ModelConfig, TrainConfig]:
    """The training of the published tutorial: 3,000 chains, six epochs of 47 steps, AdamW at 3e-4.

    Known differences: the cosine falls by step, not by epoch; norms, embeddings and injection do not decay;
    the model is this package's (ACT's weights sum to 1, Ā stays below 1, the loop sinusoid and the adapter
    start small). Each is gentler to the model than the original.
    """
    train = TrainConfig(
        seed=seed, steps=282, batch_size=64, n_train_chains=3000, lr=3e-4, warmup_steps=0,
        weight_decay=0.01, beta2=0.999, eps=1e-8, router_bias_rate=0.0,
        log_every=47, checkpoint_every=47,
    )  # fmt: skip
    return published_model("mla"), train


RECIPES: dict[str, Callable[[int], tuple[ModelConfig, TrainConfig]]] = {
    "fixed": fixed_recipe,
    "hold": hold_recipe,
    "published": published_recipe,
}


def recipe(name: str, seed: int = 0) -> tuple[ModelConfig, TrainConfig]:
    """Model and training of the named recipe; an unknown name is a ``ValueError`` that lists the known ones."""
    check_choice("recipe", name, tuple(RECIPES))
    return RECIPES[name](seed)
