"""The variational bound on the code length of categorical data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shared.bits import Codelength, sampled_levels, total_nats
from ..shared.progress import Progress, silent
from ..shared.random import Source
from .denoiser import CategoricalDenoiser
from .objectives import categorical_kl


class VariationalBound:
    r"""`KL(q(x_T | x_0) || p(x_T)) + sum_(n=2..T) L_n + L_1` in nats (Austin et al. 2021, eq. 1), an upper bound on the code length.

    Args:
        denoiser: with its reverse model.
        terms: how many of the T - 1 terms of the path to evaluate, stratified over n; None for all.
    """

    def __init__(self, denoiser: CategoricalDenoiser, *, terms: int | None = None) -> None:
        self.denoiser, self.terms = denoiser, terms

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> Codelength:
        """`x0`: symbols, int64 `(B, ...)`. One draw of noise for each term."""
        steps = self.denoiser.corruption.steps
        path = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        if steps > 1:
            levels, weight = sampled_levels(2, steps, self.terms or steps, len(x0), generator)
            for n in progress(levels.flip(0), len(levels), "bound"):
                path += weight * self.term(x0, n.to(x0.device), generator=generator, **cond)
        first = torch.ones(len(x0), dtype=torch.int64, device=x0.device)
        return Codelength(self.prior(x0), path, self.term(x0, first, generator=generator, **cond))

    def prior(self, x0: Tensor) -> Tensor:
        """`KL(q(x_T | x_0) || p(x_T))`, `(B,)`."""
        transition = self.denoiser.corruption
        clean = torch.zeros((), dtype=torch.float64)
        last = transition.pushforward(transition.one_hot(x0, torch.float64), clean, torch.ones_like(clean))
        return total_nats(categorical_kl(last, transition.stationary().to(last).expand_as(last)))

    def term(self, x0: Tensor, n: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """L_n, `(B,)`, for n of shape `(B,)`; at n = 1 the code length of the data themselves."""
        transition = self.denoiser.corruption
        t, s = n.double() / transition.steps, (n - 1).double() / transition.steps
        x_t = transition.corrupt(x0, t, generator=generator)
        truth = self.denoiser.reverse(transition, x_t, transition.one_hot(x0, torch.float64), t, s)
        return total_nats(categorical_kl(truth, self.denoiser.reverse(transition, x_t, self.denoiser(x_t, t, **cond).double().exp(), t, s)))
