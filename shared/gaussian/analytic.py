"""Denoisers in closed form.

The laws that the tests hold every sampler, bound and likelihood to, and toys to play with.
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
    r"""`E[x_0 | x_t]` of data `N(mean, covariance)` in R^d:
    `mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha mean)`.

    Args:
        mean: `(d,)`.
        covariance: `(d, d)`.
        schedule: how the data are corrupted.
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
    r"""`E[x_0 | x_t]` of data from `sum_m w_m N(mu_m, v_m I)` in R^d; with v = 0, a finite set of points.

    It takes the condition `label`, `(B,)`: the component that x_0 is from.

    Args:
        weights: `(M,)`, summing to one.
        means: `(M, d)`.
        variances: `(M,)`.
        schedule: how the data are corrupted.
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.weights, self.means, self.variances, self.corruption = weights, means, variances, schedule

    conditions = ("label",)

    def _components(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, sigma = (like(c, x_t[..., None]) for c in self.corruption(exact(t)))
        weights, means, variances = (v.to(x_t) for v in (self.weights, self.means, self.variances))
        spread = alpha**2 * variances[:, None] + sigma**2  # (M, 1) or (B, M, 1)
        offset = x_t[:, None] - alpha * means  # (B, M, d)
        log_joint = weights.log() - 0.5 * (offset**2 / spread + (2 * math.pi * spread).log().expand_as(offset)).sum(-1)
        return log_joint, offset, spread, alpha

    def estimate(self, x_t: Tensor, t: Tensor, *, label: Tensor | None = None, **cond: Any) -> Estimate:
        log_joint, offset, spread, alpha = self._components(x_t, t)
        means, variances = self.means.to(x_t), self.variances.to(x_t)
        each = means + alpha * variances[:, None] / spread * offset
        if label is not None:
            return Estimate.of_mean(each[torch.arange(len(each)), label])
        return Estimate.of_mean((log_joint.softmax(1)[..., None] * each).sum(1))

    def log_label(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`log q(label | x_t)`, `(B, M)`: what a perfect classifier of noisy data says."""
        return self._components(x_t, t)[0].log_softmax(1)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`log q(x_t)`, `(B,)`, in nats."""
        return self._components(x_t, t)[0].logsumexp(1)
