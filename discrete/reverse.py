"""Reverse models, which read a network's output as the posterior of x_0 or as its leave-one-out posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.values import notation
from .transition.base import ReverseModel, Transition, as_tokens, possible


@serializable("discrete.Product", formerly="unnoise.discrete.reverse.Product")
@dataclass(frozen=True)
class Product(ReverseModel):
    r"""D3PM's reverse model, `p(x_s | x_t) prop. to Q_(s->t)[x_s, x_t] (p0 Q_(0->s))[x_s]`.

    It is `sum_x0 q(x_s, x_t | x_0) p0(x_0)`, normalized (Austin et al. 2021, eq. 4); `Q_(s->t)[i, j]` is the
    probability of x_t = j given x_s = i. The output p0 is read as the leave-one-out posterior, `p(x_0 | x_t)` over
    `q(x_t | x_0)`: the factor `Q_(s->t)[x_s, x_t]` adds the evidence of x_t itself. In the first row of a table, one
    step from x_0, the output is the posterior itself, as published. In continuous time its rates are those of UDLM
    (Schiff et al. 2024) and Duo (Sahoo et al. 2025).

    Attributes:
        eps: added to both factors before normalization, 1e-6 in the published code for images; the best p0 changes by
            the same order. For tables only.
    """

    eps: float = 0.0
    __repr__ = notation

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise UsageError(f"eps={self.eps}: give 0, or a small positive number such as 1e-6, as in D3PM's code")

    def reads_posterior(self, transition: Transition, t: Tensor) -> Tensor:
        return transition.first_row(t)


@serializable("discrete.Marginal", formerly="unnoise.discrete.reverse.Marginal")
@dataclass(frozen=True)
class Marginal(ReverseModel):
    r"""`p(x_s | x_t) = sum_x0 q(x_s | x_t, x_0) p0(x_0)`: the output is read as the posterior `p(x_0 | x_t)`.

    `to_leave_one_out` converts such an output to the one that gives the same model with `Product`, except in the first
    row of a table, where `Product` too reads the posterior.
    """

    __repr__ = notation

    def reads_posterior(self, transition: Transition, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.bool)


def to_posterior(transition: Transition, log_p0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""Converts the leave-one-out posterior to the posterior, `p(x_0 | x_t) prop. to p0(x_0) q(x_t | x_0)`, in logs.

    Args:
        transition: the process that corrupted x_t.
        log_p0: the log of the leave-one-out posterior at each position, given the noisy tokens at all others,
            `(..., categories)`.
        x_t: `(...)`, int64.
        t: a scalar or `(B,)`.

    Returns:
        Log-probabilities `(..., categories)`, normalized. Where log_p0 rules out all x_0 that can become x_t, it is the
        posterior of a uniform p0.
    """
    evidence = transition.log_evidence(as_tokens(x_t, transition.states, "x_t"), t).to(log_p0)
    return possible(log_p0 + evidence, evidence).log_softmax(-1)


def to_leave_one_out(transition: Transition, log_p: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""Converts the posterior to `p0(x_0) prop. to p(x_0 | x_t) / q(x_t | x_0)`, which is 0 where q is 0.

    The inverse of `to_posterior`, in logs: log_p `(..., categories)`, the log of the posterior, to normalized
    log-probabilities of the same shape; x_t and t as there.
    """
    evidence = transition.log_evidence(as_tokens(x_t, transition.states, "x_t"), t).to(log_p)
    return possible(torch.where(evidence > -torch.inf, log_p - evidence, -torch.inf), evidence).log_softmax(-1)
