"""Files that are written whole or not at all, into folders that have one writer at a time."""

import contextlib
import errno
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows cannot lock folders
    fcntl = None

PATIENCE = 1.0
"""Seconds that ``only_writer`` waits for another writer's end."""
_held: set[tuple[int, ...]] = set()
"""Folders that are locked, by device, inode, process and thread."""


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes and threads from writing into ``folder``, which must exist; a thread may nest this.

    The lock lies on the folder itself, so it leaves no file behind and ends with the process. Windows and some network
    drives have no such locks; nobody is kept out there.

    Raises:
        OSError: if somebody else still writes into the folder after ``PATIENCE`` seconds.
    """
    status = os.stat(folder)
    key = status.st_dev, status.st_ino, os.getpid(), threading.get_ident()
    if fcntl is None or key in _held:
        yield
        return
    handle, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
    try:
        while not _is_free(handle):
            if time.monotonic() > deadline:
                what = "another run is writing here; wait for its end, or choose another folder"
                raise BlockingIOError(errno.EWOULDBLOCK, what, str(folder))
            time.sleep(0.02)
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        with contextlib.suppress(OSError):  # a process forked meanwhile has the handle too: closing it is not enough
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _is_free(handle: int) -> bool:
    """Try to lock; ``False`` if somebody else was first. On a drive without locks nobody ever is."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def write_files(contents: dict[Path, bytes]) -> None:
    """Put each content at its path, each file whole or not at all. The folders must exist.

    Everything is on the disk under other names before the first file takes its place, so an error until then (a full
    disk, an interruption) leaves all as it was. The files take their places in order; whoever is stopped in between
    has the first of them new and the second old. Several files have one writer at a time, so that they stay of one
    kind. A killed process leaves its hidden ``.NAME.….tmp`` behind.

    Raises:
        OSError: with the name of the file that cannot be written.
    """
    staged = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp") for path in contents}
    with contextlib.ExitStack() as locks:
        for folder in sorted({path.parent for path in contents}) if len(contents) > 1 else ():
            locks.enter_context(only_writer(folder))
        try:
            for path in contents:
                if path.is_dir():  # which would show only when others have taken their places
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            for path, content in contents.items():
                with open(staged[path], "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for path in contents:
                os.replace(staged[path], path)
        except OSError as error:
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        finally:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)


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
