"""The base class of a transition matrix of one's own, and the formulas that hold for every transition.

Transitions without closed forms use the formulas, and tests compare closed forms with them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.random import Source, categorical
from ...shared.tensors import at_least_float32, exact, like, refuse_unless
from .base import CLEAN, ReverseModel, Terms, Transition, normalized, refuse_categories

ROUNDING = 1e-6  # a distribution with less than this outside of one token is that token
T_MIN = 1e-3
NOISE = 1e-14  # probabilities below it are rounding
FIRST, SHORTER, MOVED, HALVINGS = 2.0**-9, 2.0**-8, 2.0**-7, 4  # lengths of steps from which rates are derived
LARGEST, SOME, SLACK = 1024, 64, 1e-4  # of checks: states, tokens, and the rounding of float32
ACCURACY, NOT_A_RATE = 1e-9, 1e-6  # of rates, as a share of their sum; a sum of rates that is 0


def categorical_kl(q: Tensor, p: Tensor) -> Tensor:
    """Returns `KL(q || p)` of distributions `(..., K)`, in nats, `(...)`; infinite where p is 0 and q is not."""
    kl = (torch.xlogy(q, q) - q * torch.where(p > 0, p, 1.0).log()).sum(-1)
    return kl.masked_fill(((q > 0) & (p <= 0)).any(-1), torch.inf)


def log_clean(transition: Transition, logits: Tensor) -> Tensor:
    """Returns `log p0` over all K states, `(..., K)`, from logits over the data's categories, `(..., categories)`.

    Normalized, float32 or better; -inf at an added mask token, which x_0 never is.
    """
    log_p = at_least_float32(logits).log_softmax(-1)
    return F.pad(log_p, (0, transition.states - transition.categories), value=-torch.inf)


def generic_divergence(
    transition: Transition,
    reverse: ReverseModel,
    logits: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    exact: bool = False,
) -> Terms:
    """Computes `Transition.divergence` by its definition, as `Terms`, from distributions over all K states.

    Arguments as there. With `exact`, the true posterior is not smoothed by the reverse model's eps.
    """
    log_p0 = log_clean(transition, logits)
    nats = transition.cross_entropy(reverse, logits, x0, x_t, t)
    back, ahead = (
        transition.likelihood(x_t, s, t),
        transition.pushforward(transition.one_hot(x0, log_p0.dtype), CLEAN, s),
    )
    eps = 0.0 if exact else reverse.eps
    q = normalized((back.to(ahead) + eps) * (ahead + eps))
    p = reverse.between(transition, x_t, log_p0.exp(), t, s, back)
    # The cost is infinite only for an x_0 that is ruled out, and finite for one whose probability underflows.
    ruled_out = log_p0.gather(-1, x0[..., None]) == -torch.inf
    p = torch.where(ruled_out, p, p.clamp(min=torch.finfo(p.dtype).tiny))
    return Terms(torch.where(like(transition.is_clean(s).to(nats.device), nats), nats, categorical_kl(q, p)), nats)


def score_entropy(transition: Transition, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""Computes the score entropy, `sum_(y != x_t) R_t(y, x_t) (m_y - r_y log m_y + r_y (log r_y - 1))`, `(...)`.

    Lou et al. 2024, eq. 5 and theorem 3.6; r are the true ratios `q(y | x_0) / q(x_t | x_0)`, and `R_t(y, x_t)` the
    rates of the process from y to x_t. In nats per unit of time.

    Args:
        transition: a process with rates, in continuous time.
        log_ratio: `log m`, the logarithms of the model's `q_t(y) / q_t(x_t)`, `(..., K)`; -inf where that is 0.
        x0, x_t: `(...)`, int64.
        t: a scalar or `(B,)`.
    """
    truth = transition.ratio(x_t, transition.one_hot(x0, log_ratio.dtype), t)
    inflow = transition.inflow(x_t, t).to(log_ratio)
    # Entries without a rate do not count: ratios may be infinite or undefined there.
    counts = (F.one_hot(x_t, transition.states) == 0) & (inflow > 0)
    rate, truth, log_m = (torch.where(counts, v, 0.0) for v in (inflow, truth, log_ratio))
    cross = torch.where(truth > 0, truth * log_m, 0.0)
    return (rate * (log_m.exp() - cross + torch.xlogy(truth, truth) - truth)).sum(-1)


def generic_path_rate(
    transition: Transition, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
) -> Terms:
    """Computes `Transition.path_rate` by its definition, as `Terms`, by `score_entropy`; arguments as there."""
    log_ratio = reverse.log_ratio(transition, x_t, log_clean(transition, logits).exp(), t)
    return Terms(
        score_entropy(transition, log_ratio, x0, x_t, t), transition.cross_entropy(reverse, logits, x0, x_t, t)
    )


