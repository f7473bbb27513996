"""The variational bound on the code length of quantised data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shared.bits import Codelength, discretised_gaussian, gaussian_kl, sampled_levels, total_nats
from ..shared.denoiser import GaussianDenoiser
from ..shared.progress import Progress, silent
from ..shared.random import Source
from ..shared.scale import Scale
from ..shared.tensors import exact, like
from .posterior import ReverseVariance, large, posterior, small
from .tabulated import Tabulated


class VariationalBound:
    r"""`L_T + sum_(n=2..T) L_(n-1) + L_0` in nats (Ho et al. 2020, eq. 5), an upper bound on the code length of the levels.

    `L_T = KL(q(x_T | x_0) || N(0, I))`; `L_(n-1)` is the KL of the posterior to `N(posterior mean at E[x_0 | x_n], variance)`; L_0 codes
    the levels by the Gaussian of the last step, integrated over their bins. There the variance would be 0, so it takes the small
    variance of the step above, as published.

    Args:
        denoiser: on a `Tabulated` schedule; wrap it in `Clipped` for the published figures.
        scale: the levels of the data.
        variance: of the reverse steps.
        terms: how many of the T - 1 terms of the path to evaluate, stratified over n; None for all.
        tanh: take the published approximation of the Gaussian distribution function.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        scale: Scale,
        *,
        variance: ReverseVariance = large,
        terms: int | None = None,
        tanh: bool = False,
    ) -> None:
        self.denoiser, self.scale, self.variance, self.terms, self.tanh = denoiser, scale, variance, terms, tanh

    @property
    def schedule(self) -> Tabulated:
        """The chain whose bound this is."""
        return self.denoiser.corruption

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> Codelength:
        """`x0`: `(B, ...)` in the continuous form of the scale. One draw of noise for each term."""
        steps = self.schedule.steps
        path = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        if steps > 1:
            levels, weight = sampled_levels(2, steps, self.terms or steps, len(x0), generator)
            for n in progress(levels.flip(0), len(levels), "bound"):
                path += weight * self.term(x0, n.to(x0.device).double() / steps, generator=generator, **cond)
        return Codelength(self.prior(x0), path, self.data(x0, generator=generator, **cond))

    def prior(self, x0: Tensor) -> Tensor:
        """L_T, `(B,)`."""
        alpha, sigma = (like(c, x0) for c in self.schedule(torch.ones((), dtype=torch.float64)))
        return total_nats(gaussian_kl(alpha * x0, (sigma**2).expand_as(x0), torch.zeros_like(x0), torch.ones_like(x0)))

    def term(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """L_(n-1) at t = n / T, n >= 2, `(B,)`."""
        t = exact(t)
        s = t - 1 / self.schedule.steps
        x_t = self.schedule.corrupt(x0, t, generator=generator)
        true_mean, true_variance = posterior(self.schedule, x_t, x0, t, s)
        mean, _ = posterior(self.schedule, x_t, self.denoiser(x_t, t, **cond), t, s)
        variance = self.variance(self.schedule, t, s)
        return total_nats(gaussian_kl(true_mean.double(), like(true_variance, x0).double(), mean.double(), like(variance, x0).double()))

    def data(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """L_0, `(B,)`: the levels given x_1."""
        t = torch.full((), 1 / self.schedule.steps, dtype=torch.float64)
        x_t = self.schedule.corrupt(x0, t, generator=generator)
        mean = self.denoiser(x_t, t, **cond)
        variance = small(self.schedule, 2 * t, t) if self.schedule.steps > 1 else self.schedule(t)[1] ** 2
        likelihood = discretised_gaussian(self.scale.quantise(x0), mean.double(), variance.sqrt(), self.scale, tanh=self.tanh)
        return -total_nats(likelihood)
