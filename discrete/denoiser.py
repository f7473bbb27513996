"""Categorical denoisers: what x_0 was, and the reverse steps that follow."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.calling import ask, refuse_signature
from ..shared.denoiser import Denoiser, on_every_row
from ..shared.errors import UsageError
from ..shared.random import Source, categorical, quantile, uniform
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, exact, full_precision, like, moment
from ..shared.time_inputs import TimeInput, thousandths
from .heads import Head, direct, refuse_head, refuse_shape
from .reverse import Marginal, Product, to_leave_one_out
from .transition import ReverseModel, Transition
from .transition.base import CLEAN, Terms, as_tokens, normalized
from .transition.generic import categorical_kl, generic_divergence, log_clean
from .transition.interpolating import Interpolating

BEFORE_ONE = torch.tensor(1 - 2.0**-52, dtype=torch.float64)  # where a schedule that loses all by t = 1 is still finite
LEAST_LEFT = 32.0  # nats: what is smaller is lost in rounding


class CategoricalDenoiser(Denoiser[Transition]):
    """`log p0`, `(..., K)`, and the distributions of x_s that follow: one model for objective, sampler and bound."""

    corruption: Transition

    @property
    def has_integral(self) -> bool:
        """Whether the path's rate can be integrated up to t = 1: not where it grows as `1 / (1 - t)`."""
        return True

    @abstractmethod
    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """`p(x_s | x_t)`, `(..., K)`, for any s < t; at s = 0 the posterior `p(x_0 | x_t)`."""

    @abstractmethod
    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """`x_s ~ p(x_s | x_t)`."""

    @abstractmethod
    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The model's `q_t(y) / q_t(x_t)` for every token y at each position, `(..., K)` (Lou et al. 2024, eq. 3).

        The rates of the process that `step_distribution` becomes as steps shrink follow from it: see `reverse_rates`.
        """

    @abstractmethod
    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        """`KL(q(x_s | x_t, x_0) || p(x_s | x_t))`, at s = 0 `-log p(x_0 | x_t)`.

        `(...)`, nats, in `dtype` where one is given.
        """

    @abstractmethod
    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        """The limit of that divergence over the length of the step, per unit of time, as `divergence`."""

    def exact_divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        """`divergence` from the exact posterior, whatever eps the reverse model has: what bounds are made of."""
        return self.divergence(x0, x_t, t, s, dtype=dtype, **cond)

    def start_distribution(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`p(x_t)` at the time t from which sampling starts, `(..., K)`, float64; the bound codes x_t with it.

        It is the process's stationary distribution. Where that is one token alone (a mask) and the process leaves
        tokens of the data over at t, as `Absorbing(27, LogLinear(1e-3))` does, the denoiser gives them: p(x_t) is its
        leave-one-out posterior at that token, noised to t.

        Args:
            x: `(B, ...)`, a draw of the stationary distribution.
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
        if not bool((u <= chance).any()):  # nothing is left over in any row: the network need not be asked
            return x
        left = self.start_distribution(x, t, **cond).clone()
        left[..., token] = 0
        mass = left.sum(-1)
        return torch.where((u <= mass) & (x == token), quantile(left, (u / mass.clamp(min=1e-300)).clamp(max=1)), x)


class CleanDenoiser(CategoricalDenoiser):
    """A denoiser with logits of p0, which its reverse model reads as the posterior of x_0 or as the leave-one-out
    one.

    Attributes:
        reverse: how p0 is read.
    """

    reverse: ReverseModel

    @abstractmethod
    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`log p0` up to a constant, `(..., categories)`."""

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`log p0`, `(..., K)`; the posterior `p(x_0 | x_t)` is `step_distribution` at s = 0."""
        return log_clean(self.corruption, self.logits(x_t, t, **cond))

    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        t, s = moment(t), moment(s)
        p0 = self(x_t, t, **cond).exp()
        with full_precision(x_t):
            return self.reverse(self.corruption, x_t.long(), p0, t, s)

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        t, s = moment(t), moment(s)
        if self.corruption.is_clean(s):
            return categorical(self.step_distribution(x_t, t, s, **cond), generator)
        logits = self.logits(x_t, t, **cond)
        with full_precision(x_t):
            return self.corruption.draw(self.reverse, logits, x_t.long(), t, s, generator)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        t = moment(t)
        p0 = self(x_t, t, **cond).exp()
        with full_precision(x_t):
            return self.reverse.log_ratio(self.corruption, x_t.long(), p0, t).exp()

    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        t, s = moment(t), moment(s)
        logits = _in(self.logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return self.corruption.divergence(self.reverse, logits, x0.long(), x_t.long(), t, s)

    def exact_divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        if not self.reverse.eps:
            return self.divergence(x0, x_t, t, s, dtype=dtype, **cond)
        t, s = moment(t), moment(s)
        logits = _in(self.logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return generic_divergence(self.corruption, self.reverse, logits, x0.long(), x_t.long(), t, s, exact=True)

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        t = moment(t)
        logits = _in(self.logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return self.corruption.path_rate(self.reverse, logits, x0.long(), x_t.long(), t)

    def cross_entropy(self, x0: Tensor, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`-log p(x_0 | x_t)`, `(...)`, nats."""
        t = moment(t)
        logits = self.logits(x_t, t, **cond)
        with full_precision(x_t):
            return self.corruption.cross_entropy(self.reverse, logits, x0.long(), x_t.long(), t)


