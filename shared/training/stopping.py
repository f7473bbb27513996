"""Requests to stop, by Ctrl-C and by the signals of a cluster, which all processes of a run follow after one step."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import world_size

GO_ON, SAVE, AT_ONCE = 0, 1, 2
"""What to do after a step; of several processes that are asked differently, all do the largest."""
ANNOUNCED = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""The signals after which a cluster ends the process: SIGTERM, and SIGUSR1, which Slurm can send earlier."""


class TooLate(KeyboardInterrupt):
    """Raised in the middle of a step that would not end in time, with a checkpoint, before the process is ended."""


class Interruption:
    """Within it, as a context manager, Ctrl-C and the signals of a cluster only ask to stop, after the present step.

    A second Ctrl-C stops at once.

    Args:
        deadline: seconds from a signal of the cluster until it ends the process; None where that is not known.

    Attributes:
        late: why there is no time for a checkpoint, once that is so; an empty text before.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline, self.late = math.inf if deadline is None else deadline, ""
        self.asked, self.until, self.writing = False, math.inf, False
        self.since, self.steps, self.save = time.monotonic(), deque[float](maxlen=5), 0.0
        self.before: dict[Any, Any] = {}

    def __enter__(self) -> Interruption:
        if current_thread() is main_thread():
            self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, *ANNOUNCED)}
        self.since = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Takes note of a signal; its action is only to raise where waiting for the end of the step is of no use.

        Raises:
            KeyboardInterrupt: at the second Ctrl-C.
            TooLate: where the step and a checkpoint take longer than there is time.
        """
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
        elif self.until == math.inf:
            self.until = time.monotonic() + self.deadline
            if world_size() == 1 and not self.writing and self.too_late(self.step):
                raise TooLate
        self.asked = True

    @property
    def step(self) -> float:
        """Seconds that a step takes: the median of the last five."""
        return median(self.steps) if self.steps else 0.0

    def too_late(self, more: float) -> bool:
        """Returns whether a checkpoint would end after the deadline if it begins in `more` seconds."""
        if time.monotonic() + more + self.save <= self.until:
            return False
        self.late = (
            f"a step takes {self.step:.1f} s and a checkpoint {self.save:.1f} s, and deadline={self.deadline:g} seconds"
        )
        return True

    def __call__(self) -> int:
        """Returns what to do, after each step: GO_ON, SAVE (a checkpoint, and stop) or AT_ONCE (stop without one)."""
        now = time.monotonic()
        self.steps.append(now - self.since)
        self.since = now
        if not self.asked:
            return GO_ON
        return AT_ONCE if self.too_late(self.step if world_size() > 1 else 0.0) else SAVE  # for the agreement

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measures the time that a checkpoint takes, in the block, and leaves it out of that of the steps."""
        before, self.writing = time.monotonic(), True
        try:
            yield
        finally:
            self.since, self.writing = time.monotonic(), False
        self.save = self.since - before


@contextmanager
def agreement(asked: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """Yields a function that returns, once a step, what to do: the same on all processes, the largest of their wishes.

    What a process is asked in a step, all know in the next, so that none waits for another.
    """
    if world_size() == 1:
        yield asked
        return
    sent: list[tuple[Tensor, Any]] = []

    def agreed() -> int:
        flag = torch.tensor([float(asked())])
        sent.append((flag, dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)))
        if len(sent) == 1:
            return GO_ON
        earlier, work = sent.pop(0)
        work.wait()
        return int(earlier)

    yield agreed
    for _, work in sent:
        work.wait()
