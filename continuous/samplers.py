"""Samplers of the DDPM papers, on any sub-sequence of the steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..shared.denoiser import GaussianDenoiser
from ..shared.errors import UsageError
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler
from ..shared.tensors import exact, like
from .posterior import ReverseVariance, large, posterior


class Ancestral(Sampler):
    r"""`x_s ~ N(posterior mean at E[x_0 | x_t], variance)` (Ho et al. 2020, algorithm 2); the last step adds no noise.

    Args:
        denoiser: wrap it in `Clipped` to clip x_0 as Ho et al. do.
        variance: `large` (beta_t, Ho et al.'s choice for CIFAR-10) or `small` (beta-tilde).
    """

    def __init__(self, denoiser: GaussianDenoiser, variance: ReverseVariance = large) -> None:
        super().__init__(denoiser)
        self.variance = variance

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        mean, _ = posterior(self.corruption, x, self.denoiser(x, t, **cond), t, s)
        if s == 0:
            return mean
        return mean + like(self.variance(self.corruption, t, s).sqrt(), x) * normal_like(x, generator)


class DDIM(Sampler):
    r"""`x_s = alpha_s x_0 + sqrt(sigma_s^2 - fresh^2) epsilon + fresh z` (Song et al. 2020, eq. 12).

    `fresh = eta sigma_s sqrt(1 - k)` with `k = SNR_t / SNR_s`, which is the paper's `sigma_tau(eta)`. At eta = 0 the sampler is an ODE
    solver of order one; at eta = 1 it is `Ancestral` with the small variance.

    Args:
        denoiser: the paper does not clip it.
        eta: 0 to 1.
    """

    def __init__(self, denoiser: GaussianDenoiser, eta: float = 0.0) -> None:
        super().__init__(denoiser)
        if not 0 <= eta <= 1:
            raise UsageError(f"eta={eta}: give a number from 0, deterministic, to 1, ancestral")
        self.eta, self.order = eta, 1 if eta == 0 else None

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        t, s = exact(t), exact(s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.corruption(t), self.corruption(s)
        fresh = self.eta * sigma_s * (1 - self.corruption.kept(s, t)).sqrt()
        x0 = self.denoiser(x, t, **cond)
        epsilon = (x - like(alpha_t, x) * x0) / like(sigma_t, x)
        x = like(alpha_s, x) * x0 + like((sigma_s**2 - fresh**2).sqrt(), x) * epsilon
        return x + like(fresh, x) * normal_like(x, generator) if self.eta else x
