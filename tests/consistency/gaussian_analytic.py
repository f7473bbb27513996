"""Expected values for the Gaussian consistency matrix, by quadrature and in closed form.

Their formulas are independent of the package's.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.schedule import TableSchedule
from unnoise.shared.random import Streams
from unnoise.shared.tensors import exact, like

D = torch.float64
ONE = torch.ones((), dtype=D)
WEIGHTS, MEANS, VARIANCES = (torch.tensor(v, dtype=D) for v in ([0.3, 0.7], [-0.8, 0.5], [0.05, 0.2]))
POINTS = torch.tensor([[-1.0], [0.0], [1.0]], dtype=D)  # of three quantization levels on [-1, 1]
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=D)


class Nodes(Streams):
    """A source of noise that returns the nodes of a quadrature at every draw."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def normal(self, shape, dtype, device) -> Tensor:
        return self.z.expand(shape).to(dtype)

    def uniform(self, shape, dtype, device) -> Tensor:
        return torch.full(tuple(shape), 0.25, dtype=dtype)


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Returns nodes and weights of Gauss-Hermite quadrature for a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def quadrature(count: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x_0 of the mixture and noise, `(N, 1)` each, and their weights, `(N,)`."""
    nodes, weights = hermite(count)
    parts = []
    for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True):
        x0, z = torch.meshgrid(m + v.sqrt() * nodes, nodes, indexing="ij")
        parts.append((x0.flatten(), z.flatten(), (w * weights[:, None] * weights).flatten()))
    x0, z, w = (torch.cat(p) for p in zip(*parts, strict=True))
    return x0[:, None], z[:, None], w


def mixture(schedule) -> AnalyticMixture:
    """Returns the exact denoiser of the mixture."""
    return AnalyticMixture(WEIGHTS, MEANS[:, None], VARIANCES, schedule)


def points(schedule) -> AnalyticMixture:
    """Returns the exact denoiser of three points."""
    return AnalyticMixture(SHARES, POINTS, torch.zeros(3, dtype=D), schedule)


def gaussian(schedule, mean=0.4, variance=0.5) -> AnalyticGaussian:
    """Returns the exact denoiser of a Gaussian."""
    return AnalyticGaussian(torch.tensor([mean], dtype=D), torch.tensor([[variance]], dtype=D), schedule)


class Perturbed(GaussianDenoiser):
    """A denoiser plus `theta h(x / sqrt(alpha^2 + sigma^2))`, theta a parameter, with a variance output v."""

    def __init__(self, base: GaussianDenoiser, h, theta: float = 0.0, v=None) -> None:
        super().__init__()
        self.base, self.h, self.v, self.corruption = base, h, v, base.corruption
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=D))
        self.has_variance_output = v is not None

    def estimate(self, x_t: Tensor, t: Tensor, **cond) -> Estimate:
        scale = torch.hypot(*self.corruption(exact(t)))
        mean = self.base(x_t, t, **cond) + self.theta * self.h(x_t / like(scale, x_t))
        return Estimate.of_mean(mean, None if self.v is None else self.v(x_t, t))

    def on(self, schedule):
        return Perturbed(self.base.on(schedule), self.h, float(self.theta), self.v)


def mean_and_variance(denoiser, x, t, **cond):
    """Returns `E[x_0 | x_t]` and the variance output."""
    found = denoiser.estimate(x, t, **cond)
    return found.mean(x), found.variance_output


CHANGES = [torch.ones_like, torch.tanh, lambda x: torch.cos(2 * x)]


def wrong(schedule, theta: float = 0.3) -> Perturbed:
    """Returns a denoiser with an error of cosine shape."""
    return Perturbed(mixture(schedule), CHANGES[2], theta)


def coefficients(schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns alpha_t and sigma_t, float64."""
    return schedule(exact(t))


def derivatives(schedule, t: Tensor, h: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the derivatives of alpha, sigma and the log-SNR by finite differences, from below t.

    At a table's first row, below which nothing changes, they are from above.
    """
    t = exact(t)
    below, here = (t, t + h) if isinstance(schedule, TableSchedule) and t * schedule.steps < 1.5 else (t - h, t)
    (a0, s0), (a1, s1) = schedule(below), schedule(here)
    return (a1 - a0) / h, (s1 - s0) / h, (schedule.log_snr(here) - schedule.log_snr(below)) / h


def conditional(schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the factors of x_0 and x_t in the mean of `q(x_s | x_t, x_0)`, and its variance, by Bayes' rule."""
    (a_t, s_t), (a_s, s_s) = coefficients(schedule, t), coefficients(schedule, s)
    a = a_t / a_s
    noise = s_t**2 - a**2 * s_s**2
    variance = 1 / (a**2 / noise + 1 / s_s**2)
    return variance * a_s / s_s**2, variance * a / noise, variance


def reverse_variance(name: str, schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
    """Returns the reverse variance of that name; at s = 0 with the posterior's of the step from 2 t to t."""
    (a_t, s_t), (a_s, s_s) = coefficients(schedule, t), coefficients(schedule, s)
    if s > 0:
        large, small = s_t**2 - (a_t / a_s) ** 2 * s_s**2, conditional(schedule, t, s)[2]
        beta = large
    else:
        small = s_t**2 if t > 0.5 + 1e-9 else conditional(schedule, 2 * t, t)[2]
        large, beta = small, s_t**2
    if name == "LogInterpolated":
        return large**0.3 * small**0.7
    if name == "learned_range":
        return torch.exp((v + 1) / 2 * beta.log() + (1 - v) / 2 * small.log())
    return {"small": small, "large": large, "learned_diagonal": None if v is None else v.exp()}[name]


def cells_of(mean: Tensor, std: Tensor, edges=(-0.5, 0.5)) -> Tensor:
    """Returns the probabilities of the bins of three quantization levels under a Gaussian, `(..., 3)`."""
    cut = [torch.special.ndtr((edge - mean) / std) for edge in edges]
    return torch.stack([cut[0], cut[1] - cut[0], 1 - cut[1]], -1)


def normal_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Returns the density of a Gaussian."""
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance).sqrt()


def outputs_of(denoiser: GaussianDenoiser, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the denoiser's mean and variance output at scalars x, `(N,)` each."""
    mean, v = mean_and_variance(denoiser, x[:, None], t)
    return mean[:, 0], None if v is None else v[:, 0]


@torch.no_grad()
def chain_distribution(denoiser: GaussianDenoiser, variance: str, times: list[Tensor]) -> Tensor:
    """Returns `P(k)` of the three quantization levels for the chain of `Ancestral` and the decoder, by quadrature."""
    schedule = denoiser.corruption
    reach = 6.5 * max(1.0, float(coefficients(schedule, ONE)[1])) + 1
    count = int(200 * reach)
    x = torch.linspace(-reach, reach, count, dtype=D)
    density = normal_density(x, torch.zeros((), dtype=D), coefficients(schedule, ONE)[1] ** 2)
    for t, s in itertools.pairwise(times):
        estimate, v = outputs_of(denoiser, x, t)
        v2 = torch.as_tensor(reverse_variance(variance, schedule, t, s, v), dtype=D).expand(count)
        if s == 0:
            return ((density[:, None] * cells_of(estimate, v2.sqrt())).sum(0)) * (x[1] - x[0])
        of_x0, of_x, _ = conditional(schedule, t, s)
        mean = of_x0 * estimate + of_x * x
        density = (density[:, None] * normal_density(x[None], mean[:, None], v2[:, None])).sum(0) * (x[1] - x[0])
    raise AssertionError


@torch.no_grad()
def chain_bound(
    denoiser: GaussianDenoiser, variance: str, times: list[Tensor], k: int, count: int = 200
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns prior, path and data of the bound for level k, as KL divergences in expectation over x_t."""
    schedule, (z, w) = denoiser.corruption, hermite(count)
    x0, (a, s1) = POINTS[k, 0], coefficients(schedule, ONE)
    prior, path = 0.5 * (a * x0 / s1) ** 2, torch.zeros((), dtype=D)
    for t, s in itertools.pairwise(times):
        alpha, sigma = coefficients(schedule, t)
        estimate, v = outputs_of(denoiser, alpha * x0 + sigma * z, t)
        v2 = torch.as_tensor(reverse_variance(variance, schedule, t, s, v), dtype=D)
        if s == 0:
            return prior, path, (w * -cells_of(estimate, v2.sqrt())[:, k].log()).sum()
        of_x0, _, true = conditional(schedule, t, s)
        path = path + (w * 0.5 * (v2.log() - true.log() + (true + (of_x0 * (estimate - x0)) ** 2) / v2 - 1)).sum()
    raise AssertionError


class Unit(Streams):
    """Noise that is 1 at the n-th draw in row n + 2 and 0 elsewhere: the effect of each draw on a linear sampler."""

    def __init__(self, rows: int) -> None:
        self.rows, self.calls = rows, 0

    def normal(self, shape, dtype, device) -> Tensor:
        z = torch.zeros(tuple(shape), dtype=dtype)
        z[2 + self.calls] = 1
        self.calls += 1
        return z

    def uniform(self, shape, dtype, device) -> Tensor:
        raise AssertionError("a Gaussian sampler drew a uniform number")


def end_of(sampler, grid: Tensor, draws: int, std: float) -> tuple[Tensor, Tensor]:
    """Returns mean and variance at the end of a grid, from `N(0, std^2)`, of a sampler linear in x and its noise."""
    x = torch.zeros(2 + draws, 1, dtype=D)
    x[1] = 1
    out = sampler(x, steps=grid, generator=Unit(2 + draws))[:, 0]
    moved = out[1:] - out[0]
    return out[0], (moved[0] * std) ** 2 + (moved[1:] ** 2).sum()


def marginal(schedule, t: Tensor, mean: float = 0.4, variance: float = 0.5) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of x_t for Gaussian data."""
    alpha, sigma = coefficients(schedule, t)
    return alpha * mean, alpha**2 * variance + sigma**2
