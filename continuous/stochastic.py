"""Stochastic samplers made of deterministic ones: wrappers that add noise to the steps of another sampler."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler, Step, single_step
from ..shared.serialization import serializable
from ..shared.tensors import exact, like
from .grids import noise_ratio

EDGE = 1e-6
"""Relative tolerance of `Churned`'s [low, high], so that rounding does not decide about a noise level at an end."""


@serializable("continuous.Churned")
class Churned(Sampler[GaussianDenoiser, Schedule]):
    r"""Adds noise before each step, up to `sigma~ = (1 + gamma) sigma_t / alpha_t` (Karras et al. 2022, algorithm 2).

    Then the inner sampler steps from the noisier time down to s, at s = 0 too. The paper takes
    `gamma = min(S_churn / steps, sqrt(2) - 1)`. Around `Heun` this is EDM's stochastic sampler. The first step of a run
    from t = 1 is unchanged, since no time is noisier.

    Args:
        sampler: the single-step sampler that takes the step down.
        gamma: relative increase of `sigma~ = sigma / alpha` in each step.
        low: smallest sigma~ at which noise is added (S_min).
        high: largest sigma~ at which noise is added (S_max).
        noise: factor of the fresh noise (S_noise), 1 for the noise of the forward process.

    Raises:
        UsageError: for a negative gamma, low above high, a multistep sampler, and a schedule that ends at zero SNR.
    """

    def __init__(
        self,
        sampler: Sampler[GaussianDenoiser, Schedule],
        gamma: float,
        *,
        low: float = 0.0,
        high: float = math.inf,
        noise: float = 1.0,
    ) -> None:
        super().__init__(sampler.denoiser)
        if gamma < 0:
            raise UsageError(f"gamma={gamma}: give the relative increase of the noise, 0 or more, such as 0.4")
        if not low <= high:
            raise UsageError(f"low={low}, high={high}: give the smaller noise level as low")
        refuse_zero_snr(sampler.corruption)
        single_step(sampler)
        self.sampler, self.gamma, self.low, self.high, self.noise = sampler, gamma, low, high, noise

    def begin(self) -> Step:
        return functools.partial(self.advance, self.sampler.begin())

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)

    def advance(self, inner: Step, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns x_s from x_t: noise is added, and `inner`, the step function of the inner sampler, steps to s."""
        ratio = float(noise_ratio(self.corruption, t))
        if self.gamma and self.low * (1 - EDGE) <= ratio <= self.high * (1 + EDGE):
            up = self.corruption.time(torch.tensor(-2 * math.log(ratio * (1 + self.gamma)), dtype=torch.float64))
            if up > t:  # no time is noisier than t = 1, where rounding may give an earlier one
                kept = like(self.corruption(up)[0] / self.corruption(exact(t))[0], x) * x
                x, t = kept + self.noise * (self.corruption.diffuse(x, t, up, generator=generator) - kept), up
        return inner(x, t, s, generator=generator, **cond)


@serializable("continuous.Renoised")
class Renoised(Sampler[GaussianDenoiser, Schedule]):
    r"""Steps below the next noise level and adds noise back up to it: the "ancestral" samplers of k-diffusion.

    With `sigma~ = sigma / alpha`, `up^2 = eta^2 sigma~_s^2 (1 - sigma~_s^2 / sigma~_t^2)` is the variance of the noise
    that is added back, and `down`, `down^2 = sigma~_s^2 - up^2`, the sigma~ that the inner step goes to. The step to s
    = 0 is that of the inner sampler. Around `DDIM` at eta = 1 this is `Ancestral(variance=small)`; around
    `DPMSolverPPSingle` it is "DPM++ 2S a". Where `down` is below the smallest noise level of the schedule, which
    happens in the last step before t = 0, the inner step goes to s and is extended to `down` along the straight line in
    sigma~ through its ends, which is DDIM's path.

    Args:
        sampler: a single-step solver of the flow, such as `DDIM`, `Heun` or `DPMSolverPPSingle`.
        eta: scale of the noise: 0 for the inner sampler itself, 1 for the noise of `q(x_s | x_t, x_0)`.

    Raises:
        UsageError: for eta outside of [0, 1], a multistep sampler, and a schedule that ends at zero SNR.
    """

    def __init__(self, sampler: Sampler[GaussianDenoiser, Schedule], eta: float = 1.0) -> None:
        super().__init__(sampler.denoiser)
        if not 0 <= eta <= 1:
            raise UsageError(f"eta={eta}: give a number from 0, no noise, to 1, ancestral")
        refuse_zero_snr(sampler.corruption)
        self.sampler, self.eta = single_step(sampler), eta

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0 or self.eta == 0:
            return self.sampler.step(x, t, s, generator=generator, **cond)
        kept = float(self.corruption.kept(exact(s), exact(t)))
        down2 = 1 - self.eta**2 * (1 - kept)  # of s^2
        t, s = exact(t), exact(s)
        log_snr = self.corruption.log_snr(s) - math.log(down2)
        low = self.corruption.time(log_snr)
        if abs(float(self.corruption.log_snr(low) - log_snr)) < 1e-6:
            x = self.sampler.step(x, t, low, generator=generator, **cond)
            return self.corruption.diffuse(x, low, s, generator=generator)
        (alpha_t, _), (alpha_s, sigma_s) = self.corruption(t), self.corruption(s)
        above, below = noise_ratio(self.corruption, t), noise_ratio(self.corruption, s)
        beyond = below * (1 - math.sqrt(down2)) / (above - below)  # of the way from t to s
        down = self.sampler.step(x, t, s, generator=generator, **cond)
        down = like(1 + beyond, x) * down - like(beyond * alpha_s / alpha_t, x) * x
        return down + like(sigma_s * math.sqrt(1 - down2), x) * normal_like(x, generator)
