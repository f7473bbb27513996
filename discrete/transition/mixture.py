"""Moves of one structure and resampling of another."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.serialization import serializable
from ...shared.tensors import like
from .base import Transition
from .generic import GenericTransition
from .interpolating import Interpolating

AT_ONCE = 2**20  # numbers held at a time


@serializable("discrete.Mixture", formerly="unnoise.discrete.transition.mixture.Mixture")
class Mixture(GenericTransition):
    r"""Each step resamples with the chance beta_n of one process, else it moves by another:
    `Q_n = (1 - beta_n) Q^moves_n + beta_n 1 pi^T`.

    As the moves leave pi as it is, products keep this form: `Q_(s->t) = kept Q^moves_(s->t) + (1 - kept) 1 pi^T`.
    Neighbours and absorption are mixed so in Austin et al. (2021, appendix A.2).

    Args:
        moves: any transition over the data's symbols.
        resampling: `Uniform`, or `Absorbing` with a mask of its own, over the same symbols and times.

    Raises:
        UsageError: where symbols or times differ, or the moves would change pi, as an ordinary symbol that absorbs
            does.
    """

    def __init__(self, moves: Transition, resampling: Interpolating) -> None:
        if (moves.states, moves.steps) != (resampling.categories, resampling.steps):
            raise UsageError(
                f"{moves.states} symbols and T={moves.steps} of the moves do not fit {resampling.categories} symbols and T={resampling.steps} "
                "of the resampling: give both the same data and times"
            )
        super().__init__(resampling.categories, resampling.states, resampling.steps, max(moves.t_min, resampling.t_min))
        self.moves, self.resampling, self.rounding = moves, resampling, moves.rounding
        pi, n = resampling.stationary(), torch.arange(1, (self.steps or 4) + 1, dtype=torch.float64)
        if bool((pi[: moves.states] > 0).any()) and self._changed(
            pi, (n - 1) / len(n) if self.steps else torch.zeros_like(n), n / len(n)
        ):
            raise UsageError(
                "the moves change the law that resampling draws from: mix with Uniform, or with Absorbing(levels, schedule)"
            )

    def _changed(self, pi: Tensor, s: Tensor, t: Tensor) -> bool:
        """Whether the moves between any of these times change pi.

        Of tens of thousands of symbols a few times stand for all.
        """
        few = torch.linspace(0, len(s) - 1, max(4, min(len(s), AT_ONCE // len(pi)))).round().long()
        p = pi.expand(len(few), -1)
        return not torch.allclose(self._moved(p, s[few], t[few]), p, atol=1e-9)

    def _moved(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The moves, which leave a mask alone."""
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

    def _with_moves(self, flow: object, x_t: Tensor, t: Tensor) -> Tensor:
        size = self.moves.states
        rates = torch.where((x_t >= size)[..., None], 0.0, flow(x_t.clamp(max=size - 1), t))
        return torch.cat([rates, rates.new_zeros(*x_t.shape, self.states - size)], -1)
