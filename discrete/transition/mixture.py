"""A mixture of a process that moves tokens and one that resamples them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.serialization import serializable
from ...shared.tensors import like
from .base import Transition
from .generic import GenericTransition
from .interpolating import Interpolating

AT_ONCE = 2**20  # numbers in memory at a time


@serializable("discrete.Mixture", formerly="unnoise.discrete.transition.mixture.Mixture")
class Mixture(GenericTransition):
    r"""Resamples with probability beta_n, else moves: `Q_n = (1 - beta_n) Q^moves_n + beta_n 1 pi^T`.

    Resampling draws a token from pi: uniform, or the mask. The moves must not change pi, so that products have the same
    form, `Q_(s->t) = kept Q^moves_(s->t) + (1 - kept) 1 pi^T`, where kept is the probability of no resampling between s
    and t. Austin et al. (2021, appendix A.2) mix nearest neighbors and absorption in this way.

    Args:
        moves: any transition over the data's categories.
        resampling: `Uniform`, or `Absorbing` with an added mask, with the same categories and the same `steps` (T, or
            None in continuous time); its schedule gives beta_n.

    Raises:
        UsageError: where categories or times differ, or the moves would change pi, which they do where `Absorbing` has
            one of the categories for its mask.
    """

    def __init__(self, moves: Transition, resampling: Interpolating) -> None:
        if (moves.states, moves.steps) != (resampling.categories, resampling.steps):
            raise UsageError(
                f"the moves have {moves.states} states and T={moves.steps}, and the resampling has "
                f"{resampling.categories} categories and T={resampling.steps}: give both the same categories and times"
            )
        super().__init__(resampling.categories, resampling.steps, resampling.states, max(moves.t_min, resampling.t_min))
        self.moves, self.resampling, self.rounding = moves, resampling, moves.rounding
        pi, n = resampling.stationary(), torch.arange(1, (self.steps or 4) + 1, dtype=torch.float64)
        if bool((pi[: moves.states] > 0).any()) and self._changed(
            pi, (n - 1) / len(n) if self.steps else torch.zeros_like(n), n / len(n)
        ):
            raise UsageError(
                "the moves change the distribution from which the resampling draws: mix with Uniform, or with "
                "Absorbing(categories, schedule)"
            )

    def _changed(self, pi: Tensor, s: Tensor, t: Tensor) -> bool:
        """Returns whether the moves between any of these times change pi; for many states at a few of them."""
        few = torch.linspace(0, len(s) - 1, max(4, min(len(s), AT_ONCE // len(pi)))).round().long()
        p = pi.expand(len(few), -1)
        return not torch.allclose(self._moved(p, s[few], t[few]), p, atol=1e-9)

    def _moved(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Returns the pushforward of the moves, which do not change an added mask."""
        size = self.moves.states
        return torch.cat([self.moves.pushforward(p[..., :size], s, t), p[..., size:]], -1)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        kept, lost = (like(c, p) for c in self.resampling.kept(s, t))
        return kept * self._moved(p, s, t) + lost * p.sum(-1, keepdim=True) * self.resampling.stationary().to(p)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        hit, size = self.one_hot(x_t, torch.float64), self.moves.states
        masked = (x_t >= size)[..., None]
        moved = torch.where(masked, 0.0, self.moves.likelihood(x_t.clamp(max=size - 1), s, t))
        kept, lost = (like(c, hit) for c in self.resampling.kept(s, t))
        return kept * torch.cat([moved, hit[..., size:]], -1) + lost * self.resampling.fresh(x_t)[..., None]

    def stationary(self) -> Tensor:
        return self.resampling.stationary()

    def survival(self, t: Tensor) -> float:
        return self.resampling.survival(t)

    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self._with_moves(self.moves.inflow, x_t, t) + self.resampling.inflow(x_t, t)

    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self._with_moves(self.moves.outflow, x_t, t) + self.resampling.outflow(x_t, t)

    def _with_moves(self, flow: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        size = self.moves.states
        rates = torch.where((x_t >= size)[..., None], 0.0, flow(x_t.clamp(max=size - 1), t))
        return torch.cat([rates, rates.new_zeros(*x_t.shape, self.states - size)], -1)
