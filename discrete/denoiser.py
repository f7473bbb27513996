"""Categorical denoisers: `log p(x_0 | x_t)` from a network, and the reverse steps that follow from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.calling import call_network, one_per_example, refuse_signature
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.random import Source, categorical, quantile, uniform
from ..shared.serialization import serializable
from ..shared.tensors import checked_time, full_precision
from ..shared.time_inputs import TimeInput, thousandths
from .heads import Head, at_masks, direct, refuse_head
from .reverse import Product, to_leave_one_out
from .transition import ReverseModel, Transition
from .transition.base import CLEAN, Terms, as_tokens
from .transition.generic import GenericTransition, categorical_kl, generic_divergence, log_clean


class CategoricalDenoiser(Denoiser[Transition]):
    """The base class of categorical denoisers: `log p0`, `(..., K)`, and the distributions of x_s that follow from it.

    Called with x_t, `(B, ...)`, int64, a time t, a scalar or `(B,)`, and conditions by name; returns `log p0`,
    normalized log-probabilities `(B, ..., K)`, with -inf at an added mask. Objective, sampler and bound of a denoiser
    use these, so they describe one model.

    Attributes:
        corruption: the process that corrupted x_t, with K states.
    """

    corruption: Transition

    @property
    def has_integral(self) -> bool:
        """Whether the rate of the path can be integrated up to t = 1; False where it grows as `1 / (1 - t)`."""
        return True

    @abstractmethod
    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """Returns `p(x_s | x_t)`, probabilities `(..., K)`, for any s < t; at s = 0 the posterior `p(x_0 | x_t)`."""

    @abstractmethod
    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Samples `x_s ~ p(x_s | x_t)`, int64 `(...)`, each position independently, also at s = 0."""

    @abstractmethod
    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns the model's `q_t(y) / q_t(x_t)` for every token y at each position, `(..., K)`.

        y replaces the token at that position, and all others stay (Lou et al. 2024, eq. 3); 1 at y = x_t. The rates of
        the process that `step_distribution` becomes as steps shrink follow from it: see `reverse_rates`.
        """

    @abstractmethod
    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        """Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))`, at s = 0 `-log p(x_0 | x_t)`.

        As `Terms` at each position, `(...)`, in nats, computed in `dtype` where one is given.
        """

    @abstractmethod
    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        """Returns the limit of `divergence` over `t - s` as s rises to t, as `Terms`, in nats per unit of time."""

    def exact_divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        """Returns `divergence` from the exact posterior, not smoothed by the reverse model's eps, as bounds need it."""
        return self.divergence(x0, x_t, t, s, dtype=dtype, **cond)

    def start_distribution(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `p(x_t)` at the time t from which sampling starts, `(..., K)`, float64; the bound codes x_t with it.

        It is the process's stationary distribution. Where that is one token alone (a mask) and some data tokens remain
        at t, as under `Absorbing(27, LogLinearNoise(1e-3))`, they are drawn from the denoiser: p(x_t) is its
        leave-one-out posterior at that token, noised to t.

        Args:
            x: `(B, ...)`, a sample of the stationary distribution.
            t: a scalar.
            cond: conditions by name.
        """
        stationary = self.corruption.stationary().to(x.device)
        if not self.corruption.survival(t):
            return stationary.expand(*x.shape, -1)
        posterior = self.step_distribution(x, t, CLEAN, **cond)[..., : self.corruption.categories].double()
        p0 = to_leave_one_out(self.corruption, posterior.log(), x, t).exp()
        return self.corruption.pushforward(
            F.pad(p0, (0, self.corruption.states - self.corruption.categories)), CLEAN, t
        )

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        chance = self.corruption.survival(t)
        if not chance:
            return x
        u = 1 - uniform(x.shape, generator, dtype=torch.float64, device=x.device)
        token = int(self.corruption.stationary().argmax())
        if not bool((u <= chance).any()):  # no data token remains in any row: the network need not be called
            return x
        left = self.start_distribution(x, t, **cond).clone()
        left[..., token] = 0
        mass = left.sum(-1)
        return torch.where((u <= mass) & (x == token), quantile(left, (u / mass.clamp(min=1e-300)).clamp(max=1)), x)


class CleanDenoiser(CategoricalDenoiser):
    """The base class of denoisers that predict p0, the posterior of x_0 or its leave-one-out posterior.

    The leave-one-out posterior of x_0 at a position is given the noisy tokens at all other positions, without the
    evidence of x_t at the position itself; times `q(x_t | x_0)`, and normalized, it is the posterior.

    Attributes:
        reverse: the reverse model, which determines how p0 is read: `Product` or `Marginal`.
    """

    reverse: ReverseModel

    @abstractmethod
    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `log p0` up to a constant at each position, `(..., categories)`, without an added mask."""

    def loss_logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `logits`, except where they do not count in losses and steps (`Transition.loss_is_of_masks`).

        t has been checked: a tensor, scalar or `(B,)`.
        """
        return self.logits(x_t, t, **cond)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `log p0`, `(..., K)`; the posterior `p(x_0 | x_t)` is `step_distribution` at s = 0."""
        return log_clean(self.corruption, self.logits(x_t, t, **cond))

    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        t, s = checked_time(t), checked_time(s)
        p0 = self(x_t, t, **cond).exp()
        with full_precision(x_t):
            return self.reverse(self.corruption, x_t.long(), p0, t, s)

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        t, s = checked_time(t), checked_time(s)
        if self.corruption.is_clean(s):
            return categorical(self.step_distribution(x_t, t, s, **cond), generator)
        logits = self.loss_logits(x_t, t, **cond)
        with full_precision(x_t):
            return self.corruption.draw(self.reverse, logits, x_t.long(), t, s, generator)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        t = checked_time(t)
        p0 = self(x_t, t, **cond).exp()
        with full_precision(x_t):
            return self.reverse.log_ratio(self.corruption, x_t.long(), p0, t).exp()

    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        t, s = checked_time(t), checked_time(s)
        logits = in_dtype(self.loss_logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return self.corruption.divergence(self.reverse, logits, x0.long(), x_t.long(), t, s)

    def exact_divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        if not self.reverse.eps:
            return self.divergence(x0, x_t, t, s, dtype=dtype, **cond)
        t, s = checked_time(t), checked_time(s)
        logits = in_dtype(self.logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return generic_divergence(self.corruption, self.reverse, logits, x0.long(), x_t.long(), t, s, exact=True)

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        t = checked_time(t)
        logits = in_dtype(self.loss_logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return self.corruption.path_rate(self.reverse, logits, x0.long(), x_t.long(), t)

    def cross_entropy(self, x0: Tensor, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `-log p(x_0 | x_t)` at each position, `(...)`, in nats, for the posterior that follows from p0."""
        t = checked_time(t)
        logits = self.loss_logits(x_t, t, **cond)
        with full_precision(x_t):
            return self.corruption.cross_entropy(self.reverse, logits, x0.long(), x_t.long(), t)


class CleanDenoiserWrapper(CleanDenoiser):
    """The base class of denoisers around another one that predicts p0. Subclasses define `logits`.

    It forwards the inner denoiser's `corruption`, `reverse` and `conditions`.

    Args:
        denoiser: the inner denoiser.

    Raises:
        UsageError: for a denoiser that does not predict p0.
    """

    def __init__(self, denoiser: CleanDenoiser) -> None:
        super().__init__()
        refuse_without_p0(denoiser, type(self).__name__)
        self.denoiser = denoiser
        self.corruption, self.reverse, self.conditions = denoiser.corruption, denoiser.reverse, denoiser.conditions


@serializable("discrete.Categorical", formerly="unnoise.discrete.denoiser.Categorical", renamed={"label": "time_input"})
class Categorical(CleanDenoiser):
    """A denoiser made of a network that predicts p0.

    The network is fed x_t as int64 and the time input as float32 `(B,)`: 1000 t by default, which is 1 to 1000 on a
    table of T = 1000 steps. A network that counts steps from 0, as an `nn.Embedding(T)` does, needs
    `time_input=step_index`; index with `time.round().long()`.

    Args:
        network: `(x_t int64, time input (B,), **cond) -> output (..., K)`, logits, or another shape that the head
            reads; the last axis may also leave an added mask out.
        transition: the process that corrupted x_t.
        reverse: how the output is read: as the leave-one-out posterior of x_0 (`Product`, as published for D3PM) or as
            its posterior (`Marginal`); the two agree at the masks of an absorbing process. None for `Product()`.
        time_input: `(transition, t) -> ` the number that the network is fed for the time t, of the shape of t.
        head: how the output becomes logits: `direct`, `residual`, `carried` or `logistic`.

    Raises:
        UsageError: for a head that does not fit the process, and an eps of the reverse model in continuous time; and in
            a call, for conditions, times and outputs of the network that do not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        transition: Transition,
        reverse: ReverseModel | None = None,
        time_input: TimeInput = thousandths,
        head: Head = direct,
    ) -> None:
        super().__init__()
        if not isinstance(transition, Transition):
            raise UsageError(f"transition={transition!r}: give Categorical(network, transition), in this order")
        if not isinstance(reverse, ReverseModel | None):
            raise UsageError(f"reverse={reverse!r}: give a reverse model, Product() or Marginal()")
        refuse_signature(network)
        refuse_head(head, transition)
        if isinstance(transition, GenericTransition):
            transition.check()
        self.network, self.transition, self.time_input, self.head = network, transition, time_input, head
        self.reverse = reverse or Product()
        if self.reverse.eps and transition.steps is None:
            raise UsageError(
                f"{self.reverse} adds eps at every step, which has no limit in continuous time: take Product(), or "
                "give the process a table of steps"
            )
        self.corruption, self.conditions = transition, getattr(network, "conditions", None)

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self._logits(self.head, x_t, checked_time(t), cond)

    def loss_logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        of_masks = self.corruption.loss_is_of_masks(self.reverse)
        return self._logits(at_masks(self.head) if of_masks else self.head, x_t, t, cond)

    def _logits(self, head: Head, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        x_t = as_tokens(x_t, self.corruption.states, "x_t")
        out = call_network(self, x_t, one_per_example(self.time_input(self.corruption, t), x_t), cond)
        return head(out, x_t, self.corruption)

    def time_input_range(self) -> Tensor:
        """Returns the time inputs at the least noisy time, t_min or 1 / T, and at t = 1, `(2,)`."""
        return ends_of(self.time_input, self.corruption)


def ends_of(time_input: TimeInput, transition: Transition) -> Tensor:
    """Returns the time inputs at the least noisy time, t_min in continuous time or 1 / T, and at t = 1, `(2,)`."""
    return time_input(
        transition,
        torch.tensor([1 / transition.steps if transition.steps else transition.t_min, 1.0], dtype=torch.float64),
    )


def refuse_without_integral(denoiser: CategoricalDenoiser) -> None:
    """Raises an error for a denoiser whose bound in continuous time is infinite (`has_integral` is False).

    Raises:
        UsageError: with what to do.
    """
    if not denoiser.has_integral:
        raise UsageError(
            f"the bound of {type(denoiser).__name__} is infinite in continuous time, because it prefers some tokens at "
            "t = 1, where this process resamples at an infinite rate: give the schedule an eps above 0, or bound a "
            "chain, VariationalBound(denoiser, steps=100)"
        )


def refuse_without_p0(denoiser: CategoricalDenoiser, name: str) -> None:
    """Raises an error that names the caller, `name`, for a denoiser that does not predict p0.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"{name} needs logits of x_0, which {type(denoiser).__name__} does not have: take a denoiser that predicts "
            "x_0, such as Categorical"
        )


def divergence_from(
    transition: Transition, distribution: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """Returns `KL(q(x_s | x_t, x_0) || distribution)`, `(...)`, in nats, for a distribution of x_s, `(..., K)`.

    x0 and x_t are `(...)`, t and s scalars or `(B,)`; at s = 0 it is minus the log of its probability of x_0.
    """
    truth = transition.posterior(x_t.long(), transition.one_hot(x0.long(), distribution.dtype), t, s)
    return categorical_kl(torch.where(truth > transition.rounding, truth, 0.0), distribution)


def in_dtype(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns x in `dtype`, or as it is for None."""
    return x if dtype is None else x.to(dtype)
