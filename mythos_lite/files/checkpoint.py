"""Checkpoints: ``config.json`` (configuration and notes) and ``model.safetensors`` (named tensors).

This module knows nothing of the model class, so the model can use it. Nothing is ever unpickled.

The weights carry the text of ``config.json`` and its fingerprint in their metadata. They are therefore complete by
themselves, and a ``config.json`` beside them that belongs to other weights, or was edited, is found out.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mythos_lite.checks import plain
from mythos_lite.config import ModelConfig
from mythos_lite.files.atomic import make_folder, write_files
from mythos_lite.files.json_files import parse_json

FORMAT = "mythos-lite"
TENSORS = "pt"
"""What other libraries want to read in the metadata of weights that are PyTorch's. Earlier versions wrote FORMAT."""
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
SHIPPED = Path(__file__).parent.parent / "checkpoints"


class CheckpointError(ValueError):
    """Files that cannot be loaded; the message says which and why."""


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds."""

    config: ModelConfig
    notes: dict
    tensors: dict[str, Tensor]


def shipped_names() -> list[str]:
    """Names that ``from_pretrained`` takes besides folders."""
    return sorted(folder.name for folder in SHIPPED.glob("*") if (folder / CONFIG_FILE).is_file())


def write_checkpoint(
    folder: str | os.PathLike, config: ModelConfig, tensors: dict[str, Tensor], notes: dict,
    more: dict | None = None, beside: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write configuration, tensors and ``notes`` into ``folder``; return it.

    ``more`` are further entries of ``config.json`` and ``beside`` further files, by name, for other libraries; whoever
    opens the checkpoint does not read them.
    """
    if flaw := find_flaw(tensors):
        raise ValueError(f"{flaw}; nothing was written")
    try:
        content = {"format": FORMAT, "version": VERSION, "model": config.to_dict(), "notes": _plain_values(notes)}
        content = {**(more or {}), **content}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"notes must be values that JSON can hold ({error}); nothing was written") from error
    fingerprint = _fingerprint(json.loads(text))
    metadata = {"format": TENSORS, "version": str(VERSION), "config": fingerprint, CONFIG_FILE: text}
    folder = make_folder(folder)
    files = {WEIGHTS_FILE: pack(tensors, metadata), CONFIG_FILE: text.encode()}
    files |= {name: content.encode() for name, content in (beside or {}).items()}
    write_files({folder / name: content for name, content in files.items()})
    return folder


def find_flaw(tensors: dict[str, Tensor]) -> str | None:
    """Why these cannot be weights, if so: of a type that is not in ``WEIGHT_TYPES``, of several, or not finite."""
    first = next(iter(tensors.values())).dtype if tensors else None
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_TYPES:
            return f"the weight {name!r} is {tensor.dtype}, not one of {', '.join(map(str, WEIGHT_TYPES))}"
        if tensor.dtype != first:
            return f"the weight {name!r} is {tensor.dtype} while others are {first}; weights must be of one type"
        if not torch.isfinite(tensor).all():
            return f"the weight {name!r} holds values that are not finite"
    return None


def _plain_values(value: object) -> object:
    """The same with numbers and arrays of NumPy and torch as Python's own."""
    if isinstance(value, dict):
        return {plain(key): _plain_values(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_values(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _fingerprint(content: dict) -> str:
    """Of what ``config.json`` says, notes included; its layout does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(
            name.encode() + tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with a checksum; the same tensors and metadata give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, {**metadata, "sha256": checksum(tensors)})
    # The library writes the entries of the header in any order.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def holds_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether one of a checkpoint's two files is there."""
    return any((Path(folder) / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE))


def open_checkpoint(folder_or_name: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint folder, or one that ships with the package; ``CheckpointError`` says what is wrong with it."""
    folder = Path(folder_or_name)
    if not folder.is_dir():
        if str(folder_or_name) not in shipped_names():
            names = ", ".join(repr(name) for name in shipped_names()) or "none"
            raise CheckpointError(f"{str(folder_or_name)!r} is neither a folder nor a shipped checkpoint ({names})")
        folder = SHIPPED / str(folder_or_name)
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for wait in (0.05, 0.05, 0.0):  # somebody who saves may be between the two files
        tensors, metadata = unpack(weights)
        if metadata.get("format") not in (FORMAT, TENSORS):
            raise CheckpointError(f"{weights} was not written by {FORMAT}")
        carried = metadata.get(CONFIG_FILE)  # earlier versions wrote none
        where = path if carried is None or path.exists() else weights
        remedy = "" if carried is None or where is weights else f"; remove {CONFIG_FILE} to load the weights as saved"
        try:
            text = path.read_bytes() if where is path else carried.encode()
            content = parse_json(text, where, f"a configuration of {FORMAT}", _check_config)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{error}{remedy}") from error
        if _fingerprint(content) == metadata.get("config"):
            return Checkpoint(ModelConfig.from_dict(content["model"]), content["notes"], tensors)
        time.sleep(wait)
    raise CheckpointError(f"{where} was changed, or does not belong to the weights in {weights}{remedy}")


def _check_config(content: dict) -> None:
    if content.get("format") != FORMAT:
        raise ValueError(f"it was not written by {FORMAT}")
    if content.get("version") != VERSION:
        raise ValueError(f"it has version {content.get('version')!r}; this package reads version {VERSION}")
    ModelConfig.from_dict(content["model"])
    content["notes"].keys()
    _fingerprint(content)  # here, where values that are nested too deeply are told


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ``CheckpointError`` unless they are whole, finite and as written."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    with torch.inference_mode(False), torch.device("cpu"):  # whatever the caller is in
        try:
            content = path.read_bytes()  # at once, since somebody may be replacing the file
            tensors = {name: tensor.clone() for name, tensor in load(content).items()}
            metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
        if flaw := find_flaw(tensors):
            raise CheckpointError(f"{path}: {flaw}")
        if metadata.get("sha256", found := checksum(tensors)) != found:  # the first versions wrote none
            raise CheckpointError(f"{path} is damaged: its tensors are not those that were written")
    return tensors, metadata


def check_shapes(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    """``CheckpointError`` unless names and shapes found are those expected."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise CheckpointError(f"{where}: the weight {name!r} is missing")
        if name not in expected:
            raise CheckpointError(f"{where}: the weight {name!r} is not part of this model")
        if (shape := tuple(found[name].shape)) != (wanted := tuple(expected[name].shape)):
            raise CheckpointError(f"{where}: the weight {name!r} has shape {shape} instead of {wanted}")
