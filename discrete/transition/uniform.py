"""Uniform resampling: multinomial diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.describe import described
from ...shared.tensors import like
from .base import Keeping, Transition


@described
class Uniform(Transition):
    r"""`Q_n = (1 - beta_n) I + beta_n 1 1^T / K` (Austin et al. 2021, appendix A.2.1; Hoogeboom et al. 2021, eq. 11).

    Args:
        levels: K.
        schedule: beta_1..beta_T.
    """

    def __init__(self, levels: int, schedule: Tensor) -> None:
        super().__init__(levels, levels, schedule)
        self._keeping = Keeping(self.schedule)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        kept, lost = (like(c, p) for c in self._keeping(self.row(s), self.row(t)))
        return kept * p + lost / self.states * p.sum(-1, keepdim=True)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        hit = self.one_hot(x_t, torch.float64)
        kept, lost = (like(c, hit) for c in self._keeping(self.row(s), self.row(t)))
        return kept * hit + lost / self.states

    def stationary(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)
