"""The exact denoiser of independent tokens, which tests compare bounds and samplers with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .denoiser import CleanDenoiser
from .reverse import Marginal
from .transition import Transition
from .transition.base import CLEAN


class AnalyticCategorical(CleanDenoiser):
    """The exact posterior of tokens that are drawn independently from one distribution.

    `p(x_0 | x_t) prop. to p(x_0) q(x_t | x_0)` at each position, read as the posterior (`Marginal`).

    Args:
        p: the distribution of a clean token, over all K states, `(K,)`; 0 at an added mask.
        transition: the process that corrupts them.
    """

    def __init__(self, p: Tensor, transition: Transition) -> None:
        super().__init__()
        self.p, self.corruption, self.reverse = p, transition, Marginal()

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        joint = self.p * self.corruption.likelihood(x_t, CLEAN, t).to(self.p)
        return joint[..., : self.corruption.categories].log()
