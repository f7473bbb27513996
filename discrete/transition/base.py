"""What a transition is, and what turns a guess about x_0 into its reverse: structured products, from which posteriors follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.corruption import Corruption, table_grid, table_time
from ...shared.errors import UsageError
from ...shared.random import Source, categorical
from ...shared.tensors import exact, like

CLEAN = torch.zeros((), dtype=torch.float64)  # on the host, where looking at it costs nothing


class Terms(NamedTuple):
    """What a training step needs, `(...)` each, in nats: the divergence of a step (or the rate of the path) and `-log p0(x_0)`."""

    divergence: Tensor
    cross_entropy: Tensor | None  # None of a denoiser that does not say p0


class Transition(Corruption):
    r"""`q(x_t | x_s) = Cat(row x_s of Q_(s->t))`: a table of T steps at t = n / T, or a process in continuous time.

    Times are scalars or `(B,)` for the first axis of the signal; t = 0 is the clean signal. Probabilities have shape `(..., K)`.

    Attributes:
        levels: number of symbols in the data.
        states: K, number of symbols in all; more than `levels` where a mask is added.
        steps: T; None in continuous time.
        t_min: the smallest time that training and bounds visit in continuous time.
        rounding: chances of x_t below it count as none where they are divided by, since sums that cancel leave them without digits.
    """

    rounding: float = 0.0

    def __init__(self, levels: int, states: int, steps: int | None, t_min: float = 0.0) -> None:
        if levels < 2:
            raise UsageError(f"levels={levels}: categorical data need two symbols or more")
        self.levels, self.states, self.steps, self.t_min = levels, states, steps, t_min

    @abstractmethod
    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """`p Q_(s->t)`: the law of x_t when x_s has law p, `(..., K)`."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """`Q_(s->t)[:, x_t]`: the chance of x_t from each x_s, `(..., K)`, float64."""

    @abstractmethod
    def stationary(self) -> Tensor:
        """The law that sampling starts from, `(K,)`, float64."""

    @abstractmethod
    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`R_t[:, x_t]`: the rates of jumps into x_t, `(..., K)`, float64; what stands at x_t itself means nothing.

        Raises:
            UsageError: for a table, which has no rates.
        """

    @abstractmethod
    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`R_t[x_t, :]`: the rates of jumps out of x_t, as `inflow`."""

    @abstractmethod
    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        """`KL(q(x_s | x_t, x_0) || p(x_s | x_t))` for each position; at s = 0 it is `-log p0(x_0)`.

        Args:
            reverse: how p0 becomes a law of x_s.
            logits: `log p0` up to a constant, `(..., levels)`.
            x0, x_t: `(...)`, int64.
            t, s: scalars or `(B,)`.
        """

    @abstractmethod
    def path_rate(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        r"""The rate at which the divergence grows when steps shrink, per unit of time.

        `sum_(y != x_t) R_t(y, x_t) (m_y - r_y log m_y + r_y (log r_y - 1))`, with the true ratio `r_y = q(y | x_0) / q(x_t | x_0)` and the
        model's `m_y = sum_x0 p0(x_0) q(y | x_0) / q(x_t | x_0)` (Campbell et al. 2022, proposition 2, with its jump integrated out).
        """

    @abstractmethod
    def draw(self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None) -> Tensor:
        """`x_s ~ p(x_s | x_t)`, `(...)`, at scalar times, s > 0."""

    def row(self, t: Tensor) -> Tensor:
        """The step n of a time t = n / T, int64.

        Raises:
            UsageError: in continuous time, which has no rows.
        """
        if self.steps is None:
            raise UsageError("this process runs in continuous time and has no rows: give it a table such as reciprocal(1000)")
        return torch.round(exact(t) * self.steps).long()

    def is_clean(self, s: Tensor) -> Tensor:
        """Whether a time is 0, on a table up to rounding."""
        return s == 0 if self.steps is None else self.row(s) == 0

    def before(self, t: Tensor) -> Tensor:
        """The time of the row before t."""
        return (self.row(t) - 1).double() / self.steps

    def one_hot(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Point masses, `(..., K)`."""
        return F.one_hot(x, self.states).to(dtype)

    def posterior(self, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""`sum_x0 q(x_s | x_t, x_0) p0(x_0)` for any s < t, normalised, `(..., K)` (Austin et al. 2021, eq. 3, averaged over x_0).

        An x_0 from which x_t cannot be reached is left out.
        """
        return normalised(self.likelihood(x_t, s, t) * self.pushforward(self._over_reach(x_t, p0, t), CLEAN, s)).to(p0)

    def ratio(self, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        r"""`sum_x0 p0(x_0) q(y | x_0) / q(x_t | x_0)`, which is `q_t(y) / q_t(x_t)` when p0 is the posterior of x_0, `(..., K)`."""
        return self.pushforward(self._over_reach(x_t, p0, t), CLEAN, t).to(p0)

    def _over_reach(self, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        """`p0(x_0) / q(x_t | x_0)`, float64, for it may be large; 0 where x_t is out of reach."""
        reach = self.likelihood(x_t, CLEAN, t)
        least = max(1e-300, self.rounding)
        return torch.where(reach > least, p0.double() / reach.clamp(min=least), 0.0)

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        refuse_strangers(x0, self.levels, "x_0")
        return categorical(self.pushforward(self.one_hot(x0), CLEAN, t), generator)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        refuse_strangers(x_s, self.states, "x_s")
        return categorical(self.pushforward(self.one_hot(x_s), s, t), generator)

    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        return categorical(self.stationary().to(device).expand(*shape, -1), generator)

    def grid(self, steps: int) -> Tensor:
        if self.steps is not None:
            return table_grid(steps, self.steps)
        if steps < 1:
            raise UsageError(f"steps={steps}: a sampler needs at least one step")
        last = torch.zeros(1, dtype=torch.float64)
        return torch.cat([torch.linspace(1, self.t_min, steps, dtype=torch.float64) if steps > 1 else last + 1, last])

    def training_time(self, u: Tensor) -> Tensor:
        return table_time(u, self.steps) if self.steps is not None else self.t_min + (1 - self.t_min) * exact(u)


class ReverseModel(ABC):
    """`p(x_s | x_t)` from `p0(x_0)`; at s = 0 it is p0 itself, and on a point mass p0 it is the true posterior.

    Attributes:
        eps: added to factors of the law; closed forms hold without.
        discounts: whether `discount` is anything but 1.
    """

    eps: float = 0.0
    discounts: bool = False

    def __call__(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Normalised, `(..., K)`; t and s are scalars or `(B,)`."""
        # A network may give x_t's own symbol a chance that underflows, and no symbol is then left that leads to x_t: keep a trace of all.
        p = self.between(transition, x_t, p0.clamp(min=1e-30), t, s)
        return torch.where(like(transition.is_clean(s), p0), p0, p)

    @abstractmethod
    def between(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The law at s > 0."""

    @abstractmethod
    def discount(self, reach: Tensor) -> Tensor:
        """What p0 is multiplied with, up to a constant for each x_t, before it is pushed forward: of the chance of x_t from x_0."""

    @abstractmethod
    def own(self, kept: Tensor, missed: Tensor) -> Tensor:
        """That of x_0 = x_t beside every other x_0, where a symbol is kept with chance `kept` and else meets x_t with `missed`."""


def refuse_strangers(x: Tensor, symbols: int, what: str) -> None:
    """Refuses symbols outside 0..symbols-1 by name; on an accelerator without waiting for it.

    Raises:
        UsageError: with the first such symbol.
    """
    if x.is_floating_point() or x.dtype == torch.bool:
        raise UsageError(f"{what} is {x.dtype}: categorical data are integers in 0..{symbols - 1}")
    known = (x >= 0) & (x < symbols)
    if x.device.type != "cpu":
        torch._assert_async(known.all(), f"{what} holds a symbol outside 0..{symbols - 1}")
    elif not bool(known.all()):
        raise UsageError(f"{what} holds the symbol {int(x[~known].flatten()[0])}, outside the vocabulary 0..{symbols - 1}")


def normalised(p: Tensor) -> Tensor:
    """`p` over its sum along the last axis."""
    return p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
