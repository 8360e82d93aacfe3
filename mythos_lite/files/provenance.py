"""Where a number comes from: command, source, versions, machine, seconds."""

import contextlib
import hashlib
import platform
import shlex
import subprocess
from pathlib import Path

import numpy as np
import torch

PACKAGE = Path(__file__).parent.parent


def source_hash(*parts: str) -> str:
    """SHA-256 over the package's Python files, names and contents, in order; first 16 digits.

    With ``parts`` (``"config.py"``, ``"model/"``), over the files alone whose path begins with one of them.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if (name := path.relative_to(PACKAGE).as_posix()).startswith(parts or ""):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def git_version() -> str | None:
    """``git describe --always --dirty`` of the checkout that holds the package; ``None`` where there is none."""
    root = PACKAGE.parent  # named to git, which would else take a checkout around an installed package for this one
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(command: list[str], source: str, device: torch.device, seconds: dict[str, float]) -> dict:
    """A record to keep beside results.

    ``source`` is ``source_hash()`` from before the work began; ``seconds`` names what was timed.
    """
    return {
        "command": shlex.join(command),
        "source": source,
        "git": git_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
