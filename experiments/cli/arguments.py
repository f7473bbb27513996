"""Values of options that are needed before the command line is read as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Returns the values of an option in the arguments, as `--option VALUE` or `--option=VALUE`."""
    return [
        after if word == option else word.partition("=")[2]
        for word, after in pairwise([*arguments, ""])
        if (word == option and after) or word.startswith(f"{option}=")
    ]
