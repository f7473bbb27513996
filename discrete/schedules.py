"""Noise schedules of categorical diffusion: the expected number of noise events of a token by time t.

A noise event is one resampling of a token (`Uniform`, `Absorbing`), or one unit of time of a random walk. `linear`,
`cosine` and `reciprocal` return tables beta_1..beta_T, float64: the probability that a step resamples a token. The
classes are schedules in continuous time, and `TabulatedNoise` a table of T steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.tensors import Table, exact
from ..shared.values import equal, hash_of_type, keep_inherited, notation


class NoiseSchedule(ABC):
    r"""A noise schedule: `total(t) = int_0^t rate(r) dr`, the expected number of noise events of a token by time t.

    In the papers: `total` is SEDD's sigma-bar and `rate` its sigma, and `exp(-total(t))` is alpha_t of MDLM, the
    probability that a token has met no event by time t; on a table it is the product of `1 - beta`. `total(0) = 0`. An
    event of `Uniform` or `Absorbing` resamples the token; `GaussianTarget` and `NearestNeighbor` have
    `Q_(s->t) = exp((total(t) - total(s)) R)` with a matrix R of rates. Times are in [0, 1].

    Attributes:
        steps: T of a table, whose rows are at t = n / T; None in continuous time.
        t_min: the smallest time that training and bounds visit in continuous time; below it x_0 is coded by
            `p(x_0 | x_t_min)`.
    """

    steps: int | None = None
    t_min: float = 1e-3
    __eq__, __hash__, __repr__ = equal, hash_of_type, notation

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keep_inherited(cls)

    @abstractmethod
    def total(self, t: Tensor) -> Tensor:
        """Returns the expected number of events of a token by time t, in [0, inf], of the shape of `t`, float64."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """Returns the expected events per unit of time, `d total / dt`, of the shape of `t`, float64."""

    @abstractmethod
    def time(self, total: Tensor) -> Tensor:
        """Returns the t with `total(t) = total`, float64, of the shape of `total`: the inverse of `total`.

        On a table it is the first row n / T with at least that many events. Numbers beyond the schedule's own give an
        end of [0, 1].
        """


@serializable("discrete.TabulatedNoise", formerly="unnoise.discrete.schedules.Steps")
class TabulatedNoise(NoiseSchedule):
    """A table of T steps by the events of each, `-log(1 - beta_n)` where a step resamples with probability beta_n.

    `total(n / T)` is the sum of the events of steps 1 to n; times between rows are rounded to the nearest row.

    Args:
        events: the expected number of events of a token in each step, `(T,)`, positive; infinite (beta = 1) at the last
            step only.

    Raises:
        UsageError: for other numbers, and from `rate`, which a table does not have.
    """

    steps: int

    def __init__(self, events: Tensor) -> None:
        events = events.detach().double()
        if events.ndim != 1 or not len(events) or not bool((events > 0).all() & torch.isfinite(events[:-1]).all()):
            raise UsageError(
                "events must be positive, one number for each step, and infinite (beta = 1) at the last step only, "
                "such as -torch.log1p(-reciprocal(1000))"
            )
        self.events, self.steps = events, len(events)
        self._total = Table(torch.cat([events.new_zeros(1), events.cumsum(0)]))

    def total(self, t: Tensor) -> Tensor:
        return self._total[torch.round(exact(t) * self.steps).long()]

    def rate(self, t: Tensor) -> Tensor:
        raise UsageError(
            f"a table of {self.steps} steps has no rate: take a schedule in continuous time, such as LogLinearNoise()"
        )

    def time(self, total: Tensor) -> Tensor:
        row = torch.searchsorted(self._total.on(total.device), exact(total).contiguous()).clamp(max=self.steps)
        return row.double() / self.steps


@serializable("discrete.LogLinearNoise", formerly="unnoise.discrete.schedules.LogLinear")
@dataclass(frozen=True)
class LogLinearNoise(NoiseSchedule):
    """`exp(-total) = 1 - (1 - eps) t`: each token's first event is at a uniform time (Lou et al. 2024).

    It is also the schedule of Sahoo et al. 2024: alpha_t of MDLM is `exp(-total(t))`.

    Attributes:
        eps: the share of tokens without an event by t = 1; 0 leaves none, as `reciprocal` does in T steps, and
            `total(1)` and `rate(1)` are then infinite.
        t_min: the smallest time that training and bounds visit.
    """

    eps: float = 1e-3
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        refuse_numbers(0 <= self.eps < 1 and 0 < self.t_min < 1, self)

    def total(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1 - self.eps) * exact(t))

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) / (1 - (1 - self.eps) * exact(t))

    def time(self, total: Tensor) -> Tensor:
        return (-torch.expm1(-exact(total)) / (1 - self.eps)).clamp(max=1)


@serializable("discrete.GeometricNoise", formerly="unnoise.discrete.schedules.Geometric")
@dataclass(frozen=True)
class GeometricNoise(NoiseSchedule):
    """`total = low^(1-t) high^t` for t > 0, and 0 at t = 0: SEDD's schedule for the uniform process.

    Lou et al. 2024, appendix C.2. `total` is the expected number of resamplings of a token by time t, SEDD's sigma-bar,
    and `rate = total log(high / low)` its sigma.

    Attributes:
        low: the expected number of events as t goes to 0, SEDD's sigma_min; the jump from 0 to it is at t = 0.
        high: the expected number of events by t = 1, SEDD's sigma_max.
        t_min: the smallest time that training and bounds visit.

    Raises:
        UsageError: unless `0 < low < high` and `0 < t_min < 1`.
    """

    low: float = 1e-4
    high: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        refuse_numbers(0 < self.low < self.high and 0 < self.t_min < 1, self)

    def total(self, t: Tensor) -> Tensor:
        t = exact(t)
        return torch.where(t > 0, torch.exp((1 - t) * math.log(self.low) + t * math.log(self.high)), 0.0)

    def rate(self, t: Tensor) -> Tensor:
        return self.total(t) * math.log(self.high / self.low)

    def time(self, total: Tensor) -> Tensor:
        return ((exact(total).log() - math.log(self.low)) / math.log(self.high / self.low)).clamp(0, 1)


@serializable("discrete.ExponentialNoise", formerly="unnoise.discrete.schedules.Exponential")
@dataclass(frozen=True)
class ExponentialNoise(NoiseSchedule):
    """`total = scale (base^t - 1)`, `rate = scale log(base) base^t`: tauLDR's schedule for images (scale 3, base 100).

    Campbell et al. 2022. The matrix of rates of the process, such as `GaussianTarget`, is multiplied by `rate`.

    Attributes:
        scale: the factor of the formula, above 0.
        base: the base of the exponential, above 1: the rate grows by this factor from t = 0 to t = 1.
        t_min: the smallest time that training and bounds visit.
    """

    scale: float = 3.0
    base: float = 100.0
    t_min: float = 1e-2

    def __post_init__(self) -> None:
        refuse_numbers(self.scale > 0 and self.base > 1 and 0 < self.t_min < 1, self)

    def total(self, t: Tensor) -> Tensor:
        return self.scale * torch.expm1(exact(t) * math.log(self.base))

    def rate(self, t: Tensor) -> Tensor:
        return self.scale * math.log(self.base) * torch.exp(exact(t) * math.log(self.base))

    def time(self, total: Tensor) -> Tensor:
        return (torch.log1p(exact(total) / self.scale) / math.log(self.base)).clamp(max=1)


@serializable("discrete.CosineNoise", formerly="unnoise.discrete.schedules.Cosine")
@dataclass(frozen=True)
class CosineNoise(NoiseSchedule):
    """`exp(-total) = f(t) / f(0)`, `f(t) = cos((t + 0.008) / 1.008 pi/2)`: the limit of `cosine(T)` for many steps.

    The rate is infinite at t = 1, by which every token has met an event.

    Attributes:
        t_min: the smallest time that training and bounds visit.
    """

    t_min: float = 1e-3

    def total(self, t: Tensor) -> Tensor:
        return (math.log(math.cos(0.008 / 1.008 * math.pi / 2)) - torch.cos(self._angle(t)).log()).clamp(min=0)

    def rate(self, t: Tensor) -> Tensor:
        # At t = 1 the tangent is infinite, and in floating point a large number.
        return torch.where(exact(t) < 1, math.pi / (2 * 1.008) * torch.tan(self._angle(t)), torch.inf)

    def time(self, total: Tensor) -> Tensor:
        angle = torch.acos(torch.exp(-exact(total)) * math.cos(0.008 / 1.008 * math.pi / 2))
        return (angle * 1.008 / (math.pi / 2) - 0.008).clamp(0, 1)

    def _angle(self, t: Tensor) -> Tensor:
        return (exact(t) + 0.008) / 1.008 * math.pi / 2


@serializable("discrete.ConstantNoise", formerly="unnoise.discrete.schedules.Constant")
@dataclass(frozen=True)
class ConstantNoise(NoiseSchedule):
    """`total = events t`: a constant rate.

    Attributes:
        events: the expected number of events of a token by t = 1.
        t_min: the smallest time that training and bounds visit.
    """

    events: float = 10.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        refuse_numbers(self.events > 0 and 0 < self.t_min < 1, self)

    def total(self, t: Tensor) -> Tensor:
        return self.events * exact(t)

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(exact(t), self.events)

    def time(self, total: Tensor) -> Tensor:
        return (exact(total) / self.events).clamp(max=1)


def scheduled(schedule: Tensor | NoiseSchedule) -> NoiseSchedule:
    """Returns a table of betas, `(T,)`, as a `TabulatedNoise` with the events `-log(1 - beta_n)`, a schedule as it is.

    Raises:
        UsageError: for anything else, and for betas that `checked_betas` refuses.
    """
    if isinstance(schedule, NoiseSchedule):
        return schedule
    if not isinstance(schedule, Tensor):
        raise UsageError(
            f"schedule={schedule!r}: give a table of betas such as reciprocal(1000), or a NoiseSchedule such as "
            "LogLinearNoise()"
        )
    return TabulatedNoise(-torch.log1p(-checked_betas(schedule)))


def checked_betas(schedule: Tensor | NoiseSchedule) -> Tensor:
    """Returns a table of betas, `(T,)`, in float64, and raises unless all are in (0, 1], and 1 at the last step only.

    Raises:
        UsageError: for any other input.
    """
    if not isinstance(schedule, Tensor):
        raise UsageError(f"schedule={schedule!r}: give the betas of the steps as a tensor, such as linear(1000)")
    betas = schedule.detach().double()
    if betas.ndim != 1 or not len(betas) or not bool((betas > 0).all() & (betas <= 1).all() & (betas[:-1] < 1).all()):
        raise UsageError(
            "the betas of a schedule must be a vector of numbers in (0, 1], 1 at the last step only, such as "
            "reciprocal(1000)"
        )
    return betas


def finite(schedule: NoiseSchedule) -> NoiseSchedule:
    """Returns the schedule, and raises if `total(1)` is infinite, which only `Uniform` and `Absorbing` can represent.

    Raises:
        UsageError: for such a schedule.
    """
    if not bool(torch.isfinite(schedule.total(torch.ones((), dtype=torch.float64)))):
        raise UsageError(
            "the schedule erases all information by its end, as beta = 1 does, which only Uniform and Absorbing can "
            "do: take mutual_information(...), cosine(T) or LogLinearNoise()"
        )
    return schedule


@serializable("discrete.linear")
def linear(steps: int, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Returns betas from `start` to `stop`, evenly spaced, `(T,)`, float64.

    D3PM's Gaussian runs use 1e-4 to 0.02 at T = 1000 and its ablation 0.02 to 1.

    Args:
        steps: T.
        start, stop: beta_1 and beta_T, probabilities for `Uniform`, variances up to a factor for `DiscretizedGaussian`.
    """
    check_steps(steps)
    return torch.linspace(start, stop, steps, dtype=torch.float64)


