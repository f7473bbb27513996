"""The formulas as they stand, for every transition: what structures without a closed form use, and the oracle of those with one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.random import Source, categorical
from ...shared.tensors import at_least_float32
from .base import ReverseModel, Terms, Transition


def categorical_kl(q: Tensor, p: Tensor) -> Tensor:
    """`KL(q || p)` along the last axis, in nats, `(...)`."""
    return (torch.xlogy(q, q) - q * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)


def log_clean(transition: Transition, logits: Tensor) -> Tensor:
    """`log p0` over all K states from logits over the data's symbols: x_0 is never a mask that was added."""
    log_p = at_least_float32(logits).log_softmax(-1)
    return F.pad(log_p, (0, transition.states - transition.levels), value=-torch.inf)


def plain_divergence(transition: Transition, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
    """`Transition.divergence` by its definition."""
    log_p0 = log_clean(transition, logits)
    truth = reverse(transition, x_t, transition.one_hot(x0, log_p0.dtype), t, s)
    model = reverse(transition, x_t, log_p0.exp(), t, s)
    return Terms(categorical_kl(truth, model), -log_p0.gather(-1, x0[..., None]).squeeze(-1))


def score_entropy(transition: Transition, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""`sum_(y != x_t) R_t(y, x_t) (m_y - r_y log m_y + r_y (log r_y - 1))` (Lou et al. 2024, eq. 5 and theorem 3.6), `(...)`.

    Args:
        transition: with rates.
        log_ratio: `log m`, `(..., K)`; -inf where no ratio is possible.
        x0, x_t: `(...)`.
        t: a scalar or `(B,)`.
    """
    truth = transition.ratio(x_t, transition.one_hot(x0, log_ratio.dtype), t)
    inflow = transition.inflow(x_t, t).to(log_ratio)
    counts = (F.one_hot(x_t, transition.states) == 0) & (inflow > 0)  # elsewhere ratios may be infinite and mean nothing
    rate, bounded = torch.where(counts, inflow, 0.0), log_ratio.clamp(min=torch.finfo(log_ratio.dtype).min)
    return (rate * torch.where(counts, log_ratio.exp() - truth * bounded + torch.xlogy(truth, truth) - truth, 0.0)).sum(-1)


def plain_path_rate(transition: Transition, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
    """`Transition.path_rate` by its definition."""
    log_p0 = log_clean(transition, logits)
    ratio = transition.ratio(x_t, log_p0.exp(), t)
    log_ratio = ratio.clamp(min=torch.finfo(ratio.dtype).tiny).log()
    return Terms(score_entropy(transition, log_ratio, x0, x_t, t), -log_p0.gather(-1, x0[..., None]).squeeze(-1))


def plain_draw(
    transition: Transition, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
) -> Tensor:
    """`Transition.draw` by its definition."""
    return categorical(reverse(transition, x_t, log_clean(transition, logits).exp(), t, s), generator)


class Plain(Transition):
    """A transition whose divergences and draws are taken by their definitions."""

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        return plain_divergence(self, reverse, logits, x0, x_t, t, s)

    def path_rate(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        return plain_path_rate(self, logits, x0, x_t, t)

    def draw(self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None) -> Tensor:
        return plain_draw(self, reverse, logits, x_t, t, s, generator)
