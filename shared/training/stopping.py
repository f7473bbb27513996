"""Requests to stop, by Ctrl-C and SIGTERM, which all processes of a run follow after the same step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import world_size


@contextmanager
def agreement(asked: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns, once a step, whether any process was asked to stop: the same on all of them.

    What a process is asked in a step, all know in the next, so that none waits for another.
    """
    if world_size() == 1:
        yield asked
        return
    sent: list[tuple[Tensor, Any]] = []

    def agreed() -> bool:
        flag = torch.tensor([float(asked())])
        sent.append((flag, dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)))
        if len(sent) == 1:
            return False
        earlier, work = sent.pop(0)
        work.wait()
        return bool(earlier)

    yield agreed
    for _, work in sent:
        work.wait()


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM only make the yielded function return True, so that a step is completed."""
    received: list[int] = []
    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = {
        s: signal.signal(s, lambda number, frame: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
