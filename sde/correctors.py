"""Correctors, which stay at a level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shared.denoiser import GaussianDenoiser
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler
from ..shared.tensors import exact, like, per_example


def own_norms(z: Tensor, score: Tensor) -> Tensor:
    """`sqrt(d) / ||score||` of each example, `(B,)`: a sample then does not depend on its batch.

    The noise stands with the norm that it has in the mean, since a step that grows with the length of its own noise inflates the
    variance. What is left comes from steps `e ~ 1 / ||score||^2`: their stationary law is `p / e`, which for a
    Gaussian in d dimensions has `1 + 2 / d` times the variance.
    """
    return z[0].numel() ** 0.5 / per_example(score, torch.linalg.vector_norm)


def batch_norms(z: Tensor, score: Tensor) -> Tensor:
    """The batch's mean `||z||` over its mean `||score||`, as in Song et al.'s (2021) code: samples of a batch then depend on each other."""
    return per_example(z, torch.linalg.vector_norm).mean() / per_example(score, torch.linalg.vector_norm).mean().expand(len(z))


class Langevin(Sampler):
    r"""`x <- x + e score + sqrt(2 e) z` at the level s (Song et al. 2021, algorithms 4 and 5), with `e = 2 a^2 (snr ||z|| / ||score||)^2`.

    a is the factor of the chain's step that ends at s: `sqrt(1 - beta)` for a table, 1 for VE.

    Args:
        denoiser: gives the score.
        snr: signal-to-noise ratio of a step; 0.16 for VE on CIFAR-10.
        repeats: steps at each level.
        norms: the ratio `||z|| / ||score||`: `own_norms`, or `batch_norms` as published.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, snr: float = 0.16, repeats: int = 1, norms: Callable[[Tensor, Tensor], Tensor] = own_norms
    ) -> None:
        super().__init__(denoiser)
        self.snr, self.repeats, self.norms = snr, repeats, norms

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return x
        t, s = exact(t), exact(s)
        below = (2 * s - t).clamp(min=0)
        a2 = (self.corruption(s)[0] / self.corruption(below)[0]) ** 2
        for _ in range(self.repeats):
            score, z = self.denoiser.score(x, s, **cond), normal_like(x, generator)
            size = like(2 * like(a2, x) * (self.snr * self.norms(z, score)) ** 2, x)
            x = x + size * score + (2 * size).sqrt() * z
        return x
