r"""Denoisers of the posterior `p(x_0 | y)`, where y is a linear measurement with noise.

If `x_0 | x_t ~ N(E[x_0 | x_t], V_t)`, the likelihood `p(y | x_t)` is Gaussian, and by Tweedie's formula and Bayes' rule

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma_t^2 / alpha_t) J^T A^T (A V_t A^T + sigma_y^2 I)^-1 (y - A E[x_0 | x_t]),

where J is the Jacobian of the denoiser's mean in x_t, A the operator, and sigma_y the standard deviation of the
measurement's noise. The methods differ in the covariance V_t that they take for x_0 given x_t.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from typing_extensions import Self

from ...errors import UsageError
from ...gradients import gradients
from ...serialization import serializable
from ...tensors import at_least_float32, exact, like
from ..denoiser import DenoiserWrapper, Estimate, GaussianDenoiser
from ..schedule import Schedule, refuse_zero_snr
from .measurement import Measurement
from .operators import Operator

CovarianceProduct: TypeAlias = Callable[[Tensor], Tensor]
"""`u -> (sigma_t^2 / alpha_t) J^T u`, of the shape of the signal u, with J the Jacobian of `E[x_0 | x_t]` in x_t."""


class Posterior(DenoiserWrapper):
    """The base class of denoisers `E[x_0 | x_t, y]`; subclasses define the shift of the mean by the measurement.

    Called with x_t `(B, ...)`, a time t and the conditions of the inner denoiser; returns `E[x_0 | x_t, y]`. An
    estimate takes one evaluation of the network, and vector-Jacobian products through it. It is differentiable in x_t
    if that requires a gradient, as for a likelihood.

    Args:
        denoiser: a denoiser of the signals, without the measurement. It should not be clipped, since clipping changes
            its Jacobian; clip the posterior instead.
        operator: A, linear.
        y: the measurement, `(B, ...)`, or one row for all samples.
        noise: sigma_y, the standard deviation of the measurement's noise, in the units of y; 0 for an exact y.

    Raises:
        UsageError: for a schedule that ends at zero SNR, a negative noise, and a y that does not fit A or the network.
    """

    def __init__(self, denoiser: GaussianDenoiser, operator: Operator, y: Tensor, noise: float) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        if not noise >= 0:
            raise UsageError(f"noise={noise}: give the standard deviation of the measurement's noise, 0 for an exact y")
        self.operator, self.y, self.noise = operator, y, noise
        self.measurement = Measurement(operator, y, denoiser)

    @abstractmethod
    def shift(self, residual: Tensor, covariance: CovarianceProduct, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the shift `(sigma_t^2 / alpha_t) J^T A^T w` of the mean, of the shape of the signal.

        w is `(A V_t A^T + sigma_y^2 I)^-1` times the residual, J the Jacobian of `E[x_0 | x_t]` in x_t, and V_t the
        covariance of x_0 given x_t that the subclass assumes.

        Args:
            residual: `y - A E[x_0 | x_t]`, of the shape of the measurement.
            covariance: maps u to `(sigma_t^2 / alpha_t) J^T u`, by one vector-Jacobian product.
            alpha, sigma: alpha_t and sigma_t of the schedule, float64, scalar or `(B,)`.
        """

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        differentiable = x_t.requires_grad
        with gradients(x_t, t, cond) as (x, t, cond):
            x = x if x.requires_grad else x.detach().requires_grad_()
            inner = self.denoiser.estimate(x, t, **cond)
            alpha, sigma = self.corruption(exact(t))
            own = torch.as_tensor(inner.b, dtype=torch.float64, device=sigma.device)
            b = torch.where(sigma > 0, own, torch.inf)  # at sigma = 0 the shift is 0, and b may be 0 too
            out = inner.out + self._moved_by(inner.mean(x), x, alpha, sigma, differentiable) / like(b, x)
            variance_output = inner.variance_output
        if not differentiable:
            out, variance_output = out.detach(), None if variance_output is None else variance_output.detach()
        return Estimate(inner.a, inner.b, out, variance_output)

    def on(self, schedule: Schedule) -> Self:
        refuse_zero_snr(schedule)
        return super().on(schedule)

    def _moved_by(self, clean: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, differentiable: bool) -> Tensor:
        gain = like(sigma**2 / alpha, x)

        def covariance(u: Tensor) -> Tensor:
            return gain * torch.autograd.grad(clean, x, u, retain_graph=True, create_graph=differentiable)[0]

        center = clean if differentiable else clean.detach()
        return self.shift(self.measurement.residual(center), covariance, alpha, sigma)


