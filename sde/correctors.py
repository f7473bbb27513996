"""Correctors, which stay at a level, and their composition with predictors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shared.denoiser import GaussianDenoiser
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler
from ..shared.tensors import exact, like, per_example


def own_norm(x: Tensor) -> Tensor:
    """The norm of each example, `(B,)`: a sample then does not depend on its batch."""
    return per_example(x, torch.linalg.vector_norm)


def batch_norm(x: Tensor) -> Tensor:
    """The mean norm over the batch, `(B,)`, as in Song et al.'s (2021) code: samples of a batch then depend on each other."""
    return own_norm(x).mean().expand(len(x))


class Langevin(Sampler):
    r"""`x <- x + e score + sqrt(2 e) z` at the level s (Song et al. 2021, algorithms 4 and 5), with `e = 2 a^2 (snr ||z|| / ||score||)^2`.

    a is the factor of the chain's step that ends at s: `sqrt(1 - beta)` for a table, 1 for VE.

    Args:
        denoiser: gives the score.
        snr: signal-to-noise ratio of a step; 0.16 for VE on CIFAR-10.
        repeats: steps at each level.
        norm: `own_norm`, or `batch_norm` as published.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, snr: float = 0.16, repeats: int = 1, norm: Callable[[Tensor], Tensor] = own_norm
    ) -> None:
        super().__init__(denoiser)
        self.snr, self.repeats, self.norm = snr, repeats, norm

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return x
        t, s = exact(t), exact(s)
        below = (2 * s - t).clamp(min=0)
        a2 = (self.corruption(s)[0] / self.corruption(below)[0]) ** 2
        for _ in range(self.repeats):
            score, z = self.denoiser.score(x, s, **cond), normal_like(x, generator)
            size = like(2 * like(a2, x) * (self.snr * self.norm(z) / self.norm(score)) ** 2, x)
            x = x + size * score + (2 * size).sqrt() * z
        return x


class PredictorCorrector(Sampler):
    """A predictor to the next level, then a corrector there (Song et al. 2021, algorithm 1).

    Args:
        predictor: any sampler; `DDIM` of the continuous family is one too.
        corrector: a sampler that stays at the level it is given.
    """

    def __init__(self, predictor: Sampler, corrector: Sampler) -> None:
        super().__init__(predictor.denoiser)
        self.predictor, self.corrector = predictor, corrector

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        x = self.predictor.step(x, t, s, generator=generator, **cond)
        return self.corrector.step(x, t, s, generator=generator, **cond)
