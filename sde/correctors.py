"""Correctors: samplers that take Langevin steps at a fixed time."""

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
from ..shared.gaussian.time_points import TimePoint
from ..shared.grid_values import on_grid
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.tensors import exact, like, per_example

FEWEST_DIMENSIONS = 16
"""Below this many, the norm of one score varies too much to set a step size."""
LARGEST_RATIO = 2.0
"""Largest `||z|| / ||score||` that sets a step of `Langevin`, in units of sqrt(alpha^2 + sigma^2)."""


@serializable("sde.own_norms")
def own_norms(z: Tensor, score: Tensor) -> Tensor:
    """Returns `sqrt(d) / ||score||` of each example, `(B,)`, so that a sample does not depend on its batch.

    z, the noise of the step, and the score are `(B, ...)`, with d numbers an example. sqrt(d) stands for the norm of z:
    steps that grow with the norm of their own noise would inflate the variance. Steps e proportional to
    `1 / ||score||^2` still inflate it: small steps have the stationary distribution `p / e`, which for a Gaussian in d
    dimensions has `1 + 2 / d` times the variance.

    Raises:
        UsageError: below 16 dimensions, where the variance is more than an eighth too large, and steps from points
            where the score is nearly 0 are too long to be of use.
    """
    dims = math.prod(z.shape[1:])
    if dims < FEWEST_DIMENSIONS:
        raise UsageError(
            f"in {dims} dimensions the norm of one score varies too much to set a step size, and the samples' "
            "variance would be too large: take AnnealedLangevin(denoiser), whose step size depends on the noise level "
            "alone, or for many samples Langevin(denoiser, norms=batch_norms)"
        )
    return dims**0.5 / per_example(score, torch.linalg.vector_norm)


@serializable("sde.batch_norms")
def batch_norms(z: Tensor, score: Tensor) -> Tensor:
    """Returns the batch's mean `||z||` over its mean `||score||`, `(B,)`, as in Song et al.'s (2021) code.

    z, the noise of the step, and the score are `(B, ...)`; all examples get the same ratio, so samples of a batch
    depend on each other.

    Raises:
        UsageError: for a batch of fewer than 32 numbers in all, whose mean norm varies too much.
    """
    if z.numel() < 2 * FEWEST_DIMENSIONS:
        raise UsageError(
            f"the mean norm of a batch of {len(z)} in {z[0].numel()} dimensions varies too much to set a step size: "
            "give a larger batch, or take AnnealedLangevin(denoiser), whose step size depends on the noise level alone"
        )
    of_noise, of_score = (per_example(v, torch.linalg.vector_norm).mean() for v in (z, score))
    return of_noise / of_score.expand(len(z))


class LangevinDynamics(Sampler[GaussianDenoiser, Schedule]):
    r"""Langevin dynamics at the time s: `x <- x + e score + sqrt(2 e) z`, `repeats` times; at s = 0 nothing is done.

    A corrector: `step(x, t, s)` takes x at the time s and returns it at the same time; t is the time before. z is
    standard normal noise. The step size is `e = 2 a^2 (snr r)^2` with r from the subclass's `ratio`. a is the factor of
    x in the forward step that ends at s, `alpha_s / alpha_(2 s - t)`: `sqrt(1 - beta)` for a table of betas, 1 where
    alpha is 1.

    Args:
        denoiser: the denoiser whose score is followed.
        snr: signal-to-noise ratio of a step.
        repeats: number of steps at each time of the grid.

    Raises:
        UsageError: for an snr of 0 or below, and for negative repeats.
    """

    def __init__(self, denoiser: GaussianDenoiser, snr: float, repeats: int) -> None:
        super().__init__(denoiser)
        if not snr > 0 or repeats < 0:
            raise UsageError(
                f"snr={snr}, repeats={repeats}: give a positive ratio such as 0.16, and 0 or more Langevin steps"
            )
        self.snr, self.repeats = snr, repeats

    @abstractmethod
    def ratio(self, z: Tensor, score: Tensor, now: TimePoint) -> Tensor | float:
        """Returns r, a value for `||z|| / ||score||`, a scalar or `(B,)`.

        Args:
            z: the noise of the step, `(B, ...)`.
            score: the score at s, `(B, ...)`.
            now: the time s, with its coefficients.
        """

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if float(s) == 0:
            return x
        now, (alpha_below,) = TimePoint(self.corruption, s), on_grid(LangevinDynamics.below, self, t, s)
        unit = 2 * (self.snr * now.alpha / float(alpha_below)) ** 2
        for _ in range(self.repeats):
            estimate, z = self.denoiser.estimate(x, s, **cond), normal_like(x, generator)
            score = estimate.score(x, now.alpha, now.sigma)
            x = langevin_step(x, score, z, self.ratio(z, score, now), unit)
        return x

    def below(self, t: Tensor, s: Tensor) -> tuple[Tensor]:
        """Returns `alpha_(2 s - t)`, float64, of the shape of t."""
        return (self.corruption((2 * exact(s) - exact(t)).clamp(min=0))[0],)


