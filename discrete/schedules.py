"""Noise schedules of categorical diffusion as tables of beta_1..beta_T, float64: the chance that a step resamples a symbol."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..shared.errors import UsageError


def linear(steps: int, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Linear from `start` to `stop`, `(T,)`; D3PM's Gaussian runs use 1e-4 to 0.02 at T = 1000 and its ablation 0.02 to 1."""
    _check(steps)
    return torch.linspace(start, stop, steps, dtype=torch.float64)


def cosine(steps: int) -> Tensor:
    """`beta_n = min(1 - f(n/T) / f((n-1)/T), 0.999)`, `f(t) = cos((t + 0.008) / 1.008 pi/2)`, `(T,)`.

    f is not squared: the chance to keep a symbol is the square root of the Gaussian schedule's alpha-bar (Hoogeboom et al. 2021;
    Austin et al. 2021, whose printed formula has a misplaced plus sign).
    """
    _check(steps)
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2)
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def reciprocal(steps: int) -> Tensor:
    """`beta_n = 1 / (T - n + 1)`, `(T,)`: each step erases 1/T of the signal, the last one all (Sohl-Dickstein et al. 2015)."""
    _check(steps)
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


def _check(steps: int) -> None:
    if steps < 1:
        raise UsageError(f"steps={steps}: a table needs at least one step")
