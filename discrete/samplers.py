"""Samplers of categorical diffusion for every process: the reverse chain, and Euler steps along its rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.random import Source, categorical
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.tensors import like
from .denoiser import CategoricalDenoiser
from .transition import Transition
from .transition.base import as_tokens, normalized

Last: TypeAlias = Callable[[Tensor, Source], Tensor]


@serializable("discrete.most_likely")
def most_likely(p: Tensor, generator: Source = None) -> Tensor:
    """Returns the most probable token of each distribution `p`, `(..., K)` to `(...)`; `generator` is not used."""
    return p.argmax(-1)


@serializable("discrete.Ancestral")
class Ancestral(Sampler[CategoricalDenoiser, Transition]):
    r"""Samples `x_s ~ p(x_s | x_t)`, the reverse chain, with exact posteriors over strides of any length.

    Called with `shape=(B, ...)` and `steps`, the number of steps or a grid; returns tokens, int64 `(B, ...)`. A step to
    s = 0 chooses x_0 from `p(x_0 | x_t)`. Austin et al. 2021, eq. 4; Hoogeboom et al. 2021. For a
    `ScoreEntropyDenoiser` it is SEDD's analytic sampler,
    `p(x_s | x_t) prop. to (m Q_(s->t)^-1)[x_s] Q_(s->t)[x_s, x_t]` with the ratios m and its denoising step at the end
    (Lou et al. 2024, eq. 19), and under absorption with the head `carried` MDLM's (Sahoo et al. 2024, eq. 7).

    Args:
        denoiser: the denoiser, with its reverse model.
        last: chooses x_0 from `p(x_0 | x_t)` in the last step: `most_likely` as in D3PM, or `categorical`, a sample, as
            in multinomial diffusion and for text.
    """

    def __init__(self, denoiser: CategoricalDenoiser, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        self.last = last

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if self.corruption.is_clean(s):
            return self.last(self.denoiser.step_distribution(x, t, s, **cond), generator)
        return self.denoiser.draw(x, t, s, generator=generator, **cond)


@serializable("discrete.Euler")
class Euler(Sampler[CategoricalDenoiser, Transition]):
    r"""Samples Euler steps along the reverse rates, `p(x_s | x_t) = delta_(x_t) + (t - s) R_hat_t(x_t, .)`.

    R_hat are the `reverse_rates`; calls and results are as for `Ancestral`. Each position is sampled independently (Lou
    et al. 2024, eq. 18; Campbell et al. 2022). Of order one in the step. Where a step is so long that
    `1 - (t - s) sum_y R_hat(x_t, y)` would be negative, it is 0 and the rest is normalized. The last step, to s = 0,
    uses the denoiser's `p(x_0 | x_t)`.

    Args:
        denoiser: a denoiser of a process in continuous time.
        last: chooses x_0 from `p(x_0 | x_t)` in the last step, as for `Ancestral`.

    Raises:
        UsageError: for a table, which has no rates.
    """

    def __init__(self, denoiser: CategoricalDenoiser, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        refuse_table(denoiser.corruption, "Euler")
        self.last = last

    def distribution(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """Returns the probabilities of a step, `p(x_s | x_t)`, `(..., K)`; at s = 0 the denoiser's `p(x_0 | x_t)`."""
        if s == 0:
            return self.denoiser.step_distribution(x, t, s, **cond)
        jumps = reverse_rates(self.denoiser, x, t, **cond)
        jumps = like(t - s, jumps) * jumps
        return normalized(jumps.scatter(-1, x.long()[..., None], (1 - jumps.sum(-1, keepdim=True)).clamp(min=0)))

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        draw = categorical if s > 0 else self.last
        return draw(self.distribution(x, t, s, **cond), generator)


def reverse_rates(denoiser: CategoricalDenoiser, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
    r"""Returns the rates of the reverse process, `R_hat_t(x_t, y) = R_t(y, x_t) q_t(y) / q_t(x_t)`, `(..., K)`.

    Per unit of time, and 0 at `y = x_t`; R_t are the rates of the process and the ratio is `CategoricalDenoiser.ratio`.
    One token changes at a time: y is a token at one position while the others stay (Campbell et al. 2022, proposition
    1).

    Raises:
        UsageError: for a table, and at t = 1 where the rates are infinite.
    """
    if t.ndim == 0 and t.device.type == "cpu" and t >= 1:
        refuse_infinite(denoiser.corruption, t)
    x_t = as_tokens(x_t, denoiser.corruption.states, "x_t")
    into = denoiser.corruption.inflow(x_t, t)
    ratio = denoiser.ratio(x_t, t, **cond)
    return torch.where(into > 0, ratio * into.to(ratio), 0.0).scatter(-1, x_t[..., None], 0.0)


def refuse_table(transition: Transition, name: str) -> None:
    """Raises an error that names the sampler, for a table of steps.

    Raises:
        UsageError: with what to do.
    """
    if transition.steps is not None:
        raise UsageError(
            f"{name} needs rates, and a table of {transition.steps} steps has no rates: sample with Ancestral, or give "
            "the process a schedule in continuous time, such as LogLinearNoise()"
        )


def refuse_infinite(transition: Transition, t: Tensor) -> None:
    """Raises an error for a time at which rates are infinite, as at the end of a schedule that erases everything.

    Raises:
        UsageError: with what to do.
    """
    if not bool(torch.isfinite(transition.inflow(transition.stationary().argmax(-1)[None], t)).all()):
        raise UsageError(
            f"the rates are infinite at t={float(t):g}: sample with Ancestral, give the schedule an eps above 0, or "
            "start at a smaller time, such as steps=torch.linspace(0.999, 0, 51)"
        )
