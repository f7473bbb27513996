"""Small steps on ordered levels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.describe import described
from ...shared.errors import UsageError
from ...shared.tensors import Table
from ..schedules import checked_betas
from .spectral import Spectral, refuse_square


@described
class BandDiagonal(Spectral):
    r"""`Q_n[i, j] = beta_n / K` for `0 < |i - j| <= band`, the rest of a row on its diagonal (Austin et al. 2021, appendix A.2).

    All steps are `I + beta_n G` with one G, so its eigenvalues give every product: `prod (1 + beta_n lambda)`.

    Args:
        levels: K.
        schedule: beta_1..beta_T.
        band: how far a step may go.

    Raises:
        UsageError: for a band that is not within 1..K-1.
    """

    def __init__(self, levels: int, schedule: Tensor, band: int = 1) -> None:
        if not 1 <= band < levels:
            raise UsageError(f"band={band}: give the reach of a step, from 1 to {levels - 1}")
        self.schedule, self.band = checked_betas(schedule), band
        refuse_square(levels)
        level = torch.arange(levels)
        distance = (level[:, None] - level).abs()
        g = ((distance > 0) & (distance <= band)).double() / levels
        super().__init__(levels, len(self.schedule), 0.0, g - torch.diag(g.sum(1)), torch.full((levels,), 1 / levels, dtype=torch.float64))
        # No factor is negative: G is a graph's Laplacian over -K, whose eigenvalues lie in [-1, 0].
        one = 1 + self.schedule[:, None] * self.basis.values
        self._log = Table(torch.cat([one.new_zeros(1, levels), one.clamp(min=1e-300).log()]).cumsum(0))

    def factor(self, s: Tensor, t: Tensor) -> Tensor:
        i, j = self.row(s), self.row(t)
        return (self._log[j] - self._log[i].to(j.device)).exp()

    def rate(self, t: Tensor) -> Tensor:
        raise UsageError(f"a table of {self.steps} steps has no rates: take a process in continuous time, such as GaussianTarget(256)")
