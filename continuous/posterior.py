"""The posterior `q(x_s | x_t, x_0)` for any pair of times s < t, and the variances of the reverse process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..shared.blocks import maybe
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.serialization import serializable
from ..shared.tensors import exact, like

ReverseVariance: TypeAlias = Callable[[Schedule, Tensor, Tensor, Tensor | None], Tensor]
"""The variance of `p(x_s | x_t)`, `(schedule, t, s, v) -> variance`, v the network's variance output or None.

At s = 0 the variance of the posterior is 0, but the decoder of the bound needs a positive one: the published code takes
the small variance of the step before. The functions below compute it for the step from 2 t to t, which is the step
before on a grid of even steps; for other grids `with_step_above` returns a schedule on which it is.
"""


def posterior(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns mean and variance of `q(x_s | x_t, x_0)` for any s < t (Ho et al. 2020, eq. 7, for s = t - 1/T).

    With `k = SNR_t / SNR_s`: mean `alpha_s (1 - k) x_0 + sqrt(k) (sigma_s / sigma_t) x_t`, variance
    `sigma_s^2 (1 - k)`. At s = 0 the mean is x_0 itself and the variance 0.

    Args:
        schedule: the schedule of x_t.
        x_t: `(B, ...)`.
        x0: `(B, ...)`.
        t: time of x_t, a scalar or `(B,)`.
        s: time of x_s, a scalar or `(B,)`.

    Returns:
        The mean, of the shape of x_t, and the variance, float64, of the shape of t.
    """
    t, s = exact(t), exact(s)
    of_x0, of_x_t = posterior_coefficients(schedule, t, s)
    return like(of_x0, x_t) * x0 + like(of_x_t, x_t) * x_t, schedule(s)[1] ** 2 * (1 - schedule.kept(s, t))


