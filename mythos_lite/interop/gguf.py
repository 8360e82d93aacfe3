"""A looped model as one GGUF file, which llama.cpp runs, and back.

llama.cpp repeats a stack of Llama layers since its architecture ``nanbeige`` (its src/models/nanbeige.cpp): the count
is a number in the file, ``nanbeige.num_loops``, and whoever loads the file may set another one::

    export_gguf(model, "model.gguf")
    llama = llama_cpp.Llama("model.gguf", kv_overrides={"nanbeige.num_loops": 16}, logits_all=True)
    llama.eval(token_ids)  # a list
    llama.scores[: len(token_ids)]  # (T, V)

It knows no prelude, coda, window, injection, activation of the state, experts or halting; ``llama_cpp_profile`` makes
configurations without. It keeps keys and values in half precision, which moved the logits of trained models by up to
.34 (at 32 loops); with ``type_k=0, type_v=0``, float32, by 3e-4 at most. ``n_ctx`` and ``n_batch`` (512 unless given)
must be layers times loops or more: llama.cpp allows 40 operations per token of a batch, and ends the process where it
needs more. So it does if it is asked for text and the file has no tokenizer, which it has for a task of digits::

    export_gguf(model, "model.gguf", task=ChainTask())
    llama_cpp.Llama("model.gguf").create_completion("351=", max_tokens=1)

========================  ==============================================================
here                      in the file (GGUF specification, ggml's docs/gguf.md)
========================  ==============================================================
``embedding``             ``token_embd``, which is the head too where there is no ``output``
``norm``                  ``output_norm``; between loops as well unless ``skip_loop_final_norm``, which is set
query and key             rows in another order: llama.cpp turns channels 2i and 2i + 1, we turn i and i + d/2
========================  ==============================================================
"""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mythos_lite.checks import check_int
from mythos_lite.config import ModelConfig
from mythos_lite.files.atomic import make_folder, write_files
from mythos_lite.files.checkpoint import CheckpointError, check_shapes, find_flaw
from mythos_lite.interop.extras import need
from mythos_lite.model.layers import NORM_EPS
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.modes import Unfilled
from mythos_lite.task.chains import ChainTask

ARCHITECTURE = "nanbeige"
MAX_LAYERS = 512
"""Layers times loops at most (LLAMA_MAX_LAYERS in llama.cpp's src/llama-hparams.h); beyond, it ends the process."""
PROFILE = {
    "attention": "gqa", "window": None, "dilated": False, "n_experts": 0, "n_prelude_layers": 0, "n_coda_layers": 0,
    "injection": "none", "state_activation": "none", "loop_index_embedding": False, "depth_lora_rank": 0,
    "halting": "none", "output_size": None,
}  # fmt: skip
"""What a configuration must say for llama.cpp to run the model; all other fields are free."""
_FIELDS = {
    "context_length": "max_seq_len", "embedding_length": "d_model", "block_count": "n_core_layers",
    "feed_forward_length": "d_ff", "attention.head_count": "n_heads", "attention.head_count_kv": "n_kv_heads",
    "rope.freq_base": "rope_theta", "vocab_size": "vocab_size", "num_loops": "n_loops",
}  # fmt: skip
_PAD = "tokenizer.ggml.padding_token_id"
_START, _EQUALS, _PADDING = "<s>", "=", "<pad>"
_NORMAL, _CONTROL = 1, 3
"""Kinds of tokens (llama.cpp's include/llama.h); control tokens are not read from a text."""
_LAYER = {
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.out": "attn_output", "ffn_norm": "ffn_norm", "ffn.gate": "ffn_gate", "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}  # fmt: skip


def llama_cpp_profile(**changes: object) -> ModelConfig:
    """The configuration of a model that ``export_gguf`` takes: the defaults with ``PROFILE``, and ``changes``."""
    return ModelConfig(**{**PROFILE, **changes})


