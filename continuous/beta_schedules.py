"""The published tables of betas as schedules: each is constructed from its settings, and is written by them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..shared.errors import UsageError, shown
from ..shared.serialization import serializable
from .betas import (
    constant_betas,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    reciprocal_betas,
    sigmoid_betas,
    warmup_betas,
    zero_terminal,
)
from .schedules import BetaTable


@serializable("continuous.LinearBetas")
@dataclass(frozen=True)
class LinearBetas(BetaTable):
    """Betas that increase linearly from `start` to `stop`, both scaled by 1000 / T (Ho et al. 2020, section 4).

    The schedule of `linear_betas`. The published 1e-4 makes the first noise level (sigma at t = 1 / T, for T = 1000)
    0.01, which suits quantization levels that are 2 / 255 apart; coarser data can start higher.

    Attributes:
        steps: T, the number of steps.
        start: beta_1 at T = 1000.
        stop: beta_T at T = 1000.

    Raises:
        UsageError: where a beta would reach 1, as with 20 steps or fewer at the default `stop`, and where one is not
            above 0.
    """

    steps: int = 1000
    start: float = 1e-4
    stop: float = 0.02

    def table(self) -> Tensor:
        return linear_betas(self.steps, self.start, self.stop)


@serializable("continuous.QuadraticBetas")
@dataclass(frozen=True)
class QuadraticBetas(BetaTable):
    """Squares of numbers evenly spaced from `sqrt(start)` to `sqrt(stop)`, scaled by 1000 / T (Ho et al. 2020, code).

    The schedule of `quadratic_betas`.

    Attributes:
        steps: T, the number of steps.
        start: beta_1 at T = 1000.
        stop: beta_T at T = 1000.

    Raises:
        UsageError: where a beta would reach 1, as with 20 steps or fewer at the default `stop`, and where one is not
            above 0.
    """

    steps: int = 1000
    start: float = 1e-4
    stop: float = 0.02

    def table(self) -> Tensor:
        return quadratic_betas(self.steps, self.start, self.stop)


@serializable("continuous.SigmoidBetas")
@dataclass(frozen=True)
class SigmoidBetas(BetaTable):
    """Betas `start + (stop - start) sigmoid(u)`, u evenly spaced from -6 to 6, scaled by 1000 / T.

    The schedule of `sigmoid_betas`. Song et al. 2020, code.

    Attributes:
        steps: T, the number of steps.
        start: limit of the betas as u goes to -infinity, at T = 1000.
        stop: limit of the betas as u goes to infinity, at T = 1000.

    Raises:
        UsageError: where a beta would reach 1, as with 20 steps or fewer at the default `stop`, and where one is not
            above 0.
    """

    steps: int = 1000
    start: float = 1e-4
    stop: float = 0.02

    def table(self) -> Tensor:
        return sigmoid_betas(self.steps, self.start, self.stop)


@serializable("continuous.ConstantBetas")
@dataclass(frozen=True)
class ConstantBetas(BetaTable):
    """One beta at every step, `value` scaled by 1000 / T (Ho et al. 2020, section 4).

    The schedule of `constant_betas`.

    Attributes:
        steps: T, the number of steps.
        value: beta at T = 1000.

    Raises:
        UsageError: where a beta would reach 1, as with 20 steps or fewer at the default `value`, and where one is not
            above 0.
    """

    steps: int = 1000
    value: float = 0.02

    def table(self) -> Tensor:
        return constant_betas(self.steps, self.value)


@serializable("continuous.WarmupBetas")
@dataclass(frozen=True)
class WarmupBetas(BetaTable):
    """Betas that are linear from `start` to `stop` over the first `share` of the steps, then constant.

    The schedule of `warmup_betas`. Ho et al. 2020, code, where "warmup10" and "warmup50" are shares of 0.1 and 0.5.
    `start` and `stop` are scaled by 1000 / T.

    Attributes:
        steps: T, the number of steps.
        share: the fraction of the steps over which beta rises, from 0 to 1.
        start: beta_1 at T = 1000.
        stop: beta_T at T = 1000.

    Raises:
        UsageError: for a share outside of [0, 1], where a beta would reach 1, as with 20 steps or fewer at the default
            `stop`, and where one is not above 0.
    """

    steps: int = 1000
    share: float = 0.1
    start: float = 1e-4
    stop: float = 0.02

    def table(self) -> Tensor:
        return warmup_betas(self.steps, self.share, self.start, self.stop)


@serializable("continuous.ReciprocalBetas")
@dataclass(frozen=True)
class ReciprocalBetas(BetaTable):
    """Betas `1 / (T - n + 1)`, n = 1..T: each step erases 1 / T of the signal's power (Sohl-Dickstein et al. 2015).

    The schedule of `reciprocal_betas`, "jsd" in Ho et al.'s (2020) code: `alpha_n^2 = 1 - n / T`. The last beta is 1:
    x_T is pure noise, and a network must predict the velocity or the clean signal.

    Attributes:
        steps: T, the number of steps.

    Raises:
        UsageError: below 2 steps.
    """

    steps: int = 1000

    def table(self) -> Tensor:
        return reciprocal_betas(self.steps)


@serializable("continuous.CosineBetas")
@dataclass(frozen=True)
class CosineBetas(BetaTable):
    """The cosine table of Nichol & Dhariwal (2021, eq. 17): `alpha_n^2 = f(n/T) / f(0)`, with betas of at most 0.999.

    The schedule of `cosine_betas`: `f(t) = cos^2((t + s) / (1 + s) pi/2)` and
    `beta_n = min(1 - f(n/T) / f((n-1)/T), 0.999)`. `Cosine` is the schedule in continuous time.

    Attributes:
        steps: T, the number of steps.
        s: offset of the time, 0 or more; a larger one adds more noise in the first steps.

    Raises:
        UsageError: for a negative s, and below 1 step.
    """

    steps: int = 1000
    s: float = 0.008

    def table(self) -> Tensor:
        return cosine_betas(self.steps, self.s)


@serializable("continuous.ZeroTerminal")
@dataclass(frozen=True)
class ZeroTerminal(BetaTable):
    r"""Another table of betas, rescaled to zero SNR at the last step (Lin et al. 2023, algorithm 1).

    The schedule of `zero_terminal`, `alpha_n -> (alpha_n - alpha_T) alpha_1 / (alpha_1 - alpha_T)`. The first step
    keeps its noise level, and x_T is pure noise in training as in sampling. The last beta is 1, so a network must
    predict the velocity or the clean signal.

    Attributes:
        schedule: the table that is rescaled, such as `LinearBetas()`; `steps` is that of this schedule.

    Raises:
        UsageError: for another schedule than a table of betas, and for a table of one step.
    """

    schedule: BetaTable

    def table(self) -> Tensor:
        if not isinstance(self.schedule, BetaTable):
            raise UsageError(
                f"schedule={shown(self.schedule)}: give a table of betas, such as LinearBetas(1000) or Tabulated(betas)"
            )
        return zero_terminal(self.schedule.betas)
