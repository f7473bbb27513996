"""The lines of `metrics.jsonl`: means of the loss and of its parts over the steps since the last line."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from ..distributed import add_over_processes, is_main, world_size
from .folder import Metrics


class Log:
    """Averages the loss between lines of the log on the device, so that no step waits for it.

    Args:
        folder: the run's folder, to whose `metrics.jsonl` lines are appended; None writes nothing.
        step: number of steps that were done before.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self.metrics = None if folder is None or not is_main() else Metrics(folder, step)
        self.rows: list[dict[str, Tensor]] = []
        self.start = time.perf_counter() - (self.metrics.seconds if self.metrics else 0)

    def add(self, total: Tensor, parts: dict[str, Tensor], norm: Tensor) -> None:
        """Adds one step: the loss and its parts of each example, `(B,)`, and the norm of the gradient, a scalar."""
        self.rows.append(
            {"loss": total.detach().mean()} | {k: v.detach().mean() for k, v in parts.items()} | {"gradient_norm": norm}
        )

    def write(self, step: int, rate: float) -> None:
        """Writes the means since the last line; steps whose loss or gradient was not finite are only counted.

        Raises:
            FloatingPointError: where no gradient since the last line was finite.
        """
        names = list(self.rows[0])
        table = add_over_processes(torch.stack([torch.stack([r[k].float() for k in names]) for r in self.rows]))
        rows = [dict(zip(names, row, strict=True)) for row in (table / world_size()).cpu()]
        finite = [r for r in rows if bool(torch.isfinite(r["gradient_norm"]) & torch.isfinite(r["loss"]))]
        if not finite:
            raise FloatingPointError(
                f"no gradient of the last {len(self.rows)} steps was finite: lower the learning rate, or check the data"
            )
        means = {k: float(torch.stack([r[k] for r in finite]).mean()) for k in finite[0]}
        if self.metrics is not None:
            seconds = round(time.perf_counter() - self.start, 3)
            self.metrics.write(
                step=step, **means, learning_rate=rate, skipped=len(self.rows) - len(finite), seconds=seconds
            )
        self.rows = []
