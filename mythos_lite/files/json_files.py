"""JSON files that people may have edited, or that are not what they are taken for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_json(path: Path, what: str, check: Callable[[Any], None]) -> Any:
    """The JSON value in ``path``.

    Raises:
        ValueError: in a sentence with the file's name, if it is not ``what``: not JSON, or refused by ``check``.
        OSError: with the file's name, if it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    return parse_json(content, path, what, check)


def parse_json(content: bytes, name: object, what: str, check: Callable[[Any], None]) -> Any:
    """``read_json`` for what has been read already; ``name`` says where."""

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}, which is no number")

    try:
        value = json.loads(content.decode("utf-8"), parse_constant=refuse)
        check(value)
    except KeyError as error:
        flaw, cause = f"{error} is missing", error
    except ValueError as error:
        flaw, cause = str(error), error
    except RecursionError as error:
        flaw, cause = "it is nested too deeply", error
    except (TypeError, AttributeError, ArithmeticError) as error:
        flaw, cause = "its values are laid out in another way", error
    else:
        return value
    raise ValueError(f"{name} is not {what}: {flaw}") from cause
