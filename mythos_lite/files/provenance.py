"""Where a number comes from: command, source, versions, machine, seconds."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch


def source_hash() -> str:
    """SHA-256 over the package's Python files, names and contents, in order; first 16 digits."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance(command: list[str], source: str, device: torch.device, seconds: dict[str, float]) -> dict:
    """A record to keep beside results.

    ``source`` is ``source_hash()`` from before the work began; ``seconds`` names what was timed.
    """
    return {
        "command": shlex.join(command),
        "source": source,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
