"""Noise schedules of the DDPM literature: the table of betas, cosine in continuous time, and a shift of the log-SNR."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, TableSchedule, even_grid, segment
from ..shared.serialization import serializable
from ..shared.tensors import Table, as_numbers, exact


class BetaTable(TableSchedule):
    r"""The base class of schedules given by a table of betas.

    Step n = 1..T is at t = n / T, with `alpha_n^2 = prod_(i <= n) (1 - beta_i)` and `sigma_n^2 = 1 - alpha_n^2` (Ho et
    al. 2020, eq. 4). Row n = 0 is the clean signal, so the first step is not a special case; the index in the papers'
    code is n - 1. Called with times; returns alpha_t and sigma_t, of their shape. Between rows the log-SNR is linear in
    t; for 0 < t < 1 / T it is the value of row 1. Where the last beta is 1, alpha falls to 0 over the last step. A
    subclass is a frozen dataclass of its settings with one method, `table`.

    Attributes:
        betas: `(T,)`, float64, each in (0, 1), beta_1 first; the last may be 1 if there are several.
        steps: T, the number of betas.

    Raises:
        UsageError: for betas of another shape or outside of this range.
    """

    betas: Tensor
    steps: int
    _log_snr: Table  # rows 1..T
    _ends_in_noise: bool

    @abstractmethod
    def table(self) -> Tensor:
        """Returns the betas, `(T,)`, from the settings; called once, when the schedule is constructed."""

    def __post_init__(self) -> None:
        betas = as_numbers(self.table(), "betas").detach().cpu().double().clone()
        if betas.ndim != 1 or not len(betas):
            raise UsageError(
                f"betas of shape {tuple(betas.shape)}: give a vector of one or more, such as linear_betas(1000)"
            )
        allowed = (betas > 0) & (betas < 1)
        allowed[1:][-1:] |= betas[1:][-1:] == 1  # the last of several may be 1
        if not allowed.all():
            at, made_by = int(torch.nonzero(~allowed)[0]), "" if isinstance(self, Tabulated) else f"{self}: "
            raise UsageError(
                f"{made_by}betas[{at}]={float(betas[at]):g}: betas must lie between 0 and 1; only the last of several "
                "may be 1"
            )
        log_alpha2 = torch.log1p(-betas).cumsum(0)
        log_snr = Table(log_alpha2 - torch.log(-torch.expm1(log_alpha2)))
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "steps", len(betas))
        object.__setattr__(self, "_log_snr", log_snr)
        object.__setattr__(self, "_ends_in_noise", bool(betas[-1] == 1))

    @property
    def alphas_cumprod(self) -> Tensor:
        """`alpha-bar_1..alpha-bar_T`, the alpha_n^2, `(T,)`, float64."""
        return torch.log1p(-self.betas).cumsum(0).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        low, high, part = segment(t, self.steps)
        if self._ends_in_noise:
            last = low == self.steps - 2
            between = torch.lerp(self._log_snr[low], self._log_snr[torch.where(last, low, high)], part)
            # over the last step alpha / sigma falls in a straight line: 2 log of the share of it that is left
            between = between + 2 * torch.log1p(-torch.where(last, part, 0.0))
        else:
            between = torch.lerp(self._log_snr[low], self._log_snr[high], part)
        return torch.where(t <= 0, torch.inf, between).to(t.dtype)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self.log_snr(exact(t))
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        if self._ends_in_noise:  # alpha / sigma has a slope at zero SNR, where the log-SNR has none
            low, _, part = segment(t, self.steps)
            ratio = torch.exp(0.5 * self._log_snr[low]) * (1 - part)
            last, scale = (low == self.steps - 2) & (t > 0), (1 + ratio**2).rsqrt()
            alpha, sigma = torch.where(last, ratio * scale, alpha), torch.where(last, scale, sigma)
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        table = self._log_snr.on(log_snr.device)
        value = exact(log_snr).clamp(table[-1], table[0])
        high = torch.searchsorted(-table, -value.contiguous()).clamp(1, max(self.steps - 1, 1))
        high = high.clamp(max=self.steps - 1)  # a table of one row
        low = (high - 1).clamp(min=0)
        gap = table[high] - table[low]
        part = torch.where(gap < 0, (value - table[low]) / gap, 1.0)
        if self._ends_in_noise:
            part = torch.where(high == self.steps - 1, -torch.expm1((value - table[low]) / 2), part)
        return ((low + 1 + part) / self.steps).clamp(max=1.0).to(log_snr.dtype)

    def respaced(self, grid: Tensor) -> Tabulated:
        """Returns the table with only the rows of a sampling grid, with new betas from ratios of alpha-bar.

        Nichol & Dhariwal 2021, section 4. For the bound of the chain with fewer steps give `VariationalBound` the
        denoiser `denoiser.on(schedule.respaced(grid))`.

        Args:
            grid: decreasing times that end with 0, such as `schedule.grid(50)`.

        Raises:
            UsageError: for a grid that does not end with 0.
        """
        if float(grid[-1]) != 0:
            raise UsageError(
                f"the grid ends at t={float(grid[-1]):g}: a chain ends at the data, so end the grid with 0"
            )
        alpha2 = self(exact(grid.flip(0)))[0] ** 2
        ratio_minus_one = torch.expm1(alpha2[1:].log() - alpha2[:-1].log())
        return Tabulated(-ratio_minus_one)


@serializable("continuous.Tabulated", formerly="unnoise.continuous.tabulated.Tabulated")
@dataclass(frozen=True)
class Tabulated(BetaTable):
    r"""The schedule of a given table of betas: `alpha_n^2 = prod_(i <= n) (1 - beta_i)`, `sigma_n^2 = 1 - alpha_n^2`.

    Step n = 1..T is at t = n / T (Ho et al. 2020, eq. 4); for the times between see `BetaTable`. The published tables
    are schedules of their own, such as `LinearBetas`.

    Attributes:
        betas: `(T,)`, float64, each in (0, 1), beta_1 first; the last may be 1 if there are several.
        steps: T, the number of betas.

    Raises:
        UsageError: for betas of another shape or outside of this range.
    """

    betas: Tensor
    steps: int = field(init=False, repr=False, compare=False)

    def table(self) -> Tensor:
        return self.betas


@serializable("continuous.Cosine", formerly="unnoise.continuous.schedules.Cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    r"""The cosine schedule in continuous time, with its log-SNR limited to [low, high].

    The log-SNR is `lambda_t = -2 log tan(a t + b)` with `b = arctan(exp(-high / 2))`, `a = arctan(exp(-low / 2)) - b`
    (Ho & Salimans 2022, section 3; Salimans & Ho 2022), variance preserving. Without the limits this is
    `alpha_t = cos(pi t / 2)`. At t = 0 the signal is clean. Called with times; returns alpha_t and sigma_t, of their
    shape. `grid(N)` is N/N, .., 1/N, 0, so that the times of N steps are among those of 2 N steps.

    Attributes:
        low: log-SNR at t = 1.
        high: log-SNR just above t = 0.

    Raises:
        UsageError: unless low < high.
    """

    low: float = -20.0
    high: float = 20.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(
                f"low={self.low}, high={self.high}: low is the log-SNR at t = 1 and must be below high, "
                "the log-SNR at t = 0, such as -20 and 20"
            )

    @property
    def _start(self) -> float:
        return math.atan(math.exp(-self.high / 2))

    @property
    def _slope(self) -> float:
        return math.atan(math.exp(-self.low / 2)) - self._start

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self.log_snr(exact(t))
        return log_snr.sigmoid().sqrt().to(t.dtype), (-log_snr).sigmoid().sqrt().to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_snr = -2 * torch.log(torch.tan(self._slope * exact(t) + self._start))
        return torch.where(t > 0, log_snr, torch.inf).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-exact(log_snr) / 2))
        return ((angle - self._start) / self._slope).clamp(self.t_min, 1.0).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        return even_grid(steps)


@serializable("continuous.Shifted", formerly="unnoise.continuous.schedules.Shifted")
@dataclass(frozen=True)
class Shifted(Schedule):
    r"""Another schedule with `shift` added to its log-SNR (Hoogeboom et al. 2023, section 3.1).

    The result is variance preserving, `alpha_t^2 + sigma_t^2 = 1`, also where the other schedule is not. Neighboring
    pixels average noise away, so for d > 64 the noise of a schedule made for 64 x 64 pixels destroys less at d x d.
    `Shifted(schedule, resolution_shift(64, d))`, with the shift `2 log(64 / d)`, compensates for that. Called with
    times; returns alpha_t and sigma_t, of their shape.

    Attributes:
        schedule: the schedule that is shifted; training times and sampling grids are the same as without the shift.
        shift: added to `log(alpha_t^2 / sigma_t^2)` at every time; below 0 for more noise.

    Raises:
        UsageError: for other than a schedule and a number.
    """

    schedule: Schedule
    shift: float

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule) or not isinstance(self.shift, int | float):
            given = f"schedule={self.schedule!r}, shift={self.shift!r}"
            raise UsageError(
                f"{given}: give a schedule and a number, such as Shifted(Cosine(), resolution_shift(64, 256))"
            )

    @property
    def t_min(self) -> float:
        """The smallest time of training and likelihoods of the schedule that is shifted."""
        return self.schedule.t_min

    @property
    def t_last(self) -> float:
        """The last noisy time of the sampling grids of the schedule that is shifted."""
        return self.schedule.t_last

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(exact(t))
        alpha = alpha * math.exp(self.shift / 2)  # the wanted log-SNR; then both are scaled to a unit vector
        scale = torch.hypot(alpha, sigma)
        return (alpha / scale).to(t.dtype), (sigma / scale).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        return (self.schedule.log_snr(exact(t)) + self.shift).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(exact(log_snr) - self.shift).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        return self.schedule.grid(steps)

    def refuse_grid(self, grid: Tensor) -> None:
        self.schedule.refuse_grid(grid)

    def training_time(self, u: Tensor) -> Tensor:
        return self.schedule.training_time(u)


def resolution_shift(base: int, size: int) -> float:
    """Returns `2 log(base / size)`, the shift of the log-SNR from images `base` pixels wide to images `size` wide.

    It is the `shift` of `Shifted`: negative, which means more noise, for a size above the base. Hoogeboom et al. 2023,
    eq. 4.

    Raises:
        UsageError: for a width below 1.
    """
    if base < 1 or size < 1:
        raise UsageError(f"base={base}, size={size}: give two widths in pixels, 1 or more")
    return 2 * math.log(base / size)


def tabulate(schedule: Schedule, steps: int) -> Tabulated:
    """Returns the table of a schedule at `steps` evenly spaced times n / steps, as for `VariationalBound`.

    The table has the schedule's log-SNR at these times and is variance preserving.
    """
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    log_alpha2 = torch.nn.functional.logsigmoid(schedule.log_snr(t))
    before = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha2[:-1]])
    return Tabulated(-torch.expm1(log_alpha2 - before))
