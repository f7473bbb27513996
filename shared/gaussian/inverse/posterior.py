r"""Denoisers of the posterior `p(x_0 | y)`, y a linear measurement with noise.

Take `x_0 | x_t ~ N(E[x_0 | x_t], V_t)`: the likelihood `p(y | x_t)` is Gaussian then, and by Tweedie's formula and
Bayes' rule

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma_t^2 / alpha_t) J^T A^T (A V_t A^T + sigma_y^2 I)^-1 (y - A E[x_0 | x_t]),

J the Jacobian of the denoiser's mean. The methods differ in V_t.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...gradients import gradients
from ...serialization import serializable
from ...tensors import at_least_float32, exact, like
from ..denoiser import DenoiserWrapper, Estimate, GaussianDenoiser
from ..schedule import Schedule, refuse_zero_snr
from .measurement import Measurement
from .operators import Operator

Spread = Callable[[Tensor], Tensor]


class Posterior(DenoiserWrapper):
    """`E[x_0 | x_t, y]`; a subclass says by how much the measurement moves the mean.

    One evaluation of the network, through which vectors are then pulled back. A gradient reaches `x_t` where it asks
    for one, as a likelihood's does.

    Args:
        denoiser: of the signals, without the measurement; clip the posterior rather than what it is made of, whose
            Jacobian is read.
        operator: A.
        y: the measurement, `(B, ...)`, or one row for all samples.
        noise: sigma_y, the standard deviation of the measurement's noise, in the units of y.
    """

    def __init__(self, denoiser: GaussianDenoiser, operator: Operator, y: Tensor, noise: float) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        if not noise >= 0:
            raise UsageError(f"noise={noise}: give the standard deviation of the measurement's noise, 0 for none")
        self.operator, self.y, self.noise = operator, y, noise
        self.measurement = Measurement(operator, y, denoiser)

    @abstractmethod
    def shift(self, residual: Tensor, covariance: Spread, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`(sigma_t^2 / alpha_t) J^T A^T w`, of the shape of the signal.

        Args:
            residual: `y - A E[x_0 | x_t]`.
            covariance: u to `(sigma_t^2 / alpha_t) J^T u`, one vector-Jacobian product.
            alpha, sigma: of the level, float64, scalar or `(B,)`.
        """

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        # E[x_0 | x_t] is taken less the best multiple of x_t: what is left keeps its digits both near t = 0 and near t
        # = 1.
        whole = x_t.requires_grad
        with gradients(x_t, t, cond) as (x, t, cond):
            alpha, sigma = self.corruption(exact(t))
            share = alpha / (alpha**2 + sigma**2)
            x = x if x.requires_grad else x.detach().requires_grad_()
            inner = self.denoiser.estimate(x, t, **cond)
            rest = inner.combined(x, -share, torch.ones_like(share))
            rest = rest + self._moved_by(rest + like(share, x) * x, x, t, whole)
            variance_output = inner.variance_output
        if not whole:
            rest, variance_output = rest.detach(), None if variance_output is None else variance_output.detach()
        return Estimate(share, torch.ones_like(share), rest, variance_output)

    def _moved_by(self, clean: Tensor, x: Tensor, t: Tensor, whole: bool) -> Tensor:
        alpha, sigma = self.corruption(exact(t))
        gain = like(sigma**2 / alpha, x)

        def covariance(u: Tensor) -> Tensor:
            return gain * torch.autograd.grad(clean, x, u, retain_graph=True, create_graph=whole)[0]

        center = clean if whole else clean.detach()
        return self.shift(self.measurement.residual(center), covariance, alpha, sigma)


