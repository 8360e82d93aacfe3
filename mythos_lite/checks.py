"""Checks of single values, which reject with a ``ValueError`` that names the field, its value and what is accepted, and
the error for numbers that stopped being finite.
"""

import math
import sys
from collections.abc import Iterable

_LARGEST = sys.float_info.max  # also keeps out whole numbers that no float can hold


class NonFiniteError(ArithmeticError):
    """The loss, its gradient or the weights stopped being numbers."""


def plain(value: object) -> object:
    """A NumPy scalar or a tensor of no dimensions as the Python value that it holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def reject(field: str, value: object, accepted: str) -> None:
    """Raise the ``ValueError`` that names the field, its value and what is accepted."""
    raise ValueError(f"{field}={value!r} is not possible: {accepted}")


def check_int(field: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` as an ``int``; anything but a whole number (``bool`` excluded) from ``low`` to ``high`` is rejected."""
    value = plain(value)
    bounds = f"{field} must be a whole number, {low} or more" + (f", {high} at most" if high is not None else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        reject(field, value, bounds)
    return value


def check_ints(field: str, values: Iterable[int], low: int) -> list[int]:
    """Whole numbers in a row (a list, a range, an array, a generator …) as a list; an empty one is rejected."""
    values = plain(values)
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        reject(field, values, f"{field} must be whole numbers in a row, such as [1, 2, 4]")
    found = [check_int(field, value, low) for value in values]
    if not found:
        reject(field, found, f"{field} must hold at least one whole number")
    return found


def check_number(
    field: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False
) -> int | float:
    """``value`` as a Python number; anything but a finite number in ``[low, high]`` is rejected.

    With ``open_low``, ``low`` itself is rejected too.
    """
    value = plain(value)
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fine or not -_LARGEST <= value <= _LARGEST or value < low or value > high or (open_low and value == low):
        edge = "above" if open_low else "at least"
        most = "" if math.isinf(high) else f" and at most {high:g}"
        reject(field, value, f"{field} must be a finite number {edge} {low}{most}")
    return value


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Reject everything that is not one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        reject(field, value, f"{field} must be one of " + ", ".join(repr(c) for c in choices))


def check_bool(field: str, value: object) -> None:
    """Reject everything but ``True`` and ``False``."""
    if not isinstance(value, bool):
        reject(field, value, "it must be True or False")
