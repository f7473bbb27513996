"""The variational bound on the code length of categorical data."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.bits import Codelength, sampled_levels, total_nats
from ..shared.errors import UsageError
from ..shared.progress import Progress, silent
from ..shared.random import Source, uniform
from .denoiser import CategoricalDenoiser
from .transition.base import CLEAN
from .transition.plain import categorical_kl

AT_ONCE, STRATA = 2**24, 128  # numbers held at a time; times of an integral


class VariationalBound:
    r"""`KL(q(x_1 | x_0) || p(x_1)) + path + data` in nats (Austin et al. 2021, eq. 1), an upper bound on the code length.

    On T steps the path is `sum_(n=2..T) L_n` and the data cost L_1. In continuous time the path is the integral of its rate over
    [t_min, 1] (Campbell et al. 2022; Sahoo et al. 2024) and the data cost `-log p(x_0 | x_t_min)`.

    Args:
        denoiser: with its reverse model.
        terms: at how many times to evaluate the path, stratified; None for all T - 1 of a table, and 128 for an integral.
        steps: T, to evaluate a process in continuous time as a chain of T steps; None for its integral, or the table's own.
        padding: the symbol of positions that cost nothing, or None.

    Raises:
        UsageError: for steps other than a table's own.
    """

    def __init__(
        self, denoiser: CategoricalDenoiser, *, terms: int | None = None, steps: int | None = None, padding: int | None = None
    ) -> None:
        own = denoiser.corruption.steps
        if own is not None and steps not in (None, own):
            raise UsageError(f"steps={steps}: this table has {own} steps, and its bound is that of those")
        if terms is not None and terms < 1:
            raise UsageError(f"terms={terms}: give one or more")
        self.denoiser, self.terms, self.steps, self.padding = denoiser, terms, own or steps, padding

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> Codelength:
        """`x0`: symbols, int64 `(B, ...)`. One draw of noise for each term."""
        path = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        first, last = (2, self.steps) if self.steps else (1, self.terms or STRATA)
        if last >= first:
            levels, weight = sampled_levels(first, last, self.terms or last, len(x0), generator)
            for n in progress(levels.flip(0), len(levels), "bound"):
                path += weight * self.part(x0, n.to(x0.device), generator=generator, **cond)
        return Codelength(self.prior(x0), path, self.data(x0, generator=generator, **cond))

    def prior(self, x0: Tensor) -> Tensor:
        """`KL(q(x_1 | x_0) || p(x_1))`, `(B,)`.

        Symbols that survive to t = 1 where sampling starts from the mask alone, as under `LogLinear(1e-3)`, are coded as any symbol of
        the data: the papers leave this term out, in which their bounds would be infinite.
        """
        transition, one = self.denoiser.corruption, torch.ones_like(CLEAN)
        flat, start = x0.flatten(), transition.stationary().to(x0.device)
        nats = []
        for symbols in flat.split(max(1, AT_ONCE // transition.states)):
            last = transition.pushforward(transition.one_hot(symbols, torch.float64), CLEAN, one)
            survived = torch.where(start > 0, 0.0, last).sum(-1, keepdim=True)
            any_symbol = F.pad(survived.expand(-1, transition.levels) / transition.levels, (0, transition.states - transition.levels))
            nats.append(categorical_kl(last, (1 - survived) * start + any_symbol))
        return self.total(torch.cat(nats).view(x0.shape), x0)

    def part(self, x0: Tensor, n: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """L_n, or the integral over a stratum n of time from one time drawn in it, `(B,)`; n `(B,)`."""
        if self.steps:
            return self.term(x0, n, generator=generator, **cond)
        transition, strata = self.denoiser.corruption, self.terms or STRATA
        u = uniform(n.shape, generator, dtype=torch.float64, device=n.device)
        t = transition.t_min + (1 - transition.t_min) * (n - 1 + u) / strata
        x_t = transition.corrupt(x0, t, generator=generator)
        rate = self.denoiser.path_rate(x0, x_t, t, dtype=torch.float64, **cond).divergence
        return self.total(rate, x0) * (1 - transition.t_min) / strata

    def term(self, x0: Tensor, n: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """L_n, `(B,)`, for n of shape `(B,)`; at n = 1 the code length of the data themselves."""
        transition = self.denoiser.corruption
        t, s = n.double() / self.steps, (n - 1).double() / self.steps
        x_t = transition.corrupt(x0, t, generator=generator)
        return self.total(self.denoiser.divergence(x0, x_t, t, s, dtype=torch.float64, **cond).divergence, x0)

    def data(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """`-log p(x_0 | x_t)` at the first noisy time, `(B,)`."""
        if self.steps:
            return self.term(x0, torch.ones(len(x0), dtype=torch.int64, device=x0.device), generator=generator, **cond)
        transition = self.denoiser.corruption
        t = torch.full((len(x0),), transition.t_min, dtype=torch.float64, device=x0.device)
        x_t = transition.corrupt(x0, t, generator=generator)
        return self.total(self.denoiser.divergence(x0, x_t, t, torch.zeros_like(t), dtype=torch.float64, **cond).divergence, x0)

    def total(self, values: Tensor, x0: Tensor) -> Tensor:
        """The sum over an example, `(B,)`."""
        return total_nats(values if self.padding is None else torch.where(x0 != self.padding, values, 0.0))
