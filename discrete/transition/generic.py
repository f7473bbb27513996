"""The formulas as they stand, for every transition.

What structures without a closed form use, and the oracle of those with one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.random import Source, categorical
from ...shared.tensors import at_least_float32, like
from .base import CLEAN, ReverseModel, Terms, Transition, normalized


def categorical_kl(q: Tensor, p: Tensor) -> Tensor:
    """`KL(q || p)` along the last axis, in nats, `(...)`; infinite where p gives no chance to what q can be."""
    kl = (torch.xlogy(q, q) - q * torch.where(p > 0, p, 1.0).log()).sum(-1)
    return kl.masked_fill(((q > 0) & (p <= 0)).any(-1), torch.inf)


def log_clean(transition: Transition, logits: Tensor) -> Tensor:
    """`log p0` over all K states from logits over the data's symbols: x_0 is never a mask that was added."""
    log_p = at_least_float32(logits).log_softmax(-1)
    return F.pad(log_p, (0, transition.states - transition.categories), value=-torch.inf)


def generic_divergence(
    transition: Transition,
    reverse: ReverseModel,
    logits: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    exact: bool = False,
) -> Terms:
    """`Transition.divergence` by its definition; `exact`: of the true posterior without the reverse model's eps."""
    log_p0 = log_clean(transition, logits)
    nats = transition.cross_entropy(reverse, logits, x0, x_t, t)
    back, ahead = (
        transition.likelihood(x_t, s, t),
        transition.pushforward(transition.one_hot(x0, log_p0.dtype), CLEAN, s),
    )
    eps = 0.0 if exact else reverse.eps
    q = normalized((back.to(ahead) + eps) * (ahead + eps))
    p = reverse.between(transition, x_t, log_p0.exp(), t, s, back)
    # Only an x_0 that is ruled out can be impossible: what underflows is not.
    ruled_out = log_p0.gather(-1, x0[..., None]) == -torch.inf
    p = torch.where(ruled_out, p, p.clamp(min=torch.finfo(p.dtype).tiny))
    return Terms(torch.where(like(transition.is_clean(s).to(nats.device), nats), nats, categorical_kl(q, p)), nats)


def score_entropy(transition: Transition, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""`sum_(y != x_t) R_t(y, x_t) (m_y - r_y log m_y + r_y (log r_y - 1))` (Lou et al. 2024, eq. 5 and theorem 3.6),
    `(...)`.

    Args:
        transition: with rates.
        log_ratio: `log m`, `(..., K)`; -inf where no ratio is possible.
        x0, x_t: `(...)`.
        t: a scalar or `(B,)`.
    """
    truth = transition.ratio(x_t, transition.one_hot(x0, log_ratio.dtype), t)
    inflow = transition.inflow(x_t, t).to(log_ratio)
    counts = (F.one_hot(x_t, transition.states) == 0) & (
        inflow > 0
    )  # elsewhere ratios may be infinite and mean nothing
    rate, truth, log_m = (torch.where(counts, v, 0.0) for v in (inflow, truth, log_ratio))
    cross = torch.where(truth > 0, truth * log_m, 0.0)
    return (rate * (log_m.exp() - cross + torch.xlogy(truth, truth) - truth)).sum(-1)


def generic_path_rate(
    transition: Transition, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
) -> Terms:
    """`Transition.path_rate` by its definition."""
    log_ratio = reverse.log_ratio(transition, x_t, log_clean(transition, logits).exp(), t)
    return Terms(
        score_entropy(transition, log_ratio, x0, x_t, t), transition.cross_entropy(reverse, logits, x0, x_t, t)
    )


def generic_draw(
    transition: Transition,
    reverse: ReverseModel,
    logits: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    generator: Source = None,
) -> Tensor:
    """`Transition.draw` by its definition."""
    return categorical(reverse(transition, x_t, log_clean(transition, logits).exp(), t, s), generator)


class GenericTransition(Transition):
    """A transition whose divergences and draws are taken by their definitions."""

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        return generic_divergence(self, reverse, logits, x0, x_t, t, s)

    def path_rate(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        return generic_path_rate(self, reverse, logits, x0, x_t, t)

    def draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
    ) -> Tensor:
        return generic_draw(self, reverse, logits, x_t, t, s, generator)
