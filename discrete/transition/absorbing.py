"""Absorption in a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.describe import described
from ...shared.errors import UsageError
from ...shared.tensors import Table, like
from .base import Keeping, Transition


@described
class Absorbing(Transition):
    r"""`Q_n = (1 - beta_n) I + beta_n 1 e_m^T` (Austin et al. 2021, appendix A.2.2).

    Args:
        levels: number of symbols in the data.
        schedule: beta_1..beta_T; `reciprocal` masks everything by the last step.
        mask: m, an ordinary symbol, as in the paper's image runs (`levels // 2`); None adds a symbol, of index `levels`, as for text.

    Raises:
        UsageError: for a mask that is not among the symbols.
    """

    def __init__(self, levels: int, schedule: Tensor, mask: int | None = None) -> None:
        if mask is not None and not 0 <= mask < levels:
            raise UsageError(f"mask={mask}: choose one of the symbols 0..{levels - 1}, or None to add one")
        super().__init__(levels, levels + (mask is None), schedule)
        self.mask = mask
        self._hole = Table(F.one_hot(torch.tensor(levels if mask is None else mask), self.states).double())
        self._keeping = Keeping(self.schedule)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        kept, lost = (like(c, p) for c in self._keeping(self.row(s), self.row(t)))
        return kept * p + lost * p.sum(-1, keepdim=True) * self._hole.on(p.device).to(p.dtype)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        hit = self.one_hot(x_t, torch.float64)
        kept, lost = (like(c, hit) for c in self._keeping(self.row(s), self.row(t)))
        return kept * hit + lost * (hit @ self._hole.on(hit.device))[..., None]

    def stationary(self) -> Tensor:
        return self._hole.values