@serializable("discrete.cosine")
def cosine(steps: int) -> Tensor:
    """Returns `beta_n = min(1 - f(n/T) / f((n-1)/T), 0.999)`, `f(t) = cos((t + 0.008) / 1.008 pi/2)`, `(T,)`.

    beta_n is the probability that step n resamples a token, n = 1..T with T = `steps`; float64. f is not squared: the
    probability to keep a token is the square root of the Gaussian schedule's alpha-bar (Hoogeboom et al. 2021; Austin
    et al. 2021, whose printed formula has a misplaced plus sign).
    """
    check_steps(steps)
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2)
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


@serializable("discrete.reciprocal")
def reciprocal(steps: int) -> Tensor:
    """Returns `beta_n = 1 / (T - n + 1)`, n = 1..T, `(T,)`: each step erases 1/T of the tokens, the last one the rest.

    T is `steps`, beta_n the probability that step n resamples a token, and `prod_(m <= n) (1 - beta_m) = 1 - n / T`;
    float64 (Sohl-Dickstein et al. 2015).
    """
    check_steps(steps)
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


def betas_between(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Returns a schedule in continuous time as a table, `beta_n = 1 - exp(total((n-1)/T) - total(n/T))`, `(T,)`.

    T is `steps`; float64. The process with these betas has the same `q(x_t | x_0)` at the times n / T.
    """
    check_steps(steps)
    return -torch.expm1(-schedule.total(torch.arange(steps + 1, dtype=torch.float64) / steps).diff())


def refuse_numbers(fit: bool, schedule: NoiseSchedule) -> None:
    """Raises an error for a schedule whose events do not increase from 0 or more, or whose t_min is not in (0, 1).

    Args:
        fit: whether the schedule's numbers satisfy this; the error is raised where it is False.
        schedule: named in the message.

    Raises:
        UsageError: where `fit` is False.
    """
    if not fit:
        raise UsageError(
            f"{schedule}: its events must increase from 0 or more, and t_min must be between 0 and 1; see "
            f"help({type(schedule).__name__})"
        )


def check_steps(steps: int) -> None:
    """Raises an error for a table without steps.

    Raises:
        UsageError: for `steps` below 1.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: a table needs at least one step")
