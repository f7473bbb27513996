"""Gaussian signals of any shape, linear measurements of them, and their posterior in closed form."""

import math

import torch

from unnoise import sde
from unnoise.continuous import Tabulated, linear_betas
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.inverse import Averaged, Gray, Masked, MatrixOperator


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


THIRD = torch.full((3,), 1 / 3)
OPERATORS = {  # with the shape of one signal
    "mask": (lambda: Masked(torch.tensor([[1, 0, 1], [0, 1, 1]])), (2, 3)),
    "mask of a vector": (lambda: Masked(torch.tensor([True, False, False, True, False])), (5,)),
    "mask for all channels": (lambda: Masked(torch.tensor([[True, False, True]])), (2, 1, 3)),
    "gray": (lambda: Gray(THIRD.double()), (3, 2)),
    "uneven gray": (lambda: Gray(torch.tensor([0.3, 0.6, -0.2], dtype=torch.float64)), (3, 1, 2)),
    "gray of a vector": (lambda: Gray(torch.tensor([1.0, 2.0, 0.5, 0.0])), (4,)),
    "averaged": (lambda: Averaged(2), (1, 2, 2)),
    "averaged 1-D": (lambda: Averaged(3), (1, 6)),
    "averaged 3-D": (lambda: Averaged((1, 2, 1)), (1, 1, 4, 1)),
    "averaged vector": (lambda: Averaged(2), (6,)),
    "dense": (lambda: MatrixOperator(normal(3, 5, seed=1)), (5,)),
    "dense on an image": (lambda: MatrixOperator(normal(2, 4, seed=2), (1, 2, 2)), (1, 2, 2)),
    "more than enough": (lambda: MatrixOperator(normal(6, 4, seed=3)), (4,)),
    "rank 1": (lambda: MatrixOperator(torch.outer(normal(3, seed=4), normal(4, seed=5))), (4,)),
}
LARGE = {
    "mask": (Masked(torch.arange(24).reshape(2, 3, 4) % 3 == 0), (2, 3, 4)),
    "each its own mask": (Masked(torch.arange(48).reshape(2, 1, 4, 6) % 5 == 0), (3, 4, 6)),
    "gray": (Gray(torch.tensor([0.3, 0.5, 0.2])), (3, 2, 3, 4)),
    "averaged 2-D": (Averaged((2, 3)), (2, 4, 6)),
    "averaged 3-D": (Averaged(2), (2, 4, 2, 6)),
}


def matrix_of(operator, shape):
    """A, `(m, d)`, column by column."""
    d = math.prod(shape)
    return operator(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1).T


def problem(name):
    make, shape = OPERATORS[name]
    return make(), shape, math.prod(shape)


class Shaped(GaussianDenoiser):
    """`N(mean, covariance)` of signals of any shape."""

    def __init__(self, mean, covariance, schedule, shape):
        super().__init__()
        self.oracle, self.shape, self.corruption = AnalyticGaussian(mean, covariance, schedule), shape, schedule

    def estimate(self, x_t, t, **cond):
        return Estimate.of_mean(self.oracle(x_t.flatten(1), t).reshape(x_t.shape))

    def on(self, schedule):
        return Shaped(self.oracle.mean, self.oracle.covariance, schedule, self.shape)


SCHEDULES = {"vp": sde.VP, "ve": sde.VE, "table": lambda: Tabulated(linear_betas(1000))}


def mean_and_covariance(d, variance=None):
    """A mean and a covariance.

    `variance I`, or correlated, entries of variance 1/2 whose correlation falls as 0.9^distance.
    """
    places = torch.arange(d, dtype=torch.float64)
    covariance = (
        0.5 * 0.9 ** (places[:, None] - places).abs()
        if variance is None
        else variance * torch.eye(d, dtype=torch.float64)
    )
    return 0.5 * normal(d, seed=8), covariance


def conditioned(mean, covariance, observing, noise_covariance, value):
    """Mean `(B, d)` and covariance of a Gaussian given `observing x + noise = value`, `(B, m)`."""
    inverse = torch.linalg.pinv(observing @ covariance @ observing.T + noise_covariance, rtol=1e-13, hermitian=True)
    gain = covariance @ observing.T @ inverse
    return mean + (value - mean @ observing.T) @ gain.T, covariance - gain @ observing @ covariance


def observed(operator, shape, noise, rows=3):
    """A measurement of a draw, one row for all."""
    y = operator(0.8 * normal(1, *shape, seed=9))
    return (y + operator(noise * normal(1, *shape, seed=10))).expand(rows, *y.shape[1:])


def exact_denoised(mean, covariance, a, noise, y, x_t, alpha, sigma):
    """`E[x_0 | x_t, y]` from the joint distribution of (x_0, x_t, y)."""
    d, m = len(mean), len(a)
    observing = torch.cat([alpha * torch.eye(d, dtype=torch.float64), a])
    noises = torch.cat(
        [sigma**2 * torch.ones(d, dtype=torch.float64), noise**2 * torch.ones(m, dtype=torch.float64)]
    ).diag()
    return conditioned(mean, covariance, observing, noises, torch.cat([x_t, y], 1))[0]
