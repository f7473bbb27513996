"""Gaussian corruptions: how much signal and how much noise there is at each time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..corruption import Corruption, refuse_below_first_row, table_grid, table_time
from ..errors import UsageError
from ..random import Source, normal, normal_like
from ..tensors import at_least_float32, exact, like, moment, refuse_unreal

HALVINGS = 60
"""Steps of the bisection that inverts a log-SNR: an interval of length 1 shrinks below the rounding of float64."""


class Schedule(Corruption):
    r"""`q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`.

    A schedule of your own is a frozen dataclass with one method, `__call__`, written with differentiable torch
    operations. `log_snr`, its inverse `time` and the sampling grid follow from it; override them where a closed form is
    faster or keeps more digits.

    Attributes:
        t_min: the smallest time that training and likelihoods visit.
        t_last: the last noisy time of a sampling grid; the step from there to 0 returns the denoiser's mean.
    """

    t_min: float = 1e-5
    t_last: float = 1e-3

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `alpha_t, sigma_t`, of the shape and dtype of `t`; `sigma_t / alpha_t` must increase in `t`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Returns `lambda_t = log(alpha_t^2 / sigma_t^2)`, decreasing in `t` (Kingma et al. 2021, section 3.1)."""
        alpha, sigma = self(exact(t))
        return (2 * (alpha.log() - sigma.log())).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """Returns the time at which the log-SNR is `log_snr`, clamped to [t_min, 1], by bisection unless overridden."""
        wanted = exact(log_snr)
        low, high = torch.full_like(wanted, self.t_min), torch.ones_like(wanted)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            too_noisy = self.log_snr(middle) < wanted
            low, high = torch.where(too_noisy, low, middle), torch.where(too_noisy, middle, high)
        return ((low + high) / 2).to(log_snr.dtype)

    def kept(self, s: Tensor, t: Tensor) -> Tensor:
        """Returns `k = SNR_t / SNR_s` in [0, 1); s = 0 gives 0.

        `q(x_t | x_s)` has variance `sigma_t^2 (1 - k)`, and `q(x_s | x_t, x_0)` has variance `sigma_s^2 (1 - k)`.
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
        refuse_no_steps(steps)
        return torch.cat(
            [torch.linspace(1, self.t_last, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
        )

    def training_time(self, u: Tensor) -> Tensor:
        return self.t_min + (1 - self.t_min) * exact(u)


class TableSchedule(Schedule):
    """A schedule given at the T times t = n / T, between which its log-SNR is interpolated.

    Row n = 0 is the clean signal.
    """

    @property
    @abstractmethod
    def steps(self) -> int:
        """T."""

    @property
    def t_min(self) -> float:
        """The first row, 1 / T: training visits the rows alone."""
        return 1 / self.steps

    @property
    def t_last(self) -> float:
        """The first row, 1 / T."""
        return 1 / self.steps

    def grid(self, steps: int) -> Tensor:
        return table_grid(steps, self.steps)

    def refuse_grid(self, grid: Tensor) -> None:
        refuse_below_first_row(grid, self.steps)

    def training_time(self, u: Tensor) -> Tensor:
        return table_time(u, self.steps)


def rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `d alpha_t / dt` and `d sigma_t / dt`, float64, of the shape of t, by forward-mode differentiation."""
    t = exact(t).contiguous()  # forward mode does not take an expanded one
    return torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[1]


def even_grid(steps: int) -> Tensor:
    """Returns N / N, .., 1 / N, 0, float64: grids of N and 2 N steps nest."""
    refuse_no_steps(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def karras_sigmas(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Returns `steps` noise levels from `high` down to `low` whose 1 / rho-th powers are evenly spaced, float64.

    Karras et al. (2022), eq. 5.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def refuse_no_steps(steps: int) -> None:
    """Refuses a grid without a step.

    Raises:
        UsageError: with what to do.
    """
    if steps < 1:
        raise UsageError(f"steps={steps}: a sampler needs at least one step")


def refuse_zero_snr(schedule: Schedule) -> None:
    """Refuses a schedule with alpha = 0 at t = 1, for what divides by alpha.

    Raises:
        UsageError: with what to do.
    """
    if not bool(torch.isfinite(schedule.log_snr(torch.ones((), dtype=torch.float64)))):
        raise UsageError(
            "the schedule ends at zero SNR, and alpha = 0 is divided by here: sample with ProbabilityFlow, DDIM, Ancestral, DPMSolverPP or "
            "UniPC, or put the denoiser on another schedule, such as on(VP())"
        )
