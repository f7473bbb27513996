"""How a guess about x_0 becomes a law of x_s: the reverse models of categorical diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..shared.describe import described
from .transition.base import CLEAN, ReverseModel, Transition, normalised


@described
@dataclass(frozen=True)
class Product(ReverseModel):
    r"""`p(x_s | x_t) prop. to sum_x0 q(x_s, x_t | x_0) p0(x_0) = Q_(s->t)[x_s, x_t] (p0 Q_(0->s))[x_s]` (Austin et al. 2021, eq. 4).

    Under this model the best p0 is not the posterior of x_0 but that posterior over the likelihood of x_t: x_t is counted once already.

    Attributes:
        eps: added to both factors; 1e-6 in the released code for images.
    """

    eps: float = 0.0

    def between(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        back = transition.likelihood(x_t, s, t).to(p0)
        return normalised((back + self.eps) * (transition.pushforward(p0, CLEAN, s) + self.eps))

    def discount(self, reach: Tensor) -> Tensor:
        return torch.ones_like(reach)

    def own(self, kept: Tensor, missed: Tensor) -> Tensor:
        return torch.ones_like(missed)


@described
@dataclass(frozen=True)
class Marginal(ReverseModel):
    r"""`p(x_s | x_t) = sum_x0 q(x_s | x_t, x_0) p0(x_0)`: exact when p0 is the posterior of x_0, so the denoiser means what it says."""

    discounts = True

    def between(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return transition.posterior(x_t, p0, t, s)

    def discount(self, reach: Tensor) -> Tensor:
        tiny = torch.finfo(reach.dtype).tiny
        return torch.where(reach > tiny, 1 / reach.clamp(min=tiny), 0.0)  # an x_0 from which x_t cannot be reached is left out

    def own(self, kept: Tensor, missed: Tensor) -> Tensor:
        return missed / (kept + missed).clamp(min=torch.finfo(missed.dtype).tiny)