def export_gguf(
    model: RecurrentDepthTransformer, path: str | os.PathLike, n_loops: int | None = None,
    task: ChainTask | None = None,
) -> Path:  # fmt: skip
    """Write the model in float32, with ``n_loops`` (its configuration's if not given), whole or not at all.

    The file says all of the configuration but ``initializer_range``; rope_theta and the norms' ε are float32 in it.
    With a ``task``, whose symbols must be digits, it has a tokenizer: START comes before a text by itself, ``=`` is EQ,
    and other signs are passed over. Of a conversation the last message is the text.

    Raises:
        ValueError: for a model that llama.cpp cannot run, with all fields that stand in the way; for more than
            ``MAX_LAYERS`` layers times loops; for weights that are not float32 or not finite; for another model's task.
        OSError: for a path that cannot be written.
        ImportError: where the library gguf is missing.
    """
    gguf = need("gguf")
    if not isinstance(model, RecurrentDepthTransformer):
        raise ValueError(f"model must be a RecurrentDepthTransformer, not {type(model).__name__}")
    config = _fitting(model.config, n_loops)
    values = {**_metadata(config), **({} if task is None else _tokenizer(task, config))}
    tensors, names = model.state_dict(), _names(config.n_core_layers)
    if tensors.keys() != names.keys():
        raise ValueError("the weights are not those of the configuration; merge adapters and undo quantization first")
    if flaw := find_flaw(tensors):
        raise ValueError(f"{flaw}; nothing was written")
    if (dtype := model.embedding.weight.dtype) != torch.float32:
        raise ValueError(f"the weights are {dtype} and the file is float32: export model.float(); nothing was written")

    path = Path(path)
    folder = make_folder(path.parent)
    with tempfile.TemporaryDirectory() as staging:
        writer = gguf.GGUFWriter(Path(staging) / "model.gguf", ARCHITECTURE)
        adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
                  list: writer.add_array}  # fmt: skip
        for key, value in values.items():
            adders[type(value)](key, value)
        for name, tensor in tensors.items():
            tensor = _reordered(name, tensor.detach().cpu(), config, (2, -1))
            writer.add_tensor(names[name], tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_files({folder / path.name: writer.path.read_bytes()})
    return path


def read_gguf(path: str | os.PathLike) -> RecurrentDepthTransformer:
    """The model of a file that ``export_gguf`` wrote, in evaluation mode, with the file's loop count as its own.

    Raises:
        CheckpointError: a ``ValueError`` for a file that is damaged, of another architecture, without a loop count, or
            of a model that would be computed in another way than ours.
        ImportError: where the library gguf is missing.
    """
    values, tensors = _open(Path(path))
    if (found := values.get("general.architecture")) != ARCHITECTURE:
        raise CheckpointError(f"{path} is of the architecture {found!r}; this reads {ARCHITECTURE!r} alone")
    if f"{ARCHITECTURE}.num_loops" not in values:
        raise CheckpointError(
            f"{path} does not say how many loops to run ({ARCHITECTURE}.num_loops), and engines then run a single one "
            "without a word; write the file anew with export_gguf"
        )
    config = _config(values, path)
    if config.n_core_layers > len(tensors):
        raise CheckpointError(f"{path} says that it has {config.n_core_layers} layers, more than it has weights")
    if config.n_core_layers * config.n_loops > MAX_LAYERS:
        raise CheckpointError(f"{path} asks for {config.n_loops:,} loops; llama.cpp runs {MAX_LAYERS} layers at most")
    ours = {theirs: name for name, theirs in _names(config.n_core_layers).items()}
    tensors = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    if flaw := find_flaw(tensors):
        raise CheckpointError(f"{path}: {flaw}")
    try:
        with torch.inference_mode(False), torch.device("meta"), Unfilled():  # which takes no memory
            model = RecurrentDepthTransformer(config)
    except RuntimeError as error:  # sizes that no tensor can have
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error
    check_shapes(tensors, model.state_dict(), where=str(path))
    with torch.inference_mode(False):
        tensors = {name: _reordered(name, tensor, config, (-1, 2)) for name, tensor in tensors.items()}
        model.load_state_dict(tensors, assign=True)
    return model.eval()


def _fitting(config: ModelConfig, n_loops: int | None) -> ModelConfig:
    """The configuration with this loop count; ``ValueError`` unless llama.cpp can run it."""
    others = {name: value for name, value in PROFILE.items() if getattr(config, name) != value}
    if others:
        fields = ", ".join(f"{name}={getattr(config, name)!r} (not {value!r})" for name, value in others.items())
        raise ValueError(f"llama.cpp cannot run this model, since it has {fields}; nothing was written")
    check_int("max_seq_len", config.max_seq_len, 1, 2**31 - 1)
    config = dataclasses.replace(config, n_loops=config.n_loops if n_loops is None else n_loops)
    if config.n_core_layers * config.n_loops > MAX_LAYERS:
        raise ValueError(
            f"n_loops={config.n_loops} is too many: llama.cpp runs {MAX_LAYERS} layers at most, "
            f"{MAX_LAYERS // config.n_core_layers} loops of {config.n_core_layers}; nothing was written"
        )
    return config


def _metadata(config: ModelConfig) -> dict[str, bool | int | float | str]:
    """Keys and values of the file, but for the architecture's."""
    values = {
        **{key: getattr(config, field) for key, field in _FIELDS.items()},
        "attention.layer_norm_rms_epsilon": NORM_EPS,
        "rope.dimension_count": config.head_dim,
        "skip_loop_final_norm": True,
    }
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        values[key] = np.float32(values[key]).item()
    pad = {} if config.pad_token_id is None else {_PAD: config.pad_token_id}
    named = {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}
    return {"general.name": "mythos-lite", **named, "tokenizer.ggml.model": "none", **pad}


def _tokenizer(task: ChainTask, config: ModelConfig) -> dict[str, bool | int | str | list]:
    """Keys and values of a tokenizer of digits; ``ValueError`` for a task that is not one, or not the model's.

    Of the kinds that llama.cpp knows ``gpt2`` passes over signs that are no token, while ``llama`` ends the process. It
    must have a merge; this one makes no token, so that it is never done.
    """
    if not isinstance(task, ChainTask) or task.n_symbols > 10:
        raise ValueError(f"task={task!r} has no digits to write; use a ChainTask of at most 10 symbols")
    task.check_fit(config, 1)
    pieces = {**{digit: (str(digit), _NORMAL) for digit in range(task.n_symbols)}, task.eq_id: (_EQUALS, _NORMAL),
              task.start_id: (_START, _CONTROL), task.pad_id: (_PADDING, _CONTROL)}  # fmt: skip
    texts, kinds = zip(*(pieces.get(i, (f"<{i}>", _CONTROL)) for i in range(config.vocab_size)), strict=True)
    values = {
        "model": "gpt2", "pre": "default", "tokens": [*texts], "token_type": [*kinds],
        "merges": [f"{_EQUALS} {_EQUALS}"],
        "bos_token_id": task.start_id, "eos_token_id": task.pad_id, "padding_token_id": task.pad_id,
        "add_bos_token": task.start_token, "add_eos_token": False, "add_space_prefix": False,
    }  # fmt: skip
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return {**named, "tokenizer.chat_template": "{{ messages[-1]['content'] }}"}


def _config(values: dict, path: str | os.PathLike) -> ModelConfig:
    """The configuration that the file's metadata describe; ``CheckpointError`` if none does."""
    try:
        found = {field: values[f"{ARCHITECTURE}.{key}"] for key, field in _FIELDS.items()}
        config = llama_cpp_profile(**found, pad_token_id=values.get(_PAD))
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the key {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = _metadata(config)
    for key in sorted(key for key in values.keys() | expected.keys() if key.startswith(f"{ARCHITECTURE}.")):
        if values.get(key) != expected.get(key):
            raise CheckpointError(
                f"{path} is of another model: {key} is {values.get(key)!r}, and this reads {expected.get(key)!r} alone"
            )
    return config


def _open(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Metadata and tensors of a GGUF file; ``CheckpointError`` unless it is whole and of float32."""
    gguf = need("gguf")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        _check_counts(memoryview(path.read_bytes()))
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        other = [f"{tensor.name} is {tensor.tensor_type.name}" for tensor in reader.tensors if tensor.tensor_type != 0]
        tensors = {tensor.name: torch.from_numpy(tensor.data.astype(np.float32)) for tensor in reader.tensors}
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from error
    if other:
        raise CheckpointError(f"{path}: the weight {other[0]}, and this reads F32 alone")
    return values, tensors


def _check_counts(content: memoryview) -> None:
    """``ValueError`` for a file that announces more than it holds, which the library would read for hours.

    That is the header of GGUF's specification (ggml's docs/gguf.md): magic, version, tensors, keys, and then for each
    key its name, the kind of its value, and the value.
    """
    sizes, text, array = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}, 8, 9
    at = 0

    def number(size: int) -> int:
        nonlocal at
        skip(size)
        return int.from_bytes(content[at - size : at], "little")

    def skip(size: int) -> None:
        nonlocal at
        if size > len(content) - at:
            raise ValueError("it announces more than it holds")
        at += size

    def skip_value(kind: int, count: int = 1) -> None:
        if kind == text:
            if 8 * count > len(content) - at:
                raise ValueError("it announces more than it holds")
            for _ in range(count):
                skip(number(8))
        elif kind in sizes:
            skip(sizes[kind] * count)
        else:
            raise ValueError(f"it has a value of the kind {kind}, which no model has")

    skip(8)
    n_tensors, n_keys = number(8), number(8)
    if 24 * n_tensors + 12 * n_keys > len(content):
        raise ValueError("it announces more than it holds")
    for _ in range(n_keys):
        skip_value(text)
        if (kind := number(4)) == array:
            skip_value(number(4), number(8))
        else:
            skip_value(kind)


def _names(n_layers: int) -> dict[str, str]:
    """Our name of every weight → its name in the file."""
    names = {"embedding": "token_embd", "norm": "output_norm"}
    for i in range(n_layers):
        names |= {f"core.{i}.{ours}": f"blk.{i}.{theirs}" for ours, theirs in _LAYER.items()}
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}


def _reordered(name: str, weight: Tensor, config: ModelConfig, pairs: tuple[int, int]) -> Tensor:
    """A query's or key's rows i and i + d/2 of each head side by side with pairs (2, −1); (−1, 2) undoes it."""
    if not name.endswith(("query.weight", "key.weight")):
        return weight
    n_heads = config.n_heads if name.endswith("query.weight") else config.n_kv_heads
    return weight.unflatten(0, (n_heads, *pairs)).transpose(1, 2).flatten(0, 2)
