"""Predictions: what the output F of a network stands for, `x_0 = c_skip x_t + c_out F`.

A prediction is a function `(alpha_t, sigma_t) -> (c_skip, c_out)`. If x_t, alpha_t and sigma_t are multiplied by the
same factor, x_0 does not change, so a network can be used on every schedule at equal log-SNR. Solving for F gives its
training target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import UsageError
from ..serialization import serializable
from ..values import notation

Prediction: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(alpha, sigma) -> (c_skip, c_out)`, of the shape of alpha."""


@serializable("gaussian.clean", formerly="unnoise.shared.prediction.clean")
def clean(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns c_skip = 0 and c_out = 1, for the prediction of the clean signal, F = x_0."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


@serializable("gaussian.noise", formerly="unnoise.shared.prediction.noise")
def noise(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns c_skip = 1 / alpha and c_out = -sigma / alpha, for the prediction of the noise, F = epsilon.

    epsilon is the noise in `x_t = alpha x_0 + sigma epsilon` (Ho et al. 2020, eq. 9).
    """
    return 1 / alpha, -sigma / alpha


@serializable("gaussian.scaled_score", formerly="unnoise.shared.prediction.scaled_score")
def scaled_score(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns c_skip = 1 / alpha and c_out = sigma / alpha, for the prediction of the score times sigma.

    F estimates `sigma grad log q(x_t)`, and its training target is -epsilon. It is the output of Song et al.'s (2021)
    VE networks before they divide by sigma.
    """
    return 1 / alpha, sigma / alpha


@serializable("gaussian.velocity", formerly="unnoise.shared.prediction.velocity")
def velocity(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the coefficients for the prediction of the velocity, F = alpha epsilon - sigma x_0.

    c_skip = alpha / r^2 and c_out = -sigma / r with `r^2 = alpha^2 + sigma^2`: in F, (alpha, sigma) is scaled to unit
    length first (Salimans & Ho 2022, appendix D, who call F v).
    """
    square = alpha**2 + sigma**2
    return alpha / square, -sigma / square.sqrt()


@serializable("gaussian.straight", formerly="unnoise.shared.prediction.straight")
def straight(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns c_skip = 1 / (alpha + sigma) and c_out = -sigma / (alpha + sigma), for F = epsilon - x_0.

    On the straight path alpha = 1 - t, sigma = t, F is the velocity `dx_t / dt`. Liu et al. 2023; Lipman et al. 2023.
    """
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


@serializable("gaussian.Preconditioned", formerly="unnoise.shared.prediction.Preconditioned")
@dataclass(frozen=True)
class Preconditioned:
    r"""The preconditioning of EDM: `c_skip = s^2 / (sigma^2 + s^2)`, `c_out = sigma s / sqrt(sigma^2 + s^2)`.

    Karras et al. 2022, table 1, where alpha = 1; for other alpha, `c_skip = alpha s^2 / (alpha^2 s^2 + sigma^2)` and
    `c_out = sigma s / sqrt(alpha^2 s^2 + sigma^2)`. s is sigma_data. Called with (alpha, sigma). The training target of
    F then has unit variance at every noise level, and errors of F are amplified as little as possible. For s = 1, F is
    minus the velocity.

    Attributes:
        sigma_data: s, the standard deviation of the data, as in `Learned`.
    """

    sigma_data: float = 0.5
    __repr__ = notation

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UsageError(f"sigma_data={self.sigma_data}: give the standard deviation of the data, such as 0.5")

    def __call__(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns c_skip and c_out, of the shape of alpha."""
        data2 = self.sigma_data**2
        square = alpha**2 * data2 + sigma**2
        return alpha * data2 / square, sigma * self.sigma_data / square.sqrt()


def refuse_uncallable(predicts: Any) -> None:
    """Raises for a prediction that cannot be called, such as its name.

    Raises:
        UsageError: with what to give.
    """
    if not callable(predicts):
        raise UsageError(f"predicts={predicts!r}: give the prediction itself, such as noise, velocity or clean")
