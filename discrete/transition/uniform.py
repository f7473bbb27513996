"""Uniform resampling: multinomial diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.describe import described
from ...shared.random import Source
from ...shared.tensors import Table, exact, like
from ..fused import resampled_sums, uniform_divergence
from ..schedules import NoiseSchedule
from .base import CLEAN, ReverseModel, Terms
from .interpolating import Interpolating
from .plain import plain_divergence, plain_draw


@described
class Uniform(Interpolating):
    r"""`Q_n = (1 - beta_n) I + beta_n 1 1^T / K` (Austin et al. 2021, appendix A.2; Hoogeboom et al. 2021, eq. 11).

    Args:
        levels: K.
        schedule: beta_1..beta_T, or a schedule in continuous time.
    """

    def __init__(self, levels: int, schedule: Tensor | NoiseSchedule) -> None:
        super().__init__(levels, levels, schedule)
        self._stationary = Table(torch.full((levels,), 1 / levels, dtype=torch.float64))

    def stationary(self) -> Tensor:
        return self._stationary.values

    def fresh(self, x: Tensor) -> Tensor:
        return torch.full(x.shape, 1 / self.states, dtype=torch.float64, device=x.device)

    def quantile(self, u: Tensor) -> Tensor:
        return (u * self.states).long().clamp(0, self.states - 1)

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        if reverse.eps:
            return plain_divergence(self, reverse, logits, x0, x_t, t, s)
        t, s = exact(t).to(x_t.device), exact(s).to(x_t.device)
        before, by = self.noise.total(s), self.noise.total(t)
        own = reverse.own(torch.exp(-by), -torch.expm1(-by) / self.states)
        constants = torch.exp(before - by), torch.exp(-before), own, self.is_clean(s)
        return Terms(*uniform_divergence(logits, x_t, x0, *(like(v, x_t) for v in constants)))

    def path_rate(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        r"""With `odds = K kept / (1 - kept)` the model's ratios are `m_y = A + odds p0_y`, `A = 1 - p0_(x_t) odds / (1 + odds)`."""
        odds = self._odds(x_t, t)
        excess, log_p_t, log_p_0 = resampled_sums(logits, x_t, x0, odds, 1 / (1 + odds))
        p_t, p_0 = log_p_t.double().exp(), log_p_0.double().exp()
        a = p_t / (1 + odds) - torch.expm1(log_p_t.double())
        others = self.states - 1
        m = others * a - odds * torch.expm1(log_p_t.double())
        log_m = others * a.log() + excess - torch.log1p(odds * p_t / a)  # sum of log m_y over y != x_t
        return Terms(self._rate(m, log_m, torch.log(a + odds * p_0), odds, x0 == x_t, t).to(log_p_0), -log_p_0)

    def score_entropy(self, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        at_t, at_0 = (log_ratio.gather(-1, x[..., None]).squeeze(-1) for x in (x_t, x0))
        m, log_m = log_ratio.exp().sum(-1) - at_t.exp(), log_ratio.sum(-1) - at_t
        return self._rate(m, log_m, at_0, self._odds(x_t, t), x0 == x_t, t).to(log_ratio)

    def _odds(self, x_t: Tensor, t: Tensor) -> Tensor:
        """How much likelier x_t is after x_0 = x_t than after another symbol, less one: `K kept / (1 - kept)`."""
        kept, lost = (like(c, x_t) for c in self.kept(CLEAN, exact(t).to(x_t.device)))
        return kept * self.states / lost

    def _rate(self, m: Tensor, log_m: Tensor, log_m_0: Tensor, odds: Tensor, same: Tensor, t: Tensor) -> Tensor:
        """The rate of the path from the sums of `m_y` and `log m_y` over y != x_t, and `log m_(x_0)`.

        The true ratio is `1 / (1 + odds)` for every y where x_t = x_0; elsewhere it is 1, and `1 + odds` for y = x_0.
        """
        others = self.states - 1
        r = torch.where(same, 1 / (1 + odds), 1.0)
        cross = r * log_m + torch.where(same, 0.0, odds * log_m_0)
        truth = r * (r.log() - 1) * others + torch.where(same, 0.0, torch.xlogy(1 + odds, 1 + odds) - odds)
        return like(self.noise.rate(exact(t).to(m.device)), m) / self.states * (m - cross + truth)

    def draw(self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None) -> Tensor:
        if reverse.eps:
            return plain_draw(self, reverse, logits, x_t, t, s, generator)
        return self.known_draw(reverse, logits, x_t, t, s, generator)
