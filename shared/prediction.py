"""What a network predicts, as two coefficients of the clean signal: `x_0 = c_skip x_t + c_out F`.

Each is a function of `(alpha_t, sigma_t)`. They are written so that scaling x_t, alpha_t and sigma_t by one factor leaves x_0 as it
is: a network then serves every schedule at equal log-SNR. The training target of F follows by solving for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .describe import described

Prediction: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@described
def clean(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = x_0."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


@described
def noise(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = epsilon, where `x_t = alpha x_0 + sigma epsilon` (Ho et al. 2020, eq. 9)."""
    return 1 / alpha, -sigma / alpha


@described
def velocity(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = v = alpha epsilon - sigma x_0 with alpha, sigma scaled to a unit vector (Salimans & Ho 2022, appendix D)."""
    square = alpha**2 + sigma**2
    return alpha / square, -sigma / square.sqrt()
