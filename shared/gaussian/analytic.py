"""Denoisers in closed form, of Gaussian data and of mixtures of Gaussians.

Tests compare samplers, bounds and likelihoods with them; they also serve as synthetic examples.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..tensors import exact, like
from .denoiser import Estimate, GaussianDenoiser
from .schedule import Schedule


class AnalyticGaussian(GaussianDenoiser):
    r"""The exact denoiser of Gaussian data `N(mean, C)` in R^d.

    `E[x_0 | x_t] = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha mean)`, alpha and sigma at the time t. Called
    with x_t `(B, d)` and t, a scalar or `(B,)`; returns `E[x_0 | x_t]`, `(B, d)`.

    Args:
        mean: mean of the data, `(d,)`.
        covariance: C, the covariance of the data, `(d, d)`.
        schedule: the schedule, which defines alpha_t and sigma_t.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.mean, self.covariance, self.corruption = mean, covariance, schedule
        self.variances, self.axes = torch.linalg.eigh(covariance)

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        alpha, sigma = (like(c, x_t) for c in self.corruption(exact(t)))
        mean, axes, c = (v.to(x_t) for v in (self.mean, self.axes, self.variances))
        gain = alpha * c / (alpha**2 * c + sigma**2)
        return Estimate.of_mean(mean + ((x_t - alpha * mean) @ axes * gain) @ axes.T)


class AnalyticMixture(GaussianDenoiser):
    r"""The exact denoiser of a mixture of Gaussians `sum_m w_m N(mu_m, v_m I)` in R^d; with v = 0, of a set of points.

    Called with x_t `(B, d)`, t, a scalar or `(B,)`, and optionally the condition `label`, int64 `(B,)` from 0 to M - 1:
    the component that x_0 was sampled from. Returns `E[x_0 | x_t]`, or `E[x_0 | x_t, label]`, `(B, d)`.

    Args:
        weights: w, `(M,)`, summing to one.
        means: mu, `(M, d)`.
        variances: v, `(M,)`.
        schedule: the schedule, which defines alpha_t and sigma_t.
    """

    conditions = ("label",)

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.weights, self.means, self.variances, self.corruption = weights, means, variances, schedule

    def _components(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, sigma = (like(c, x_t[..., None]) for c in self.corruption(exact(t)))
        weights, means, variances = (v.to(x_t) for v in (self.weights, self.means, self.variances))
        marginal = alpha**2 * variances[:, None] + sigma**2  # variances of x_t, (M, 1) or (B, M, 1)
        offset = x_t[:, None] - alpha * means  # (B, M, d)
        nats = 0.5 * (offset**2 / marginal + (2 * math.pi * marginal).log().expand_as(offset)).sum(-1)
        return weights.log() - nats, offset, marginal, alpha

    def estimate(self, x_t: Tensor, t: Tensor, *, label: Tensor | None = None, **cond: Any) -> Estimate:
        log_joint, offset, marginal, alpha = self._components(x_t, t)
        means, variances = self.means.to(x_t), self.variances.to(x_t)
        each = means + alpha * variances[:, None] / marginal * offset
        if label is not None:
            return Estimate.of_mean(each[torch.arange(len(each)), label])
        return Estimate.of_mean((log_joint.softmax(1)[..., None] * each).sum(1))

    def log_label(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns `log q(label | x_t)`, `(B, M)`, normalized: the output of a perfect classifier of noisy data."""
        return self._components(x_t, t)[0].log_softmax(1)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the log-density `log q(x_t)` of the mixture with the noise of t, `(B,)`, in nats."""
        return self._components(x_t, t)[0].logsumexp(1)
