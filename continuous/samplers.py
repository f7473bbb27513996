"""Samplers of DDPM and DDIM, on any grid of times."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..shared.calling import warn_in_training
from ..shared.denoiser import accepted_conditions
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import Estimate, GaussianDenoiser
from ..shared.gaussian.guidance import ClassifierGradient
from ..shared.gaussian.schedule import Schedule
from ..shared.gaussian.time_points import TimePoint
from ..shared.grid_values import on_grid
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler, Step
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, exact, factor, like, refuse_non_float
from .posterior import (
    ReverseVariance,
    checked_variance,
    is_number,
    large,
    posterior,
    posterior_coefficients,
    with_step_above,
)


@serializable("continuous.Ancestral")
class Ancestral(Sampler[GaussianDenoiser, Schedule]):
    r"""Ancestral sampling: `x_s ~ N(posterior mean at E[x_0 | x_t], variance)` (Ho et al. 2020, algorithm 2).

    The posterior is `q(x_s | x_t, x_0)`. The last step, to s = 0, returns its mean, the estimate of x_0, without noise.
    With `large` this is the paper's sampler, which Song et al. (2020) call sigma-hat; with `small` it is `DDIM(eta=1)`.

    Args:
        denoiser: the denoiser to sample from; wrap it in `Clipped` to clip x_0 as Ho et al. do.
        variance: `large` (beta_t, Ho et al.'s choice for CIFAR-10), `small` (beta-tilde), `LogInterpolated(share)`, or
            `learned_range` and `learned_diagonal` for networks with a second output.
        gradient: a `ClassifierGradient`: the mean moves by variance x gradient (Dhariwal & Nichol 2021, algorithm 1),
            at the last step too.

    Raises:
        UsageError: for a learned variance of a denoiser without a variance output.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        variance: ReverseVariance = large,
        *,
        gradient: ClassifierGradient | None = None,
    ) -> None:
        super().__init__(denoiser)
        self.variance = checked_variance(variance, denoiser)
        self.gradient = None if gradient is None else gradient.on(denoiser.corruption)

    def begin(self) -> Step:
        above: Tensor | None = None
        if self.gradient is not None:
            warn_in_training(self.gradient.classifier)
        fixed = self.gradient is None and not self.denoiser.has_variance_output
        fixed = fixed and is_number(self.variance, self.corruption)

        def step(x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
            nonlocal above
            if fixed and float(s) == 0:
                return self.denoiser(x, t, **cond)
            if fixed:
                of_x0, of_x_t, deviation = on_grid(Ancestral.coefficients, self, t, s)
                mean = self.denoiser.estimate(x, t, **cond).combined(x, of_x_t, of_x0)
                return torch.add(mean, normal_like(x, generator), alpha=float(deviation))
            mean, variance = self.distribution(x, t, s, above=above, **cond)
            above = t
            return mean if s == 0 else mean + variance.sqrt() * normal_like(x, generator)

        return step

    def coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the factors of x_0 and x_t in the mean, and the standard deviation of a variance that is fixed.

        They are float64, of the shape of t, for s > 0.
        """
        t, s = exact(t), exact(s)
        return *posterior_coefficients(self.corruption, t, s), self.variance(self.corruption, t, s, None).sqrt()

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)

    def distribution(
        self, x: Tensor, t: Tensor, s: Tensor, *, above: Tensor | None = None, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of `p(x_s | x_t)`: the mean of the shape of x, the variance broadcasts against it.

        At s = 0 the variance scales only the classifier gradient, since no noise is added. A fixed one is then the
        value of the step before, which went from the time `above` to t; None for a grid of even steps, `above = 2 t`.
        """
        known = cond if self.gradient is None else accepted_conditions(self.denoiser, cond)
        estimate = self.denoiser.estimate(x, t, **known)
        mean, _ = posterior(self.corruption, x, estimate.mean(x), t, s)
        variance = like(self.variance(*with_step_above(self.corruption, t, s, above), estimate.variance_output), x)
        return mean if self.gradient is None else mean + variance * self.gradient(x, t, **cond), variance


@serializable("continuous.DDIM")
class DDIM(Sampler[GaussianDenoiser, Schedule]):
    r"""DDIM: `x_s = alpha_s x_0 + sqrt(sigma_s^2 - fresh^2) epsilon + fresh z` (Song et al. 2020, eq. 12).

    x_0 is the denoiser's estimate, `epsilon = (x_t - alpha_t x_0) / sigma_t`, and z standard normal noise.
    `fresh = eta sigma_s sqrt(1 - k)` with `k = SNR_t / SNR_s`, which is the paper's `sigma_tau(eta)`. At eta = 0 the
    sampler is an ODE solver of order one; at eta = 1 it is `Ancestral` with the small variance. The last step, to
    s = 0, returns the estimate of x_0.

    Args:
        denoiser: the denoiser to sample from; the paper does not clip its x_0.
        eta: the scale of the fresh noise, from 0, deterministic, to 1, ancestral.

    Raises:
        UsageError: for eta outside of [0, 1].
    """

    def __init__(self, denoiser: GaussianDenoiser, eta: float = 0.0) -> None:
        super().__init__(denoiser)
        if not 0 <= eta <= 1:
            raise UsageError(f"eta={eta}: give a number from 0, deterministic, to 1, ancestral")
        self.eta, self.order = eta, 1 if eta == 0 else None

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if self.eta == 0 and s.ndim == 0 and float(s) == 0:
            return self.denoiser(x, t, **cond)
        of_x, of_x0, fresh = on_grid(DDIM.coefficients, self, t, s)
        mean = estimate_through_hooks(self.denoiser, x, t, **cond).combined(x, of_x, of_x0)
        return mean if self.eta == 0 else mean + factor(fresh, x) * normal_like(x, generator)

    def coefficients(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the factors of x_t and x_0 in the mean, and the standard deviation `fresh`, float64, of t's shape.

        With `epsilon = (x_t - alpha_t x_0) / sigma_t` and `r = sqrt(sigma_s^2 - fresh^2)` the factors are
        `r / sigma_t` and `alpha_s - r alpha_t / sigma_t`.
        """
        t, s = exact(t), exact(s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.corruption(t), self.corruption(s)
        fresh = self.eta * sigma_s * (1 - self.corruption.kept(s, t)).sqrt() if self.eta else torch.zeros_like(t)
        of_x = ((sigma_s**2 - fresh**2).sqrt() if self.eta else sigma_s) / sigma_t
        return of_x, alpha_s - of_x * alpha_t, fresh


@torch.no_grad()
def encode(denoiser: GaussianDenoiser, x0: Tensor, steps: int | Tensor, **cond: Any) -> Tensor:
    """Returns the x_1 from which `DDIM(denoiser)` on the same grid returns about x_0: DDIM in reverse.

    x_1 is the state at the largest time of the grid, of the shape of x_0. Song et al. 2020, section 5.4. x_0 is taken
    as x at the smallest noisy time of the grid, where the noise is too small to matter.

    Args:
        denoiser: the denoiser to encode with.
        x0: real numbers, `(B, ...)`.
        steps: a number of steps, two or more, or a decreasing grid of times that ends with 0.
        cond: conditions, by name.

    Raises:
        UsageError: for fewer than two steps.
    """
    x0 = at_least_float32(refuse_non_float(x0, "x0"))
    warn_in_training(denoiser)
    sampler = DDIM(denoiser)
    grid = sampler.times(steps).flip(0)
    grid, x = grid[grid > 0], x0
    if len(grid) < 2:
        raise UsageError(
            f"steps={steps}: encoding goes from the smallest noisy time of the grid to the largest, "
            "so give two steps or more"
        )
    for s, t in pairwise(grid):
        x = sampler.step(x, s, t, **cond)
    return x


def clean_and_noise(denoiser: GaussianDenoiser, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
    """Returns the estimate of x_0 and the epsilon with `x_t = alpha_t x_0 + sigma_t epsilon`, of the shape of x."""
    now, estimate = TimePoint(denoiser.corruption, t), estimate_through_hooks(denoiser, x, t, **cond)
    return estimate.mean(x), estimate.combined(x, 1.0, -now.alpha) / now.sigma  # divided last: small differences stay


def estimate_through_hooks(denoiser: GaussianDenoiser, x: Tensor, t: Tensor, **cond: Any) -> Estimate:
    """Returns the denoiser's estimate; of a denoiser with hooks that of a call, which runs and obeys them."""
    if denoiser._forward_hooks or denoiser._forward_pre_hooks:
        return Estimate.of_mean(denoiser(x, t, **cond))
    return denoiser.estimate(x, t, **cond)
