"""Libraries that this room alone needs."""

import importlib
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import a library; ``ImportError`` with the line that installs it where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.partition(".")[0]
        if error.name != library:  # the library is there, and something that it needs is not
            raise
        raise ImportError(f"{library} is needed for this and not installed: pip install 'mythos-lite[out]'") from error
