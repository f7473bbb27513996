"""An estimate of the duration of a run and of its checkpoints, from its first twenty steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .config import Training
from .throughput import wait_for

FIRST, LAST = 5, 20
"""The steps between which a run is timed: the first ones allocate memory and compile."""


class Estimate:
    """Times the first steps of a run, and reports one line about all of it.

    Args:
        say: receives the line; None for no estimate.
        config: settings of the trainer.
        done: number of steps that were done before.
        device: the device of this process.
        tensors: returns the tensors of a checkpoint by name, whose size is reported.
        best: whether the best checkpoint by held-out loss is kept too.
    """

    def __init__(
        self,
        say: Callable[[str], Any] | None,
        config: Training,
        done: int,
        device: torch.device,
        tensors: Callable[[], Mapping[str, Tensor]],
        best: bool = False,
    ) -> None:
        self.say, self.config, self.device, self.tensors = say, config, device, tensors
        self.done, self.since, self.best = done, 0.0, best

    def step(self, done: int, paused: float = 0.0) -> None:
        """Takes note that `done` steps are done, and reports after the twentieth of this process.

        `paused` is a clock of the time that is not spent on steps, in seconds.
        """
        taken = done - self.done
        if self.say is None or taken not in (FIRST, LAST):
            return
        wait_for(self.device)
        now = time.perf_counter() - paused
        if taken == FIRST:
            self.since = now
        elif done < self.config.steps:
            seconds = (now - self.since) / (LAST - FIRST)
            size = sum(t.numel() * t.element_size() for t in self.tensors().values())
            self.say(line(self.config, done, seconds, size, peak_memory(self.device), self.best))


def line(config: Training, done: int, seconds: float, size: int, memory: int | None, best: bool = False) -> str:
    """Returns the estimate as text: `800,000 steps at 11.2 a second: 20 h; checkpoints 14 x 0.4 GB`.

    Args:
        config: settings of the trainer.
        done: number of steps that are done.
        seconds: duration of one step.
        size: bytes of a checkpoint.
        memory: most bytes of GPU memory so far; None without a GPU.
        best: whether the best checkpoint by held-out loss is kept too.
    """
    left, rate = config.steps - done, 1 / max(seconds, 1e-9)
    speed = f"{rate:.3g} a second" if rate >= 1 else f"{seconds:.3g} s each"
    checkpoints = f"checkpoints {kept(config, best):,} x {bytes_shown(size)}"
    text = f"{left:,} steps at {speed}: {duration(left * seconds)}; {checkpoints}"
    return text if memory is None else f"{text}; at most {bytes_shown(memory)} of GPU memory"


def kept(config: Training, best: bool = False) -> int:
    """Returns the most checkpoints that a run leaves: the newest, those that `keep_every` keeps, and the best one."""
    steps, every = config.steps, config.save_every
    saved = -(-steps // every)
    newest = [steps, *range((steps - 1) // every * every, 0, -every)][: min(config.keep, saved)]
    others = 0
    if config.keep_every:
        newest = [s for s in newest if s % config.keep_every or (s == steps and s % every)]
        others = steps // math.lcm(every, config.keep_every)
    return min(saved, len(newest) + others + best)


def duration(seconds: float) -> str:
    """Returns a duration as text of two figures: `40 s`, `12 min`, `3.5 h`, `20 h`, `6.2 days`."""
    for unit, length, until in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{two_figures(seconds / length)} {unit}"
    return f"{two_figures(seconds / 86400)} days"


def bytes_shown(size: float) -> str:
    """Returns a number of bytes as text of two figures: `3.1 MB`, `0.4 GB`."""
    if size < 1e5:
        return f"{two_figures(size / 1e3)} kB"
    return f"{two_figures(size / 1e6)} MB" if size < 1e8 else f"{two_figures(size / 1e9)} GB"


def two_figures(value: float) -> str:
    """Returns a number with one decimal below 10, and without decimals from there on."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def peak_memory(device: torch.device) -> int | None:
    """Returns the most bytes that PyTorch has held on a GPU so far; None for other devices."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
