"""What a model and a training run are made of, and which combinations make sense.

Nothing here imports torch: a configuration is checked before a single tensor exists. Every
rejection is a ``ValueError`` that names the field, its value and what would be accepted.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass

from mythos_lite.checks import check_bool, check_choice, check_int, check_number, plain, reject

ATTENTIONS = ("gqa", "mla")


def checked(default: object, check: Callable, *limits: object, **more: object):
    """A field whose values must pass ``check(name, value, *limits, **more)``; ``None`` passes if the type names it."""
    return dataclasses.field(default=default, metadata={"check": (check, limits, more)})


class Config:
    """Plain Python values, checked field by field, that convert to and from JSON.

    What is stored outlives the code: a field that is added later needs a default that means what was done before.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = plain(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if "check" in field.metadata and not (value is None and "None" in str(field.type)):
                check, limits, more = field.metadata["check"]
                check(field.name, value, *limits, **more)

    def _require(self, fine: bool, name: str, accepted: str) -> None:
        if not fine:
            reject(name, getattr(self, name), accepted)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict):
        """Rebuild from ``to_dict``. Missing fields take their defaults; unknown ones are a ``ValueError``."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(fields))}")
        for name, field in fields.items():
            if name not in values and field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{cls.__name__} needs the field {name!r}, which is missing")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Shape of a recurrent-depth transformer; the defaults are the model of the modulo-7 lesson.

    Widths are in channels, ``window`` and ``max_seq_len`` in tokens.
    """

    vocab_size: int = checked(10, check_int, 1)
    output_size: int | None = checked(None, check_int, 1)
    """Tokens that can be an answer, the first so many of the vocabulary; the head knows no others. ``None``: all."""
    max_seq_len: int = checked(1024, check_int, 1)
    pad_token_id: int | None = 9
    """Token that fills batches on the right. It is left out of router statistics and refused in prompts."""

    d_model: int = checked(64, check_int, 1)
    n_heads: int = checked(4, check_int, 1)
    attention: str = checked("gqa", check_choice, ATTENTIONS)
    n_kv_heads: int | None = 4
    """``"gqa"`` only. ``n_heads`` gives multi-head, 1 gives multi-query attention."""
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    window: int | None = checked(2, check_int, 1)
    """Positions a query sees, itself included. ``None``: all earlier ones."""
    dilated: bool = checked(False, check_bool)
    """Spread the core's window out from loop to loop: in loop t, counted from 0, its positions stand window**t apart,
    and where there is none so far back a copy of the first one stands, which keeps its input (``model.dilation``).
    News then crosses n positions in O(log n) loops. Needs a window of 2 or more and a dense core; such a model keeps no
    cache."""
    rope_theta: float = checked(10_000.0, check_number, 1.0, 1e12, open_low=True)

    d_ff: int = checked(128, check_int, 1)
    n_experts: int = checked(0, check_int, 0)
    """Routed experts in the core's feed-forward. 0: a dense one of width ``d_ff``, as in prelude and coda."""
    n_experts_per_token: int = 0
    n_shared_experts: int = 0
    d_expert: int = 0

    n_prelude_layers: int = checked(1, check_int, 0)
    n_core_layers: int = checked(1, check_int, 1)
    n_coda_layers: int = checked(1, check_int, 0)
    n_loops: int = checked(4, check_int, 1)
    """Loops of the core when a call does not say."""

    injection: str = checked("lti", check_choice, ("lti", "additive", "none"))
    """How input e and state make what the core is given; ``"none"`` gives it the state alone, which begins as e."""
    state_activation: str = checked("tanh", check_choice, ("tanh", "none"))
    """Applied to the state after every loop. ``"tanh"`` keeps it in [−1, 1] (float32 reaches the ends) and drives
    channels there, where small errors die out; with ``"none"`` they add up from loop to loop."""
    loop_index_embedding: bool = checked(False, check_bool)
    depth_lora_rank: int = checked(0, check_int, 0)
    """Rank of the depth-wise adapter. 0: none. It holds ``n_loops`` scales; later loops reuse the last."""
    halting: str = checked("none", check_choice, ("none", "act"))
    act_threshold: float = checked(0.99, check_number, 0.0, 1.0, open_low=True)
    initializer_range: float | None = checked(None, check_number, 0.0, 1e3, open_low=True)
    """Initial standard deviation of every matrix and embedding. ``None``: √(2 / (5·d_model)), SmallInit
    (Nguyen & Salazar 2019). GPT's 0.02 is far too small for models as narrow as these: they learn late."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.output_size is None or self.output_size <= self.vocab_size
        self._require(fits, "output_size", f"it must be at most vocab_size={self.vocab_size}")
        if self.pad_token_id is not None:
            check_int("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        self._require(not self.loop_index_embedding or self.d_model >= 16, "d_model", "a loop index needs 16 or more")

        mla = self.attention == "mla"
        self._require(not mla or self.n_kv_heads is None, "n_kv_heads", 'attention="mla" has none; pass None')
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if mla:
                check_int(name, getattr(self, name), 1)
            else:
                self._require(getattr(self, name) is None, name, f'only attention="mla" reads {name}; pass None')
        self._require(mla or self.d_model % self.n_heads == 0, "n_heads", f"it must divide d_model={self.d_model}")
        name = "qk_rope_head_dim" if mla else "d_model"
        self._require(self.rotary_dim % 2 == 0, name, f"the {self.rotary_dim} rotary channels of a head must be even")
        if not mla:
            check_int("n_kv_heads", self.n_kv_heads, 1, self.n_heads)
            self._require(self.n_heads % self.n_kv_heads == 0, "n_kv_heads", f"it must divide n_heads={self.n_heads}")

        if self.dilated:
            accepted = "only a window of 2 or more positions and a dense core can be dilated; pass False"
            self._require((self.window or 0) > 1 and not self.n_experts, "dilated", accepted)
        self._require(self.n_experts != 1, "n_experts", "a router needs 2 or more to choose from; 0 is a dense core")
        limits = {"n_experts_per_token": (1, self.n_experts), "n_shared_experts": (0, None), "d_expert": (1, None)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if self.n_experts:
                check_int(name, value, low, high)
            else:
                self._require(type(value) is int and value == 0, name, "without routed experts (n_experts=0) it is 0")

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

        A window of w moves information w − 1 positions per layer; prelude and coda move it too. Where it is dilated,
        loop t of the core moves it (w − 1)·wᵗ positions.
        Raises ``ValueError`` where no number of loops is enough (a window of 1 moves nothing).
        """
        distance = check_int("distance", distance, 0)
        if self.window is None or distance == 0:
            return 1
        reach = self.window - 1
        left = distance - reach * (self.n_prelude_layers + self.n_coda_layers)
        self._require(reach > 0, "window", f"no loop moves information over {distance} positions; use 2 or more")
        if self.dilated:
            n_loops = 1
            while self.n_core_layers * (self.window**n_loops - 1) < left:
                n_loops += 1
            return n_loops
        return max(1, math.ceil(left / (reach * self.n_core_layers)))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained on digit chains. Lengths are in digits, intervals in steps."""

    steps: int = checked(2000, check_int, 1)
    batch_size: int = checked(256, check_int, 1)
    n_train_chains: int | None = checked(None, check_int, 1)
    """Size of a fixed training set, gone through in shuffled epochs. ``None``: fresh chains every step."""
    min_digits: int = checked(2, check_int, 1)
    max_digits: int = 5

    min_loops: int = checked(4, check_int, 1)
    max_loops: int = 4
    """The loop count of a batch is drawn from ``min_loops`` to ``max_loops``; equal values fix it."""
    loss: str = checked("last", check_choice, ("last", "from_needed", "from_length"))
    """``"last"``: at the last loop. ``"from_needed"``: mean over the loops from the needed one on. ``"from_length"``:
    mean over the loops from the n-th on, where n is the number of digits or steps."""
    ponder_cost: float = checked(0.0, check_number, 0.0, 1e3)
    """Weight of the ponder cost in the loss; needs a model that halts."""

    # The upper ends are far beyond any use; past them numbers overflow before anything is learned.
    lr: float = checked(2e-3, check_number, 0.0, 1e30, open_low=True)
    warmup_steps: int = checked(100, check_int, 0)
    weight_decay: float = checked(0.1, check_number, 0.0, 1e3)
    beta1: float = checked(0.9, check_number, 0.0)
    beta2: float = checked(0.95, check_number, 0.0)
    eps: float = checked(1e-6, check_number, 1e-12, 1e3)
    """Added to Adam's denominator. Once the task is solved the gradient all but vanishes; with torch's 1e-8
    Adam still makes full steps along what is left of it, which can carry the loop away from stability."""
    clip_norm: float = checked(1.0, check_number, 0.0, 1e30, open_low=True)
    ema_decay: float = checked(0.0, check_number, 0.0)
    """Decay of the exponential moving average of the weights, which is what the run returns. 0: off."""
    router_bias_rate: float = checked(1e-3, check_number, 0.0, 1.0)
    """Step of the loss-free load balancing; read only by models with experts. 0: off."""

    seed: int = checked(0, check_int, 0, 2**32 - 1)
    log_every: int = checked(100, check_int, 1)
    checkpoint_every: int = checked(250, check_int, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("max_digits", self.max_digits, self.min_digits)
        check_int("max_loops", self.max_loops, self.min_loops)
        for name in ("beta1", "beta2", "ema_decay"):
            self._require(getattr(self, name) < 1.0, name, "it must be below 1")
