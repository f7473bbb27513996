"""The variance-preserving chain of T steps as a schedule on the times t = n / T."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, TableSchedule, segment
from ..shared.serialization import serializable
from ..shared.tensors import Table, exact


@serializable("continuous.Tabulated", formerly="unnoise.continuous.tabulated.Tabulated")
@dataclass(frozen=True)
class Tabulated(TableSchedule):
    r"""The schedule of a table of betas: `alpha_n^2 = prod_(i <= n) (1 - beta_i)`, `sigma_n^2 = 1 - alpha_n^2`.

    Step n = 1..T is at t = n / T (Ho et al. 2020, eq. 4). Row n = 0 is the clean signal, so the first step is not a
    special case; the index in the papers' code is n - 1. Called with times; returns alpha_t and sigma_t, of their
    shape. Between rows the log-SNR is linear in t; for 0 < t < 1 / T it is the value of row 1. Where the last beta is
    1, alpha falls to 0 over the last step.

    Attributes:
        betas: `(T,)`, float64, each in (0, 1), beta_1 first; the last may be 1 if there are several.
        steps: T, the number of betas.

    Raises:
        UsageError: for betas of another shape or outside of this range.
    """

    betas: Tensor
    steps: int = field(init=False, repr=False, compare=False)
    _log_snr: Table = field(init=False, repr=False, compare=False)  # rows 1..T
    _ends_in_noise: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas).detach().cpu().double().clone()
        if betas.ndim != 1 or not len(betas):
            raise UsageError(
                f"betas of shape {tuple(betas.shape)}: give a vector of one or more, such as linear_betas(1000)"
            )
        allowed = (betas > 0) & (betas < 1)
        allowed[1:][-1:] |= betas[1:][-1:] == 1  # the last of several may be 1
        if not allowed.all():
            at = int(torch.nonzero(~allowed)[0])
            raise UsageError(
                f"betas[{at}]={float(betas[at]):g}: betas must lie between 0 and 1; only the last of several may be 1"
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
            last, scale = low == self.steps - 2, (1 + ratio**2).rsqrt()
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


def tabulate(schedule: Schedule, steps: int) -> Tabulated:
    """Returns the table of a schedule at `steps` evenly spaced times n / steps, as for `VariationalBound`.

    The table has the schedule's log-SNR at these times and is variance preserving.
    """
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    log_alpha2 = torch.nn.functional.logsigmoid(schedule.log_snr(t))
    before = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha2[:-1]])
    return Tabulated(-torch.expm1(log_alpha2 - before))