@serializable("gaussian.PseudoInverse", formerly="unnoise.shared.inverse.posterior.PseudoInverse")
class PseudoInverse(Posterior):
    r"""The posterior with `V_t = r_t^2 I`, `r_t^2 = s^2 sigma_t^2 / (alpha_t^2 s^2 + sigma_t^2)`: Pi-GDM.

    Song et al. 2023. V_t is the covariance taken for x_0 given x_t, and s the standard deviation of the data. It is
    exact for data `N(m, s^2 I)`. For Gaussian data with a correlation of 0.9 between neighbors, the samples have an
    error of 0.1 posterior standard deviations in the mean and of 20% in the covariance if entries, channels or block
    means are measured, and of 0.8 and 10% for random sums. An estimate takes one evaluation of the network and one
    vector-Jacobian product. The shift is linear in J, the Jacobian of `E[x_0 | x_t]`, which is inaccurate for a network
    that predicts noise where alpha_t is small: clip the posterior to the range of the data.

    Args:
        denoiser, operator, y, noise: as in `Posterior`. The noise is part of the likelihood, so samples do not
            reproduce the noise in y.
        deviation: s, the standard deviation of the data.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, operator: Operator, y: Tensor, noise: float = 0.0, deviation: float = 1.0
    ) -> None:
        super().__init__(denoiser, operator, y, noise)
        if not deviation > 0:
            raise UsageError(f"deviation={deviation}: give the standard deviation of the data, such as 1")
        self.deviation = deviation

    def shift(self, residual: Tensor, covariance: CovarianceProduct, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (self.deviation * sigma) ** 2 / ((alpha * self.deviation) ** 2 + sigma**2)
        variance = torch.where(sigma > 0, variance, 1.0)  # at sigma = 0 the shift is 0 for every variance
        return covariance(self.operator.adjoint(self.operator.solve(residual, variance, self.noise**2)))


@serializable("gaussian.MomentMatching", formerly="unnoise.shared.inverse.posterior.MomentMatching")
class MomentMatching(Posterior):
    r"""The posterior with `V_t = Cov[x_0 | x_t] = (sigma_t^2 / alpha_t) J`, by the second-order Tweedie formula.

    Boys et al. 2023; Rozet et al. 2024. J is the Jacobian of `E[x_0 | x_t]` in x_t. The linear system with the matrix
    `A V_t A^T + sigma_y^2 I` is solved by conjugate gradients, as by Rozet et al.; an iteration takes one
    vector-Jacobian product, since J is symmetric. It is exact for every Gaussian distribution if there are as many
    iterations as `A V_t A^T` has different eigenvalues. The samples then have the error of the discretization only: 11%
    in the covariance for 200 ancestral steps and 4% for 1600, on problems where the error of `PseudoInverse` is larger.
    The iteration of an example ends early if a learned J is not positive along a direction, and if the residual is as
    small as rounding errors.

    Args:
        denoiser, operator, y, noise: as in `Posterior`; noise improves the condition number of the system.
        iterations: the number of conjugate gradient iterations; 1 to 5 for images.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, operator: Operator, y: Tensor, noise: float = 0.0, iterations: int = 3
    ) -> None:
        super().__init__(denoiser, operator, y, noise)
        if iterations < 1:
            raise UsageError(f"iterations={iterations}: give a whole number of at least 1, such as 3")
        self.iterations = iterations

    def shift(self, residual: Tensor, covariance: CovarianceProduct, alpha: Tensor, sigma: Tensor) -> Tensor:
        direction, total, going = residual, 0.0, True
        square = dot(residual, residual)
        least = square * torch.finfo(square.dtype).eps ** 2
        for _ in range(self.iterations):
            pulled = covariance(self.operator.adjoint(direction))
            image = self.operator(pulled) + self.noise**2 * direction
            curvature = dot(direction, image)
            going = going & (curvature > 0) & (square > least)
            step = torch.where(going, square, 0) / torch.where(going, curvature, 1)
            # V_t A^T w is summed along with the iteration, so that the solution needs no further product.
            total = total + like(step, pulled) * pulled
            residual = residual - like(step, residual) * image
            before, square = square, dot(residual, residual)
            turn = torch.where(going, square, 0) / torch.where(going, before, 1)
            direction = residual + like(turn, residual) * direction
        return cast(Tensor, total)  # after at least one iteration


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner product of a and b, `(B, ...)`, for each example, `(B,)`, float32 or better."""
    return (at_least_float32(a) * at_least_float32(b)).flatten(1).sum(1)
