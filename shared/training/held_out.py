"""The loss on held-out examples at fixed times and fixed noise, so that two of its values differ by the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..data.feeding import RandomAccess
from ..distributed import add_over_processes, own_rows, share
from ..objective import Objective
from ..random import Streams, derived_seed
from ..tensors import times_at

GOLDEN = (math.sqrt(5) - 1) / 2


class HeldOut:
    """Held-out examples, and the loss of a model on them.

    Args:
        batches: the held-out examples in batches, of which the first are taken.
        count: number of examples; rounded up to whole batches, and at most all.
        seed: seed of the noise.
    """

    def __init__(self, batches: RandomAccess, count: int, seed: int = 0) -> None:
        self.batches, self.seed = batches, seed
        whole = getattr(batches, "per_epoch", None)
        numbers = max(1, -(-count // batches.batch))
        self.numbers = numbers if whole is None else min(numbers, whole)

    @property
    def count(self) -> int:
        """Number of examples."""
        return self.numbers * self.batches.batch

    @torch.no_grad()
    def loss(
        self,
        objective: Objective[Any],
        device: torch.device,
        cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        micro_batch: int | None = None,
    ) -> float:
        """Returns the mean loss of the examples, each at one time; times are spread evenly, noise is always the same.

        Every process of a run computes its rows, and all return the same mean.

        Args:
            objective: the objective, in evaluation mode, such as that with averaged weights.
            device: its device.
            cast: returns the context of the precision in which the network runs.
            micro_batch: number of examples that are passed through the network at a time; None for a batch.
        """
        rows, total = own_rows(self.batches.batch), torch.zeros((), dtype=torch.float64)
        pieces = -(-len(rows) // (micro_batch or max(len(rows), 1)))
        for number in range(self.numbers):
            batch = {k: torch.as_tensor(v).to(device) for k, v in self.batches.at(number, rows).items()}
            for n in range(pieces):
                part = share(len(rows), n, pieces)
                index = torch.arange(rows[part.start], rows[part.start] + len(part)) + number * self.batches.batch
                t = times_at(objective.denoiser.corruption.training_time(spread(index)), batch["x0"])
                source = Streams(derived_seed(self.seed, "held-out"), index.to(device))
                with cast():
                    examples = {k: v[part.start : part.stop] for k, v in batch.items()}
                    total += objective.at(t=t, generator=source, **examples).total.cpu().double().sum()
        return float(add_over_processes(total)) / self.count


def spread(index: Tensor) -> Tensor:
    """Returns numbers in [0, 1) that are spread evenly for any first few indices, `(B,)`, float64.

    They are `(i + 1/2) g` without their whole part, with the golden ratio g = 0.618, of which neighbors are far apart.
    """
    return ((index.double() + 0.5) * GOLDEN) % 1.0
