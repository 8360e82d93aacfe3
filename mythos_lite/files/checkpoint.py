"""Files: ``config.json`` and ``model.safetensors``, written whole or not at all.

A checkpoint is a configuration and named tensors; this module knows nothing of the model class, so
the model can use it. Nothing is ever unpickled.

Both files are written beside their places, then moved there, each in one step; an error on the way
puts back what was there. The weights name the configuration and the notes they belong to. Where the
power went out between the two moves, the configuration that belongs to the new weights still lies
beside its place, and loading finds it there. While somebody writes into a folder nobody else can.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mythos_lite.checks import plain
from mythos_lite.config import ModelConfig

try:
    import fcntl
except ImportError:  # Windows has no locks on folders
    fcntl = None

FORMAT = "mythos-lite"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_CHECKSUM = "sha256"
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
SHIPPED = Path(__file__).parent.parent / "checkpoints"


class CheckpointError(ValueError):
    """Files that cannot be loaded; the message says which and why."""


class _Mixed(CheckpointError):
    """Weights and configuration are not of one checkpoint."""


def shipped_names() -> list[str]:
    """Names that ``from_pretrained`` takes besides folders."""
    return sorted(folder.name for folder in SHIPPED.glob("*") if (folder / CONFIG_FILE).is_file())


_held: dict[tuple[int, ...], int] = {}
"""Folders that are locked, by device, inode, process and thread, and how many times."""


@contextlib.contextmanager
def only_writer(folder: Path, patience: float = 1.0) -> Iterator[None]:
    """Keep other processes and threads from writing into ``folder``, which must exist, as long as this lasts.

    The lock lies on the folder itself, so no file stays behind, and it ends with the process. Whoever holds it may
    take it again. Some network drives have no locks; nothing is kept out there.

    Raises:
        OSError: if somebody else still writes into the folder after ``patience`` seconds.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        status = os.fstat(handle)
        key = status.st_dev, status.st_ino, os.getpid(), threading.get_ident()
        deadline = time.monotonic() + patience
        while (taken := _is_taken(handle)) and key not in _held:
            if time.monotonic() > deadline:
                what = "another run is writing here; wait for its end, or choose another folder"
                raise BlockingIOError(errno.EWOULDBLOCK, what, str(folder))
            time.sleep(0.02)
        try:
            _held[key] = _held.get(key, 0) + 1
            yield
        finally:
            _held[key] = _held.get(key, 1) - 1
            if not _held[key]:
                del _held[key]
            if not taken:  # in so many words, since a process that was forked meanwhile has the handle too
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _is_taken(handle: int) -> bool:
    """Try to lock; whether somebody else was first. Where the drive has no locks nobody ever is."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def write_files(contents: dict[Path, bytes]) -> None:
    """Put each content at its path, all or none: an error on the way leaves every file as it was.

    Everything is written beside its place first, and what is there gets a second name; what then remains is to
    rename. Where even putting back is cut short, these files stay, and so do those of an earlier writer until
    something has taken their place. The folders must exist.
    """
    with contextlib.ExitStack() as locks:
        for folder in sorted({path.parent for path in contents}):
            locks.enter_context(only_writer(folder))
        new, old, moved = {}, {}, []
        left_over = [other for path in contents for other in _left_overs(path)]
        try:
            for path, content in contents.items():
                new[path] = _beside(path)
                _write_through(new[path], content, path)
            for path in contents:
                if path.exists():
                    old[path] = _beside(path)
                    _give_second_name(path, old[path])
            _sync(contents)  # or the power could go out with the first move done and the other file not yet there
            for path in contents:
                moved.append(path)
                os.replace(new[path], path)
            _sync(contents)
        except BaseException:
            for path in moved:
                if new[path].exists():  # not moved yet
                    continue
                if path in old:
                    os.replace(old[path], path)
                else:
                    path.unlink(missing_ok=True)
            _remove(*new.values(), *old.values())
            raise
        _remove(*old.values(), *left_over)


def _beside(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _left_overs(path: Path) -> list[Path]:
    """Files that ``_beside`` named and that a killed process left."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    return [other for other in path.parent.iterdir() if name.fullmatch(other.name)]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _give_second_name(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # not every drive has hard links
        shutil.copy2(path, other)


