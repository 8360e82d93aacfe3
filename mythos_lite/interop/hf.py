"""The model as one of Hugging Face's transformers: ``AutoModelForCausalLM``, ``generate``, ``Trainer``.

The classes here wrap ``RecurrentDepthTransformer`` and add what transformers expects around it. The number of loops is
an argument of ``forward`` and of ``generate``: ``model.generate(ids, n_loops=8, max_new_tokens=4)``. Importing this
module makes them known to the Auto classes. ``export_transformers`` writes a folder that loads without the import, too,
with ``trust_remote_code=True``: the code that it names is one import of this module.

The cache is the library's own, with a layer for every layer of the model, in the core for every loop. It keeps all
positions; what a window hides is masked.

Shapes: B batch, T new positions, S positions with those in the cache, V tokens that can be an answer.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mythos_lite.config import ModelConfig
from mythos_lite.files.atomic import write_files
from mythos_lite.files.checkpoint import write_checkpoint
from mythos_lite.interop.extras import need
from mythos_lite.model.attention import AttentionContext, attention_context
from mythos_lite.model.cache import CacheKey
from mythos_lite.model.layers import rotary_tables
from mythos_lite.model.loop import RecurrentDepthTransformer

transformers = need("transformers")
need("transformers.modeling_utils")  # which transformers loads when it is first asked for a model
cache_utils, outputs = need("transformers.cache_utils"), need("transformers.modeling_outputs")

_FIELDS = [field.name for field in dataclasses.fields(outputs.CausalLMOutputWithPast)]
CACHE = "cache" if "cache" in _FIELDS else "past_key_values"
"""What the library calls its cache: ``past_key_values`` up to 5.23."""
CODE_FILE = "modeling_mythos_lite.py"
CODE = '''"""Names the classes that load this folder with transformers; they are in the package mythos-lite."""

try:
    from mythos_lite.interop.hf import MythosLiteConfig, MythosLiteForCausalLM
except ModuleNotFoundError as error:
    raise ImportError(f"this model needs the package mythos-lite: in a clone of it, pip install . ({error})") from error
'''


class MythosLiteConfig(transformers.PretrainedConfig):
    """``ModelConfig`` as an entry ``model`` of a configuration of transformers; ``ValueError`` where it is refused."""

    model_type = "mythos_lite"
    keys_to_ignore_at_inference: ClassVar = [CACHE]

    def __init__(self, model: dict | None = None, **others: Any) -> None:
        self.model = ModelConfig.from_dict(model or {}).to_dict()
        super().__init__(**others)
        self.auto_map = _auto_map()

    @property
    def vocab_size(self) -> int:
        """Columns of the logits, which is what transformers takes it for; the embedding may have more rows."""
        return self.model["output_size"] or self.model["vocab_size"]

    @property
    def hidden_size(self) -> int:
        return self.model["d_model"]

    @property
    def num_attention_heads(self) -> int:
        return self.model["n_heads"]

    @property
    def max_position_embeddings(self) -> int:
        return self.model["max_seq_len"]

    @property
    def num_hidden_layers(self) -> int:
        """Layers that a token passes at the usual number of loops, and so layers of a cache."""
        return _n_slots(ModelConfig(**self.model), self.model["n_loops"])

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Do nothing: a folder names the installed code and carries no copy of it."""

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """As the library's, with the file that ``auto_map`` names."""
        super().save_pretrained(save_directory, **options)
        write_files({Path(save_directory) / CODE_FILE: CODE.encode()})


class MythosLiteForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):
    """``RecurrentDepthTransformer`` (``self.model``) with the interface of transformers.

    ``save_pretrained`` is the library's, and the folder is for transformers only; ``export_transformers(self.model,
    folder)`` writes one for both.
    """

    config_class = MythosLiteConfig
    base_model_prefix = "model"  # files hold the names of the model within
    _no_split_modules = ("RecurrentDepthTransformer",)  # the loop, and the head that is the embedding, on one device

    def __init__(self, config: MythosLiteConfig) -> None:
        super().__init__(config)
        core = ModelConfig.from_dict(config.model)
        self.generation_config = transformers.GenerationConfig(**_generation(core))
        self.model = RecurrentDepthTransformer(core)
        for module in self.modules():  # it has drawn its initial values, unless they are about to be loaded
            module._is_hf_initialized = not self.model.embedding.weight.is_meta
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Refuse to make up for weights that a file does not hold; those that it holds have been marked."""
        for name, weight in self.model.state_dict(keep_vars=True).items():
            if not (weight.is_meta or getattr(weight, "_is_hf_initialized", False)):
                raise ValueError(f"the weight {name!r} is missing: the file is damaged, or of another configuration")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Do nothing: a folder names the installed code and carries no copy of it."""

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embedding

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, cache: Any = None,
        use_cache: bool | None = None, labels: Tensor | None = None, n_loops: int | None = None,
        num_items_in_batch: Tensor | int | None = None, **others: Any,
    ) -> outputs.CausalLMOutputWithPast:  # fmt: skip
        """Logits (B, T, V) of the next token at every position.

        Args:
            input_ids: (B, T) int64; with a cache, the tokens that follow those in it.
            attention_mask: (B, S), 0 at padding, on the left or on the right. Positions are counted without it.
            past_key_values, cache: a ``DynamicCache``, by the library's older or newer name. It is tied to the number
                of loops that it was filled at.
            use_cache: return a cache; a new one if none is given.
            labels: (B, T), the tokens themselves, −100 where none is asked for; ``loss`` compares each with the logits
                one position before.
            n_loops: any number from 1; the configuration's if not given.

        Raises:
            ValueError: as ``RecurrentDepthTransformer.forward``; for a cache of another kind or filled at another
                number of loops, any cache with a dilated window, a mask of another shape, and what this model does not
                have (``output_attentions``, ``position_ids`` …).
        """
        for name, value in others.items():  # None or False from callers that hand these to every model
            if name != "cache_position" and value is not None and value is not (name == "return_dict"):
                raise ValueError(f"{name}={value!r} is not possible: this model has no {name}")
        n_loops = self.model.check_input(input_ids, n_loops, None)
        cache = past_key_values if cache is None else cache
        cache = transformers.DynamicCache() if cache is None and use_cache else cache
        slots = None if cache is None else _Slots(cache, self.model.config, n_loops)
        attention_mask = self._check_mask(input_ids, attention_mask, 0 if slots is None else slots.n_kept)
        if self.model.config.dilated and attention_mask is not None:  # counts from the first position: move padding
            order = attention_mask.int().argsort(dim=1, descending=True, stable=True)
            logits = self._logits(input_ids.gather(1, order), n_loops, None, None)
            logits = logits.gather(1, order.argsort(dim=1).unsqueeze(2).expand_as(logits))
        else:
            logits = self._logits(input_ids, n_loops, attention_mask, slots)
        options = {"vocab_size": logits.shape[-1], "num_items_in_batch": num_items_in_batch}
        loss = None if labels is None else self.loss_function(logits, labels, **options)
        return outputs.CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})

    def _check_mask(self, input_ids: Tensor, attention_mask: Tensor | None, n_past: int) -> Tensor | None:
        """``attention_mask`` as bool if there is any padding in it."""
        shape = len(input_ids), n_past + input_ids.shape[1]
        self.model.check_length(shape[1])
        if attention_mask is None:
            return None
        if attention_mask.shape != shape:
            raise ValueError(f"attention_mask must have shape (B, S) = {shape}, not {tuple(attention_mask.shape)}")
        return None if attention_mask.all() else attention_mask.bool()

    def _logits(self, input_ids: Tensor, n_loops: int, mask: Tensor | None, slots: "_Slots | None") -> Tensor:
        config, n_past = self.model.config, 0 if slots is None else slots.n_kept
        if mask is None and not n_past:
            context = attention_context(config, input_ids.shape[1], None, input_ids.device)
        else:
            shape = len(input_ids), n_past + input_ids.shape[1]
            mask = torch.ones(shape, dtype=torch.bool, device=input_ids.device) if mask is None else mask
            context = _masked_context(config, mask, n_past)
        for turn in self.model.turns(input_ids, n_loops, context._replace(cache=slots)):
            last = turn
        return self.model.read_out(last.output, context._replace(cache=slots))


