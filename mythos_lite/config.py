"""What a model and a training run are made of, and which combinations make sense.

Nothing here imports torch: a configuration is checked before a single tensor exists. Every
rejection is a ``ValueError`` that names the field, its value and what would be accepted.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from mythos_lite.checks import check_bool, check_choice, check_int, check_number, plain, reject

ATTENTIONS = ("gqa", "mla")
INJECTIONS = ("lti", "additive")
STATE_ACTIVATIONS = ("tanh", "none")
HALTINGS = ("none", "act")
LOSSES = ("last", "from_needed")

_MLA_FIELDS = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


class Config:
    """What configurations share: plain Python values, and conversion to and from JSON."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict):
        """Rebuild from ``to_dict``; unknown and missing fields are a ``ValueError``."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        if missing := sorted(known - set(values)):
            raise ValueError(f"{cls.__name__} needs the field {missing[0]!r}, which is missing")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Shape of a recurrent-depth transformer.

    The defaults are the model of the modulo-7 lesson. Widths are in channels, ``window`` and
    ``max_seq_len`` in tokens.
    """

    vocab_size: int = 10
    max_seq_len: int = 1024
    pad_token_id: int | None = 9
    """Token that fills batches on the right. It is left out of router statistics and refused in prompts."""

    d_model: int = 64
    n_heads: int = 4
    attention: str = "gqa"
    n_kv_heads: int | None = 4
    """``"gqa"`` only. ``n_heads`` gives multi-head, 1 gives multi-query attention."""
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    window: int | None = 2
    """Positions a query sees, itself included. ``None``: all earlier ones."""
    rope_theta: float = 10_000.0

    d_ff: int = 128
    n_experts: int = 0
    """Routed experts in the core's feed-forward. 0: a dense one of width ``d_ff``, as in prelude and coda."""
    n_experts_per_token: int = 0
    n_shared_experts: int = 0
    d_expert: int = 0

    n_prelude_layers: int = 1
    n_core_layers: int = 1
    n_coda_layers: int = 1
    n_loops: int = 4
    """Loops of the core when a call does not say."""

    injection: str = "lti"
    state_activation: str = "tanh"
    """Applied to the state after every loop. ``"tanh"`` keeps it in [−1, 1] (float32 reaches the ends) and drives
    channels there, where small errors die out; with ``"none"`` they add up from loop to loop."""
    loop_index_embedding: bool = False
    depth_lora_rank: int = 0
    """Rank of the depth-wise adapter. 0: none. It holds ``n_loops`` scales; later loops reuse the last."""
    halting: str = "none"
    act_threshold: float = 0.99

    initializer_range: float | None = None
    """Initial standard deviation of every matrix and embedding. ``None``: √(2 / (5·d_model)), SmallInit
    (Nguyen & Salazar 2019). GPT's 0.02 is far too small for models as narrow as these: they learn late."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("vocab_size", "max_seq_len", "d_model", "n_heads", "d_ff", "n_core_layers", "n_loops"):
            check_int(field, getattr(self, field), 1)
        for field in ("n_prelude_layers", "n_coda_layers", "depth_lora_rank", "n_experts"):
            check_int(field, getattr(self, field), 0)
        if self.pad_token_id is not None:
            check_int("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        if self.window is not None:
            check_int("window", self.window, 1)
        check_number("rope_theta", self.rope_theta, 1.0, 1e12, open_low=True)
        check_number("act_threshold", self.act_threshold, 0.0, 1.0, open_low=True)
        if self.initializer_range is not None:
            check_number("initializer_range", self.initializer_range, 0.0, 1e3, open_low=True)
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("injection", self.injection, INJECTIONS)
        check_choice("state_activation", self.state_activation, STATE_ACTIVATIONS)
        check_choice("halting", self.halting, HALTINGS)
        check_bool("loop_index_embedding", self.loop_index_embedding)
        if self.loop_index_embedding and self.d_model < 16:
            reject(
                "d_model",
                self.d_model,
                "the loop-index embedding takes d_model // 8 channels and needs at least 2; use 16 or more",
            )
        self._check_attention()
        self._check_experts()

    def _check_attention(self) -> None:
        if self.attention == "mla":
            if self.n_kv_heads is not None:
                reject("n_kv_heads", self.n_kv_heads, 'attention="mla" has no kv heads; pass n_kv_heads=None')
            for field in _MLA_FIELDS:
                if getattr(self, field) is None:
                    reject(field, None, f'attention="mla" needs {field}, a whole number, 1 or more')
                check_int(field, getattr(self, field), 1)
            if self.qk_rope_head_dim % 2:
                reject(
                    "qk_rope_head_dim",
                    self.qk_rope_head_dim,
                    "rotary positions turn pairs of channels; use an even number",
                )
            return
        for field in _MLA_FIELDS:
            if getattr(self, field) is not None:
                reject(
                    field, getattr(self, field), f'only attention="mla" reads {field}; pass None or change attention'
                )
        if self.d_model % self.n_heads:
            reject("n_heads", self.n_heads, f"it must divide d_model={self.d_model}")
        if self.head_dim % 2:
            reject("d_model", self.d_model, f"d_model / n_heads = {self.head_dim} must be even, for rotary positions")
        check_int("n_kv_heads", self.n_kv_heads, 1, self.n_heads)
        if self.n_heads % self.n_kv_heads:
            reject("n_kv_heads", self.n_kv_heads, f"it must divide n_heads={self.n_heads}")

    def _check_experts(self) -> None:
        fields = ("n_experts_per_token", "n_shared_experts", "d_expert")
        if self.n_experts == 0:
            for field in fields:
                if isinstance(getattr(self, field), (bool, float)) or getattr(self, field) != 0:
                    reject(
                        field,
                        getattr(self, field),
                        f"there are no routed experts (n_experts=0); pass {field}=0 or set n_experts",
                    )
            return
        check_int("n_experts", self.n_experts, 2)
        check_int("n_experts_per_token", self.n_experts_per_token, 1, self.n_experts)
        check_int("n_shared_experts", self.n_shared_experts, 0)
        check_int("d_expert", self.d_expert, 1)

    @property
    def initial_std(self) -> float:
        """``initializer_range`` with its default filled in."""
        return math.sqrt(2 / (5 * self.d_model)) if self.initializer_range is None else self.initializer_range

    @property
    def head_dim(self) -> int:
        """Channels of one head in grouped-query attention."""
        return self.d_model // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that rotary positions turn."""
        return self.qk_rope_head_dim if self.attention == "mla" else self.head_dim

    def loops_needed(self, distance: int) -> int:
        """Fewest loops at which a token can depend on the token ``distance`` positions earlier.

        A window of w moves information w − 1 positions per layer; prelude and coda move it too.
        Raises ``ValueError`` where no number of loops is enough (a window of 1 moves nothing).
        """
        distance = check_int("distance", distance, 0)
        if self.window is None or distance == 0:
            return 1
        reach = self.window - 1
        left = distance - reach * (self.n_prelude_layers + self.n_coda_layers)
        if left <= 0:
            return 1
        if reach == 0:
            reject(
                "window", self.window, f"no number of loops moves information over {distance} positions; use 2 or more"
            )
        return max(1, math.ceil(left / (reach * self.n_core_layers)))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained on digit chains. Lengths are in digits, intervals in steps."""

    steps: int = 2000
    batch_size: int = 256
    n_train_chains: int | None = None
    """Size of a fixed training set, gone through in shuffled epochs. ``None``: fresh chains every step."""
    min_digits: int = 2
    max_digits: int = 5

    min_loops: int = 4
    max_loops: int = 4
    """The loop count of a batch is drawn from ``min_loops`` to ``max_loops``; equal values fix it."""
    loss: str = "last"
    """``"last"``: at the last loop. ``"from_needed"``: mean over the loops from the needed one on."""
    ponder_cost: float = 0.0
    """Weight of the ponder cost in the loss; needs a model that halts."""

    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    """Added to Adam's denominator. Once the task is solved the gradient all but vanishes; with torch's 1e-8
    Adam still makes full steps along what is left of it, which can carry the loop away from stability."""
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, which is what the run returns. 0: off."""
    router_bias_rate: float = 1e-3
    """Step of the loss-free load balancing; read only by models with experts. 0: off."""

    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("steps", "batch_size", "min_digits", "min_loops", "log_every", "checkpoint_every"):
            check_int(field, getattr(self, field), 1)
        check_int("max_digits", self.max_digits, self.min_digits)
        check_int("max_loops", self.max_loops, self.min_loops)
        check_int("warmup_steps", self.warmup_steps, 0)
        check_int("seed", self.seed, 0, 2**32 - 1)
        if self.n_train_chains is not None:
            check_int("n_train_chains", self.n_train_chains, 1)
        check_choice("loss", self.loss, LOSSES)
        # The upper ends are far beyond any use; past them numbers overflow before anything is learned.
        check_number("lr", self.lr, 0.0, 1e30, open_low=True)
        check_number("clip_norm", self.clip_norm, 0.0, 1e30, open_low=True)
        check_number("eps", self.eps, 1e-12, 1e3)
        check_number("router_bias_rate", self.router_bias_rate, 0.0, 1.0)
        for field in ("weight_decay", "ponder_cost"):
            check_number(field, getattr(self, field), 0.0, 1e3)
        for field in ("beta1", "beta2", "ema_decay"):
            check_number(field, getattr(self, field), 0.0)
            if getattr(self, field) >= 1.0:
                reject(field, getattr(self, field), "it must be below 1")
