"""Moves between ordered categories in continuous time with a Gaussian stationary distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.serialization import serializable
from ..schedules import ExponentialNoise, NoiseSchedule, finite, scheduled
from .spectral import Spectral, refuse_square


@serializable(
    "discrete.GaussianTarget",
    formerly="unnoise.discrete.transition.gaussian_target.GaussianTarget",
    renamed={"levels": "categories"},
)
class GaussianTarget(Spectral):
    r"""Rates between K ordered categories with a discretized Gaussian as stationary distribution.

    Campbell et al. 2022, appendix E. Jumps toward the middle, up to the category's mirror image, have the rate
    `exp(-(|i - j| - 1)^2 / reach^2)`; the rates of the opposite jumps follow from detailed balance with
    `pi_i prop. to exp(-(i + 1 - K / 2)^2 / (2 width^2))`. The rates are multiplied by the schedule's:
    `Q_(s->t) = exp((total(t) - total(s)) R)`, where R is the matrix of these rates and `total(t)` the integral of the
    schedule's rate from 0 to t.

    Args:
        categories: K.
        schedule: in continuous time, or betas `(T,)` of a table, whose step n lasts `-log(1 - beta_n)`; None for
            `ExponentialNoise()`.
        reach: the length scale of jumps in categories; 6 for 256 categories.
        width: the standard deviation of the stationary distribution in categories; 512 for 256 categories, which is
            nearly uniform.

    Raises:
        UsageError: for a reach or width that is not positive, and a schedule with infinite `total(1)`.
    """

    def __init__(
        self, categories: int, schedule: Tensor | NoiseSchedule | None = None, reach: float = 6.0, width: float = 512.0
    ) -> None:
        if not (reach > 0 and width > 0):
            raise UsageError(f"reach={reach}, width={width}: give two positive numbers of categories")
        self.schedule, self.reach, self.width = ExponentialNoise() if schedule is None else schedule, reach, width
        self.noise = finite(scheduled(self.schedule))
        refuse_square(categories)
        category = torch.arange(categories, dtype=torch.float64)
        i, j = category[:, None], category
        log_pi = -((category + 1 - categories / 2) ** 2) / (2 * width**2)
        inward = ((i < categories // 2) & (j > i) & (j < categories - i)) | (
            (i > categories // 2) & (j < i) & (j > categories - 1 - i)
        )
        rates = torch.where(inward, torch.exp(-((((i - j).abs() - 1) / reach) ** 2)), 0.0)
        rates = torch.where(rates.T > 0, rates.T * torch.exp(log_pi - log_pi[:, None]), rates)
        super().__init__(
            categories, self.noise.steps, self.noise.t_min, rates - torch.diag(rates.sum(1)), log_pi.softmax(0)
        )

    def factor(self, s: Tensor, t: Tensor) -> Tensor:
        events = self.noise.total(t) - self.noise.total(s).to(t.device)
        return torch.exp(events[..., None] * self.basis.values.to(events.device))

    def rate(self, t: Tensor) -> Tensor:
        return self.noise.rate(t)
