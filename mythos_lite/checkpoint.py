"""Files: ``config.json`` and ``model.safetensors``, written whole or not at all.

A checkpoint is a configuration and named tensors; this module knows nothing of the model class, so
the model can use it. Nothing is ever unpickled.

Both files are written beside their places, then moved there, each in one step; an error on the way
puts back what was there. The weights name the configuration and the notes they belong to, so
even a power cut between the two moves is found out at loading.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mythos_lite.config import ModelConfig

FORMAT = "mythos-lite"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
SHIPPED = Path(__file__).parent / "checkpoints"


class CheckpointError(ValueError):
    """Files that cannot be loaded; the message says which and why."""


def shipped_names() -> list[str]:
    """Names that ``from_pretrained`` takes besides folders."""
    return sorted(folder.name for folder in SHIPPED.glob("*") if (folder / CONFIG_FILE).is_file())


def write_files(contents: dict[Path, bytes]) -> None:
    """Put each content at its path, all or none: an error on the way leaves every file as it was.

    Everything is written beside its place first; what then remains is to move it there.
    """
    staged: dict[Path, Path] = {}
    replaced: dict[Path, bytes | None] = {}
    try:
        for path, content in contents.items():
            staged[path] = _stage(path, content)
        for path, temporary in staged.items():
            replaced[path] = path.read_bytes() if path.exists() else None
            os.replace(temporary, path)
    except BaseException:
        for path, before in replaced.items():
            if staged[path].exists():  # not moved yet
                continue
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        raise


def _stage(path: Path, content: bytes) -> Path:
    """Write ``content`` beside ``path``, on the disk when this returns; nothing is left after an error."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*"):  # of a process killed while writing
        left_over.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp files are private
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def make_folder(folder: str | os.PathLike) -> Path:
    """Create ``folder`` and its parents; ``OSError`` with a plain reason where it cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write into this folder ({error.strerror})", str(folder)) from error
    return folder


def _fingerprint(content: dict) -> str:
    """Of what ``config.json`` says, notes included; its layout does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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


def write_checkpoint(folder: str | os.PathLike, config: ModelConfig, tensors: dict[str, Tensor], notes: dict) -> Path:
    """Write configuration, tensors and ``notes`` (plain JSON values) into ``folder``; return it."""
    if flaw := find_flaw(tensors):
        raise ValueError(f"{flaw}; nothing was written")
    content = {"format": FORMAT, "version": VERSION, "model": config.to_dict(), "notes": notes}
    metadata = {"format": FORMAT, "version": str(VERSION), "config": _fingerprint(content)}
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    folder = make_folder(folder)
    config_text = json.dumps(content, indent=2) + "\n"
    write_files({folder / WEIGHTS_FILE: weights, folder / CONFIG_FILE: config_text.encode()})
    return folder


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ``CheckpointError`` if it is missing, cut short or no such file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def read_checkpoint(folder_or_name: str | os.PathLike) -> tuple[ModelConfig, dict[str, Tensor], dict]:
    """Configuration, tensors and notes of a checkpoint folder, or of a shipped name."""
    folder = Path(folder_or_name)
    if not folder.is_dir():
        if str(folder_or_name) not in shipped_names():
            names = ", ".join(repr(name) for name in shipped_names()) or "none"
            raise CheckpointError(f"{str(folder_or_name)!r} is neither a folder nor a shipped checkpoint ({names})")
        folder = SHIPPED / str(folder_or_name)
    try:
        config, content = _read_config(folder / CONFIG_FILE)
        fingerprint = _fingerprint(content)
    except RecursionError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is nested too deeply") from error
    tensors, metadata = read_tensors(folder / WEIGHTS_FILE)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} was not written by {FORMAT}")
    if metadata.get("config") != fingerprint:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} belongs to another configuration than {folder / CONFIG_FILE}")
    if flaw := find_flaw(tensors):
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: {flaw}")
    return config, tensors, content["notes"]


def _read_config(path: Path) -> tuple[ModelConfig, dict]:
    """The configuration, and everything that the file says."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    known = isinstance(content, dict) and content.get("format") == FORMAT
    if not known or not all(isinstance(content.get(part), dict) for part in ("model", "notes")):
        raise CheckpointError(f"{path} was not written by {FORMAT}")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')!r}; this package reads version {VERSION}")
    try:
        return ModelConfig.from_dict(content["model"]), content
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    """``CheckpointError`` unless both have the same names and shapes."""
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(f"{where}: the weight {missing[0]!r} is missing")
    if unknown := sorted(set(found) - set(expected)):
        raise CheckpointError(f"{where}: the weight {unknown[0]!r} is not part of this model")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: the weight {name!r} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
            )