@serializable("sde.Langevin")
class Langevin(LangevinDynamics):
    r"""The Langevin corrector, with step size `e = 2 a^2 (snr ||z|| / ||score||)^2` (Song et al. 2021, algs. 4 and 5).

    A step is `x <- x + e score + sqrt(2 e) z` at the time s, to which the predictor has gone; at s = 0 nothing is done.
    a is the factor of x in the forward step that ends at s: `sqrt(1 - beta)` for a table of betas, 1 for VE.

    The ratio `||z|| / ||score||` is limited to `2 sqrt(alpha^2 + sigma^2)`, so that a score of nearly 0, which an
    untrained network gives, does not make huge steps. A correct score is not limited: `E[-(x - m) . score] = d`, and so
    by Cauchy-Schwarz `sqrt(d / E ||score||^2) <= sqrt(alpha^2 V + sigma^2)` where V is the data's variance, at most 1
    for data in [-1, 1].

    Args:
        denoiser: the denoiser whose score is followed.
        snr: signal-to-noise ratio of a step; 0.16 for VE on CIFAR-10.
        repeats: number of steps at each time of the grid.
        norms: how the ratio `||z|| / ||score||` is found, `(z, score) -> (B,)`: `own_norms`, or `batch_norms` as
            published.

    Raises:
        UsageError: for an snr of 0 or below, and for negative repeats; when it is called, for data or batches that
            `norms` refuses as too small.
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

    def ratio(self, z: Tensor, score: Tensor, now: TimePoint) -> Tensor:
        return self.norms(z, score).clamp(max=LARGEST_RATIO * math.hypot(now.alpha, now.sigma))


@serializable("sde.AnnealedLangevin")
class AnnealedLangevin(LangevinDynamics):
    r"""Annealed Langevin dynamics, with step size `e = 2 a^2 (snr sigma_s)^2` (Song & Ermon 2019, algorithm 1).

    A step is `x <- x + e score + sqrt(2 e) z` at the time s, `repeats` times; at s = 0 nothing is done. a is the factor
    of x in the forward step that ends at s: `sqrt(1 - beta)` for a table of betas, 1 where alpha is 1.

    For data at a single point, `score = -noise / sigma` and `||z|| / ||score||` is sigma: this is `Langevin` with the
    ratio that its norms estimate. As the step size does not depend on x, the only bias comes from finite steps: for a
    Gaussian whose variance at time s is v, the stationary variance is `v / (1 - e / (2 v))`, at most `1 / (1 - snr^2)`
    times too large.

    Song & Ermon write `e_i = epsilon sigma_i^2 / sigma_L^2` with sigma_L the smallest sigma, since they count from the
    largest. That is `snr = sqrt(epsilon / 2) / sigma_L`, which `snr_of(epsilon, sigma_L)` returns. Epsilon here belongs
    to steps `x + e s + sqrt(2 e) z` with the score s, as in their published code and values; in the formula
    of the 2019 paper, `x + alpha s / 2 + sqrt(alpha) z`, the step size alpha is 2 e. With the factor a it is also the
    corrector "annealed Langevin dynamics" of Song et al.'s (2021) code: on VE the step size is equal; on their VP
    chain, where the code combines sigma of the continuous process with alphas of the table, theirs is larger by less
    than 1 % from t = 0.075 on, and by 9 % at t = 1e-3.

    Args:
        denoiser: the denoiser whose score is followed.
        snr: signal-to-noise ratio of a step: 0.316 with 100 repeats for NCSN on CIFAR-10, 0.176 with 5 for NCSNv2.
        repeats: number of steps at each time of the grid.

    Raises:
        UsageError: for an snr of 0 or below, and for negative repeats.
    """

    def __init__(self, denoiser: GaussianDenoiser, snr: float = 0.176, repeats: int = 5) -> None:
        super().__init__(denoiser, snr, repeats)

    def ratio(self, z: Tensor, score: Tensor, now: TimePoint) -> float:
        return now.sigma


def langevin_step(x: Tensor, score: Tensor, z: Tensor, ratio: Tensor | float, unit: float) -> Tensor:
    """Returns `x + e score + sqrt(2 e) z` with the step size `e = unit ratio^2`, of the shape of x.

    Args:
        x, score, z: `(B, ...)`, of one dtype.
        ratio: a number, or a tensor, scalar or `(B,)`.
        unit: the step size for a ratio of 1.
    """
    if not isinstance(ratio, Tensor):
        return torch.add(torch.add(x, score, alpha=unit * ratio**2), z, alpha=math.sqrt(2 * unit) * ratio)
    ratio = like(ratio, x)
    return torch.addcmul(torch.addcmul(x, score, ratio**2, value=unit), z, ratio, value=math.sqrt(2 * unit))


def snr_of(epsilon: float, smallest_sigma: float) -> float:
    """Returns `sqrt(epsilon / 2) / smallest_sigma`, the snr of `AnnealedLangevin` for Song & Ermon's epsilon.

    Epsilon is the step size at the smallest sigma of the schedule, for steps `x + e s + sqrt(2 e) z` with the score s.
    """
    return math.sqrt(epsilon / 2) / smallest_sigma
