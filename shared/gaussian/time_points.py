"""The coefficients of a Gaussian schedule at one time, as Python numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..grid_values import on_grid
from ..tensors import exact
from .schedule import Schedule


class TimePoint:
    """A time of a schedule with its coefficients as Python numbers, so that a step does not wait for a device.

    Within a run of a sampler they are looked up, see `grid_values.on_grid`.

    Args:
        schedule: the schedule.
        t: a scalar on the CPU, where samplers keep times.

    Attributes:
        t: the time.
        alpha: alpha_t.
        sigma: sigma_t.
        lam: `lambda_t = log(alpha_t / sigma_t)`, half of the log-SNR; -inf at zero SNR.
        sigma_tilde: `sigma_t / alpha_t`.
    """

    __slots__ = ("alpha", "lam", "sigma", "t")

    def __init__(self, schedule: Schedule, t: Tensor) -> None:
        self.t = t
        self.alpha, self.sigma, self.lam = map(float, on_grid(_coefficients, schedule, t))

    @property
    def sigma_tilde(self) -> float:
        return math.exp(-self.lam) if self.lam > -700 else math.inf

    def step_to(self, end: TimePoint) -> tuple[float, float]:
        """Returns the factors of x_t and x_0 in a DDIM step to an earlier time s.

        These are `sigma_s / sigma_t` and `alpha_s (1 - e^-h)`, `h = lambda_s - lambda_t`: the flow with constant x_0.
        """
        return end.sigma / self.sigma, -end.alpha * math.expm1(self.lam - end.lam)


def _coefficients(schedule: Schedule, t: Tensor) -> tuple[Tensor, ...]:
    t = exact(t)
    return *schedule(t), schedule.log_snr(t) / 2


def time_point_at(schedule: Schedule, lam: float) -> TimePoint:
    """Returns the time at which `lambda = log(alpha / sigma)` is `lam`, with its coefficients."""
    return TimePoint(schedule, schedule.time(torch.tensor(2 * lam, dtype=torch.float64)))
