"""Loss weights: functions `(schedule, t)` that multiply the squared error of x_0.

Papers state their weights for the squared error E of what their network predicts. These errors are
`E_noise = SNR E_x0`, `E_velocity = (SNR + 1) E_x0` and `sigma^2 E_score = SNR E_x0`, so weights that differ between
papers may be the same weight here.
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
from ..values import notation
from .prediction import Prediction, refuse_uncallable
from .schedule import Schedule, rates

Weight: TypeAlias = Callable[[Schedule, Tensor], Tensor]
"""`(schedule, t) -> weight`, of the shape of t."""


@serializable("gaussian.snr", formerly=("unnoise.shared.objective.snr", "unnoise.sde.objectives.sigma_squared"))
def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns the SNR, `(alpha_t / sigma_t)^2`: the loss is then the squared error of the noise.

    Ho et al. 2020, eq. 14. That is also sigma^2 times the squared error of the score.
    """
    alpha, sigma = schedule(exact(t))
    return (alpha / sigma) ** 2


@serializable("gaussian.truncated_snr", formerly="unnoise.continuous.weights.truncated_snr")
def truncated_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `max(SNR, 1)`: the loss is then the larger of the squared errors of noise and x_0.

    Salimans & Ho 2022, section 4. SNR is `(alpha_t / sigma_t)^2`.
    """
    return snr(schedule, t).clamp(min=1.0)


@serializable("gaussian.MinSNR", formerly="unnoise.continuous.weights.MinSNR")
@dataclass(frozen=True)
class MinSNR:
    """The weight `min(SNR, gamma)` (Hang et al. 2023, section 3.4), SNR = `(alpha_t / sigma_t)^2`.

    Called with (schedule, t); returns the weight of the squared error of x_0, of the shape of t. As a weight of the
    error of the noise it is `min(gamma / SNR, 1)`, of the velocity `min(SNR, gamma) / (SNR + 1)`.

    Attributes:
        gamma: the largest weight; 5 in the paper.

    Raises:
        UsageError: unless gamma > 0.
    """

    gamma: float = 5.0
    __repr__ = notation

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UsageError(f"gamma={self.gamma}: give the largest weight, a positive number such as 5")

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Returns the weight, of the shape of t."""
        return snr(schedule, t).clamp(max=self.gamma)


@serializable("gaussian.OutputError", formerly="unnoise.continuous.weights.PlainError")
@dataclass(frozen=True)
class OutputError:
    """The weight `1 / c_out^2`: the loss is then the unweighted squared error of the network's output.

    c_out is the coefficient of the output F in `x_0 = c_skip x_t + c_out F`. Called with (schedule, t); returns the
    weight of the squared error of x_0, of the shape of t. It is `snr` for `noise`, 1 for `clean`, SNR + 1 for
    `velocity`, and EDM's weight `SNR + 1 / s^2` for `Preconditioned(s)` (Karras et al. 2022, table 1). For
    `PosteriorMean` the loss is the error of the mean mu of `q(x_s | x_t, x_0)` (Ho et al. 2020, table 2).

    Attributes:
        predicts: the prediction, `(alpha, sigma) -> (c_skip, c_out)`: what F stands for.

    Raises:
        UsageError: for what cannot be called.
    """

    predicts: Prediction
    __repr__ = notation

    def __post_init__(self) -> None:
        refuse_uncallable(self.predicts)

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Returns the weight, of the shape of t."""
        return 1 / self.predicts(*schedule(exact(t)))[1] ** 2


@serializable("gaussian.likelihood_weight", formerly="unnoise.sde.objectives.g_squared")
def likelihood_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `-d SNR / dt = g^2 alpha^2 / sigma^4`, the weight of the variational bound (Kingma et al. 2021, eq. 15).

    g is the diffusion coefficient of the SDE, `g^2 = d sigma^2 / dt - 2 sigma^2 d log alpha / dt`. As a weight of the
    squared error of the score it is `g(t)^2` (Song et al. 2021b, corollary 1). Half of the loss, summed over
    dimensions, is the part of the bound on the negative log-likelihood that depends on the denoiser.
    """
    (alpha, sigma), (d_alpha, d_sigma) = schedule(exact(t)), rates(schedule, t)
    return 2 * alpha / sigma**2 * (alpha * d_sigma / sigma - d_alpha)


@serializable("gaussian.velocity_weight")
def velocity_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `(alpha' - alpha sigma' / sigma)^2`, with derivatives in t, for the loss of flow matching.

    That loss is the squared error of the velocity `dx_t / dt = alpha' x_0 + sigma' epsilon` (Lipman et al. 2023, eq.
    14).
    """
    (alpha, sigma), (d_alpha, d_sigma) = schedule(exact(t)), rates(schedule, t)
    return (d_alpha - alpha * d_sigma / sigma) ** 2


def refuse_zero_weight(weight: Weight, schedule: Schedule) -> None:
    """Raises for a weight that is 0 at t = 1, where sampling starts: the denoiser would not be trained there.

    Raises:
        UsageError: for such a weight, for one that is NaN at t = 1, and for what does not return a tensor.
    """
    at_one = weight(schedule, torch.ones((), dtype=torch.float64)) if callable(weight) else None
    if not isinstance(at_one, Tensor):
        what = f"weight={weight!r}" if at_one is None else f"the weight returned {at_one!r}"
        raise UsageError(f"{what}: give a function (schedule, t) that returns a tensor of the shape of t, such as snr")
    if not bool(at_one > 0):
        name = getattr(weight, "__name__", weight)
        raise UsageError(
            f"weight={name} is not positive at t = 1, so the denoiser would not be trained where sampling starts: "
            "for a schedule that ends at zero SNR give truncated_snr, OutputError(clean), OutputError(velocity) or "
            "velocity_weight; likelihood_weight and velocity_weight need a table of at least two rows"
        )
