"""The memory that is free, and errors for what does not fit into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import UsageError


def available() -> int | None:
    """Returns the free memory in bytes: the least of the machine's, the process limit's and the container's.

    Returns None if the system reports none of the three.
    """
    found = [_free(), _under_limit(), *_in_container()]
    return min((n for n in found if n is not None), default=None)


def _free() -> int | None:
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


def _under_limit() -> int | None:
    """Returns the bytes that remain of the limit `ulimit -v`, or None if it is unlimited."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(limit - used, 0)


def _in_container() -> list[int]:
    """Returns the bytes that remain of the control group's limits, versions 2 and 1.

    Without a limit, version 1 has a huge number, and version 2 the word max, which is skipped.
    """
    root, found = Path("/sys/fs/cgroup"), []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            found.append(max(int((root / limit).read_text()) - int((root / used).read_text()), 0))
    return found


def refuse_beyond(need: int, what: str, remedy: str) -> None:
    """Raises `UsageError` if `what` needs more than the free memory.

    Nothing is raised if the free memory is unknown.

    Args:
        need: estimate of the bytes that it needs.
        what: its name in the message, in the plural.
        remedy: what the message advises.
    """
    have = available()
    if have is not None and need > have:
        raise UsageError(f"{what} need {need / 1e9:.1f} GB of memory, and {have / 1e9:.1f} GB are free: {remedy}")
