"""Samplers of categorical diffusion for every process: draws of the reverse chain, and Euler steps along its rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.random import Source, categorical
from ..shared.sampler import Sampler
from ..shared.tensors import like
from .denoiser import CategoricalDenoiser
from .transition import Transition
from .transition.base import as_tokens, normalized

Last: TypeAlias = Callable[[Tensor, Source], Tensor]


def most_likely(p: Tensor, generator: Source = None) -> Tensor:
    """The argmax of `(..., K)`."""
    return p.argmax(-1)


class Ancestral(Sampler[CategoricalDenoiser, Transition]):
    r"""Draws `x_s ~ p(x_s | x_t)`, with exact posteriors over any stride (Austin et al. 2021, eq. 4; Hoogeboom et al.
    2021).

    On a `ScoreEntropyDenoiser` it is SEDD's analytic sampler,
    `p(x_s | x_t) prop. to (m Q_(s->t)^-1)[x_s] Q_(s->t)[x_s, x_t]` with its denoising step at the end (Lou et al. 2024,
    eq. 19), and on absorption with the head `carried` MDLM's (Sahoo et al. 2024, eq. 7).

    Args:
        denoiser: with its reverse model.
        last: what to make of `p(x_0 | x_t)` at the end: `most_likely` as in D3PM, or `categorical`, a draw, as in
            multinomial diffusion and for text.
    """

    def __init__(self, denoiser: CategoricalDenoiser, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        self.last = last

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if self.corruption.is_clean(s):
            return self.last(self.denoiser.step_distribution(x, t, s, **cond), generator)
        return self.denoiser.draw(x, t, s, generator=generator, **cond)


class Euler(Sampler[CategoricalDenoiser, Transition]):
    r"""`p(x_s | x_t) = delta_(x_t) + (t - s) R_hat_t(x_t, .)`, at each position by itself (Lou et al. 2024, eq. 18;
    Campbell et al. 2022).

    Of order one in the step. Where a step is so long that `1 - (t - s) sum_y R_hat(x_t, y)` would be negative, it is 0
    and the rest is normalised. The last step, to s = 0, is the denoiser's own law.

    Args:
        denoiser: of a process in continuous time.
        last: what to make of `p(x_0 | x_t)` at the end, as of `Ancestral`.

    Raises:
        UsageError: for a table, which has no rates.
    """

    def __init__(self, denoiser: CategoricalDenoiser, last: Last = most_likely) -> None:
        super().__init__(denoiser)
        refuse_table(denoiser.corruption, "Euler")
        self.last = last

    def distribution(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """`p(x_s | x_t)`, `(..., K)`, normalised."""
        if s == 0:
            return self.denoiser.step_distribution(x, t, s, **cond)
        jumps = reverse_rates(self.denoiser, x, t, **cond)
        jumps = like(t - s, jumps) * jumps
        return normalized(jumps.scatter(-1, x.long()[..., None], (1 - jumps.sum(-1, keepdim=True)).clamp(min=0)))

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        draw = categorical if s > 0 else self.last
        return draw(self.distribution(x, t, s, **cond), generator)


def reverse_rates(denoiser: CategoricalDenoiser, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
    r"""`R_hat_t(x_t, y) = R_t(y, x_t) q_t(y) / q_t(x_t)`, 0 at `y = x_t`: rates of the process run backwards,
    `(..., K)`, per unit of time.

    One symbol changes at a time: y is a symbol at one position, the others being as they are (Campbell et al. 2022,
    proposition 1).

    Raises:
        UsageError: for a table, and at t = 1 where rates are infinite there.
    """
    if t.ndim == 0 and t.device.type == "cpu" and t >= 1:
        refuse_infinite(denoiser.corruption, t)
    x_t = as_tokens(x_t, denoiser.corruption.states, "x_t")
    into = denoiser.corruption.inflow(x_t, t)
    ratio = denoiser.ratio(x_t, t, **cond)
    return torch.where(into > 0, ratio * into.to(ratio), 0.0).scatter(-1, x_t[..., None], 0.0)


def refuse_table(transition: Transition, name: str) -> None:
    """Refuses a table of steps by the name of the sampler.

    Raises:
        UsageError: with what to do.
    """
    if transition.steps is not None:
        raise UsageError(
            f"{name} follows rates in time, and a table of {transition.steps} steps has none: sample with Ancestral, "
            "or give the process a schedule in continuous time, such as LogLinear()"
        )


def refuse_infinite(transition: Transition, t: Tensor) -> None:
    """Refuses a time at which rates are infinite, as at the end of a schedule that loses everything.

    Raises:
        UsageError: with what to do.
    """
    if not bool(torch.isfinite(transition.inflow(transition.stationary().argmax(-1)[None], t)).all()):
        raise UsageError(
            f"the rates are infinite at t={float(t):g}: sample with Ancestral, give the schedule an eps above 0, "
            "or start a grid of times of your own just below it"
        )
