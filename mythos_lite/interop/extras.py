"""Libraries that this room alone needs."""

import contextlib
import importlib
import logging
import os
import warnings
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import a library, without what it has to say about its own parts, which nobody here has asked for.

    Raises:
        ImportError: where it is missing, with the line that installs it.
    """
    before = logging.root.manager.disable
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.partition(".")[0]
        if error.name != library:  # the library is there, and something that it needs is not
            raise
        raise ImportError(f"{library} is needed for this and not installed: pip install {library}") from error
    finally:
        logging.disable(before)
