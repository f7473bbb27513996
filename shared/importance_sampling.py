"""Times drawn by what they cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import UsageError
from .objective import Loss, Objective
from .random import Source, categorical
from .serialization import serializable


@serializable(
    "shared.ImportanceSampling",
    formerly=("unnoise.shared.importance.Importance", "unnoise.continuous.objectives.Importance"),
)
class ImportanceSampling(Objective):
    r"""Draws n with chance `p_n ~ sqrt(E[L_n^2])` and weighs the loss by `1 / (T p_n)` (Nichol & Dhariwal 2021, section
    3.3; for multinomial diffusion, Hoogeboom et al. 2021).

    The second moments are means over the last `history` losses of each step; until every step has as many, n is
    uniform. They are part of the state, so a resumed run goes on with them.

    Args:
        objective: on a table of steps, such as `Variational` of continuous/ and `Hybrid` of discrete/.
        history: losses to remember for each step.
        uniform: share of draws that stay uniform.
    """

    def __init__(self, objective: Objective, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform <= 1:
            raise UsageError(
                f"history={history}, uniform={uniform}: give one loss or more to remember, and a share above 0 and up to 1"
            )
        if objective.draws_times:
            raise UsageError(
                f"{type(objective).__name__} draws times of its own, and importance sampling draws rows of a table: train it as it is, or "
                "take an objective of the table's rows, such as continuous.Variational"
            )
        self.objective, self.history, self.uniform, self.times = objective, history, uniform, objective.times
        steps = getattr(objective.denoiser.corruption, "steps", None)
        if steps is None:
            raise UsageError(
                "importance sampling chooses among the steps of a table, and this process runs in continuous time"
            )
        self.steps = steps
        self.register_buffer("squares", torch.zeros(self.steps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(self.steps, dtype=torch.int64))

    @property
    def denoiser(self) -> Denoiser:
        """That of the objective."""
        return self.objective.denoiser

    def chances(self) -> Tensor:
        """p_1..p_T, `(T,)`, float64."""
        root = self.squares.mean(1).sqrt()
        even = torch.full_like(root, 1 / self.steps)
        return torch.where(
            (self.counts >= self.history).all(), (1 - self.uniform) * root / root.sum() + self.uniform * even, even
        )

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective.at(x0, t, generator=generator, **cond)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        p = self.chances()
        index = categorical(p.expand(len(x0), -1), generator)
        loss = self.at(x0, (index + 1).double() / self.steps, generator=generator, **cond)
        if self.training:
            self.record(index, loss.total.detach().double())
        weight = 1 / (self.steps * p[index])
        return Loss(
            loss.total * weight.to(loss.total),
            {name: part * weight.to(part) for name, part in loss.parts.items()},
            loss.t,
        )

    def record(self, index: Tensor, losses: Tensor) -> None:
        """Notes losses `(B,)` of steps `index` `(B,)`, 0-based, in rings of `history` places, without waiting for the
        device.
        """
        earlier = (index[:, None] == index).tril(-1).sum(1)  # how often this step came before in the batch
        later = (index[:, None] == index).triu(1).sum(1)
        place = (self.counts[index] + earlier) % self.history
        # Of more than `history` losses of one step the last ones stay; the others keep what is there, at no place that
        # the last ones take.
        stays = later < self.history
        fresh = torch.where(stays, losses**2, 0.0)
        chosen = torch.zeros_like(self.squares).index_put((index, place), stays.double(), accumulate=True)
        added = torch.zeros_like(self.squares).index_put((index, place), fresh, accumulate=True)
        self.squares.copy_(torch.where(chosen > 0, added, self.squares))
        self.counts.index_add_(0, index, torch.ones_like(index))
