"""The variational bound on the code length of categorical data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.calling import warn_in_training
from ..shared.code_length import CodeLength, refuse_nan, sampled_steps, total_nats
from ..shared.denoiser import refuse_other_denoiser
from ..shared.errors import UsageError
from ..shared.progress import Progress, silent
from ..shared.random import Source, uniform
from ..shared.sampler import checked_grid
from .denoiser import CategoricalDenoiser, refuse_without_integral
from .transition.base import CLEAN, as_tokens
from .transition.generic import categorical_kl

AT_ONCE, STRATA = 2**24, 128  # numbers in memory at a time; times of an integral


class VariationalBound:
    r"""Computes the bound `KL(q(x_1 | x_0) || p(x_1)) + path + data` on the code length (Austin et al. 2021, eq. 1).

    Called with tokens `x0`, `(B, ...)`, and conditions by name; returns a `CodeLength` in nats, whose terms prior, path
    and data are `(B,)`, one for each example. The sum is in expectation at least `-log P(x_0)` for the distribution P
    of the samples of `Ancestral`; a call samples one x_t for each term, and does not average.

    For a chain, over the times of a sampler's grid, the path is
    `sum_(n >= 2) KL(q(x_(n-1) | x_n, x_0) || p(x_(n-1) | x_n))` and the data term is `-log p(x_0 | x_1)`: it bounds the
    code length of `Ancestral(denoiser, last=categorical)` on the same grid. In continuous time the path is the integral
    of its rate over [t_min, 1] (Campbell et al. 2022; Sahoo et al. 2024) and the data term is `-log p(x_0 | x_t_min)`:
    the limit of chains with many steps. The bound is infinite for data that the denoiser excludes, as `TopP` does.

    Args:
        denoiser: the denoiser, with its reverse model.
        terms: the number of times at which to evaluate the path, stratified, each with one network evaluation; the same
            times for all examples where `steps` is not the whole table. None for all steps of a chain, and 128 times of
            an integral.
        steps: the number of steps of the chain, or its grid of times, as for a sampler; None for the whole table, or
            in continuous time for the integral.
        padding: the token that fills texts up at their ends, or None. With it a text is coded as its length, uniform
            over 0..n, and then its tokens; padding tokens cost nothing given the length. `length_nats` is the cost of
            the length, which is part of the prior here and which published figures leave out. Without `padding`, such
            tokens are coded as all others.

    Raises:
        UsageError: for steps that do not fit a table, a grid that does not end at 0, padding that is not at the end,
            and in continuous time a path whose integral is infinite.
    """

    def __init__(
        self,
        denoiser: CategoricalDenoiser,
        *,
        terms: int | None = None,
        steps: int | Tensor | None = None,
        padding: int | None = None,
    ) -> None:
        refuse_other_denoiser(denoiser, CategoricalDenoiser, "VariationalBound")
        if terms is not None and (not isinstance(terms, int) or terms < 1):
            raise UsageError(f"terms={terms}: give a whole number, one or more")
        if not isinstance(steps, int | Tensor | None) or isinstance(steps, bool):
            raise UsageError(
                f"steps={steps!r}: give a whole number, a grid of times such as transition.grid(10), or None"
            )
        self.denoiser, self.terms, self.padding = denoiser, terms, padding
        if steps is None:
            refuse_without_integral(denoiser)
        own = denoiser.corruption.steps
        # Each step of a table, or the integral:
        self.whole = steps is None or (not isinstance(steps, Tensor) and steps == own)
        steps = own if steps is None else steps
        even = None if steps is None or isinstance(steps, Tensor) else denoiser.corruption.grid(steps)
        self.grid = checked_grid(steps) if isinstance(steps, Tensor) else even
        if self.grid is not None and float(self.grid[-1]) > 0:
            raise UsageError(
                f"the grid ends at t={float(self.grid[-1]):g}, and the bound codes data at t=0: end the grid at 0"
            )

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> CodeLength:
        """Returns the three parts of the bound for tokens `x0`, `(B, ...)`, in nats, `(B,)` each.

        Path and data are unbiased estimates from one sample of noise for each term: average over examples, or over
        calls with other generators.
        """
        x0 = as_tokens(x0, self.denoiser.corruption.categories, "x_0")
        warn_in_training(self.denoiser)
        path = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        first, last = (1, self.terms or STRATA) if self.grid is None else (2, len(self.grid) - 1)
        if last >= first:
            rows, weight = sampled_steps(first, last, self.terms or last, len(x0), generator)
            for n in progress(rows.flip(0), len(rows), "bound"):
                # Strides of any length take one time for all examples.
                n = n.to(x0.device) if self.whole else n[0].cpu()
                path += weight * self.part(x0, n, generator=generator, **cond)
        prior = self.prior(x0, **cond) + self.length_nats(x0)
        return refuse_nan(CodeLength(prior, path, self.data(x0, generator=generator, **cond)))

    def length_nats(self, x0: Tensor) -> float:
        """Returns the cost of a text's length in nats, `log(n + 1)` for texts of 0 to n tokens; 0 without padding.

        Raises:
            UsageError: where padding is followed by other tokens.
        """
        if self.padding is None:
            return 0.0
        real = x0 != self.padding
        if x0.ndim != 2 or bool((~real[:, :-1] & real[:, 1:]).any()):
            raise UsageError(
                f"padding={self.padding} is followed by other tokens: move it to the end of each text, (B, n)"
            )
        return math.log(x0.shape[1] + 1)

    def prior(self, x0: Tensor, **cond: Any) -> Tensor:
        """Returns `KL(q(x_1 | x_0) || p(x_1))`, `(B,)`, in nats, with the denoiser's `start_distribution` for p(x_1).

        Summed over each example, exactly. On a grid it is at the grid's first time in place of t = 1.
        """
        transition = self.denoiser.corruption
        start = torch.ones_like(CLEAN) if self.grid is None else self.grid[0]
        x = transition.stationary().argmax().to(x0.device).expand(x0.shape)
        distribution, flat = self.denoiser.start_distribution(x, start, **cond), x0.flatten()
        size = max(1, AT_ONCE // transition.states)
        nats = [
            categorical_kl(transition.pushforward(transition.one_hot(tokens, torch.float64), CLEAN, start), p)
            for tokens, p in zip(flat.split(size), distribution.flatten(0, -2).split(size), strict=True)
        ]
        return self.total(torch.cat(nats).view(x0.shape), x0)

    def part(self, x0: Tensor, n: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns `term` n of the chain, n from 1, or the integral over stratum n from one time in it, `(B,)`, in nats.

        In continuous time [t_min, 1] is divided into equal strata, `terms` or 128 of them. n is `(B,)`, or on a grid
        also a scalar.
        """
        if self.grid is not None:
            return self.term(x0, n, generator=generator, **cond)
        transition, strata = self.denoiser.corruption, self.terms or STRATA
        u = uniform(n.shape, generator, dtype=torch.float64, device=n.device)
        t = transition.t_min + (1 - transition.t_min) * (n - 1 + u) / strata
        x_t = transition.corrupt(x0, t, generator=generator)
        rate = self.denoiser.path_rate(x0, x_t, t, dtype=torch.float64, **cond).divergence
        return self.total(rate, x0) * (1 - transition.t_min) / strata

    def term(self, x0: Tensor, n: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns the divergence of the n-th step from the end, which is the data term at n = 1; n scalar or `(B,)`.

        `(B,)`, in nats, at one sample of x_t.

        Raises:
            UsageError: in continuous time, which has no steps.
        """
        if self.grid is None:
            raise UsageError("this bound is an integral over time: give VariationalBound steps=... for one of a chain")
        rising = self.grid.flip(0).to(n.device)
        return self.divergence(x0, rising[n], rising[n - 1], generator=generator, **cond)

    def data(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns `-log p(x_0 | x_t)` at one sample of x_t at the smallest noisy time of the grid, or t_min, `(B,)`."""
        first = (
            torch.tensor(self.denoiser.corruption.t_min, dtype=torch.float64) if self.grid is None else self.grid[-2]
        )
        t = first.to(x0.device).expand(len(x0)) if self.whole else first
        return self.divergence(x0, t, torch.zeros_like(t), generator=generator, **cond)

    def divergence(self, x0: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns the divergence of the step from t to s at one sample of x_t, summed over each example, `(B,)`."""
        x_t = self.denoiser.corruption.corrupt(x0, t, generator=generator)
        return self.total(self.denoiser.exact_divergence(x0, x_t, t, s, dtype=torch.float64, **cond).divergence, x0)

    def total(self, values: Tensor, x0: Tensor) -> Tensor:
        """Returns the sum of `values`, `(B, ...)`, over each example, `(B,)`; padding tokens of `x0` count as 0."""
        return total_nats(values if self.padding is None else torch.where(x0 != self.padding, values, 0.0))
