"""Models and recipes by name: what is trained, how, and what the trained model is asked.

``RECIPES`` are those of the main job, ``python -m mythos_lite experiment``.
"""

import dataclasses
from dataclasses import dataclass

from mythos_lite.checks import check_choice, check_int, check_ints
from mythos_lite.config import ATTENTIONS, ModelConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question: held-out chains of each of ``lengths``, read out at each of ``loops``. A table pools the lengths."""

    lengths: tuple[int, ...]
    loops: tuple[int, ...]
    n_chains: int = 1000

    def __post_init__(self) -> None:
        for field in ("lengths", "loops"):
            object.__setattr__(self, field, tuple(check_ints(field, getattr(self, field), 1)))
        object.__setattr__(self, "n_chains", check_int("n_chains", self.n_chains, 1))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A setting of the main job. The first sweep asks the trained lengths, the second the longer ones of the chart."""

    help: str
    model: ModelConfig
    train: TrainConfig
    sweeps: tuple[Sweep, ...]


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


TRAINED, LONGER = (2, 3, 4, 5), (6, 7, 8)
_FIXED_LOOPS, _HOLD_LOOPS = (1, 2, 4, 6, 8, 12, 16, 24, 32), (1, 2, 4, 6, 8, 16, 32, 64, 128)
RECIPES = {
    "fixed": Recipe(
        help="chains of 2 to 5 digits, four loops in every batch (the default)",
        model=mod7_model(),
        train=TrainConfig(steps=1800, ema_decay=0.99),
        sweeps=(
            *(Sweep(lengths=group, loops=_FIXED_LOOPS) for group in (TRAINED, LONGER)),
            *(Sweep(lengths=(n,), loops=(n, 2 * n), n_chains=300) for n in (16, 64)),  # and left running
        ),
    ),
    # Five digits need three loops, and the fourth is there to hold the answer through.
    "hold": Recipe(
        help="three or four loops, loss from the needed loop on: learns to keep its answer",
        model=mod7_model(),
        train=TrainConfig(steps=2000, min_digits=1, min_loops=3, loss="from_needed", ema_decay=0.999),
        sweeps=tuple(Sweep(lengths=group, loops=_HOLD_LOOPS) for group in (TRAINED, LONGER, (16,), (32,))),
    ),
    # Known differences from the tutorial: the cosine falls by step, not by epoch; norms, embeddings and injection do
    # not decay; the model is this package's (ACT's weights sum to 1, the injection's decay stays below 1, the loop
    # sinusoid and the adapter start small). Each is gentler to the model than the original.
    "published": Recipe(
        help="the setting of the published tutorial, rerun: 3,000 chains, six epochs of 47 steps, AdamW at 3e-4",
        model=published_model("mla"),
        train=TrainConfig(
            steps=282, batch_size=64, n_train_chains=3000, lr=3e-4, warmup_steps=0, weight_decay=0.01, beta2=0.999,
            eps=1e-8, router_bias_rate=0.0, log_every=47, checkpoint_every=47,
        ),
        sweeps=tuple(Sweep(lengths=group, loops=(1, 2, 4, 6, 8)) for group in (TRAINED, LONGER)),
    ),
}  # fmt: skip


def recipe(name: str, seed: int = 0) -> tuple[ModelConfig, TrainConfig]:
    """Model and training of the named recipe; an unknown name is a ``ValueError`` that lists the known ones."""
    check_choice("recipe", name, tuple(RECIPES))
    return RECIPES[name].model, dataclasses.replace(RECIPES[name].train, seed=seed)