def posterior_coefficients(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the factors of x_0 and x_t in the posterior's mean, `alpha_s (1 - k)` and `sqrt(k) sigma_s / sigma_t`.

    Both are float64, of the shape of t; `k = SNR_t / SNR_s`.
    """
    (_, sigma_t), (alpha_s, sigma_s), k = schedule(t), schedule(s), schedule.kept(s, t)
    return alpha_s * (1 - k), k.sqrt() * sigma_s / sigma_t


@serializable("continuous.small", formerly="unnoise.continuous.posterior.small")
def small(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
    """Returns the variance of `q(x_s | x_t, x_0)`, `sigma_s^2 (1 - k)`, beta-tilde: optimal for data at one point.

    `k = SNR_t / SNR_s`. At s = 0, where it would be 0, it is the value of the step before, from 2 t to t, as in the
    published code: the last sampling step of a table has t = 1 / T. Where 2 t > 1, as on a table of one row, it is
    sigma_t^2. Float64, of the shape of t. Ho et al. 2020, section 3.2.

    Args:
        schedule: the schedule of x_t.
        t, s: times, s < t, scalars or `(B,)`.
        v: the network's variance output; ignored.
    """
    t, s = exact(t), exact(s)
    above, below = torch.where(s > 0, t, 2 * t), torch.where(s > 0, s, t)
    variance = schedule(below)[1] ** 2 * (1 - schedule.kept(below, above.clamp(max=1.0)))
    return torch.where(above > 1 + 1e-9, schedule(t)[1] ** 2, variance)  # a chain of one step has no step above


@serializable("continuous.large", formerly="unnoise.continuous.posterior.large")
def large(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
    """Returns `sigma_t^2 (1 - k)`, which is beta_t for one step of a table: optimal for data of unit variance.

    `k = SNR_t / SNR_s`. At s = 0 it is `small`, as in the published code; for the arguments see `small`. Float64, of
    the shape of t. Ho et al. 2020, section 3.2.
    """
    variance, last = forward_variance(schedule, t, s), exact(s) <= 0
    return torch.where(last, small(schedule, t, s), variance) if maybe(last.any()) else variance


@serializable("continuous.LogInterpolated", formerly="unnoise.continuous.posterior.LogInterpolated")
@dataclass(frozen=True)
class LogInterpolated:
    """The variance `large^share small^(1 - share)` (Ho & Salimans 2022, section 3).

    `large = sigma_t^2 (1 - k)`, `small = sigma_s^2 (1 - k)`, `k = SNR_t / SNR_s`. A call has the same arguments as one
    of `small`, `(schedule, t, s, v)`; v, the network's variance output, is ignored. At s = 0 the result is `small`,
    since `large` returns `small` there.

    Attributes:
        share: 0 for small, 1 for large; 0.3 for ImageNet 64 and 0.2 for ImageNet 128 in the paper, which calls it v.
    """

    share: float

    def __call__(self, schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
        """Returns the variance of `p(x_s | x_t)`, float64, of the shape of t."""
        return torch.exp(torch.lerp(small(schedule, t, s).log(), large(schedule, t, s).log(), self.share))


@serializable("continuous.learned_range", formerly="unnoise.continuous.posterior.learned_range")
def learned_range(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None) -> Tensor:
    """Returns `exp(w log beta + (1 - w) log beta-tilde)`, `w = (v + 1) / 2` not clamped, of the shape of v.

    v is the network's variance output, of the shape of x_t. beta is `sigma_t^2 (1 - SNR_t / SNR_s)`, at s = 0 too, and
    beta-tilde is `small(schedule, t, s)`. Nichol & Dhariwal 2021, eq. 15.

    Raises:
        UsageError: for v = None, the output of a network without a variance output.
    """
    v = _given(v)
    low, high = (like(c.log(), v) for c in (small(schedule, t, s), forward_variance(schedule, t, s)))
    return torch.exp(low + (v + 1) / 2 * (high - low))


@serializable("continuous.learned_diagonal", formerly="unnoise.continuous.posterior.learned_diagonal")
def learned_diagonal(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None) -> Tensor:
    """Returns `exp(v)`, of the shape of v (Ho et al. 2020, table 2: unstable with noise prediction).

    v is the network's variance output, of the shape of x_t; schedule and times are ignored.

    Raises:
        UsageError: for v = None, the output of a network without a variance output.
    """
    return torch.exp(_given(v))


class LastTwoSteps(Schedule):
    """A table of two steps made of two times t < above of a schedule: the last two noisy times of a sampling grid.

    Its time 0.5 is t, its time 1 is `above`, and at 0 the signal is clean.
    """

    t_min = t_last = 0.5

    def __init__(self, schedule: Schedule, t: Tensor, above: Tensor) -> None:
        self.schedule, self.pair, self.steps = schedule, torch.stack([exact(t), exact(above)]), 2

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule(self._own(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(self._own(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.where(log_snr < self.log_snr(torch.tensor(0.5)), 1.0, 0.5)

    def _own(self, t: Tensor) -> Tensor:
        t = exact(t)
        return torch.where(t <= 0, 0.0, torch.where(t <= 0.5, self.pair[0], self.pair[1]))


def with_step_above(schedule: Schedule, t: Tensor, s: Tensor, above: Tensor | None) -> tuple[Schedule, Tensor, Tensor]:
    """Returns the `(schedule, t, s)` to give to a variance where the sampler's previous step went from `above` to t.

    At s = 0 these are a table of the times t and `above` with t = 1/2, on which the step before goes from 2 t to t (see
    `small`). At s > 0, and for `above = None`, a grid of even steps, the arguments are returned unchanged.
    """
    if s > 0 or above is None:
        return schedule, t, s
    half, zero = torch.tensor(0.5, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return LastTwoSteps(schedule, t, above), half, zero


def forward_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Returns `sigma_t^2 (1 - k)`, the variance of `q(x_t | x_s)`: beta_t for one step of a table, at s = 0 too.

    `k = SNR_t / SNR_s`. Float64, of the shape of t.
    """
    t, s = exact(t), exact(s)
    return schedule(t)[1] ** 2 * (1 - schedule.kept(s, t))


def checked_variance(variance: ReverseVariance, denoiser: GaussianDenoiser) -> ReverseVariance:
    """Returns the variance, and raises if it needs a variance output that the denoiser does not have.

    Raises:
        UsageError: for a learned variance of such a denoiser, and for a variance that is not callable.
    """
    if not callable(variance):
        raise UsageError(
            f"variance={variance!r}: give a function, such as small, large, LogInterpolated(0.3) or learned_range"
        )
    t = torch.full((), denoiser.corruption.t_last, dtype=torch.float64)
    variance(denoiser.corruption, t, torch.zeros_like(t), torch.zeros(1, 1) if denoiser.has_variance_output else None)
    return variance


def reads_network(variance: ReverseVariance, denoiser: GaussianDenoiser) -> bool:
    """Returns whether the variance is learned: whether it needs the network's variance output v, and refuses None."""
    t = torch.full((), denoiser.corruption.t_last, dtype=torch.float64)
    try:
        variance(denoiser.corruption, t, torch.zeros_like(t), None)
    except UsageError:
        return True
    return False


def is_number(variance: ReverseVariance, schedule: Schedule) -> bool:
    """Returns whether a variance that is not learned is one number for a step, not one for each channel or pixel."""
    t = torch.full((), schedule.t_last, dtype=torch.float64)
    return not variance(schedule, t, torch.zeros_like(t), None).ndim


def _given(v: Tensor | None) -> Tensor:
    if v is None:
        raise UsageError(
            "a learned reverse variance needs a network with a second output for each channel, and this one has none: "
            "build it with outputs=2, or take the variance small or large"
        )
    return v