@serializable("discrete.Categorical", formerly="unnoise.discrete.denoiser.Categorical", renamed={"label": "time_input"})
class Categorical(CleanDenoiser):
    """A network's output as a denoiser.

    The network is fed x_t as int64 and the time input in float32 `(B,)`: 1000 t by default, which on a table of T =
    1000 steps is 1 to
    1000. What counts steps from 0, as an `nn.Embedding(T)` does, is fed `time_input=step_index`; index with
      `time.round().long()`.

    Args:
        network: `(x_t int64, time input (B,), **cond) -> output (..., K)`, or what the head reads.
        transition: what corrupted x_t.
        reverse: how the output is read, as the leave-one-out posterior of x_0 (`Product`, as published for D3PM) or
            as its posterior (`Marginal`); at masks of an absorbing process both are the same; None for `Product()`.
        time_input: the number that the network is fed for a time.
        head: how the output becomes logits: `direct`, `residual`, `carried` or `logistic`.

    Raises:
        UsageError: for a head that does not fit the process, and eps of a reverse model in continuous time; and when it
            is called, for conditions, times and outputs of the network that do not fit.
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
        self.network, self.transition, self.reverse, self.time_input, self.head = (
            network,
            transition,
            reverse or Product(),
            time_input,
            head,
        )
        if self.reverse.eps and transition.steps is None:
            raise UsageError(
                f"{self.reverse} adds eps to every step, which in continuous time has no limit: take Product(), or a table of steps"
            )
        self.corruption, self.conditions = transition, getattr(network, "conditions", None)

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        x_t = as_tokens(x_t, self.corruption.states, "x_t")
        out = ask(self, x_t, on_every_row(self.time_input(self.corruption, moment(t)), x_t), cond)
        return self.head(out, x_t, self.corruption)

    def time_inputs(self) -> Tensor:
        """What the network is fed for the least noisy and for the noisiest time, `(2,)`."""
        return ends_of(self.time_input, self.corruption)


@serializable(
    "discrete.ScoreEntropyDenoiser",
    formerly="unnoise.discrete.denoiser.ScoreEntropyDenoiser",
    renamed={"label": "time_input"},
)
class ScoreEntropyDenoiser(CategoricalDenoiser):
    r"""A network that gives the logarithms of the ratios `q_t(y) / q_t(x_t)` themselves (Lou et al. 2024, SEDD).

    The distribution of x_s follows by undoing the noise from s to t:
    `p(x_s | x_t) prop. to (m Q_(s->t)^-1)[x_s] Q_(s->t)[x_s, x_t]`, with the ratios m (Lou et al. 2024, eq. 19, their
    analytic sampler); negative numbers, which wrong ratios give in long steps, count as 0. It needs a process whose
    steps can be undone, `Uniform` or `Absorbing`.

    Args:
        network: `(x_t int64, time input (B,), **cond) -> (..., K)`.
        transition: in continuous time, that resamples.
        time_input: the number that the network is fed for a time.
        offset: added to the output before it is read, a number for each time: by default `scaled_by_noise` for a mask,
            as released, and `unscaled` elsewhere.

    Raises:
        UsageError: for another process, and one that loses all by t = 1 where the ratios that the network gives then
            say nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        transition: Interpolating,
        time_input: TimeInput = thousandths,
        offset: TimeInput | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(transition, Interpolating) or transition.steps is not None:
            raise UsageError(
                f"{type(transition).__name__} (T={transition.steps}): ratios are learned on a process in continuous time whose steps can "
                "be undone, such as Absorbing(27, LogLinear()) or Uniform(27, Geometric())"
            )
        refuse_signature(network)
        self.network, self.transition, self.time_input = network, transition, time_input
        self.offset = offset or (scaled_by_noise if transition.states > transition.categories else unscaled)
        self.corruption, self.conditions = transition, getattr(network, "conditions", None)
        left = -torch.log(torch.expm1(transition.noise.total(BEFORE_ONE)))  # of the data, in logarithms
        if bool(
            (transition.stationary() == 1).any()
        ):  # ratios go to 0 with it under absorption, where an offset says so
            left = left - self.offset(transition, BEFORE_ONE)
        if float(left) < -LEAST_LEFT:
            raise UsageError(
                f"{transition.noise} leaves nothing of the data by t = 1, where ratios no longer tell tokens apart: give it an "
                "eps above 0, take Geometric(), or, on Absorbing, offset=scaled_by_noise"
            )

    def log_ratio(self, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Tensor:
        """`log m`, `(..., K)`; 0 at x_t itself."""
        x_t = as_tokens(x_t, self.corruption.states, "x_t")
        t = moment(t)
        out = ask(self, x_t, on_every_row(self.time_input(self.corruption, t), x_t), cond)
        refuse_shape(out, x_t, self.corruption)
        out = _in(at_least_float32(out), dtype)
        out = out + like(self.offset(self.corruption, exact(t).clamp(max=float(BEFORE_ONE))).to(out.device), out)
        out = F.pad(out, (0, self.corruption.states - out.shape[-1]), value=-torch.inf)
        return out.scatter(-1, x_t[..., None], 0.0)

    def time_inputs(self) -> Tensor:
        """What the network is fed for the least noisy and for the noisiest time, `(2,)`."""
        return ends_of(self.time_input, self.corruption)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.log_ratio(x_t, t, **cond).exp()

    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        t, s = moment(t), moment(s)
        m = self.log_ratio(x_t, t, dtype=torch.float64, **cond).exp()
        t = exact(t).clamp(max=float(BEFORE_ONE))
        distribution = self.corruption.undone(m, s, t).clamp(min=0) * self.corruption.likelihood(x_t.long(), s, t)
        if self.corruption.states > self.corruption.categories:  # x_0 is never masked
            allowed = F.one_hot(torch.tensor(self.corruption.categories), self.corruption.states).to(m) == 0
            distribution = torch.where(
                like(self.corruption.is_clean(s).to(distribution.device), distribution) & ~allowed, 0.0, distribution
            )
        return normalized(distribution)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`log p(x_0 | x_t)`, `(..., K)`."""
        return self.step_distribution(x_t, t, CLEAN, **cond).log()

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return categorical(self.step_distribution(x_t, t, s, **cond), generator)

    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        return Terms(divergence_from(self.corruption, self.step_distribution(x_t, t, s, **cond), x0, x_t, t, s), None)

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        t = moment(t)
        log_ratio = self.log_ratio(x_t, t, dtype=dtype, **cond)
        with full_precision(x_t):
            return Terms(self.corruption.score_entropy(log_ratio, x0.long(), x_t.long(), t), None)


def ends_of(time_input: TimeInput, transition: Transition) -> Tensor:
    """The time input of the least noisy and of the noisiest time, `(2,)`."""
    return time_input(
        transition,
        torch.tensor([1 / transition.steps if transition.steps else transition.t_min, 1.0], dtype=torch.float64),
    )


@serializable("discrete.unscaled", formerly="unnoise.discrete.denoiser.unscaled")
def unscaled(transition: Transition, t: Tensor) -> Tensor:
    """0: the output as it is."""
    return torch.zeros_like(t)


@serializable("discrete.scaled_by_noise", formerly="unnoise.discrete.denoiser.scaled_by_noise")
def scaled_by_noise(transition: Transition, t: Tensor) -> Tensor:
    r"""`-log(exp(total) - 1) - log(categories)`: at masked positions the ratios sum to `kept / (1 - kept)`, whatever
    the data (SEDD, released).

    The released code takes the logarithm of the vocabulary with the mask less one, which is `categories`.
    """
    total = transition.noise.total(t)
    return -torch.log(torch.expm1(total)) - math.log(transition.categories)


def refuse_without_integral(denoiser: CategoricalDenoiser) -> None:
    """Refuses a denoiser whose bound in continuous time is infinite.

    Raises:
        UsageError: with what to do.
    """
    if not denoiser.has_integral:
        raise UsageError(
            f"{type(denoiser).__name__} prefers tokens at t = 1, where this process resamples at an infinite rate, so its bound in "
            "continuous time is infinite: give the schedule an eps above 0, or bound a chain, VariationalBound(denoiser, steps=100)"
        )


def refuse_without_p0(denoiser: CategoricalDenoiser, name: str) -> None:
    """Refuses a denoiser that does not say p0, by the name of what needs it.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"{name} needs p(x_0 | x_t), and {type(denoiser).__name__} has no logits of it: take one that has, such as Categorical"
        )


def divergence_from(
    transition: Transition, distribution: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """`KL(q(x_s | x_t, x_0) || distribution)`, `(...)`, in nats, for a distribution of x_s, `(..., K)`."""
    truth = transition.posterior(x_t.long(), transition.one_hot(x0.long(), distribution.dtype), t, s)
    return categorical_kl(torch.where(truth > transition.rounding, truth, 0.0), distribution)


class AnalyticCategorical(CleanDenoiser):
    """The exact posterior of symbols that are drawn independently from one law: what the tests hold bounds and samplers
    to.

    Args:
        p: the law, `(K,)`; zero for a mask.
        transition: what corrupts.
    """

    def __init__(self, p: Tensor, transition: Transition) -> None:
        super().__init__()
        self.p, self.corruption, self.reverse = p, transition, Marginal()

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        joint = self.p * self.corruption.likelihood(x_t, CLEAN, t).to(self.p)
        return joint[..., : self.corruption.categories].log()


def _in(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)
