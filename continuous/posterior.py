"""The Gaussian posterior of a chain, for any pair of levels, and the variances that its reversal may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.serialization import serializable
from ..shared.tensors import exact, like

ReverseVariance: TypeAlias = Callable[[Schedule, Tensor, Tensor, Tensor | None], Tensor]


def posterior(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of `q(x_s | x_t, x_0)` for any s < t (Ho et al. 2020, eq. 7, for s = t - 1/T).

    With `k = SNR_t / SNR_s`: mean `alpha_s (1 - k) x_0 + sqrt(k) (sigma_s / sigma_t) x_t`, variance
    `sigma_s^2 (1 - k)`. At s = 0 that is x_0 itself with variance 0.

    Args:
        schedule: of x_t.
        x_t, x0: `(B, ...)`.
        t, s: scalars or `(B,)`.

    Returns:
        The mean, of the shape of x_t, and the variance, float64, of the shape of t.
    """
    t, s = exact(t), exact(s)
    of_x0, of_x_t = posterior_coefficients(schedule, t, s)
    return like(of_x0, x_t) * x0 + like(of_x_t, x_t) * x_t, schedule(s)[1] ** 2 * (1 - schedule.kept(s, t))


def posterior_coefficients(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies x_0 and x_t in the posterior's mean, `alpha_s (1 - k)` and `sqrt(k) sigma_s / sigma_t`, float64."""
    (_, sigma_t), (alpha_s, sigma_s), k = schedule(t), schedule(s), schedule.kept(s, t)
    return alpha_s * (1 - k), k.sqrt() * sigma_s / sigma_t


# The variance of the model's step from t to s, `(schedule, t, s, v)`, v the network's variance output or None. At s = 0
# the posterior's own variance is 0, and the model's is that of the decoder, for which the published code takes the
# small one of the step above: from 2 t, on a grid with even steps; for others `lowest_two` gives the schedule in which
# the step above is that of the grid.


@serializable("continuous.small", formerly="unnoise.continuous.posterior.small")
def small(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
    """The posterior's own variance `sigma_s^2 (1 - k)`: beta-tilde, right for data at a single point.

    Ho et al. 2020, section 3.2.
    """
    t, s = exact(t), exact(s)
    above, below = torch.where(s > 0, t, 2 * t), torch.where(s > 0, s, t)
    variance = schedule(below)[1] ** 2 * (1 - schedule.kept(below, above.clamp(max=1.0)))
    return torch.where(above > 1 + 1e-9, schedule(t)[1] ** 2, variance)  # a chain of one step has no step above


@serializable("continuous.large", formerly="unnoise.continuous.posterior.large")
def large(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
    """`sigma_t^2 (1 - k)`: beta_t for one step, right for data of unit variance (Ho et al. 2020, section 3.2).

    At s = 0 the small one.
    """
    return torch.where(exact(s) > 0, forward_variance(schedule, t, s), small(schedule, t, s))


@serializable("continuous.LogInterpolated", formerly="unnoise.continuous.posterior.LogInterpolated")
@dataclass(frozen=True)
class LogInterpolated:
    """`large^share small^(1 - share)` (Ho & Salimans 2022, section 3: 0.3 for ImageNet 64, 0.2 for 128).

    Attributes:
        share: 0 for small, 1 for large.
    """

    share: float

    def __call__(self, schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
        """The variance, float64."""
        return torch.exp(torch.lerp(small(schedule, t, s).log(), large(schedule, t, s).log(), self.share))


@serializable("continuous.learned_range", formerly="unnoise.continuous.posterior.learned_range")
def learned_range(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None) -> Tensor:
    """`exp(w log beta + (1 - w) log beta-tilde)`, `w = (v + 1) / 2`, not clamped (Nichol & Dhariwal 2021, eq.

    15), of the shape of v.
    """
    v = _said(v)
    low, high = (like(c.log(), v) for c in (small(schedule, t, s), forward_variance(schedule, t, s)))
    return torch.exp(low + (v + 1) / 2 * (high - low))


@serializable("continuous.learned_diagonal", formerly="unnoise.continuous.posterior.learned_diagonal")
def learned_diagonal(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None) -> Tensor:
    """`exp(v)` (Ho et al. 2020, table 2: unstable with noise prediction), of the shape of v."""
    return torch.exp(_said(v))


class TwoLevels(Schedule):
    """Two levels of a schedule, t < above, as a table of two steps: what a respaced chain has at its clean end."""

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


def lowest_two(schedule: Schedule, t: Tensor, s: Tensor, above: Tensor | None) -> tuple[Schedule, Tensor, Tensor]:
    """`(schedule, t, s)` for a variance; at s = 0 with the step above t that of a grid, which came from `above`."""
    if s > 0 or above is None:
        return schedule, t, s
    return TwoLevels(schedule, t, above), torch.tensor(0.5, dtype=torch.float64), torch.zeros((), dtype=torch.float64)


def forward_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """`sigma_t^2 (1 - k)`, the variance of `q(x_t | x_s)`: beta_t for one step, also for the first."""
    t, s = exact(t), exact(s)
    return schedule(t)[1] ** 2 * (1 - schedule.kept(s, t))


def fitting(variance: ReverseVariance, denoiser: GaussianDenoiser) -> ReverseVariance:
    """The variance, refused if it reads what the denoiser's network does not say."""
    if not callable(variance):
        raise UsageError(
            f"variance={variance!r}: give an object, such as small, large, LogInterpolated(0.3) or learned_range"
        )
    t = torch.full((), denoiser.corruption.t_last, dtype=torch.float64)
    variance(denoiser.corruption, t, torch.zeros_like(t), torch.zeros(1, 1) if denoiser.has_variance_output else None)
    return variance


def reads_network(variance: ReverseVariance, denoiser: GaussianDenoiser) -> bool:
    """Whether the variance is a learned one."""
    t = torch.full((), denoiser.corruption.t_last, dtype=torch.float64)
    try:
        variance(denoiser.corruption, t, torch.zeros_like(t), None)
    except UsageError:
        return True
    return False


def _said(v: Tensor | None) -> Tensor:
    if v is None:
        raise UsageError(
            "a learned reverse variance needs a network with a second output for each channel: build it with outputs=2, "
            "or take the variance small or large"
        )
    return v
