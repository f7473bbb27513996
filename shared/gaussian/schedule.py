"""Gaussian schedules: the scale alpha_t of the signal and the standard deviation sigma_t of the noise at each time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..corruption import Corruption, refuse_below_first_row, table_grid, table_time
from ..errors import UsageError
from ..random import Source, normal, normal_like
from ..tensors import as_real, checked_time, exact, like

HALVINGS = 60
"""Bisection steps that invert a log-SNR: an interval of length 1 is then shorter than the rounding error of float64."""
LOOKED_AT = torch.linspace(0, 1, 66, dtype=torch.float64)[1:]
"""Times at which a schedule is checked."""


class Schedule(Corruption):
    r"""A Gaussian forward process, `q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`.

    Called with times t; returns alpha_t and sigma_t. The prior of x_1 is `N(0, sigma_1^2 I)`. To write one, define a
    frozen dataclass with one method, `__call__`, of differentiable torch operations. `log_snr`, its inverse `time` and
    the sampling grid follow from it; override them if a closed form is faster or more accurate.

    Attributes:
        t_min: the smallest time that training samples, and from which likelihoods integrate.
        t_last: the last noisy time of a sampling grid; the step from there to 0 returns the denoiser's mean.
    """

    t_min: float = 1e-5
    t_last: float = 1e-3

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `alpha_t, sigma_t`, of the shape and dtype of `t`; `sigma_t / alpha_t` must increase in `t`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Returns the log-SNR `lambda_t = log(alpha_t^2 / sigma_t^2)`, of the shape and dtype of t.

        It decreases in t. Kingma et al. 2021, section 3.1.
        """
        alpha, sigma = self(exact(t))
        return (2 * (alpha.log() - sigma.log())).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """Returns the time at which the log-SNR is `log_snr`, of its shape and dtype, clamped to [t_min, 1].

        It is found by bisection; schedules with a closed form override this method.
        """
        wanted = exact(log_snr)
        low, high = torch.full_like(wanted, self.t_min), torch.ones_like(wanted)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            too_noisy = self.log_snr(middle) < wanted
            low, high = torch.where(too_noisy, low, middle), torch.where(too_noisy, middle, high)
        return ((low + high) / 2).to(log_snr.dtype)

    def kept(self, s: Tensor, t: Tensor) -> Tensor:
        """Returns `k = SNR_t / SNR_s` in [0, 1), for times s < t; s = 0 gives 0.

        SNR_t is `alpha_t^2 / sigma_t^2`. `q(x_t | x_s)` has variance `sigma_t^2 (1 - k)`, and `q(x_s | x_t, x_0)` has
        variance `sigma_s^2 (1 - k)`.
        """
        return torch.exp(self.log_snr(t) - self.log_snr(s))

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x0 = as_real(x0, "x0")
        alpha, sigma = self(exact(checked_time(t, len(x0))))
        return like(alpha, x0) * x0 + like(sigma, x0) * normal(x0.shape, generator, dtype=x0.dtype, device=x0.device)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x_s, s, t = as_real(x_s, "x_s"), exact(checked_time(s)), exact(checked_time(t, len(x_s)))
        (alpha_s, _), (alpha_t, sigma_t) = self(s), self(t)
        fresh = sigma_t * (1 - self.kept(s, t)).sqrt()
        return like(alpha_t / alpha_s, x_s) * x_s + like(fresh, x_s) * normal_like(x_s, generator)

    def state(self, x: Tensor) -> Tensor:
        return as_real(x, "x")

    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        return self(torch.ones(()))[1] * normal(shape, generator, device=device)

    def grid(self, steps: int) -> Tensor:
        refuse_no_steps(steps)
        return torch.cat(
            [torch.linspace(1, self.t_last, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
        )

    def training_time(self, u: Tensor) -> Tensor:
        return self.t_min + (1 - self.t_min) * exact(u)


class TableSchedule(Schedule):
    """The base class of schedules given by a table at the times t = n / T, n = 1..T.

    Between these times the log-SNR is interpolated. Training visits only the times of the table. n = 0 is the clean
    signal.

    Attributes:
        steps: T, the number of rows of the table, and of steps of the process.
    """

    steps: int

    @property
    def t_min(self) -> float:
        """The time of the first row, 1 / T."""
        return 1 / self.steps

    @property
    def t_last(self) -> float:
        """The time of the first row, 1 / T."""
        return 1 / self.steps

    def grid(self, steps: int) -> Tensor:
        return table_grid(steps, self.steps)

    def refuse_grid(self, grid: Tensor) -> None:
        refuse_below_first_row(grid, self.steps)

    def training_time(self, u: Tensor) -> Tensor:
        return table_time(u, self.steps)


def segment(t: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the two rows of a table between which t lies, and the position of t between them.

    Row n = 1..T of the table is at t = n / T. A time on a row belongs to the segment below it, so that a derivative at
    t is the slope of the segment that a step from t to s < t crosses: t = 2 / T gives 0, 1, 1.0. Times before row 1 are
    treated as row 1 and give 0, 1, 0.0; a table of one row, T = 1, gives 0, 0, 0.0 at every time. Times within 1e-9 of
    a row, in units of the distance between rows, count as on it, since rounding gives `49 * (1 / 49) < 1`.

    Args:
        t: times.
        rows: T.

    Returns:
        The indices of the lower and the upper row, counted from 0, and the position from 0 (lower) to 1 (upper); each
        of the shape of t.
    """
    row = exact(t) * rows - 1
    whole = row.detach().round()
    row = torch.where((row - whole).abs() < 1e-9, whole + (row - row.detach()), row).clamp(0, rows - 1)
    low = (row.detach().ceil().long() - 1).clamp(0, max(rows - 2, 0))
    return low, (low + 1).clamp(max=rows - 1), row - low


def rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `d alpha_t / dt` and `d sigma_t / dt`, float64, of the shape of t, by forward-mode differentiation."""
    t = exact(t).contiguous()  # forward mode does not accept expanded tensors
    return torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[1]


def even_grid(steps: int) -> Tensor:
    """Returns the times N / N, .., 1 / N, 0 of N = `steps` steps, `(N + 1,)`, float64.

    The grid of 2 N steps contains the grid of N steps.
    """
    refuse_no_steps(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def karras_sigmas(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Returns noise levels sigma from `high` down to `low` with evenly spaced `sigma^(1 / rho)`, float64, `(steps,)`.

    Karras et al. 2022, eq. 5. Both ends are included; the final 0 is not.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def refuse_no_steps(steps: int) -> None:
    """Raises for a grid of less than one step.

    Raises:
        UsageError: for `steps` below 1.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: give at least one step")


def refuse_disorder(schedule: Schedule) -> None:
    """Raises for a schedule whose noise does not grow with time, or that is not a schedule on (0, 1].

    Raises:
        UsageError: with the time at which it goes wrong, and for what is not a schedule.
    """
    if not isinstance(schedule, Schedule):
        raise UsageError(f"schedule={schedule!r}: give a schedule, such as VP() or Tabulated(linear_betas(1000))")
    alpha, sigma = schedule(LOOKED_AT)
    bad = ~(torch.isfinite(alpha) & torch.isfinite(sigma) & (sigma > 0) & (alpha >= -1e-9))
    bad[1:] |= ~(alpha[1:] * sigma[:-1] <= alpha[:-1] * sigma[1:] * (1 + 1e-9))
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise UsageError(
            f"{schedule} has alpha={float(alpha[at]):.4g}, sigma={float(sigma[at]):.4g} "
            f"at t={float(LOOKED_AT[at]):.3g}: "
            "sigma / alpha must be finite and grow from t = 0, the data, to t = 1, noise"
        )


def refuse_zero_snr(schedule: Schedule) -> None:
    """Raises for a schedule with alpha = 0 at t = 1, for callers that divide by alpha.

    Raises:
        UsageError: if the log-SNR at t = 1 is not finite.
    """
    if not bool(torch.isfinite(schedule.log_snr(torch.ones((), dtype=torch.float64)))):
        raise UsageError(
            "the schedule ends at zero SNR, so this would divide by alpha = 0: give a denoiser on another schedule, "
            "such as denoiser.on(VP()), or sample with ProbabilityFlow, DDIM, Ancestral, DPMSolverPP or UniPC"
        )
