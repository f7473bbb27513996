"""Uniform resampling, which is multinomial diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.random import Source
from ...shared.serialization import serializable
from ...shared.tensors import Table, exact, like
from ..fused import divergence_constants, rate_constants, uniform_divergence, uniform_rate
from ..schedules import NoiseSchedule
from .base import CLEAN, ReverseModel, Terms
from .generic import generic_divergence, generic_draw, generic_path_rate
from .interpolating import TINY, Interpolating


@serializable(
    "discrete.Uniform", formerly="unnoise.discrete.transition.uniform.Uniform", renamed={"levels": "categories"}
)
class Uniform(Interpolating):
    r"""Uniform resampling, `Q_n = (1 - beta_n) I + beta_n 1 1^T / K`.

    Austin et al. 2021, appendix A.2; Hoogeboom et al. 2021, eq. 11. Each noise event draws the token anew, uniformly
    over all K, so that it may stay the same; sampling starts from uniform tokens.

    Args:
        categories: K.
        schedule: betas `(T,)`, the probabilities that step n resamples a token, or a `NoiseSchedule`.
    """

    def __init__(self, categories: int, schedule: Tensor | NoiseSchedule) -> None:
        super().__init__(categories, categories, schedule)
        self._whole: tuple[ReverseModel, Table] | None = None  # the constants of all steps, for one reverse model
        self._stationary = Table(torch.full((categories,), 1 / categories, dtype=torch.float64))

    def stationary(self) -> Tensor:
        return self._stationary.values

    def fresh(self, x: Tensor) -> Tensor:
        return torch.full(x.shape, 1 / self.states, dtype=torch.float64, device=x.device)

    def quantile(self, u: Tensor) -> Tensor:
        return (u * self.states).long().clamp(0, self.states - 1)

    def undone(self, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return m - like(self.kept(s, t)[1].to(m.device), m) * m.mean(-1, keepdim=True)

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        if reverse.eps:
            return generic_divergence(self, reverse, logits, x0, x_t, t, s)
        t, s = exact(t).to(x_t.device), exact(s).to(x_t.device)
        constants = self._step_constants(reverse, *(v.reshape(-1) for v in torch.broadcast_tensors(t, s)))
        return Terms(*uniform_divergence(logits, x_t, x0, constants, like(_order(t), x_t)))

    def _step_constants(self, reverse: ReverseModel, t: Tensor, s: Tensor) -> Tensor:
        """Returns the `divergence_constants` of steps, `(C, n, 2)`; those of a table's own steps are computed once."""
        if self.steps is None or t.device.type != "cpu" or torch.compiler.is_compiling():
            return self._constants(reverse, t, s)
        n = self.row(t)
        if not torch.equal(self.row(s) + 1, n):
            return self._constants(reverse, t, s)
        if self._whole is None or self._whole[0] is not reverse:
            ends = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            self._whole = reverse, Table(self._constants(reverse, ends[1:], ends[:-1]))
        return self._whole[1].values.index_select(1, n - 1)

    def _constants(self, reverse: ReverseModel, t: Tensor, s: Tensor) -> Tensor:
        before, by = self.noise.total(s), self.noise.total(t)
        a, c = torch.exp(before - by), torch.exp(-before)
        return divergence_constants(self.states, a, c, *self._reading(reverse, t)[1:], self.is_clean(s))

    def path_rate(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        r"""Returns the rate of the path from the ratios in closed form, and the cross-entropy.

        With `odds = K kept / (1 - kept)`, `kept = exp(-total(t))`, the model's ratios `q_t(y) / q_t(x_t)` are
        `(1 + odds p0_y) / (1 + odds p0_(x_t))` for `Product` (Schiff et al. 2024) and `h + odds p0_y`,
        `h = 1 - p0_(x_t) odds / (1 + odds)`, for `Marginal`.
        """
        if reverse.eps:
            return generic_path_rate(self, reverse, logits, x0, x_t, t)
        t = exact(t).to(x_t.device)
        constants = rate_constants(self.states, *self._reading(reverse, t.reshape(-1)))
        rate, nats = uniform_rate(logits, x_t, x0, constants, like(_order(t), x_t))
        return Terms(rate * like(self.noise.rate(t).to(rate) / self.states, rate), nats)

    def _reading(self, reverse: ReverseModel, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `odds`, `own` and `excess` of `fused.rate_constants`, of the shape of t."""
        kept, lost = self.kept(CLEAN, t)
        odds = kept * self.states / lost.clamp(min=TINY)
        # At t = 0, x_t is x_0 whatever the output.
        excess = torch.where(reverse.reads_posterior(self, t) & (lost > 0), 0.0, odds)
        return odds, reverse.own(self, t, kept, lost / self.states), excess

    def score_entropy(self, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        at_t, at_0 = (log_ratio.gather(-1, x[..., None]).squeeze(-1) for x in (x_t, x0))
        m, log_m = log_ratio.exp().sum(-1) - at_t.exp(), log_ratio.sum(-1) - at_t
        return self._rate(m, log_m, at_0, like(self._odds(exact(t).to(x_t.device)), x_t), x0 == x_t, t).to(log_ratio)

    def _odds(self, t: Tensor) -> Tensor:
        """Returns `K kept / (1 - kept)`, which is `q(x_t | x_0 = x_t) / q(x_t | x_0) - 1` for another x_0."""
        kept, lost = self.kept(CLEAN, t)
        return kept * self.states / lost.clamp(min=TINY)

    def _rate(self, m: Tensor, log_m: Tensor, log_m_0: Tensor, odds: Tensor, same: Tensor, t: Tensor) -> Tensor:
        """Returns the rate of the path from the sums of `m_y` and `log m_y` over y != x_t, and `log m_(x_0)`.

        The true ratio is `1 / (1 + odds)` for every y where x_t = x_0; elsewhere it is 1, and `1 + odds` for y = x_0.
        """
        others = self.states - 1
        r = torch.where(same, 1 / (1 + odds), 1.0)
        cross = r * log_m + torch.where(same, 0.0, odds * log_m_0)
        truth = r * (r.log() - 1) * others + torch.where(same, 0.0, torch.xlogy(1 + odds, 1 + odds) - odds)
        return like(self.noise.rate(exact(t).to(m.device)), m) / self.states * (m - cross + truth)

    def draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
    ) -> Tensor:
        if reverse.eps:
            return generic_draw(self, reverse, logits, x_t, t, s, generator)
        return self.known_draw(reverse, logits, x_t, t, s, generator)


def _order(t: Tensor) -> Tensor:
    """Returns the place of each time, of the shape of t: a scalar or `(B,)`."""
    return torch.arange(t.numel(), device=t.device).view(t.shape)
