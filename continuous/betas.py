"""Noise schedules of the DDPM papers as tables of beta_1..beta_T, float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..shared.errors import UsageError


def linear_betas(steps: int, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Linear from `start` to `stop`, both scaled by 1000 / T (Ho et al. 2020, section 4; Nichol & Dhariwal 2021), `(T,)`.

    The published 1e-4 makes the first noise level 0.01, for levels 2 / 255 apart; coarser data can start higher.
    """
    _check(steps)
    if stop * 1000 / steps >= 1:
        raise UsageError(
            f"steps={steps}: beta would reach {stop * 1000 / steps:.2g}; take more than {stop * 1000:g} steps, or a smaller stop"
        )
    return torch.linspace(start, stop, steps, dtype=torch.float64) * (1000 / steps)


def cosine_betas(steps: int) -> Tensor:
    r"""`beta_n = min(1 - f(n/T) / f((n-1)/T), 0.999)`, `f(t) = cos^2((t + 0.008) / 1.008 pi/2)`, `(T,)` (Nichol & Dhariwal 2021)."""
    _check(steps)
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _check(steps: int) -> None:
    if steps < 1:
        raise UsageError(f"steps={steps}: a table needs at least one step")
