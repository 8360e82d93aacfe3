"""Libraries that this room alone needs."""

import importlib
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import a library; where it is missing, ``ImportError`` with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.partition(".")[0]
        if error.name != library:  # the library is there, and something that it needs is not
            raise
        raise ImportError(f"{library} is needed for this and not installed: pip install {library}") from error
