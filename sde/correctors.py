"""Correctors, which stay at a level."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler
from ..shared.tensors import exact, like, per_example

FEWEST = 16  # dimensions
LONGEST = 2.0  # steps of Langevin, in units of sqrt(alpha^2 + sigma^2)


def own_norms(z: Tensor, score: Tensor) -> Tensor:
    """`sqrt(d) / ||score||` of each example, `(B,)`: a sample then does not depend on its batch.

    The noise stands with the norm that it has in the mean, since a step that grows with the length of its own noise
    inflates the variance. What is left comes from steps `e ~ 1 / ||score||^2`: for short steps their stationary
    distribution is `p / e`, which for a Gaussian in d dimensions has `1 + 2 / d` times the variance.

    Raises:
        UsageError: below 16 dimensions, where that is more than an eighth too much, and steps where the score is nearly
            0 are too long for any use.
    """
    if z[0].numel() < FEWEST:
        raise UsageError(
            f"in {z[0].numel()} dimensions the norm of one score varies too much to set a step, and samples would spread too far: take "
            "AnnealedLangevin(denoiser), whose steps depend on the level alone, or for many samples Langevin(denoiser, norms=batch_norms)"
        )
    return z[0].numel() ** 0.5 / per_example(score, torch.linalg.vector_norm)


def batch_norms(z: Tensor, score: Tensor) -> Tensor:
    """The batch's mean `||z||` over its mean `||score||`, as in Song et al.'s (2021) code: samples of a batch then
    depend on each other.

    Raises:
        UsageError: for a batch of few numbers, whose mean varies as one norm does.
    """
    if z.numel() < 2 * FEWEST:
        raise UsageError(
            f"the norms of a batch of {len(z)} in {z[0].numel()} dimensions vary too much to set a step: give a larger batch, or take "
            "AnnealedLangevin(denoiser), whose steps depend on the level alone"
        )
    return per_example(z, torch.linalg.vector_norm).mean() / per_example(score, torch.linalg.vector_norm).mean().expand(
        len(z)
    )


class Dynamics(Sampler[GaussianDenoiser, Schedule]):
    r"""Langevin dynamics at the level s: `x <- x + e score + sqrt(2 e) z`, `repeats` times; at s = 0 nothing is done.

    Sub-classes say how long a step is, as a multiple `r` of the level: `e = 2 a^2 (snr r)^2`, where a is the factor of
    the chain's step that ends at s, `sqrt(1 - beta)` for a table and 1 where alpha is.

    Args:
        denoiser: gives the score.
        snr: signal-to-noise ratio of a step.
        repeats: steps at each level.
    """

    def __init__(self, denoiser: GaussianDenoiser, snr: float, repeats: int) -> None:
        super().__init__(denoiser)
        if not snr > 0 or repeats < 0:
            raise UsageError(
                f"snr={snr}, repeats={repeats}: give a positive ratio such as 0.16, and 0 or more steps a level"
            )
        self.snr, self.repeats = snr, repeats

    @abstractmethod
    def ratio(self, z: Tensor, score: Tensor, s: Tensor) -> Tensor:
        """r, the length of the noise over that of the score, a scalar or `(B,)`."""

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return x
        t, s = exact(t), exact(s)
        below = (2 * s - t).clamp(min=0)
        a2 = (self.corruption(s)[0] / self.corruption(below)[0]) ** 2
        for _ in range(self.repeats):
            score, z = self.denoiser.score(x, s, **cond), normal_like(x, generator)
            size = like(2 * like(a2, x) * (self.snr * self.ratio(z, score, s)) ** 2, x)
            x = x + size * score + (2 * size).sqrt() * z
        return x


class Langevin(Dynamics):
    r"""Langevin steps with `e = 2 a^2 (snr ||z|| / ||score||)^2` (Song et al. 2021, algorithms 4 and 5).

    a is the factor of the chain's step that ends at s: `sqrt(1 - beta)` for a table, 1 for VE.

    The ratio `||z|| / ||score||` counts as at most `2 sqrt(alpha^2 + sigma^2)`, so that a score of nearly 0, which an
    untrained network gives, does not make steps without end. A right score is not touched: `E[-(x - m) . score] = d`,
    and so by Cauchy and Schwarz `sqrt(d / E ||score||^2) <= sqrt(alpha^2 V + sigma^2)` where V is the data's variance,
    1 at most for data in [-1, 1].

    Args:
        denoiser: gives the score.
        snr: signal-to-noise ratio of a step; 0.16 for VE on CIFAR-10.
        repeats: steps at each level.
        norms: the ratio `||z|| / ||score||`: `own_norms`, or `batch_norms` as published.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        snr: float = 0.16,
        repeats: int = 1,
        norms: Callable[[Tensor, Tensor], Tensor] = own_norms,
    ) -> None:
        super().__init__(denoiser, snr, repeats)
        self.norms = norms

    def ratio(self, z: Tensor, score: Tensor, s: Tensor) -> Tensor:
        return self.norms(z, score).clamp(max=LONGEST * float(torch.hypot(*self.corruption(s))))


class AnnealedLangevin(Dynamics):
    r"""Langevin steps with `e = 2 a^2 (snr sigma_s)^2`: the step depends on the level alone (Song & Ermon 2019,
    algorithm 1).

    Where the data are a point, `score = -noise / sigma`, and `||z|| / ||score||` is sigma: this is `Langevin` with the
    ratio that its norms estimate. As the step does not depend on x, the dynamics have no bias but that of finite steps:
    where a Gaussian's variance at the level is v, the stationary variance is `v / (1 - e / (2 v))`, at most
    `1 / (1 - snr^2)` times too large.

    Song & Ermon write `e_i = epsilon sigma_i^2 / sigma_L^2` with sigma_L the smallest sigma, since they count from the
    largest. That is `snr = sqrt(epsilon / 2) / sigma_L`, which `snr_of(epsilon, sigma_L)` gives. Epsilon is that of
    this form, `x + e s + sqrt(2 e) z`, in which their released code and their published values are; in the formula of
    the 2019 paper, `x + alpha s / 2 + sqrt(alpha) z`, alpha is 2 e. With the factor a it is also the corrector
    "annealed Langevin dynamics" of Song et al.'s (2021) code: the same number on VE; on their VP chain, whose code
    takes sigma of the continuous process beside alphas of the table, a step that is longer by less than 1 % from t =
    0.075 on, and by 9 % at t = 1e-3.

    Args:
        denoiser: gives the score.
        snr: signal-to-noise ratio of a step: NCSN on CIFAR-10 0.316 with 100 repeats, NCSNv2 0.176 with 5.
        repeats: steps at each level.
    """

    def __init__(self, denoiser: GaussianDenoiser, snr: float = 0.176, repeats: int = 5) -> None:
        super().__init__(denoiser, snr, repeats)

    def ratio(self, z: Tensor, score: Tensor, s: Tensor) -> Tensor:
        return self.corruption(s)[1]


def snr_of(epsilon: float, smallest_sigma: float) -> float:
    """`sqrt(epsilon / 2) / sigma`.

    Song & Ermon's step size at their smallest noise level as the ratio that `AnnealedLangevin` takes.
    """
    return math.sqrt(epsilon / 2) / smallest_sigma
