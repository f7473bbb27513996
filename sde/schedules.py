"""Schedules: VP, sub-VP and VE (Song et al. 2021), EDM (Karras et al. 2022), rectified flow, and the table of NCSN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, TableSchedule, even_grid, karras_sigmas, refuse_no_steps, segment
from ..shared.serialization import serializable
from ..shared.tensors import Table, as_numbers, exact


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """The base class of VP and sub-VP: `beta(t) = beta_min + t (beta_max - beta_min)`, and the alpha_t that follows.

    `log alpha_t^2 = -int_0^t beta(u) du`. The attributes and errors are those of `VP`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_last: float = 1e-3

    def __post_init__(self) -> None:
        refuse_betas(self.beta_min, self.beta_max)
        refuse_outside(self.t_min, self.t_last)

    def log_alpha2(self, t: Tensor) -> Tensor:
        """Returns `log alpha_t^2` for times t in float64."""
        return -0.5 * t**2 * (self.beta_max - self.beta_min) - t * self.beta_min

    def limited(self, log_snr: Tensor) -> Tensor:
        """Returns a log-SNR in float64, clamped to those of t = 1 and t_min."""
        low, high = self.log_snr(torch.tensor([1.0, self.t_min], dtype=torch.float64)).tolist()
        return exact(log_snr).clamp(low, high)

    def time_of_alpha(self, minus_log_alpha2: Tensor) -> Tensor:
        """Returns the time at which `-log alpha_t^2` has a value, clamped to [t_min, 1]."""
        slope = self.beta_max - self.beta_min
        # The positive root of slope t^2 / 2 + beta_min t = -log alpha^2, in the form without cancellation near t = 0.
        root = (self.beta_min**2 + 2 * slope * minus_log_alpha2).sqrt()
        return (2 * minus_log_alpha2 / (self.beta_min + root)).clamp(self.t_min, 1.0)


@serializable("sde.VP", formerly="unnoise.sde.schedules.VP")
@dataclass(frozen=True)
class VP(LinearBeta):
    r"""The variance-preserving SDE: `dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw` (Song et al. 2021, eq. 11).

    `beta(t) = beta_min + t (beta_max - beta_min)`, `log alpha_t = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, and
    `sigma_t^2 = 1 - alpha_t^2` (eq. 33); w is a Wiener process. Called with times in [0, 1]; returns alpha_t and
    sigma_t, of their shape.

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        t_min: smallest time in training and likelihoods.
        t_last: last noisy time of a sampling grid; the step from there to 0 denoises.

    Raises:
        UsageError: unless 0 < beta_min < beta_max and both times lie between 0 and 1.
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha2 = self.log_alpha2(exact(t))
        return (0.5 * log_alpha2).exp().to(t.dtype), (-torch.expm1(log_alpha2)).sqrt().to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha2 = self.log_alpha2(exact(t))
        return (log_alpha2 - torch.log(-torch.expm1(log_alpha2))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.time_of_alpha(F.softplus(-self.limited(log_snr))).to(log_snr.dtype)


@serializable("sde.SubVP", formerly="unnoise.sde.schedules.SubVP")
@dataclass(frozen=True)
class SubVP(LinearBeta):
    r"""The sub-VP SDE: `dx = -beta(t) x / 2 dt + sqrt(beta(t) (1 - exp(-2 int_0^t beta(u) du))) dw`.

    `beta(t) = beta_min + t (beta_max - beta_min)` and alpha_t are the same as in `VP`, and `sigma_t = 1 - alpha_t^2`,
    where VP has its square root; w is a Wiener process. Song et al. 2021, eqs. 27 and 29. Called with times in [0, 1];
    returns alpha_t and sigma_t, of their shape.

    Attributes:
        beta_min, beta_max, t_min, t_last: as in `VP`.

    Raises:
        UsageError: unless 0 < beta_min < beta_max and both times lie between 0 and 1.
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha2 = self.log_alpha2(exact(t))
        return (0.5 * log_alpha2).exp().to(t.dtype), (-torch.expm1(log_alpha2)).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha2 = self.log_alpha2(exact(t))
        return (log_alpha2 - 2 * torch.log(-torch.expm1(log_alpha2))).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        ratio = (self.limited(log_snr) / 2).exp()  # alpha / (1 - alpha^2), a quadratic in alpha
        alpha = 2 * ratio / (1 + (1 + 4 * ratio**2).sqrt())
        return self.time_of_alpha(-2 * alpha.log()).to(log_snr.dtype)


