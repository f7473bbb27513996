"""Predictors: samplers that solve the reverse SDE from one time to the next."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.gaussian.time_points import TimePoint
from ..shared.grid_values import on_grid
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from .sde import SDE


@serializable("sde.EulerMaruyama")
class EulerMaruyama(Sampler[GaussianDenoiser, Schedule]):
    r"""The Euler-Maruyama method on the reverse SDE: `x_s = x_t - (t - s) drift + eta g sqrt(t - s) z`.

    Drift and g are those of `SDE.reverse_drift` and `SDE.coefficients` at t, and z is standard normal noise. Song et
    al. 2021, appendix G. The last step, to t = 0, returns the denoiser's estimate of x_0.

    Args:
        denoiser: the denoiser to sample from.
        eta: scale of the noise, 0 or more: 1 for the reverse SDE, 0 for Euler steps of the probability flow.

    Raises:
        UsageError: for a negative eta, and a schedule that ends at zero SNR.
    """

    def __init__(self, denoiser: GaussianDenoiser, eta: float = 1.0) -> None:
        super().__init__(denoiser)
        refuse_negative(eta)
        self.sde, self.eta, self.order = SDE(denoiser.corruption), eta, 1 if eta == 0 else None

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if float(s) == 0:
            return self.denoiser(x, t, **cond)
        now, width, (f, g2) = TimePoint(self.corruption, t), float(t) - float(s), on_grid(SDE.coefficients, self.sde, t)
        f, g2 = float(f) * width, float(g2) * width
        weight = 0.5 * (1 + self.eta**2) * g2 / now.sigma**2
        mean = self.denoiser.estimate(x, t, **cond).combined(x, 1 - f - weight, weight * now.alpha)
        return torch.add(mean, normal_like(x, generator), alpha=self.eta * math.sqrt(g2)) if self.eta else mean


@serializable("sde.ReverseDiffusion")
class ReverseDiffusion(Sampler[GaussianDenoiser, Schedule]):
    r"""The reverse diffusion sampler: `x_s = (2 - a) x_t + (1 + eta^2) / 2 G^2 score + eta G z`.

    It reverses the forward step `x_t = a x_s + G z` (Song et al. 2021, eqs. 45 and 46), z standard normal noise. The
    forward step is the schedule's transition `q(x_t | x_s)`, exact for any step size: `a = alpha_t / alpha_s`,
    `G^2 = sigma_t^2 (1 - SNR_t / SNR_s)`. On a table of betas these are `sqrt(1 - beta)` and beta, on VE 1 and
    `sigma_t^2 - sigma_s^2`, as published; the published steps of sub-VP are those of `EulerMaruyama`. The last step, to
    t = 0, returns the denoiser's estimate of x_0.

    Args:
        denoiser: the denoiser to sample from.
        eta: scale of the noise, 0 or more: 1 for the reverse SDE, 0 for the paper's "probability flow" predictor (table
            1).

    Raises:
        UsageError: for a negative eta, and a schedule that ends at zero SNR.
    """

    def __init__(self, denoiser: GaussianDenoiser, eta: float = 1.0) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        refuse_negative(eta)
        self.eta, self.order = eta, 1 if eta == 0 else None

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if float(s) == 0:
            return self.denoiser(x, t, **cond)
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        fresh = -math.expm1(2 * (now.lam - end.lam))  # 1 - SNR_t / SNR_s
        weight = 0.5 * (1 + self.eta**2) * fresh  # of G^2 score, which is fresh (alpha_t E[x_0 | x_t] - x_t)
        mean = self.denoiser.estimate(x, t, **cond).combined(x, 2 - now.alpha / end.alpha - weight, weight * now.alpha)
        if not self.eta:
            return mean
        return torch.add(mean, normal_like(x, generator), alpha=self.eta * now.sigma * math.sqrt(fresh))


@serializable("sde.NoPredictor")
class NoPredictor(Sampler[GaussianDenoiser, Schedule]):
    """A predictor that leaves x unchanged except for the last step, which denoises: for correctors that work alone.

    Song & Ermon's (2019, 2020) annealed Langevin dynamics is
    `CorrectorPredictor(NoPredictor(denoiser), AnnealedLangevin(denoiser, ...))` on a schedule with alpha = 1. On other
    schedules x is scaled by `alpha_s / alpha_t`.

    Args:
        denoiser: the denoiser of the last step.
        denoise: whether the last step, to t = 0, returns the denoiser's estimate of x_0 (Jolicoeur-Martineau et al.
            2021); Song & Ermon (2019) leave it out.

    Raises:
        UsageError: for a schedule that ends at zero SNR.
    """

    def __init__(self, denoiser: GaussianDenoiser, denoise: bool = True) -> None:
        super().__init__(denoiser)
        self.denoise = denoise
        refuse_zero_snr(denoiser.corruption)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if self.denoise and float(s) == 0:
            return self.denoiser(x, t, **cond)
        return TimePoint(self.corruption, s).alpha / TimePoint(self.corruption, t).alpha * x


def refuse_negative(eta: float) -> None:
    """Raises for a negative scale of the noise.

    Raises:
        UsageError: for eta below 0 or NaN.
    """
    if not eta >= 0:
        raise UsageError(f"eta={eta}: give 0 for no noise, 1 for the reverse SDE, or more")
