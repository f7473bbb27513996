"""Continuous-time noise schedules of the DDPM literature: cosine, and a shift of the log-SNR for large images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, even_grid
from ..shared.serialization import serializable
from ..shared.tensors import exact


@serializable("continuous.Cosine", formerly="unnoise.continuous.schedules.Cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    r"""The cosine schedule in continuous time, with its log-SNR limited to [low, high].

    The log-SNR is `lambda_t = -2 log tan(a t + b)` with `b = arctan(exp(-high / 2))`, `a = arctan(exp(-low / 2)) - b`
    (Ho & Salimans 2022, section 3; Salimans & Ho 2022), variance preserving. Without the limits this is
    `alpha_t = cos(pi t / 2)`. At t = 0 the signal is clean. Called with times; returns alpha_t and sigma_t, of their
    shape. `grid(N)` is N/N, .., 1/N, 0, so that the times of N steps are among those of 2 N steps.

    Attributes:
        low: log-SNR at t = 1.
        high: log-SNR just above t = 0.

    Raises:
        UsageError: unless low < high.
    """

    low: float = -20.0
    high: float = 20.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(
                f"low={self.low}, high={self.high}: low is the log-SNR at t = 1 and must be below high, "
                "the log-SNR at t = 0, such as -20 and 20"
            )

    @property
    def _start(self) -> float:
        return math.atan(math.exp(-self.high / 2))

    @property
    def _slope(self) -> float:
        return math.atan(math.exp(-self.low / 2)) - self._start

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self.log_snr(exact(t))
        return log_snr.sigmoid().sqrt().to(t.dtype), (-log_snr).sigmoid().sqrt().to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_snr = -2 * torch.log(torch.tan(self._slope * exact(t) + self._start))
        return torch.where(t > 0, log_snr, torch.inf).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-exact(log_snr) / 2))
        return ((angle - self._start) / self._slope).clamp(self.t_min, 1.0).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        return even_grid(steps)


@serializable("continuous.Shifted", formerly="unnoise.continuous.schedules.Shifted")
@dataclass(frozen=True)
class Shifted(Schedule):
    r"""Another schedule with `shift` added to its log-SNR, variance preserving (Hoogeboom et al. 2023, section 3.1).

    Neighboring pixels average noise away, so the noise of a schedule made for 64 x 64 pixels destroys less at d x d.
    `Shifted(schedule, resolution_shift(64, d))` compensates for that. Called with times; returns alpha_t and sigma_t,
    of their shape.

    Attributes:
        schedule: the schedule that is shifted; training times and sampling grids are the same as without the shift.
        shift: added to `log(alpha_t^2 / sigma_t^2)` at every time; below 0 for more noise.
    """

    schedule: Schedule
    shift: float

    @property
    def t_min(self) -> float:
        """The smallest time of training and likelihoods of the schedule that is shifted."""
        return self.schedule.t_min

    @property
    def t_last(self) -> float:
        """The last noisy time of the sampling grids of the schedule that is shifted."""
        return self.schedule.t_last

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(exact(t))
        alpha = alpha * math.exp(self.shift / 2)  # the wanted log-SNR; then both are scaled to a unit vector
        scale = torch.hypot(alpha, sigma)
        return (alpha / scale).to(t.dtype), (sigma / scale).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        return (self.schedule.log_snr(exact(t)) + self.shift).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(exact(log_snr) - self.shift).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        return self.schedule.grid(steps)

    def refuse_grid(self, grid: Tensor) -> None:
        self.schedule.refuse_grid(grid)

    def training_time(self, u: Tensor) -> Tensor:
        return self.schedule.training_time(u)


def resolution_shift(base: int, size: int) -> float:
    """Returns `2 log(base / size)`, the shift of the log-SNR from images `base` pixels wide to images `size` wide.

    It is the `shift` of `Shifted`: negative, which means more noise, for a size above the base. Hoogeboom et al. 2023,
    eq. 4.

    Raises:
        UsageError: for a width below 1.
    """
    if base < 1 or size < 1:
        raise UsageError(f"base={base}, size={size}: give two widths in pixels, 1 or more")
    return 2 * math.log(base / size)