@serializable("gaussian.PseudoInverse", formerly="unnoise.shared.inverse.posterior.PseudoInverse")
class PseudoInverse(Posterior):
    r"""`V_t = r_t^2 I`, `r_t^2 = s^2 sigma_t^2 / (alpha_t^2 s^2 + sigma_t^2)`: Pi-GDM (Song et al. 2023).

    Exact for data `N(m, s^2 I)`. For Gaussian data whose neighbours have a correlation of 0.9, samples are off by 0.1
    posterior standard deviations in the mean and 20% in the covariance where entries, channels or block means are
    measured, by 0.8 and 10% for random sums. One evaluation of the network and one vector-Jacobian product, by a J that
    is not divided by itself: a network that predicts noise knows J badly where alpha_t is small, so clip the posterior
    to the range of the data.

    Args:
        denoiser, operator, y, noise: as `Posterior`; the noise is in the likelihood, so a noisy y is smoothed and not
            copied.
        deviation: s, of the data, in their units.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, operator: Operator, y: Tensor, noise: float = 0.0, deviation: float = 1.0
    ) -> None:
        super().__init__(denoiser, operator, y, noise)
        if not deviation > 0:
            raise UsageError(f"deviation={deviation}: give the standard deviation of the data, such as 1")
        self.deviation = deviation

    def shift(self, residual: Tensor, covariance: Spread, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (self.deviation * sigma) ** 2 / ((alpha * self.deviation) ** 2 + sigma**2)
        return covariance(self.operator.adjoint(self.operator.solve(residual, variance, self.noise**2)))

    def on(self, schedule: Schedule) -> PseudoInverse:
        return PseudoInverse(self.denoiser.on(schedule), self.operator, self.y, self.noise, self.deviation)


@serializable("gaussian.MomentMatching", formerly="unnoise.shared.inverse.posterior.MomentMatching")
class MomentMatching(Posterior):
    r"""`V_t = Cov[x_0 | x_t] = (sigma_t^2 / alpha_t) J`, by Tweedie's formula of second order (Boys et al. 2023; Rozet
    et al. 2024).

    The linear system is solved by conjugate gradients, as Rozet et al. do: each iteration is one vector-Jacobian
    product, J being symmetric. Exact for every Gaussian law once there are as many iterations as `A V_t A^T` has
    different eigenvalues: samples are then off by their discretisation alone, 11% in the covariance in 200 ancestral
    steps and 4% in 1600 where `PseudoInverse` is off by more. Where a learned J is not positive along a direction, and
    where the residual is nothing but rounding, an example's iteration ends early.

    Args:
        denoiser, operator, y, noise: as `Posterior`; the noise is in the likelihood, and makes the system easier.
        iterations: of conjugate gradients, a fixed number; 1 to 5 for images.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, operator: Operator, y: Tensor, noise: float = 0.0, iterations: int = 3
    ) -> None:
        super().__init__(denoiser, operator, y, noise)
        if iterations < 1:
            raise UsageError(f"iterations={iterations}: give a whole number of at least 1, such as 3")
        self.iterations = iterations

    def shift(self, residual: Tensor, covariance: Spread, alpha: Tensor, sigma: Tensor) -> Tensor:
        direction, total, going = residual, 0.0, True
        square = dot(residual, residual)
        least = square * torch.finfo(square.dtype).eps ** 2
        for _ in range(self.iterations):
            pulled = covariance(self.operator.adjoint(direction))
            image = self.operator(pulled) + self.noise**2 * direction
            curvature = dot(direction, image)
            going = going & (curvature > 0) & (square > least)
            step = torch.where(going, square, 0) / torch.where(going, curvature, 1)
            # V_t A^T w is summed beside w: the solution needs no further product.
            total = total + like(step, pulled) * pulled
            residual = residual - like(step, residual) * image
            before, square = square, dot(residual, residual)
            turn = torch.where(going, square, 0) / torch.where(going, before, 1)
            direction = residual + like(turn, residual) * direction
        return total

    def on(self, schedule: Schedule) -> MomentMatching:
        return MomentMatching(self.denoiser.on(schedule), self.operator, self.y, self.noise, self.iterations)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each example, `(B,)`, float32 or better."""
    return (at_least_float32(a) * at_least_float32(b)).flatten(1).sum(1)