@serializable("sde.VE", formerly="unnoise.sde.schedules.VE")
@dataclass(frozen=True)
class VE(Schedule):
    r"""The variance-exploding SDE: `alpha_t = 1`, `sigma_t = sigma_min (sigma_max / sigma_min)^t`, clean at t = 0.

    Song et al. 2021, eq. 30. Called with times in [0, 1]; returns alpha_t and sigma_t, of their shape. Published for
    data in [0, 1]; for the same process of data in [-1, 1] double both sigmas.

    Attributes:
        sigma_min: sigma just above t = 0.
        sigma_max: sigma at t = 1.
        t_min: smallest time in training and likelihoods.
        t_last: last noisy time of a sampling grid; the step from there to 0 denoises.

    Raises:
        UsageError: unless 0 < sigma_min < sigma_max and both times lie between 0 and 1.
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
    r"""The schedule of EDM: `alpha_t = 1`, `sigma_t = t sigma_max` (Karras et al. 2022, table 1).

    Called with times in [0, 1]; returns alpha_t and sigma_t, of their shape. `grid(N)` has N times with
    `sigma^(1 / rho)` evenly spaced from sigma_max to sigma_min, and then 0 (eq. 5). Training draws
    `ln sigma ~ N(mean, std^2)`, with sigma limited to [sigma_min, sigma_max].

    Attributes:
        sigma_min: smallest noise level of a sampling grid, for data in [-1, 1].
        sigma_max: largest noise level, at t = 1.
        rho: exponent of the grid.
        mean: mean of ln sigma in training, P_mean.
        std: standard deviation of ln sigma in training, P_std.

    Raises:
        UsageError: unless 0 < sigma_min < sigma_max, and rho and std are positive.
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
        """The time of sigma_min, the smallest in training and likelihoods."""
        return self.sigma_min / self.sigma_max

    @property
    def t_last(self) -> float:
        """The time of sigma_min, the last noisy one of sampling grids."""
        return self.sigma_min / self.sigma_max

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), (exact(t) * self.sigma_max).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        return (-2 * torch.log(exact(t) * self.sigma_max)).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-exact(log_snr) / 2) / self.sigma_max).clamp(self.t_min, 1.0).to(log_snr.dtype)

    def grid(self, steps: int) -> Tensor:
        refuse_no_steps(steps)
        times = karras_sigmas(steps, self.sigma_min, self.sigma_max, self.rho) / self.sigma_max
        return torch.cat([times.clamp(max=1.0), torch.zeros(1, dtype=torch.float64)])

    def training_time(self, u: Tensor) -> Tensor:
        log_sigma = self.mean + self.std * torch.special.ndtri(exact(u))
        return (log_sigma.exp() / self.sigma_max).clamp(self.t_min, 1.0)


