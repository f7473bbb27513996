"""What fits into memory."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UsageError


def available() -> int | None:
    """Bytes of memory that can be had now; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def refuse_beyond(need: int, what: str, remedy: str) -> None:
    """Raises `UsageError` with the estimate where `what` needs more bytes than there are."""
    have = available()
    if have is not None and need > have:
        raise UsageError(f"{what} need {need / 1e9:.1f} GB of memory, and {have / 1e9:.1f} GB are free: {remedy}")
