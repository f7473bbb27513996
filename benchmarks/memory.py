"""The peak memory of a work: how far the memory of a fresh process grows above what it holds when the work begins."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .machine import ROOT
from .timing import Work

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(work: Work) -> float:
    """Returns the peak of this process's memory during a work, less that before it, in bytes.

    On Linux the peak is reset first; elsewhere it is that since the start of the process.
    """
    try:
        CLEAR.write_text("5")  # VmHWM becomes VmRSS
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    before = field("VmRSS")
    work()
    return float(field("VmHWM") - before)


def field(name: str) -> int:
    """Returns a field of the process's status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found, f"{STATUS} has no {name}"
    return 1024 * int(found[1])


def in_fresh_process(make: Callable[..., Work], *args: object) -> Callable[[], float]:
    """Returns a function that measures `growth(make(*args))` in a process of its own, on one thread.

    Args:
        make: a function of a module in `benchmarks` that returns a work.
        args: its arguments, literals.
    """
    code = (
        f"import torch; torch.set_num_threads(1); from {make.__module__} import {make.__name__} as make; "
        f"from benchmarks.memory import growth; print(growth(make(*{args!r})))"
    )
    # Blocks of this size and above are returned to the system when they are freed, so that none is used twice unseen.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

    def measure() -> float:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return measure


def here(make: Callable[..., Work], *args: object) -> Callable[[], float]:
    """Returns a function that measures `growth(make(*args))` in this process, for tests."""
    return lambda: growth(make(*args))
