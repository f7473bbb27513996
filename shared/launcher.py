"""The number of processes and the rank that a launcher such as torchrun sets in the environment."""

from __future__ import annotations

import os


def launched() -> int:
    """Returns the number of processes that the launcher started, from its variable WORLD_SIZE; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() else 1


def launched_rank() -> int:
    """Returns the number of this process among those that the launcher started, also where they are not connected."""
    number = os.environ.get("RANK", "")
    return int(number) if launched() > 1 and number.isdecimal() else 0
