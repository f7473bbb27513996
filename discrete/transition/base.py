"""The interfaces of a categorical process `q(x_t | x_s)` and of a reverse model `p(x_s | x_t)`."""

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
from ...shared.tensors import at_least_float32, checked_time, exact, is_integer, like, refuse_array

CLEAN = torch.zeros((), dtype=torch.float64)  # on the host, where looking at it costs nothing


class Terms(NamedTuple):
    """The terms of a training loss at each position, `(...)` each, in nats.

    Attributes:
        divergence: the KL divergence of one step from t to s, or in continuous time the rate of the path, in nats per
            unit of time.
        cross_entropy: `-log p(x_0 | x_t)`; None for a denoiser that does not predict p0.
    """

    divergence: Tensor
    cross_entropy: Tensor | None


class Transition(Corruption):
    r"""A categorical process `q(x_t | x_s) = Cat(row x_s of Q_(s->t))`: a table of T steps, or one in continuous time.

    `Q_(s->t)[i, j]` is the probability that x_t = j where x_s = i, and in continuous time `R_t[i, j]` is the rate of
    jumps from i to j at t. Times are scalars, or `(B,)` for the first axis of the signal; t = 0 is the clean signal and
    row n of a table is at t = n / T. Tokens are int64 `(...)`, mostly `(B, ...)`, and probabilities `(..., K)`.

    Attributes:
        categories: the number of categories in the data.
        states: K, the number of states; above `categories` where a mask token is added after them.
        steps: T; None in continuous time.
        t_min: the smallest time that training and bounds visit in continuous time.
        rounding: probabilities of x_t below it are treated as 0 where they are divided by; above 0 for a process whose
            sums cancel and leave them without correct digits.
        unmasked_is_clean: whether a data token in x_t is always equal to x_0, as under absorption in an added mask.
    """

    categories: int
    states: int
    steps: int | None
    t_min: float
    rounding: float = 0.0
    unmasked_is_clean: bool = False

    def __init__(self, categories: int, states: int, steps: int | None, t_min: float = 0.0) -> None:
        refuse_categories(categories)
        self.categories, self.states, self.steps, self.t_min = categories, states, steps, t_min

    @abstractmethod
    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Returns `p Q_(s->t)`, `(..., K)`: the distribution of x_t where x_s has the distribution p; linear in p.

        p is `(..., K)` and need not sum to 1; t and s are scalars or `(B,)`, s <= t.
        """

    @abstractmethod
    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Returns `Q_(s->t)[:, x_t]`, `(..., K)`, float64: the probability of x_t `(...)` given each value of x_s."""

    @abstractmethod
    def stationary(self) -> Tensor:
        """Returns the distribution of x_1 that sampling starts from, `(K,)`, float64, the same at every position."""

    @abstractmethod
    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the rates of jumps into x_t, `R_t[:, x_t]`, `(..., K)`, float64; the entry at x_t itself is unused.

        In jumps per unit of time, from each of the K states; t is a scalar or `(B,)`.

        Raises:
            UsageError: for a table, which has no rates.
        """

    @abstractmethod
    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the rates of jumps out of x_t, `R_t[x_t, :]`, to each of the K states; otherwise as `inflow`."""

    @abstractmethod
    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        """Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))` at each position; at s = 0 it is `-log p(x_0 | x_t)`.

        As `Terms`, in nats, together with the cross-entropy `-log p(x_0 | x_t)`. Where the reverse model has an eps,
        both distributions are smoothed by it, as in D3PM's published code.

        Args:
            reverse: the reverse model, which reads p0.
            logits: `log p0` up to a constant, `(..., categories)`.
            x0, x_t: `(...)`, int64.
            t, s: scalars or `(B,)`.
        """

    @abstractmethod
    def path_rate(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        r"""Returns the limit of the divergence of the step from t to s over `t - s`, as s rises to t.

        As `Terms`, in nats per unit of time, with the cross-entropy; arguments as `divergence`. It is
        `sum_(y != x_t) R_t(y, x_t) (m_y - r_y log m_y + r_y (log r_y - 1))`, with the true ratio
        `r_y = q(y | x_0) / q(x_t | x_0)` and the model's m_y, `ReverseModel.ratio` (Campbell et al. 2022, proposition
        2, with its jump integrated out).
        """

    @abstractmethod
    def draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
    ) -> Tensor:
        """Samples `x_s ~ p(x_s | x_t)`, int64 `(...)`, at scalar times, s > 0; arguments as `divergence`."""

    def cross_entropy(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns `-log p(x_0 | x_t)` of the model at each position, `(...)`, in nats; arguments as `divergence`."""
        log_p0 = at_least_float32(logits).log_softmax(-1)
        return -reverse.log_posterior(self, log_p0, x_t, t).gather(-1, x0[..., None]).squeeze(-1)

    def loss_is_of_masks(self, reverse: ReverseModel) -> bool:
        """Returns whether losses depend only on the logits at masks: elsewhere x_t is x_0, whatever the output."""
        return False

    def survival(self, t: Tensor) -> float:
        """Returns the largest probability, over x_0, that x_t is not the one token that sampling starts from.

        0 where sampling starts from several tokens. Where it is above 0, a start from that token (a mask) alone would
        leave out the data tokens that remain at t: see `CategoricalDenoiser.start`.
        """
        return 0.0

    def row(self, t: Tensor) -> Tensor:
        """Returns the step n of a time t = n / T, int64, of the shape of t; other times are rounded to the nearest row.

        Raises:
            UsageError: in continuous time, which has no rows.
        """
        return torch.round(exact(t) * self.table_length).long()

    @property
    def table_length(self) -> int:
        """T of a table.

        Raises:
            UsageError: in continuous time, which has no rows.
        """
        if self.steps is None:
            raise UsageError(
                "this process runs in continuous time and has no rows: give it a table such as reciprocal(1000)"
            )
        return self.steps

    def is_clean(self, s: Tensor) -> Tensor:
        """Returns whether a time is 0, bool, of the shape of s; on a table, whether its nearest row is 0."""
        return s == 0 if self.steps is None else self.row(s) == 0

    def before(self, t: Tensor) -> Tensor:
        """Returns the time of the row before t, `(n - 1) / T` for t = n / T, float64; raises in continuous time."""
        return (self.row(t) - 1).double() / self.table_length

    def first_row(self, t: Tensor) -> Tensor:
        """Returns whether t is the first row of a table, one step from x_0; False in continuous time."""
        return torch.zeros_like(t, dtype=torch.bool) if self.steps is None else self.row(t) == 1

    def takes_output(self, t: Tensor) -> Tensor:
        """Returns whether the output at t is `p(x_0 | x_t)` as it is: in the first row of a table, as published.

        Bool, of the shape of t. False where a data token in x_t is always equal to x_0, whatever the output.
        """
        return torch.zeros_like(t, dtype=torch.bool) if self.unmasked_is_clean else self.first_row(t)

    def one_hot(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns point masses at the tokens x `(...)`, `(..., K)`, 1 at the token and else 0."""
        zeros = torch.zeros(*x.shape, self.states, dtype=dtype, device=x.device)  # F.one_hot would be int64 first
        return zeros.scatter_(-1, x[..., None], 1)

    def posterior(self, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Returns `sum_x0 q(x_s | x_t, x_0) p0(x_0)` for any s < t, normalized, `(..., K)`.

        p0 is the posterior of x_0, `(..., K)`; a point mass gives `q(x_s | x_t, x_0)`. An x_0 from which x_t cannot be
        reached is left out (Austin et al. 2021, eq. 3, averaged over x_0).
        """
        return normalized(self.likelihood(x_t, s, t) * self.pushforward(self.over_reach(x_t, p0, t), CLEAN, s)).to(p0)

    def ratio(self, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        r"""Returns `sum_x0 p0(x_0) q(y | x_0) / q(x_t | x_0)` for every y, `(..., K)`.

        It is `q_t(y) / q_t(x_t)` where p0, `(..., K)`, is the posterior of x_0.
        """
        return self.pushforward(self.over_reach(x_t, p0, t), CLEAN, t).to(p0)

    def log_evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns `log q(x_t | x_0)` for every x_0, up to a constant at each position, `(..., categories)`, float64."""
        reach = self.likelihood(x_t, CLEAN, t)[..., : self.categories]
        return torch.where(reach > self.rounding, reach, 0.0).log()

    def over_reach(self, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        """Returns `p0(x_0) / q(x_t | x_0)`, `(..., K)`, float64 as it may be large; 0 where x_0 cannot become x_t."""
        reach = self.likelihood(x_t, CLEAN, t)
        least = max(1e-300, self.rounding)
        return torch.where(reach > least, p0.double() / reach.clamp(min=least), 0.0)

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x0 = as_tokens(x0, self.categories, "x_0")
        return categorical(self.pushforward(self.one_hot(x0), CLEAN, checked_time(t, len(x0))), generator)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x_s = as_tokens(x_s, self.states, "x_s")
        return categorical(self.pushforward(self.one_hot(x_s), checked_time(s), checked_time(t, len(x_s))), generator)

    def state(self, x: Tensor) -> Tensor:
        return as_tokens(x, self.states, "x")

    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        refuse_single_precision(device)
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
    """Defines how a network's output p0 is read, and the `p(x_s | x_t)` that follows.

    Called with the transition, x_t `(...)`, p0 `(..., K)` (probabilities), t and s; returns `p(x_s | x_t)`, `(..., K)`,
    probabilities. An output that is the posterior `p(x_0 | x_t)` is divided by `q(x_t | x_0)` before it is pushed
    forward; the leave-one-out posterior, which leaves the evidence of x_t itself out, is pushed forward as it is:
    `p(x_s | x_t) prop. to Q_(s->t)[x_s, x_t] (w Q_(0->s))[x_s]` with these weights w of x_0. Both give the same model
    where the outputs are each other's conversions (`to_posterior`, `to_leave_one_out`).

    Attributes:
        eps: added to both factors of the formula at s > 0, before normalization; the closed forms of transitions hold
            for eps = 0.
    """

    eps: float = 0.0

    @abstractmethod
    def reads_posterior(self, transition: Transition, t: Tensor) -> Tensor:
        """Returns whether the output at t is read as the posterior, else as leave-one-out, bool, of the shape of t."""

    def weights(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        """Returns the weights w of x_0, `(..., K)`: a leave-one-out p0 as it is, a posterior p0 over `q(x_t | x_0)`.

        The latter in float64, as it may be large.
        """
        posterior = self.reads_posterior(transition, t)
        if posterior.ndim == 0 and posterior.device.type == "cpu":
            return transition.over_reach(x_t, p0, t) if posterior else p0
        return torch.where(like(posterior.to(p0.device), p0), transition.over_reach(x_t, p0, t), p0.double())

    def __call__(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns `p(x_s | x_t)`, `(..., K)`; t and s are scalars or `(B,)`. At s = 0 it is the posterior of x_0.

        Probabilities, for the probabilities p0 `(..., K)`; an added mask has probability 0 at s = 0.
        """
        clean = transition.is_clean(s)
        if clean.ndim == 0 and clean.device.type == "cpu":
            return self._at_zero(transition, x_t, p0, t) if clean else self.between(transition, x_t, p0, t, s)
        at_zero, between = self._at_zero(transition, x_t, p0, t), self.between(transition, x_t, p0, t, s)
        return torch.where(like(clean.to(p0.device), p0), at_zero, between)

    def between(
        self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor, s: Tensor, back: Tensor | None = None
    ) -> Tensor:
        """Returns `p(x_s | x_t)` at s > 0; `back` is `Q_(s->t)[:, x_t]` where it has been computed before.

        Where p0 is 0 for every x_0 that can become x_t, x_s is x_t.
        """
        ahead = transition.pushforward(self.weights(transition, x_t, p0, t), CLEAN, s)
        back = (transition.likelihood(x_t, s, t) if back is None else back).to(ahead)
        distribution = (back + self.eps) * (ahead + self.eps)
        some = distribution.sum(-1, keepdim=True) > 0
        return torch.where(some, normalized(distribution), transition.one_hot(x_t, distribution.dtype)).to(p0)

    def _at_zero(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        p = self.log_posterior(transition, p0[..., : transition.categories].log(), x_t, t).exp()
        return F.pad(p, (0, transition.states - transition.categories))

    def log_posterior(self, transition: Transition, log_p0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        r"""Returns `log p(x_0 | x_t)`, `(..., categories)`.

        It is `log p0`, `(..., categories)`, plus `log q(x_t | x_0)` where p0 is the leave-one-out posterior, normalized
        over the x_0 that can become x_t; at times where `Transition.takes_output` is True, it is `log p0` itself.
        """
        evidence = transition.log_evidence(x_t, t).to(log_p0)
        posterior, first = (
            like(v.to(log_p0.device), log_p0) for v in (self.reads_posterior(transition, t), transition.takes_output(t))
        )
        evidence = torch.where(first | posterior & (evidence > -torch.inf), 0.0, evidence)
        return possible(log_p0 + evidence, evidence).log_softmax(-1)

    def log_ratio(self, transition: Transition, x_t: Tensor, p0: Tensor, t: Tensor) -> Tensor:
        """Returns `log m`, `(..., K)`, of the model's `q_t(y) / q_t(x_t)`: `m_y = (w Q_t)[y] / (w Q_t)[x_t]`.

        `Q_t = Q_(0->t)`, and w are the `weights` of x_0 from p0, `(..., K)`; 0 at y = x_t.
        """
        ahead = transition.pushforward(self.weights(transition, x_t, p0, t), CLEAN, t)
        log_ahead = ahead.clamp(min=torch.finfo(ahead.dtype).tiny).log()
        if ahead.dtype == torch.float64:  # float32, which training uses, underflows
            log_ahead = torch.where(ahead > 0, log_ahead, -torch.inf)
        return (log_ahead - log_ahead.gather(-1, x_t[..., None])).to(p0)

    def own(self, transition: Transition, t: Tensor, kept: Tensor, missed: Tensor) -> Tensor:
        """Returns `w / p0` at x_0 = x_t divided by `w / p0` at any other x_0, of the shape of `missed`; w as `weights`.

        1 for the leave-one-out posterior, `missed / (kept + missed)` for the posterior, where a token is kept with
        probability `kept` and else becomes x_t with probability `missed`.
        """
        posterior = like(self.reads_posterior(transition, t).to(missed.device), missed)
        return torch.where(posterior, missed / (kept + missed).clamp(min=torch.finfo(missed.dtype).tiny), 1.0)


def refuse_categories(categories: int) -> None:
    """Raises for data of fewer than two categories.

    Raises:
        UsageError: for such a number.
    """
    if categories < 2:
        raise UsageError(f"categories={categories}: categorical data need two categories or more")


def refuse_single_precision(device: torch.device | str) -> None:
    """Raises for a device without float64, in which probabilities are computed.

    Raises:
        UsageError: for MPS.
    """
    if torch.device(device).type == "mps":
        raise UsageError(
            "mps has no float64, and categorical models compute their probabilities in it: give --device cpu, in "
            "training --training.device cpu"
        )


def as_tokens(x: Tensor, size: int, what: str) -> Tensor:
    """Returns integers of any type as int64, checked to be in 0..size-1, without waiting for an accelerator.

    `what` names x in messages.

    Raises:
        UsageError: for other types, and for a token outside the vocabulary.
    """
    if not is_integer(refuse_array(x, what)):
        raise UsageError(f"{what} is {x.dtype}: categorical data are integers in 0..{size - 1}")
    refuse_single_precision(x.device)
    x = x.long()
    if x.device.type != "cpu":
        known = (x >= 0) & (x < size)
        torch._assert_async(known.all(), f"{what} has a token outside 0..{size - 1}")  # pyright: ignore[reportPrivateImportUsage]
    elif x.numel():
        low, high = (v.item() for v in torch.aminmax(x))
        if low < 0 or high >= size:
            token = int(x[(x < 0) | (x >= size)].flatten()[0])
            raise UsageError(f"{what} has the token {token}, outside the vocabulary 0..{size - 1}")
    return x


def possible(log_p: Tensor, evidence: Tensor) -> Tensor:
    """Returns `log_p`, `(..., categories)`; where it is -inf for every x_0, `log q(x_t | x_0)`, the given evidence."""
    return torch.where((log_p > -torch.inf).any(-1, keepdim=True), log_p, evidence)


def normalized(p: Tensor) -> Tensor:
    """Returns non-negative `p` divided by its sum along the last axis, `(..., K)`; 0 where all of them are 0."""
    return p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
