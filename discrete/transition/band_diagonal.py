"""Short moves between ordered categories, with equal probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.serialization import serializable
from ...shared.tensors import Table
from ..schedules import checked_betas
from .spectral import Spectral, refuse_square


@serializable(
    "discrete.BandDiagonal",
    formerly="unnoise.discrete.transition.band_diagonal.BandDiagonal",
    renamed={"levels": "categories"},
)
class BandDiagonal(Spectral):
    r"""Band-diagonal moves, `Q_n[i, j] = beta_n / K` for `0 < |i - j| <= band`, the rest of a row on its diagonal.

    Austin et al. 2021, appendix A.2. All steps are `I + beta_n G` with one G, so its eigenvalues give every product:
    `prod (1 + beta_n lambda)`.

    Args:
        categories: K.
        schedule: beta_1..beta_T, `(T,)`, each in (0, 1]; a step moves to each category of the band with probability
            `beta_n / K`.
        band: the largest `|i - j|` of a step, a number of categories.

    Raises:
        UsageError: for a band that is not within 1..K-1, for betas outside (0, 1], and from `inflow` and `outflow`, as
            a table has no rates.
    """

    def __init__(self, categories: int, schedule: Tensor, band: int = 1) -> None:
        if not 1 <= band < categories:
            raise UsageError(f"band={band}: give the largest move of a step, from 1 to {categories - 1}")
        self.schedule, self.band = checked_betas(schedule), band
        refuse_square(categories)
        category = torch.arange(categories)
        distance = (category[:, None] - category).abs()
        g = ((distance > 0) & (distance <= band)).double() / categories
        super().__init__(
            categories,
            len(self.schedule),
            0.0,
            g - torch.diag(g.sum(1)),
            torch.full((categories,), 1 / categories, dtype=torch.float64),
        )
        # No factor is negative: G is a graph Laplacian over -K, whose eigenvalues are in [-1, 0].
        one = 1 + self.schedule[:, None] * self.basis.values
        self._log = Table(torch.cat([one.new_zeros(1, categories), one.clamp(min=1e-300).log()]).cumsum(0))

    def factor(self, s: Tensor, t: Tensor) -> Tensor:
        i, j = self.row(s), self.row(t)
        return (self._log[j] - self._log[i].to(j.device)).exp()

    def rate(self, t: Tensor) -> Tensor:
        raise UsageError(
            f"a table of {self.steps} steps has no rates: take a process in continuous time, such as "
            "GaussianTarget(256)"
        )
