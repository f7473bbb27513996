"""A corruption says how x_0 is destroyed as t runs from 0 (clean) to 1 (noise)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import UsageError
from .random import Source, normal, normal_like
from .tensors import at_least_float32, exact, like, moment, refuse_unreal
from .values import equal, hash_of_type, notation


class Corruption(ABC):
    """`x_t ~ q(x_t | x_0)`, and the law of `x_1` that sampling starts from.

    `t` is a scalar or has shape `(B,)`; 0 <= s < t <= 1 everywhere. A corruption does not change, so copies of a denoiser share it, and
    two that were made of equal values are equal.
    """

    __eq__, __hash__, __repr__ = equal, hash_of_type, notation

    def __deepcopy__(self, memo: dict[int, object]) -> Corruption:
        return self

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        """A draw of `x_t` given `x_0`, of the shape of `x0`."""

    @abstractmethod
    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        """A draw of `x_t` given `x_s`, s < t: the way back up, for samplers that revisit a level."""

    @abstractmethod
    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        """A draw of `x_1`."""

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The `steps + 1` times of a sampler, float64, from 1 down to 0."""

    @abstractmethod
    def state(self, x: Tensor) -> Tensor:
        """Makes x a state of the process: real numbers in float32 or better, or tokens as int64.

        Raises:
            UsageError: for any other input.
        """

    def refuse_grid(self, grid: Tensor) -> None:  # noqa: B027
        """Refuses a grid with times that the process does not tell apart.

        Raises:
            UsageError: with what to do.
        """

    @abstractmethod
    def training_time(self, u: Tensor) -> Tensor:
        """Maps `u` uniform on [0, 1) to the times that training visits, float64."""


class Schedule(Corruption):
    r"""`q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`, with log-SNR `lambda_t = 2 log(alpha_t / sigma_t)` (Kingma et al. 2021, section 3.1).

    Attributes:
        t_min: the smallest time that training and likelihoods visit.
        t_last: the last noisy time of a sampling grid; the step from there to 0 returns the denoiser's mean.
    """

    t_min: float
    t_last: float

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha_t, sigma_t`, of the shape and dtype of `t`; at t = 0 exactly 1, 0 or the schedule's own limit."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """`lambda_t = log(alpha_t^2 / sigma_t^2)`, decreasing in `t`."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR is `log_snr`, clamped to [t_min, 1]: the bridge between families."""

    def kept(self, s: Tensor, t: Tensor) -> Tensor:
        """`k = SNR_t / SNR_s` in [0, 1), which makes every conditional of the chain stable (s = 0 gives 0).

        `q(x_t | x_s)` has variance `sigma_t^2 (1 - k)`; `q(x_s | x_t, x_0)` has variance `sigma_s^2 (1 - k)`.
        """
        return torch.exp(self.log_snr(t) - self.log_snr(s))

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x0 = at_least_float32(refuse_unreal(x0, "x0"))
        alpha, sigma = (like(c, x0) for c in self(exact(moment(t, len(x0)))))
        return alpha * x0 + sigma * normal_like(x0, generator)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x_s, s, t = at_least_float32(refuse_unreal(x_s, "x_s")), exact(moment(s)), exact(moment(t, len(x_s)))
        (alpha_s, _), (alpha_t, sigma_t) = self(s), self(t)
        fresh = sigma_t * (1 - self.kept(s, t)).sqrt()
        return like(alpha_t / alpha_s, x_s) * x_s + like(fresh, x_s) * normal_like(x_s, generator)

    def state(self, x: Tensor) -> Tensor:
        return at_least_float32(refuse_unreal(x, "x"))

    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        return self(torch.ones(()))[1] * normal(shape, generator, device=device)

    def grid(self, steps: int) -> Tensor:
        if steps < 1:
            raise UsageError(f"steps={steps}: a sampler needs at least one step")
        return torch.cat([torch.linspace(1, self.t_last, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])

    def training_time(self, u: Tensor) -> Tensor:
        return self.t_min + (1 - self.t_min) * exact(u)


def table_grid(steps: int, rows: int) -> Tensor:
    """Evenly spaced rows of a table of `rows` steps, both ends included, and then 0: `(steps + 1,)`, float64.

    Rows fall where OpenAI's respacing "N" puts them (its index is row - 1).

    Raises:
        UsageError: unless 1 <= steps <= rows.
    """
    if not 1 <= steps <= rows:
        raise UsageError(f"steps={steps}: this table has {rows} steps, ask for 1 to {rows}")
    stride = torch.full((steps,), (rows - 1) / max(steps - 1, 1), dtype=torch.float64)
    index = torch.round(stride.cumsum(0) - stride) if steps > 1 else stride  # halves to even on the 0-based index, as OpenAI's
    return torch.cat([index.flip(0) + 1, torch.zeros(1, dtype=torch.float64)]) / rows


def table_time(u: Tensor, rows: int) -> Tensor:
    """`u` uniform on [0, 1) to t = n / T, n uniform on 1..T, float64."""
    return (torch.floor(exact(u) * rows) + 1).clamp(max=rows) / rows


def refuse_below_first_row(grid: Tensor, rows: int) -> None:
    """Refuses a grid with times between 0 and the first row of a table, where nothing moves.

    Raises:
        UsageError: with what to do.
    """
    between = grid[(grid > 0) & (grid * rows < 1 - 1e-6)]
    if len(between):
        raise UsageError(
            f"the grid has t={float(between[0]):g} below the first row of the table, t=1/{rows}={1 / rows:g}, where nothing moves: go from "
            "there to 0 in one step"
        )


def segment(t: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where t lies in a table whose rows 1..T stand at t = n / T: indices of the rows around it, from 0, and the share
    of the way from the lower to the upper; below row 1 it is row 1.

    The segment below a row belongs to it, so that the derivative at t is that of the step which leaves t for s < t.
    Times that rounding puts 1e-9 of a row off one, such as `49 * (1 / 49) < 1`, are at the row.
    """
    row = exact(t) * rows - 1
    whole = row.detach().round()
    row = torch.where((row - whole).abs() < 1e-9, whole + (row - row.detach()), row).clamp(0, rows - 1)
    low = (row.detach().ceil().long() - 1).clamp(0, max(rows - 2, 0))
    return low, (low + 1).clamp(max=rows - 1), row - low


def karras_levels(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """`steps` levels from `high` down to `low` whose 1 / rho-th powers are evenly spaced, float64 (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def refuse_zero_snr(schedule: Schedule) -> None:
    """Refuses a schedule at whose end alpha is 0, for what divides by it.

    Raises:
        UsageError: with what to do.
    """
    if not bool(torch.isfinite(schedule.log_snr(torch.ones((), dtype=torch.float64)))):
        raise UsageError(
            "the schedule ends at zero SNR, and alpha = 0 is divided by here: sample with ProbabilityFlow, DDIM, Ancestral, DPMSolverPP or "
            "UniPC, or put the denoiser on another schedule, such as on(VP())"
        )
