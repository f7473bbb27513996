"""Objectives of categorical diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.describe import described
from ..shared.objective import Draw, Loss, Objective, independent
from ..shared.random import Source
from ..shared.tensors import per_example
from .denoiser import CategoricalDenoiser


def categorical_kl(q: Tensor, p: Tensor) -> Tensor:
    """`KL(q || p)` along the last axis, in nats, `(...)`."""
    return (torch.xlogy(q, q) - q * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)


@described
class Hybrid(Objective):
    r"""`L_n + lambda E[-log p(x_0 | x_n)]`, mean over dimensions, in nats (Austin et al. 2021, eq. 5, as released).

    `L_n = KL(q(x_(n-1) | x_n, x_0) || p(x_(n-1) | x_n))` at one uniform n; at n = 1 it is `-log p(x_0 | x_1)`. Beside one L_n, lambda
    weighs as in the released code; beside the whole bound, the sum of T such terms, the same lambda would be T times as large.

    Args:
        denoiser: on the transition to train with.
        ce: lambda; 0.001 for the paper's images, 0.01 for its text with absorption, 0 otherwise.
        times: how the times of a batch are drawn.
    """

    def __init__(self, denoiser: CategoricalDenoiser, ce: float = 0.001, times: Draw = independent) -> None:
        super().__init__()
        self.denoiser, self.ce, self.times = denoiser, ce, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        s = t - 1 / transition.steps
        x_t = transition.corrupt(x0, t, generator=generator)
        log_p0 = self.denoiser(x_t, t, **cond)
        cross_entropy = per_example(-log_p0.gather(-1, x0[..., None]).squeeze(-1), torch.mean)
        truth = self.denoiser.reverse(transition, x_t, transition.one_hot(x0, log_p0.dtype), t, s)
        model = self.denoiser.reverse(transition, x_t, log_p0.exp(), t, s)
        term = per_example(categorical_kl(truth, model), torch.mean)
        bits = term.detach() * (transition.steps / math.log(2))
        return Loss(term + self.ce * cross_entropy, {"bits_per_dim": bits, "cross_entropy": cross_entropy.detach()}, t)