def generic_draw(
    transition: Transition,
    reverse: ReverseModel,
    logits: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    generator: Source = None,
) -> Tensor:
    """Samples `x_s ~ p(x_s | x_t)`, int64 `(...)`, as `Transition.draw` by its definition; arguments as there."""
    return categorical(reverse(transition, x_t, log_clean(transition, logits).exp(), t, s), generator)


class GenericTransition(Transition):
    """The base class of a transition matrix of one's own: write `pushforward` and `likelihood`, the rest follows.

    A subclass sets `categories`; either as a field of a frozen dataclass (or a property), or by
    `super().__init__(categories, ...)`. Attributes that it does not set have these defaults:

    - `steps = None`: the process runs in continuous time. A table sets T, and `row(t)` is the step of a time;
    - `states = categories`: no mask token is added;
    - `t_min = 1e-3`: the smallest time that training and bounds visit in continuous time; 0 for a table.

    `pushforward(p, s, t)` and `likelihood(x_t, s, t)` are those of `Transition`: `p Q_(s->t)` and `Q_(s->t)[:, x_t]`,
    `(..., K)` each. Times are scalars, which may be on the host while p is not, or `(B,)`; `like(v, p)` of
    `shared.tensors` gives a function v of times the dimensions of p. `pushforward` must be linear in p, which need not
    sum to 1 and may be float32, and `likelihood` must be float64.

    A dataclass with a `__post_init__` of its own calls `super().__post_init__()`, which checks the numbers.

    Args:
        categories: the number of categories in the data.
        steps: T of a table, or None in continuous time.
        states: K, the number of states with an added mask, or None for `categories`.
        t_min: as above, or None for the default.
    """

    def __init__(
        self, categories: int, steps: int | None = None, states: int | None = None, t_min: float | None = None
    ) -> None:
        default = T_MIN if steps is None else 0.0
        super().__init__(
            categories, categories if states is None else states, steps, default if t_min is None else t_min
        )

    def __post_init__(self) -> None:
        """Raises for wrong numbers of categories and states in a dataclass, which calls it when it is constructed."""
        refuse_categories(self.categories)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Returns the default of an attribute of a class that does not call `__init__`, such as a dataclass."""
            # Class attributes would become defaults of a dataclass's fields of the same name.
            if name == "steps":
                return None
            if name == "states":
                return self.categories
            if name == "t_min":
                return T_MIN if self.steps is None else 0.0
            if name == "categories":
                raise AttributeError(
                    f"{type(self).__name__} does not set `categories`: make it a field of the dataclass, "
                    "or call super().__init__(categories)"
                )
            raise AttributeError(f"{type(self).__name__} object has no attribute {name!r}")

    def stationary(self) -> Tensor:
        """Returns the distribution of x_1 averaged over x_0, `(K,)`, float64; a point mass where it is within 1e-6.

        All x_0 have equal shares. It is computed from `pushforward` at each call; sampling starts from it.
        """
        p = torch.zeros(1, self.states, dtype=torch.float64)
        p[:, : self.categories] = 1 / self.categories
        start = self.pushforward(p, CLEAN, torch.ones_like(CLEAN))[0].double()
        one = start.argmax()
        return torch.zeros_like(start).index_fill_(0, one, 1.0) if float(1 - start[one]) < ROUNDING else start

    def survival(self, t: Tensor) -> float:
        start = self.stationary()
        if not bool((start == 1).any()):
            return 0.0
        left = float((1 - self.likelihood(start.argmax()[None], CLEAN, t)[0, : self.categories]).max())
        return left if left > ROUNDING**2 else 0.0

    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the derivative of `likelihood(x_t, s, t)` as s rises to t, numerically; `Transition.inflow`.

        `(..., K)`, per unit of time: the limit of `likelihood / (t - s)` at states other than x_t. The relative error
        is about 1e-8 where the rates change smoothly in time. It costs six calls of `likelihood`.

        Raises:
            UsageError: for a table, a `likelihood` that is not float64, and where it has no derivative.
        """
        return self._derived_rates(lambda s: self.likelihood(x_t, s, t), x_t, t)

    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the derivative of row x_t of `Q_(s->t)` as s rises to t, `(..., K)`, numerically, as `inflow`."""
        hot = self.one_hot(x_t, torch.float64)
        return self._derived_rates(lambda s: self.pushforward(hot, s, t), x_t, t)

    @torch.no_grad()
    def _derived_rates(self, probabilities: Callable[[Tensor], Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        """Extrapolates `probabilities(t - h) / h` to h = 0 (Richardson 1911), for h in which a jump is improbable."""
        name = type(self).__name__
        if self.steps is not None:
            raise UsageError(
                f"a table of {self.steps} steps has no rates: train {name} with D3PMLoss and sample it with Ancestral, "
                "or take a process in continuous time, such as GaussianTarget(256)"
            )
        t = exact(t)
        others = F.one_hot(x_t, self.states) == 0

        def moved(h: Tensor) -> Tensor:
            p = probabilities(t - h)
            if p.dtype != torch.float64:
                raise UsageError(
                    f"{name} computes probabilities in {p.dtype}, from which rates cannot be derived: compute "
                    "likelihood and pushforward in float64, or write inflow(x_t, t) and outflow(x_t, t)"
                )
            return torch.where(others & (p > NOISE), p, 0.0)

        h = FIRST * torch.minimum(t, (1 - t).clamp(min=1e-4))
        for _ in range(2):  # near t = 1 rates may grow as 1 / (1 - t)
            most = moved(h).sum(-1)
            most = most.amax() if h.ndim == 0 else most.reshape(len(most), -1).amax(1)
            h = torch.where(most.to(h.device) > MOVED, SHORTER * h, h)
        lengths = [h / 2**k for k in range(HALVINGS)]
        column = [moved(v) / like(t - (t - v), others.double()).to(x_t.device) for v in lengths]
        coarse, fine = (v.sum(-1, keepdim=True) for v in column[-2:])
        infinite = fine > 1.9 * coarse.clamp(min=NOT_A_RATE)  # a jump at the very time t
        refuse_unless(
            infinite | (fine < NOT_A_RATE) | (fine < 1.4 * coarse) & (fine > 0.75 * coarse),
            f"the rates of {name} cannot be derived from its likelihood and pushforward, which are not smooth in time: "
            "write inflow(x_t, t) and outflow(x_t, t)",
        )
        infinite = infinite & (column[-1] > 1.9 * column[-2])
        for k in range(1, HALVINGS):
            column = [b + (b - a) / (2**k - 1) for a, b in pairwise(column)]
        rates = torch.where(column[0] > ACCURACY * fine, column[0], 0.0)
        return torch.where(infinite, torch.inf, rates)

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        return generic_divergence(self, reverse, logits, x0, x_t, t, s)

    def path_rate(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Terms:
        return generic_path_rate(self, reverse, logits, x0, x_t, t)

    def draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
    ) -> Tensor:
        return generic_draw(self, reverse, logits, x_t, t, s, generator)

    def check(self) -> None:
        """Raises where `pushforward` and `likelihood` do not describe one transition matrix.

        They are evaluated at a few times, for scalar times and times `(B,)`, with at most 64 tokens; not for more than
        1024 states. Denoisers call it when they are constructed.

        Raises:
            UsageError: for wrong shapes, rows that are not distributions, and a `likelihood` that is not a column.
        """
        if self.states > LARGEST:
            return
        name, size = type(self).__name__, self.states
        x = torch.arange(min(size, SOME))
        middle = 0.5 if self.steps is None else max(self.steps // 2, 1) / self.steps
        t = torch.tensor(middle, dtype=torch.float64)
        s = t / 2 if self.steps is None else self.before(t)
        for start in (CLEAN, s):
            q = self.pushforward(self.one_hot(x, torch.float64), start, t)
            of_x = self.likelihood(x, start, t)
            for method, found in (("pushforward", q), ("likelihood", of_x)):
                if found.shape != (len(x), size):
                    raise UsageError(
                        f"{name}.{method} returned shape {tuple(found.shape)} for {len(x)} tokens: "
                        f"return {(len(x), size)}"
                    )
            sums = q.sum(-1)
            if bool((q < -SLACK).any()) or not bool(((sums - 1).abs() < SLACK).all()):
                row = int((sums - 1).abs().argmax())
                raise UsageError(
                    f"{name}.pushforward takes a point mass at {row} to numbers of sum {float(sums[row]):.6g} and "
                    f"least {float(q.min()):.4g}: rows of Q must be distributions"
                )
            if not torch.allclose(of_x[:, x].double(), q[:, x].double().T, atol=SLACK, rtol=SLACK):
                raise UsageError(
                    f"{name}.likelihood differs from pushforward: likelihood(x_t, s, t)[..., k] is the probability of "
                    "x_t given x_s = k, a column of the matrix whose rows pushforward returns"
                )
        pairs = x[:2].repeat_interleave(3).reshape(2, 3)
        for times in ((s, t), (s.expand(2), t.expand(2))):
            for method, found in (
                ("pushforward", self.pushforward(self.one_hot(pairs, torch.float64), *times)),
                ("likelihood", self.likelihood(pairs, *times)),
            ):
                if found.shape != (2, 3, size):
                    raise UsageError(
                        f"{name}.{method} returned shape {tuple(found.shape)} for tokens (2, 3) and times of shape "
                        f"{tuple(times[1].shape)}: return (2, 3, {size}); like(v, p) of unnoise.shared.tensors "
                        "broadcasts a function v of the times against p"
                    )
