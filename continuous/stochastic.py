"""Noise around any solver: samplers that wrap a sampler."""

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
from ..shared.tensors import exact, like
from .grids import noise_ratio

EDGE = 1e-6  # of a noise level: ends of an interval at a level of the grid are not decided by rounding


class Churned(Sampler[GaussianDenoiser, Schedule]):
    r"""Before each step x is taken back up to `sigma~ (1 + gamma)` by fresh noise (Karras et al. 2022, algorithm 2).

    `gamma = min(S_churn / steps, sqrt(2) - 1)` there. Around `Heun` this is EDM's stochastic sampler. Above the
    schedule's noisiest level there is none to go to, so a run's first step is as without.

    Args:
        sampler: takes the step down.
        gamma: by what share the noise grows.
        low, high: sigma~ between which it does (S_min and S_max).
        noise: scale of the fresh noise (S_noise).
    """

    def __init__(
        self, sampler: Sampler, gamma: float, *, low: float = 0.0, high: float = math.inf, noise: float = 1.0
    ) -> None:
        super().__init__(sampler.denoiser)
        if gamma < 0:
            raise UsageError(f"gamma={gamma}: give the share by which the noise grows, 0 or more, such as 0.4")
        if not low <= high:
            raise UsageError(f"low={low}, high={high}: give the smaller level first")
        refuse_zero_snr(sampler.corruption)
        single_step(sampler)
        self.sampler, self.gamma, self.low, self.high, self.noise = sampler, gamma, low, high, noise

    def begin(self) -> Step:
        return functools.partial(self.advance, self.sampler.begin())

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)

    def advance(self, inner: Step, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """One step, down by `inner`."""
        ratio = float(noise_ratio(self.corruption, t))
        if self.gamma and self.low * (1 - EDGE) <= ratio <= self.high * (1 + EDGE):
            up = self.corruption.time(torch.tensor(-2 * math.log(ratio * (1 + self.gamma)), dtype=torch.float64))
            if up > t:  # at the schedule's end there is no noisier level, and rounding must not make one below it
                kept = like(self.corruption(up)[0] / self.corruption(exact(t))[0], x) * x
                x, t = kept + self.noise * (self.corruption.diffuse(x, t, up, generator=generator) - kept), up
        return inner(x, t, s, generator=generator, **cond)


class Renoised(Sampler[GaussianDenoiser, Schedule]):
    r"""Each step goes below its goal and comes back up by fresh noise: the "ancestral" samplers of k-diffusion.

    In sigma~, `up^2 = eta^2 s^2 (1 - s^2 / t^2)` is the noise that comes back and `down^2 = s^2 - up^2` the level that
    the inner step goes to. Around `DDIM` at eta = 1 this is `Ancestral(variance=small)`; around `DPMSolverPPSingle` it
    is "DPM++ 2S a". Where the schedule has no level as low as `down`, in the step into its last one, the inner step
    goes to s, and the straight line in sigma~ through its ends, which is DDIM's, is followed down from there.

    Args:
        sampler: a single-step solver of the flow.
        eta: 0 for none, 1 for the noise of the posterior.
    """

    def __init__(self, sampler: Sampler, eta: float = 1.0) -> None:
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
