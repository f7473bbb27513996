"""An option that many commands have, and values of options that are needed before the command line is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import tyro

MODULE = "A Python file or module with parts of your own, which is imported first; needed to read runs that use them."
Modules = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help=MODULE, metavar="FILE.py")]
UNNAMED = tyro.conf.arg(name="", help="")
"""A group of options without a name before theirs. Its help is given, or tyro would parse source code to find it."""


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Returns the values of an option in the arguments, as `--option VALUE` or `--option=VALUE`."""
    return [
        after if word == option else word.partition("=")[2]
        for word, after in pairwise([*arguments, ""])
        if (word == option and after) or word.startswith(f"{option}=")
    ]
