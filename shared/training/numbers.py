"""Settings that are numbers."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import UsageError, shown


def whole(name: str, value: Any, least: int) -> int:
    """Returns a setting as an int, also from NumPy.

    Raises:
        UsageError: for a value that is not a whole number, or below the least.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError):
        number = None
    if number is None or number < least:
        raise UsageError(f"{name}={shown(value)}: give a whole number of at least {least}")
    return number


def real(name: str, value: Any) -> float:
    """Returns a setting as a float, also from NumPy.

    Raises:
        UsageError: for a value that is not a number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name}={shown(value)}: give a number") from None
