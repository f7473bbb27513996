"""Categorical denoisers: `log p(x_0 | x_t)` and the reverse step that follows from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..shared.denoiser import Denoiser, on_every_row
from ..shared.describe import described
from ..shared.labels import Label, thousandths
from .reverse import Marginal, Product, ReverseModel
from .transition import Transition


class CategoricalDenoiser(Denoiser):
    """`log p(x_0 | x_t)`, `(..., K)`.

    Attributes:
        reverse: how that becomes a law of x_s, the same for objective, sampler and bound.
    """

    corruption: Transition
    reverse: ReverseModel

    def step_law(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """`p(x_s | x_t)`, `(..., K)`."""
        return self.reverse(self.corruption, x_t, self(x_t, t, **cond).exp(), t, s)


@described
class Categorical(CategoricalDenoiser):
    """A network's logits as a denoiser. A mask that the transition adds gets probability zero: x_0 is never masked.

    Args:
        network: `(x_t int64, time label (B,), **cond) -> logits (..., K)`.
        transition: what corrupted x_t.
        reverse: `Product` as published for D3PM, or `Marginal`.
        label: the number that the network is fed for a time.
    """

    def __init__(self, network: nn.Module, transition: Transition, reverse: ReverseModel | None = None, label: Label = thousandths) -> None:
        super().__init__()
        self.network, self.transition, self.reverse, self.label = network, transition, reverse or Product(), label
        self.corruption = transition

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        logits = self.network(x_t, on_every_row(self.label(self.corruption, t), x_t), **cond)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.transition.states > self.transition.levels:
            logits = torch.cat([logits[..., : self.transition.levels], torch.full_like(logits[..., :1], -torch.inf)], dim=-1)
        return logits.log_softmax(-1)


class CategoricalOracle(CategoricalDenoiser):
    """The exact posterior of symbols that are drawn independently from one law: what the tests hold bounds and samplers to.

    Args:
        p: the law, `(K,)`; zero for a mask.
        transition: what corrupts.
    """

    def __init__(self, p: Tensor, transition: Transition) -> None:
        super().__init__()
        self.p, self.corruption, self.reverse = p, transition, Marginal()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        joint = self.p * self.corruption.likelihood(x_t, torch.zeros_like(t), t).to(self.p)
        return (joint / joint.sum(-1, keepdim=True)).log()