class _Slots:
    """The library's cache in the place of the model's own: one of its layers for each (stage, layer, loop).

    Prelude and coda come first, so that the number of a slot does not depend on how many loops there are.
    """

    def __init__(self, cache: Any, config: ModelConfig, n_loops: int) -> None:
        if config.dilated:
            raise ValueError("a dilated window reads states of all earlier positions: use_cache=False, and no cache")
        if not isinstance(cache, transformers.DynamicCache):
            raise ValueError(f"the cache must be a DynamicCache, not {type(cache).__name__}")
        self.cache, self.config, needed = cache, config, _n_slots(config, n_loops)
        self.n_kept = cache.get_seq_length()
        filled = sum(layer.get_seq_length() > 0 for layer in cache.layers)
        if filled not in (0, needed):
            other = (filled - _n_slots(config, 0)) / config.n_core_layers
            raise ValueError(
                f"the cache was filled at n_loops={other:g} and cannot be used at n_loops={n_loops}; start a new one"
            )
        while len(cache.layers) < needed:  # one made from a configuration has those of the usual number of loops
            cache.layers.append(cache_utils.DynamicLayer())

    def put(self, key: CacheKey, *new: Tensor) -> tuple[Tensor, ...]:
        """Store tensors (…, T, width) of new positions; return them joined to the past ones, (…, S, width)."""
        before = {"prelude": 0, "coda": self.config.n_prelude_layers, "core": _n_slots(self.config, key.loop)}
        # Latent attention has one tensor to keep, where the library keeps two.
        pair = new if len(new) == 2 else (*new, new[0][..., :0])
        return self.cache.update(*pair, before[key.stage] + key.layer)[: len(new)]


def _n_slots(config: ModelConfig, n_loops: int) -> int:
    return config.n_prelude_layers + config.n_coda_layers + n_loops * config.n_core_layers


def _masked_context(config: ModelConfig, real: Tensor, n_past: int) -> AttentionContext:
    """The context of the positions behind the first ``n_past`` of S, where ``real`` (B, S) is False at padding."""
    positions = real.cumsum(dim=1) - 1  # (B, S), of the padding on the left −1
    query, key = positions[:, n_past:, None], positions[:, None]
    seen = real[:, None] & (key <= query)  # (B, T, S)
    if config.window is not None:
        seen &= key > query - config.window
    # Padding sees itself, since attention to nothing would make numbers that are none.
    seen |= torch.eye(real.shape[1], dtype=torch.bool, device=real.device)[n_past:]
    cos, sin = rotary_tables(positions[:, n_past:], config.rotary_dim, config.rope_theta)
    return AttentionContext(cos, sin, seen.unsqueeze(1), causal=False)


def _auto_map() -> dict[str, str]:
    module = CODE_FILE.removesuffix(".py")
    return {"AutoConfig": f"{module}.MythosLiteConfig", "AutoModelForCausalLM": f"{module}.MythosLiteForCausalLM"}


def _generation(config: ModelConfig) -> dict:
    """What ``generate`` has to know of the model."""
    return {"pad_token_id": config.pad_token_id, "use_cache": not config.dilated}


def export_transformers(model: RecurrentDepthTransformer, folder: str | os.PathLike, /, **notes: object) -> Path:
    """Write a checkpoint that ``RecurrentDepthTransformer.from_pretrained`` and transformers load.

    ``transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` runs the Python file in the
    folder, which imports this module; where this module has been imported, it loads without that argument. Raises as
    ``save_pretrained``.
    """
    classes = {"model_type": MythosLiteConfig.model_type, "architectures": [MythosLiteForCausalLM.__name__]}
    beside = {"generation_config.json": json.dumps(_generation(model.config), indent=2) + "\n", CODE_FILE: CODE}
    more = {**classes, "auto_map": _auto_map()}
    return write_checkpoint(folder, model.config, model.state_dict(), notes, more, beside)


transformers.AutoConfig.register(MythosLiteConfig.model_type, MythosLiteConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(MythosLiteConfig, MythosLiteForCausalLM, exist_ok=True)
