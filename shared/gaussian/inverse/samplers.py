"""Measurements brought in around the steps of a sampler: older than posterior denoisers, and not exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...gradients import gradients
from ...random import Source
from ...sampler import Sampler, Step, single_step
from .measurement import Measurement
from .operators import Operator


class DPS(Sampler):
    r"""`x_s <- x_s - zeta grad ||y - A E[x_0 | x_t]||` after each step, by x_t (Chung et al. 2023, algorithm 1).

    The gradient is that of the norm, as in the released code: the paper's step size `zeta' / ||y - A E[x_0 | x_t]||` on
    the norm's square is `zeta = 2 zeta'` here. Two evaluations of the network for a step: the sampler's, and one to
    differentiate.

    The noise of the measurement does not enter; zeta stands for it, and the law of the samples is that of no posterior:
    for Gaussian data whose neighbours have a correlation of 0.9, with the best zeta for 200 steps, they are off by 0.1
    posterior standard deviations in the mean and 10 to 40% in the covariance where entries, channels or block means are
    measured, by 4 and 50% for random sums.

    Args:
        sampler: one that does not look back.
        operator: A.
        y: the measurement, `(B, ...)`, or one row for all samples.
        zeta: in units of x_t for a unit of y; it acts at every step, so fewer steps need a larger one.
    """

    def __init__(self, sampler: Sampler, operator: Operator, y: Tensor, zeta: float = 1.0) -> None:
        super().__init__(single_step(sampler).denoiser)
        if not zeta > 0:
            raise UsageError(f"zeta={zeta}: give a step size above 0, such as 1")
        self.sampler, self.operator, self.y, self.zeta = sampler, operator, y, zeta
        self.measurement = Measurement(operator, y, sampler.denoiser)

    def begin(self) -> Step:
        inner = self.sampler.begin()

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            with gradients(x, t, cond) as (start, here, given):
                start = start.detach().requires_grad_()
                residual = self.measurement.residual(self.denoiser(start, here, **given))
                slope = torch.autograd.grad(torch.linalg.vector_norm(residual.flatten(1), dim=1).sum(), start)[0]
            return inner(x, t, s, generator=generator, **cond) - self.zeta * slope

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)


class Replacement(Sampler):
    r"""`x <- x - A^+ A x + A^+ A (alpha_s A^+ y + sigma_s z)` after each step, `A^+ y` itself at s = 0 (Song et al.
    2021, appendix I).

    The measured part of each state is that of the measurement, corrupted to its level; for `Masked` this is
    `editing.Inpainting` (appendix I.2), for `Grey` their colourisation (appendix I.3). No evaluation beside the
    sampler's.

    The noise of the measurement does not enter: y is taken at its word, and `A x = y` at the end where y is in the
    image of A. Not exact: the unmeasured part is sampled given a draw of the measured part at the level of the state,
    and not given y. For Gaussian data whose neighbours have a correlation of 0.9 and measurements with a seventh of
    their deviation as noise, samples are off by 0.6 posterior standard deviations in the mean and 80% in the covariance
    where entries are measured, by 7 and 70% for random sums.

    Args:
        sampler: fills in the rest.
        operator: A.
        y: the measurement, `(B, ...)`, or one row for all samples.
    """

    def __init__(self, sampler: Sampler, operator: Operator, y: Tensor) -> None:
        super().__init__(sampler.denoiser)
        self.sampler, self.operator, self.y, self.looks_back = sampler, operator, y, sampler.looks_back
        self.measurement = Measurement(operator, y, sampler.denoiser)

    def begin(self) -> Step:
        inner, measurement = self.sampler.begin(), self.measurement

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            x = inner(x, t, s, generator=generator, **cond)
            known = measurement.pulled_back(x)
            if s > 0:
                known = measurement.part(self.corruption.corrupt(known, s, generator=generator))
            return x - measurement.part(x) + known

        return step

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)