@serializable("sde.Straight", formerly="unnoise.sde.schedules.Straight")
@dataclass(frozen=True)
class Straight(Schedule):
    r"""The straight path of rectified flow and flow matching: `alpha_t = 1 - end t`, `sigma_t = end t`.

    Liu et al. 2023; Lipman et al. 2023, where time runs from noise to data; here t = 0 is the data. With `end = 1` it
    ends at zero SNR. Called with times in [0, 1]; returns alpha_t and sigma_t, of their shape. `grid(N)` is
    N / N, .., 1 / N, 0.

    Attributes:
        end: sigma at t = 1; slightly below 1, such as 0.999, for networks that predict noise, which does not determine
            x_0 at zero SNR.
        t_min: smallest time in training and likelihoods.
        t_last: last noisy time of grids that are spaced in log-SNR, such as `continuous.log_spaced`.

    Raises:
        UsageError: unless 0 < end <= 1 and 0 < t_min <= t_last < 1.
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


@serializable("sde.NoiseLevels", formerly="unnoise.sde.noise_levels.Levels")
@dataclass(frozen=True)
class NoiseLevels(TableSchedule):
    r"""N noise levels on an unscaled signal: `alpha = 1`, `sigma_n` at t = n / N (Song & Ermon 2019, section 4.1).

    n = 1..N. This is also the N-step chain of VE. Row n = 0 is the clean signal. Rows are ordered by increasing noise,
    so the papers' sigma_1 is the last one here. Called with times; returns alpha_t and sigma_t, of their shape. Between
    rows the log-SNR is linear in t, so sigma is geometric; for 0 < t < 1 / N sigma is `sigmas[0]`.

    Attributes:
        sigmas: `(N,)`, float64, positive and increasing, such as `geometric_sigmas(0.01, 50.0, 232)`.

    Raises:
        UsageError: for sigmas of another shape, not positive, not increasing or not finite.
    """

    sigmas: Tensor
    _log_sigma: Table = field(init=False, repr=False, compare=False)  # rows 1..N

    def __post_init__(self) -> None:
        sigmas = as_numbers(self.sigmas, "sigmas").detach().clone()
        if sigmas.ndim != 1 or not len(sigmas):
            raise UsageError(
                f"sigmas of shape {tuple(sigmas.shape)}: give a vector of one or more, such as "
                "geometric_sigmas(0.01, 1, 10)"
            )
        if not (sigmas[0] > 0 and (sigmas.diff() > 0).all() and sigmas.isfinite().all()):
            raise UsageError(
                f"sigmas={sigmas.tolist()}: noise levels must be positive and increase; "
                "flip a table that starts with the largest"
            )
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "_log_sigma", Table(sigmas.log()))

    @property
    def steps(self) -> int:
        """N, the number of noise levels."""
        return len(self.sigmas)

    def log_snr(self, t: Tensor) -> Tensor:
        low, high, part = segment(t, self.steps)
        log_sigma = torch.lerp(self._log_sigma[low], self._log_sigma[high], part)
        return torch.where(t <= 0, torch.inf, -2 * log_sigma).to(t.dtype)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), (-0.5 * self.log_snr(exact(t))).exp().to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        table = self._log_sigma.on(log_snr.device)
        value = (-exact(log_snr) / 2).clamp(table[0], table[-1])
        high = torch.searchsorted(table, value.contiguous()).clamp(1, max(self.steps - 1, 1))
        high = high.clamp(max=self.steps - 1)  # a table of one row
        low = (high - 1).clamp(min=0)
        gap = table[high] - table[low]
        part = torch.where(gap > 0, (value - table[low]) / gap, 1.0)
        return ((low + 1 + part) / self.steps).clamp(max=1.0).to(log_snr.dtype)


def vp_betas(steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """Returns the betas of the N-step chain whose limit is VP: `linspace(beta_min / N, beta_max / N, N)`, float64.

    Song et al. 2021, appendix C. `continuous.Tabulated(vp_betas())` is that chain; the chain of VE is
    `NoiseLevels(geometric_sigmas(...))`. Sub-VP has no chain: its published sampler is `EulerMaruyama`. N is `steps`.

    Raises:
        UsageError: unless steps is 1 or more and 0 < beta_min < beta_max <= steps.
    """
    if steps < 1 or not 0 < beta_min < beta_max <= steps:
        raise UsageError(
            f"steps={steps}, beta_min={beta_min}, beta_max={beta_max}: give 1 step or more, "
            "and 0 < beta_min < beta_max <= steps"
        )
    return torch.linspace(beta_min / steps, beta_max / steps, steps, dtype=torch.float64)


def refuse_betas(beta_min: float, beta_max: float) -> None:
    """Raises for betas that do not increase from above 0.

    Raises:
        UsageError: unless 0 < beta_min < beta_max.
    """
    if not 0 < beta_min < beta_max:
        raise UsageError(f"beta_min={beta_min}, beta_max={beta_max}: give 0 < beta_min < beta_max")


def refuse_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Raises for noise levels that do not increase from above 0.

    Raises:
        UsageError: unless 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise UsageError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: give 0 < sigma_min < sigma_max")


def refuse_outside(t_min: float, t_last: float) -> None:
    """Raises for smallest times that do not lie between 0 and 1.

    Raises:
        UsageError: unless 0 < t_min < 1 and 0 < t_last < 1.
    """
    if not (0 < t_min < 1 and 0 < t_last < 1):
        raise UsageError(f"t_min={t_min}, t_last={t_last}: give times between 0 and 1, such as 1e-5 and 1e-3")
