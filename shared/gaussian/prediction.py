"""What a network predicts, as two coefficients of the clean signal: `x_0 = c_skip x_t + c_out F`.

Each is a function of `(alpha_t, sigma_t)`. They are written so that scaling x_t, alpha_t and sigma_t by one factor
leaves x_0 as it is: a network then serves every schedule at equal log-SNR. The training target of F follows by solving
for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import UsageError
from ..serialization import serializable

Prediction: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@serializable("gaussian.clean", formerly="unnoise.shared.prediction.clean")
def clean(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = x_0."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


@serializable("gaussian.noise", formerly="unnoise.shared.prediction.noise")
def noise(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = epsilon, where `x_t = alpha x_0 + sigma epsilon` (Ho et al. 2020, eq. 9)."""
    return 1 / alpha, -sigma / alpha


@serializable("gaussian.scaled_score", formerly="unnoise.shared.prediction.scaled_score")
def scaled_score(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = sigma grad log q(x_t) = -epsilon: what Song et al.'s (2021) VE networks give before they divide by sigma."""
    return 1 / alpha, sigma / alpha


@serializable("gaussian.velocity", formerly="unnoise.shared.prediction.velocity")
def velocity(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = v = alpha epsilon - sigma x_0 with alpha, sigma scaled to a unit vector (Salimans & Ho 2022, appendix D)."""
    square = alpha**2 + sigma**2
    return alpha / square, -sigma / square.sqrt()


@serializable("gaussian.straight", formerly="unnoise.shared.prediction.straight")
def straight(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = epsilon - x_0, on the straight path alpha = 1 - t, sigma = t the velocity `dx_t / dt`.

    Liu et al. 2023; Lipman et al. 2023.
    """
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


@serializable("gaussian.Preconditioned", formerly="unnoise.shared.prediction.Preconditioned")
@dataclass(frozen=True)
class Preconditioned:
    r"""Karras et al.'s (2022, table 1) `c_skip = s^2 / (sigma^2 + s^2)`, `c_out = sigma s / sqrt(sigma^2 + s^2)`, s =
    sigma_data.

    Written for any alpha. F then has unit variance to learn at every level, and as little of it as possible; at s = 1
    it is the velocity with its sign turned.

    Attributes:
        sigma_data: standard deviation of the data, as in `Learned`.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UsageError(f"sigma_data={self.sigma_data}: give the standard deviation of the data, such as 0.5")

    def __call__(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip, c_out."""
        data2 = self.sigma_data**2
        square = alpha**2 * data2 + sigma**2
        return alpha * data2 / square, sigma * self.sigma_data / square.sqrt()