def _write_through(temporary: Path, content: bytes, path: Path) -> None:
    """Write ``content``, on the disk when this returns; an ``OSError`` names the ``path`` that it is for."""
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def _sync(paths: Iterable[Path]) -> None:
    """Have the names in the folders of these paths on the disk; not every system can."""
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


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


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        numbers = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    """Write configuration, tensors and ``notes`` into ``folder``; return it."""
    if flaw := find_flaw(tensors):
        raise ValueError(f"{flaw}; nothing was written")
    content = {"format": FORMAT, "version": VERSION, "model": config.to_dict(), "notes": notes}
    try:
        config_text = json.dumps(_plain_keys(content), indent=2, default=_as_json, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"notes must be values that JSON can hold ({error}); nothing was written") from error
    metadata = {"format": FORMAT, "version": str(VERSION), "config": _fingerprint(json.loads(config_text))}
    folder = make_folder(folder)
    write_files({folder / WEIGHTS_FILE: pack(tensors, metadata), folder / CONFIG_FILE: config_text.encode()})
    return folder


def _plain_keys(value: object) -> object:
    """The same with NumPy's and torch's numbers as Python's where they are keys."""
    if isinstance(value, dict):
        return {plain(key): _plain_keys(entry) for key, entry in value.items()}
    return [_plain_keys(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _as_json(value: object) -> object:
    """NumPy's and torch's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with a checksum; the same tensors and metadata give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, {**metadata, _CHECKSUM: _checksum(tensors)})
    # The library writes the entries of the header in any order.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by name and metadata of a safetensors file; no tensor is read."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; ``CheckpointError`` unless they are whole, finite and what was written."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if flaw := find_flaw(tensors):
        raise CheckpointError(f"{path}: {flaw}")
    if metadata.get(_CHECKSUM, checksum := _checksum(tensors)) != checksum:  # files of earlier versions have none
        raise CheckpointError(f"{path} is damaged: its tensors are not those that were written")
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file; ``CheckpointError`` if it is missing, cut short or no such file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds; its tensors are read by ``read_tensors(weights)``."""

    config: ModelConfig
    notes: dict
    weights: Path
    shapes: dict[str, tuple[int, ...]]
    """By name, from the header of ``weights``."""


def open_checkpoint(folder_or_name: str | os.PathLike) -> Checkpoint:
    """A checkpoint folder, or a shipped name, without its tensors."""
    folder = Path(folder_or_name)
    if not folder.is_dir():
        if str(folder_or_name) not in shipped_names():
            names = ", ".join(repr(name) for name in shipped_names()) or "none"
            raise CheckpointError(f"{str(folder_or_name)!r} is neither a folder nor a shipped checkpoint ({names})")
        folder = SHIPPED / str(folder_or_name)
    for _ in range(3):
        with contextlib.suppress(_Mixed):
            return _open(folder)
        time.sleep(0.05)  # somebody may be between the two files
    return _open(folder)


def _open(folder: Path) -> Checkpoint:
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config, content, fingerprint = _read_config(path)
    shapes, metadata = read_header(weights)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{weights} was not written by {FORMAT}")
    if metadata.get("config") != fingerprint:
        config, content = _left_behind(path, metadata.get("config"))
    return Checkpoint(config, content["notes"], weights, shapes)


def _left_behind(path: Path, fingerprint: str | None) -> tuple[ModelConfig, dict]:
    """The configuration that the power going out kept from being moved to its place."""
    for left_over in _left_overs(path):
        with contextlib.suppress(CheckpointError):
            config, content, found = _read_config(left_over)
            if found == fingerprint:
                return config, content
    raise _Mixed(f"{path.with_name(WEIGHTS_FILE)} belongs to another configuration than {path}")


def _read_config(path: Path) -> tuple[ModelConfig, dict, str]:
    """The configuration, everything that the file says, and the fingerprint of that."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = _fingerprint(content)
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    known = isinstance(content, dict) and content.get("format") == FORMAT
    if not known or not all(isinstance(content.get(part), dict) for part in ("model", "notes")):
        raise CheckpointError(f"{path} was not written by {FORMAT}")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')!r}; this package reads version {VERSION}")
    try:
        return ModelConfig.from_dict(content["model"]), content, fingerprint
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, Tensor], where: str) -> None:
    """``CheckpointError`` unless the shapes found are those of the tensors expected, name by name."""
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(f"{where}: the weight {missing[0]!r} is missing")
    if unknown := sorted(set(found) - set(expected)):
        raise CheckpointError(f"{where}: the weight {unknown[0]!r} is not part of this model")
    for name, tensor in expected.items():
        if found[name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{where}: the weight {name!r} has shape {found[name]} instead of {tuple(tensor.shape)}"
            )
