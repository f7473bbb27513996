"""Importance sampling of training times, in proportion to the size of their losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .objective import D, Loss, Objective, ObjectiveWrapper
from .random import Source, Streams, categorical
from .serialization import serializable


@serializable(
    "shared.ImportanceSampling",
    formerly=("unnoise.shared.importance.Importance", "unnoise.continuous.objectives.Importance"),
)
class ImportanceSampling(ObjectiveWrapper[D]):
    r"""Samples the step n = 1..T, t = n / T, with `p_n` proportional to `sqrt(E[L_n^2])`, and weights by `1 / (T p_n)`.

    T is the number of steps of the table. L_n is the loss of one example at step n, from the inner objective; its mean
    over uniform steps is the mean of the weighted loss. Called with x0 `(B, ...)` and conditions by name; returns a
    `Loss`, weighted, with one step for each example. Nichol & Dhariwal 2021, section 3.3; for multinomial diffusion,
    Hoogeboom et al. 2021. `E[L_n^2]` is the mean over the last `history` losses of step n. Until every step has so many
    losses, n is uniform. The losses are recorded in training mode only, in buffers, so a resumed run continues with
    them.

    Args:
        objective: the inner objective, of a process on a table of steps, such as `continuous.Variational` or
            `discrete.D3PMLoss`.
        history: the number of losses kept for each step.
        uniform: the share of steps that are sampled uniformly, in (0, 1], which bounds the weights by its inverse.

    Raises:
        UsageError: for a history below 1, a share outside of (0, 1], an objective that samples times in a way of its
            own, and for a process in continuous time.
    """

    squares: Tensor
    counts: Tensor

    def __init__(self, objective: Objective[D], history: int = 10, uniform: float = 0.001) -> None:
        super().__init__(objective)
        if history < 1 or not 0 < uniform <= 1:
            raise UsageError(
                f"history={history}, uniform={uniform}: give a history of at least 1 loss, and a uniform share above 0 "
                "and up to 1"
            )
        if objective.draws_times:
            raise UsageError(
                f"{type(objective).__name__} samples times in a way of its own, but importance sampling samples steps "
                "of a table: train without it, or give an objective on a table, such as continuous.Variational"
            )
        self.history, self.uniform = history, uniform
        steps = getattr(objective.denoiser.corruption, "steps", None)
        if steps is None:
            raise UsageError(
                f"{type(objective.denoiser.corruption).__name__} runs in continuous time, but importance sampling "
                "samples steps of a table: give a process with a table, such as continuous.Tabulated"
            )
        self.steps: int = steps
        self.register_buffer("squares", torch.zeros(self.steps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(self.steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """Returns p_1..p_T, `(T,)`, float64, which sum to 1 and include the uniform share."""
        root = self.squares.mean(1).sqrt()
        even = torch.full_like(root, 1 / self.steps)
        return torch.where(
            (self.counts >= self.history).all(), (1 - self.uniform) * root / root.sum() + self.uniform * even, even
        )

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective.at(x0, t, generator=generator, **cond)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        p = self.probabilities()
        index = categorical(p.expand(len(x0), -1), generator)
        loss = self.at(x0, (index + 1).double() / self.steps, generator=generator, **cond)
        if self.training and not (isinstance(generator, Streams) and generator.batch is not None):
            self.record(index, loss.total.detach().double())
        weight = 1 / (self.steps * p[index])
        return Loss(
            loss.total * weight.to(loss.total),
            {name: part * weight.to(part) for name, part in loss.parts.items()},
            loss.t,
        )

    def observe(self, loss: Loss) -> None:
        index = (loss.t * self.steps).round().long() - 1
        unweighted = loss.total.detach().double() * self.steps * self.probabilities()[index]
        self.record(index, unweighted)

    def record(self, index: Tensor, losses: Tensor) -> None:
        """Stores losses `(B,)` of the steps `index` `(B,)`, counted from 0, without waiting for the device.

        The losses are unweighted; their squares are stored. Each step has a ring buffer of `history` places. A loss
        that is not finite is left out, because no probability could be computed from it.
        """
        finite = torch.isfinite(losses)
        same = (index[:, None] == index) & finite
        earlier = same.tril(-1).sum(1)  # how often the same step came before in the batch
        later = same.triu(1).sum(1)
        place = (self.counts[index] + earlier) % self.history
        # If a batch has more than `history` losses of one step, only the last `history` of them are stored.
        stays = finite & (later < self.history)
        fresh = torch.where(stays, losses**2, 0.0)
        chosen = torch.zeros_like(self.squares).index_put((index, place), stays.double(), accumulate=True)
        added = torch.zeros_like(self.squares).index_put((index, place), fresh, accumulate=True)
        self.squares.copy_(torch.where(chosen > 0, added, self.squares))
        self.counts.index_add_(0, index, finite.long())
