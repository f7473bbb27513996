"""The log of a run: means between its lines, loss by quarter of time, throughput; written by the main process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributed import add_over_processes, is_main, world_size
from ..objective import Loss
from .folder import Metrics
from .throughput import flops_per_example, peak_of, unit_of, wait_for
from .trackers import Trackers

CPU = torch.device("cpu")
QUARTERS = 4
"""The number of equal parts of [0, 1] for which the loss is also logged: `loss_q1` is that of times up to 1/4."""


class Row(NamedTuple):
    """What one step leaves for the log; tensors stay on the device, so that no step waits for it.

    Attributes:
        values: the loss and its parts of each example of this process, `(1 + parts, B)`.
        t: the times of these examples, `(B,)`.
        norm: norm of the gradient before clipping, a scalar.
    """

    values: Tensor
    t: Tensor
    norm: Tensor


class Log:
    """Collects the steps of a run, and writes the means since the last line to `metrics.jsonl` and to trackers.

    Every process of a run has one and calls its methods together with the others; the main process writes.

    Args:
        folder: the run's folder, to whose `metrics.jsonl` lines are appended; None writes nothing.
        step: number of steps that were done before.
        device: the device of this process.
        clip: the largest norm of the gradient.
        trackers: trackers that receive each line too; None for none.
        patience: the number of steps since the last line that may all lack a finite gradient; the line then waits for
            one that has it. 0 except for float16, which finds the scale of its loss by such steps.
    """

    def __init__(
        self,
        folder: Path | None,
        step: int,
        device: torch.device = CPU,
        clip: float = math.inf,
        trackers: Trackers | None = None,
        patience: int = 0,
    ) -> None:
        self.metrics = None if folder is None or not is_main() else Metrics(folder, step)
        self.device, self.clip, self.trackers, self.patience = device, clip, trackers, patience
        self.rows: list[Row] = []
        self.names: list[str] = []
        self.earlier: tuple[Tensor, Tensor, Tensor] | None = None
        self.start = self.since = time.perf_counter()
        self.start -= self.metrics.seconds if self.metrics else 0
        self.size, self.unit, self.each = 0, "examples", 1
        self.flops: float | None = None
        self.peak: float | None = None
        self.waited = self.paused = self.apart = 0.0

    def begin(self, objective: torch.nn.Module, batch: Mapping[str, Tensor], size: int, precision: str) -> None:
        """Takes note of the unit of throughput and of the cost of an example, from the first batch.

        Args:
            objective: the loss, before it is compiled.
            batch: rows of the first batch.
            size: number of examples in the global batch.
            precision: the name of its arithmetic.
        """
        self.size, (self.unit, self.each) = size, unit_of(batch["x0"])
        self.peak = peak_of(self.device, precision)
        self.flops = None if self.peak is None else flops_per_example(objective, batch)

    def restart(self) -> None:
        """Begins to measure the time of the next steps."""
        self.since, self.waited, self.paused = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the block as waiting for data; the first batch, which prepares the run, is left out."""
        before, first = time.perf_counter(), not self.size
        yield
        self.waited += time.perf_counter() - before
        if first:
            self.restart()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leaves the time in the block, such as that of a checkpoint, out of the throughput."""
        wait_for(self.device)
        before = time.perf_counter()
        yield
        lasted = time.perf_counter() - before
        self.paused, self.apart = self.paused + lasted, self.apart + lasted

    def image(self, step: int, name: str, path: Path) -> None:
        """Gives a PNG picture to the trackers."""
        if self.trackers is not None:
            self.trackers.image(step, name, path)

    def close(self) -> None:
        """Ends the trackers."""
        if self.trackers is not None:
            self.trackers.close()

    def add(self, loss: Loss, norm: Tensor) -> None:
        """Adds one step: the loss of the examples of this process, and the norm of the gradient, a scalar."""
        if (names := ["loss", *loss.parts]) != self.names:
            self.names, self.earlier = names, None
        values = torch.stack([part.detach().float() for part in (loss.total, *loss.parts.values())])
        self.rows.append(Row(values, loss.t.detach().float(), norm))

    def write(self, step: int, rate: float, **more: float) -> None:
        """Writes the means since the last line; steps whose loss or gradient was not finite are only counted.

        Args:
            step: number of steps that were done.
            rate: the learning rate of the last of them.
            more: further numbers by name, such as the loss on held-out examples.

        Raises:
            FloatingPointError: where no gradient since the last line was finite, after more steps than `patience`.
        """
        sums, of_quarters, norms = self.collected()
        steps = len(norms)
        finite = torch.isfinite(sums[:, 0]) & torch.isfinite(norms)
        if not finite.any() and steps <= self.patience:
            return
        if not finite.any():
            raise FloatingPointError(
                f"no gradient of the last {steps} steps was finite: lower the learning rate, or check the data"
            )
        *means, examples = sums[finite].sum(0).tolist()
        values = {name: total / examples for name, total in zip(self.names, means, strict=True)}
        values |= by_quarter(of_quarters[finite].sum(0)) | {
            "gradient_norm": float(norms[finite].mean()),
            "learning_rate": rate,
            "skipped": steps - int(finite.sum()),
            "clipped": round(float((norms[finite] > self.clip).double().mean()), 4),
        }
        values |= self.speed(len(self.rows)) | {"seconds": round(time.perf_counter() - self.start, 3)} | more
        if self.metrics is not None:
            self.metrics.write(step=step, **values)
            if self.trackers is not None:
                self.trackers.log(step, values)
        self.rows, self.earlier = [], None
        self.restart()

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `sums()` and the norms of the gradient, `(S,)`, with the steps of an earlier process of the run."""
        sums, of_quarters = self.sums()
        own = sums, of_quarters, torch.stack([row.norm for row in self.rows]).cpu().double()
        if self.earlier is None:
            return own
        first, second, third = (torch.cat(pair) for pair in zip(self.earlier, own, strict=True))
        return first, second, third

    def state_dict(self) -> dict[str, Any] | None:
        """Returns what was collected since the last line, with which the next one is that of an uninterrupted run."""
        if not self.rows:
            return None
        return {"names": self.names, "collected": [part.tolist() for part in self.collected()]}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continues from a checkpoint; None for one that was written after a line."""
        if state is not None:
            first, second, third = (torch.tensor(part, dtype=torch.float64) for part in state["collected"])
            self.names, self.earlier = state["names"], (first, second, third)

    def sums(self) -> tuple[Tensor, Tensor]:
        """Returns sums over the examples of all processes for each step since the last line, float64, on the CPU.

        The first result is `(S, 1 + parts + 1)`: loss, parts, number of examples. The second is `(S, 2, 4)`: the loss
        by quarter of time, and the number of examples there. Losses that are not finite leave other steps as they are.
        """
        steps, examples = len(self.rows), torch.tensor([len(row.t) for row in self.rows])
        step = torch.arange(steps).repeat_interleave(examples)
        values = torch.cat([row.values for row in self.rows], 1).cpu().double()
        t = torch.cat([row.t for row in self.rows]).cpu()
        quarter = step * QUARTERS + (t * QUARTERS).long().clamp(0, QUARTERS - 1)
        one = torch.ones_like(values[0])
        whole = [torch.bincount(step, v, steps)[:, None] for v in (*values, one)]
        parts = [torch.bincount(quarter, v, steps * QUARTERS).view(-1, QUARTERS) for v in (values[0], one)]
        packed = add_over_processes(torch.cat([*whole, *parts], 1))
        return packed[:, : len(whole)], packed[:, len(whole) :].reshape(-1, 2, QUARTERS)

    def speed(self, steps: int) -> dict[str, float]:
        """Returns throughput, utilization and the share of time waiting for data, of all processes together."""
        lasted = max(time.perf_counter() - self.since - self.paused, 1e-9)
        wait = float(add_over_processes(torch.tensor(self.waited, dtype=torch.float64))) / world_size()
        rate = steps * self.size / lasted
        found = {f"{self.unit}_per_second": float(f"{rate * self.each:.5g}"), "data_wait": round(wait / lasted, 4)}
        if self.flops is not None and self.peak is not None:
            found["flop_utilization"] = round(rate * self.flops / (self.peak * world_size()), 4)
        return found


def by_quarter(sums: Tensor) -> dict[str, float]:
    """Returns the mean loss in each quarter of time that had an example, by the names `loss_q1` to `loss_q4`.

    Args:
        sums: `(2, 4)`: sums of the loss, and numbers of examples.
    """
    found = zip(*sums.tolist(), strict=True)
    return {f"loss_q{n}": total / count for n, (total, count) in enumerate(found, 1) if count}
