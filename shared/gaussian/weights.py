"""Loss weights: functions `(schedule, t)` that multiply the squared error of x_0.

Papers state a weight for the error of what their network predicts. The errors of x_0, noise, velocity and score differ
by factors of the SNR: `E_noise = SNR E_x0`, `E_velocity = (SNR + 1) E_x0`, `sigma^2 E_score = SNR E_x0`, so one weight
here stands for several there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import exact
from .prediction import Prediction
from .schedule import Schedule, rates

Weight: TypeAlias = Callable[[Schedule, Tensor], Tensor]


@serializable("gaussian.snr", formerly=("unnoise.shared.objective.snr", "unnoise.sde.objectives.sigma_squared"))
def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """`(alpha / sigma)^2`: the error of the noise (Ho et al. 2020, eq. 14), and sigma^2 times that of the score."""
    alpha, sigma = schedule(exact(t))
    return (alpha / sigma) ** 2


@serializable("gaussian.truncated_snr", formerly="unnoise.continuous.weights.truncated_snr")
def truncated_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """`max(SNR, 1)` (Salimans & Ho 2022, section 4)."""
    return snr(schedule, t).clamp(min=1.0)


@serializable("gaussian.MinSNR", formerly="unnoise.continuous.weights.MinSNR")
@dataclass(frozen=True)
class MinSNR:
    """`min(SNR, gamma)` (Hang et al. 2023, section 3.4).

    As a weight of the error of the noise that is `min(gamma / SNR, 1)`, of the velocity `min(SNR, gamma) / (SNR + 1)`.

    Attributes:
        gamma: 5 in the paper.
    """

    gamma: float = 5.0

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Returns the weight, of the shape of t."""
        return snr(schedule, t).clamp(max=self.gamma)


@serializable("gaussian.OutputError", formerly="unnoise.continuous.weights.PlainError")
@dataclass(frozen=True)
class OutputError:
    """`1 / c_out^2`: the plain squared error of the network's output.

    With `noise` that is `snr`, with `clean` 1, with `velocity` SNR + 1, with `Preconditioned(s)` EDM's weight
    `SNR + 1 / s^2` (Karras et al. 2022, table 1), and with `PosteriorMean` the error of mu (Ho et al. 2020, table 2).

    Attributes:
        predicts: what the network predicts.
    """

    predicts: Prediction

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Returns the weight, of the shape of t."""
        return 1 / self.predicts(*schedule(exact(t)))[1] ** 2


@serializable("gaussian.likelihood_weight", formerly="unnoise.sde.objectives.g_squared")
def likelihood_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """`-d SNR / dt = g^2 alpha^2 / sigma^4`: half of it bounds the negative log-likelihood (Kingma et al. 2021, eq.
    15).

    As a weight of the error of the score that is `g(t)^2` (Song et al. 2021b, corollary 1).
    """
    (alpha, sigma), (d_alpha, d_sigma) = schedule(exact(t)), rates(schedule, t)
    return 2 * alpha / sigma**2 * (alpha * d_sigma / sigma - d_alpha)


@serializable("gaussian.velocity_weight")
def velocity_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """`(alpha' - alpha sigma' / sigma)^2`: the error of the flow's velocity `alpha' x_0 + sigma' epsilon`.

    Lipman et al. 2023, eq. 14.
    """
    (alpha, sigma), (d_alpha, d_sigma) = schedule(exact(t)), rates(schedule, t)
    return (d_alpha - alpha * d_sigma / sigma) ** 2


def refuse_blind(weight: Weight, schedule: Schedule) -> None:
    """Refuses a weight that is 0 at t = 1.

    Raises:
        UsageError: with what to do.
    """
    if not bool(weight(schedule, torch.ones((), dtype=torch.float64)) > 0):
        name = getattr(weight, "__name__", weight)
        raise UsageError(
            f"weight={name} is 0 at t = 1, so the noise level that sampling starts from would never be trained: where the schedule ends at "
            "zero SNR take truncated_snr, or OutputError(clean), OutputError(velocity) or velocity_weight; a table of one row has no "
            "rates, which likelihood_weight and velocity_weight need"
        )
