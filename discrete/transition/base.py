"""What a transition is: three structured products, from which the rest follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.corruption import Corruption, table_grid, table_time
from ...shared.errors import UsageError
from ...shared.random import Source, categorical
from ...shared.tensors import Table, exact


class Transition(Corruption):
    r"""`q(x_n | x_(n-1)) = Cat(row x_(n-1) of Q_n)`, n = 1..T, at t = n / T; `Q_(s->t)` is the product of the steps after s up to t.

    Times are scalars or `(B,)` for the first axis of the signal; row n = 0 is the clean signal. Probabilities have shape `(..., K)`.

    Attributes:
        levels: number of symbols in the data.
        states: K, number of symbols in all; more than `levels` where a mask is added.
        schedule: beta_1..beta_T, `(T,)`, float64.
        steps: T.
    """

    def __init__(self, levels: int, states: int, schedule: Tensor) -> None:
        self.levels, self.states, self.schedule, self.steps = levels, states, schedule.detach().double(), len(schedule)
        beta = self.schedule
        if levels < 2:
            raise UsageError(f"levels={levels}: categorical data need two symbols or more")
        if beta.ndim != 1 or not bool((beta > 0).all() & (beta <= 1).all() & (beta[:-1] < 1).all()):
            raise UsageError("a schedule is a vector of numbers in (0, 1], 1 at the last step only, such as reciprocal(1000)")

    @abstractmethod
    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """`p Q_(s->t)`: the law of x_t when x_s has law p, `(..., K)`."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """`Q_(s->t)[:, x_t]`: the chance of x_t from each x_s, `(..., K)`, float64."""

    @abstractmethod
    def stationary(self) -> Tensor:
        """The law that sampling starts from, `(K,)`, float64."""

    def row(self, n: Tensor) -> Tensor:
        """The step n of a time t = n / T, int64."""
        return torch.round(exact(n) * self.steps).long()

    def one_hot(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Point masses, `(..., K)`."""
        return F.one_hot(x, self.states).to(dtype)

    def posterior(self, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""`sum_x0 q(x_s | x_t, x_0) p0(x_0)` for any s < t, normalised, `(..., K)` (Austin et al. 2021, eq. 3, averaged over x_0).

        An x_0 from which x_t cannot be reached is left out.
        """
        clean = torch.zeros_like(t)
        reach = self.likelihood(x_t, clean, t).to(p0)
        tiny = torch.finfo(p0.dtype).tiny
        ratio = torch.where(reach > tiny, p0 / reach.clamp(min=tiny), 0.0)
        return normalised(self.likelihood(x_t, s, t).to(p0) * self.pushforward(ratio, clean, s))

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        return categorical(self.pushforward(self.one_hot(x0), torch.zeros_like(t), t), generator)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        return categorical(self.pushforward(self.one_hot(x_s), s, t), generator)

    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        return categorical(self.stationary().to(device).expand(*shape, -1), generator)

    def grid(self, steps: int) -> Tensor:
        return table_grid(steps, self.steps)

    def training_time(self, u: Tensor) -> Tensor:
        return table_time(u, self.steps)


class Keeping:
    """The chance that a symbol survives the steps after s up to t, `prod (1 - beta)`, and its complement, both without cancellation."""

    def __init__(self, schedule: Tensor) -> None:
        self.log_kept = Table(torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-schedule).cumsum(0)]))

    def __call__(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """`(kept, 1 - kept)` between rows i < j, float64."""
        log_ratio = self.log_kept[j] - self.log_kept[i]
        return log_ratio.exp(), -torch.expm1(log_ratio)


def normalised(p: Tensor) -> Tensor:
    """`p` over its sum along the last axis."""
    return p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
