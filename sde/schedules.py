"""The schedules of Song et al. (2021), of Karras et al. (2022) and of rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, even_grid, karras_sigmas, refuse_no_steps
from ..shared.serialization import serializable
from ..shared.tensors import exact


@serializable("sde.VP", formerly="unnoise.sde.schedules.VP")
@dataclass(frozen=True)
class VP(Schedule):
    r"""Variance preserving, `dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw`, beta linear in t (Song et al. 2021, eq. 11).

    `beta(t) = beta_min + t (beta_max - beta_min)`, `log alpha_t = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, and
    `sigma_t^2 = 1 - alpha_t^2` (eq. 33).

    Args:
        beta_min, beta_max: at t = 0 and 1.
        t_min: smallest time in training and likelihoods.
        t_last: last noisy time in sampling.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_last: float = 1e-3

    def __post_init__(self) -> None:
        refuse_betas(self.beta_min, self.beta_max)
        refuse_outside(self.t_min, self.t_last)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha2 = _log_alpha2(self, exact(t))
        return (0.5 * log_alpha2).exp().to(t.dtype), (-torch.expm1(log_alpha2)).sqrt().to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha2 = _log_alpha2(self, exact(t))
        return (log_alpha2 - torch.log(-torch.expm1(log_alpha2))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return _time(self, F.softplus(-_within(self, log_snr))).to(log_snr.dtype)


@serializable("sde.SubVP", formerly="unnoise.sde.schedules.SubVP")
@dataclass(frozen=True)
class SubVP(Schedule):
    r"""`dx = -beta(t) x / 2 dt + sqrt(beta(t) (1 - exp(-2 int beta))) dw` (Song et al. 2021, eqs. 27 and 29).

    alpha_t as VP, `sigma_t = 1 - alpha_t^2`, not its root.

    Args:
        beta_min, beta_max, t_min, t_last: as VP.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_last: float = 1e-3

    def __post_init__(self) -> None:
        refuse_betas(self.beta_min, self.beta_max)
        refuse_outside(self.t_min, self.t_last)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha2 = _log_alpha2(self, exact(t))
        return (0.5 * log_alpha2).exp().to(t.dtype), (-torch.expm1(log_alpha2)).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha2 = _log_alpha2(self, exact(t))
        return (log_alpha2 - 2 * torch.log(-torch.expm1(log_alpha2))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        ratio = (_within(self, log_snr) / 2).exp()  # alpha / (1 - alpha^2), a quadratic in alpha
        alpha = 2 * ratio / (1 + (1 + 4 * ratio**2).sqrt())
        return _time(self, -2 * alpha.log()).to(log_snr.dtype)


@serializable("sde.VE", formerly="unnoise.sde.schedules.VE")
@dataclass(frozen=True)
class VE(Schedule):
    r"""Variance exploding, `alpha_t = 1`, `sigma_t = sigma_min (sigma_max / sigma_min)^t` (Song et al. 2021, eq. 30);
    clean at t = 0.

    Published for data in [0, 1]; data in [-1, 1] need both sigmas doubled for the same process.

    Args:
        sigma_min, sigma_max: just above t = 0, and at 1.
        t_min: smallest time in training and likelihoods.
        t_last: last noisy time in sampling.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_last: float = 1e-5

    def __post_init__(self) -> None:
        refuse_sigmas(self.sigma_min, self.sigma_max)
        refuse_outside(self.t_min, self.t_last)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (-0.5 * self.log_snr(exact(t))).exp()
        return torch.ones_like(t), sigma.to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_sigma = math.log(self.sigma_min) + exact(t) * math.log(self.sigma_max / self.sigma_min)
        return torch.where(t > 0, -2 * log_sigma, torch.inf).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        t = (-exact(log_snr) / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp(self.t_min, 1.0).to(log_snr.dtype)


@serializable("sde.EDM", formerly="unnoise.sde.schedules.EDM")
@dataclass(frozen=True)
class EDM(Schedule):
    r"""`alpha_t = 1`, `sigma_t = t sigma_max`: time is the noise itself (Karras et al. 2022, table 1).

    `grid(N)` holds N levels with `sigma^(1 / rho)` evenly spaced, and then 0 (eq. 5). Training visits
    `ln sigma ~ N(mean, std^2)`.

    Args:
        sigma_min, sigma_max: at the grid's last and first level, for data in [-1, 1].
        rho: of the grid.
        mean, std: P_mean and P_std, of ln sigma in training.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        refuse_sigmas(self.sigma_min, self.sigma_max)
        if self.rho <= 0 or self.std <= 0:
            raise UsageError(f"rho={self.rho}, std={self.std}: give positive numbers, such as 7 and 1.2")

    @property
    def t_min(self) -> float:
        """The time of sigma_min."""
        return self.sigma_min / self.sigma_max

    @property
    def t_last(self) -> float:
        """The time of sigma_min."""
        return self.sigma_min / self.sigma_max

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), (exact(t) * self.sigma_max).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        return (-2 * torch.log(exact(t) * self.sigma_max)).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-exact(log_snr) / 2) / self.sigma_max).clamp(self.t_min, 1.0).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        refuse_no_steps(steps)
        levels = karras_sigmas(steps, self.sigma_min, self.sigma_max, self.rho) / self.sigma_max
        return torch.cat([levels.clamp(max=1.0), torch.zeros(1, dtype=torch.float64)])

    def training_time(self, u: Tensor) -> Tensor:
        log_sigma = self.mean + self.std * torch.special.ndtri(exact(u))
        return (log_sigma.exp() / self.sigma_max).clamp(self.t_min, 1.0)


@serializable("sde.Straight", formerly="unnoise.sde.schedules.Straight")
@dataclass(frozen=True)
class Straight(Schedule):
    r"""`alpha_t = 1 - end t`, `sigma_t = end t`, `end = 1`: x_t moves on a straight line from x_0 to noise.

    Liu et al. (2023); Lipman et al. (2023), both with t turned round. It ends at zero SNR; `grid(N)` is N / N, .., 1 /
    N, 0.

    Args:
        end: of the path; a little below 1, such as 0.999, for networks that predict noise, which say nothing of x_0 at
            zero SNR.
        t_min: smallest time in training and likelihoods.
        t_last: last noisy time of grids in log-SNR.
    """

    end: float = 1.0
    t_min: float = 1e-5
    t_last: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.t_min <= self.t_last < 1 or not 0 < self.end <= 1:
            given = f"end={self.end}, t_min={self.t_min}, t_last={self.t_last}"
            raise UsageError(f"{given}: give 0 < end <= 1 and 0 < t_min <= t_last < 1")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - self.end * t, self.end * t

    def log_snr(self, t: Tensor) -> Tensor:
        sigma = self.end * exact(t)
        return (2 * (torch.log1p(-sigma) - torch.log(sigma))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.sigmoid(-exact(log_snr) / 2) / self.end).clamp(self.t_min, 1.0).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        return even_grid(steps)


def vp_betas(steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """The betas of VP's ancestor, the chain of N steps: `linspace(beta_min / N, beta_max / N, N)`, float64 (Song et al.
    2021, appendix C).

    `continuous.Tabulated(vp_betas())` is that chain; VE's is `Levels(geometric_sigmas(..))`. Sub-VP has none: its
    published steps are those of `EulerMaruyama`.
    """
    if steps < 1 or not 0 < beta_min < beta_max <= steps:
        raise UsageError(
            f"steps={steps}, beta_min={beta_min}, beta_max={beta_max}: give 0 < beta_min < beta_max <= steps"
        )
    return torch.linspace(beta_min / steps, beta_max / steps, steps, dtype=torch.float64)


def refuse_betas(beta_min: float, beta_max: float) -> None:
    """Refuses rates that do not increase from above 0."""
    if not 0 < beta_min < beta_max:
        raise UsageError(f"beta_min={beta_min}, beta_max={beta_max}: give 0 < beta_min < beta_max")


def refuse_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Refuses noise levels that do not increase from above 0."""
    if not 0 < sigma_min < sigma_max:
        raise UsageError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: give 0 < sigma_min < sigma_max")


def refuse_outside(t_min: float, t_last: float) -> None:
    """Refuses smallest times that do not lie between 0 and 1."""
    if not (0 < t_min < 1 and 0 < t_last < 1):
        raise UsageError(f"t_min={t_min}, t_last={t_last}: give times between 0 and 1, such as 1e-5 and 1e-3")


def _log_alpha2(schedule: VP | SubVP, t: Tensor) -> Tensor:
    return -0.5 * t**2 * (schedule.beta_max - schedule.beta_min) - t * schedule.beta_min


def _within(schedule: VP | SubVP, log_snr: Tensor) -> Tensor:
    low, high = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).tolist()
    return exact(log_snr).clamp(low, high)


def _time(schedule: VP | SubVP, minus_log_alpha2: Tensor) -> Tensor:
    slope = schedule.beta_max - schedule.beta_min
    # The positive root of slope t^2 / 2 + beta_min t = c, in the form without cancellation for small c.
    root = (schedule.beta_min**2 + 2 * slope * minus_log_alpha2).sqrt()
    return (2 * minus_log_alpha2 / (schedule.beta_min + root)).clamp(schedule.t_min, 1.0)
