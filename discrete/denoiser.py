"""Categorical denoisers: what x_0 was, and the reverse steps that follow."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.denoiser import Denoiser, on_every_row
from ..shared.describe import described
from ..shared.errors import UsageError
from ..shared.labels import Label, thousandths
from ..shared.random import Source, categorical
from ..shared.tensors import at_least_float32, full_precision, like
from .fused import cross_entropy
from .heads import Head, direct
from .reverse import Marginal, Product
from .transition import ReverseModel, Transition
from .transition.base import CLEAN, Terms, normalised, refuse_strangers
from .transition.interpolating import Interpolating
from .transition.plain import categorical_kl, log_clean


class CategoricalDenoiser(Denoiser):
    """`log p(x_0 | x_t)`, `(..., K)`, and the laws of x_s that follow: the same for objective, sampler and bound."""

    corruption: Transition

    @abstractmethod
    def step_law(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """`p(x_s | x_t)`, `(..., K)`, for any s < t."""

    @abstractmethod
    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """`x_s ~ p(x_s | x_t)`, s > 0."""

    @abstractmethod
    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`q_t(y) / q_t(x_t)` for every symbol y at each position, `(..., K)`: the score of a discrete law (Lou et al. 2024, eq. 3)."""

    @abstractmethod
    def divergence(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        """`KL(q(x_s | x_t, x_0) || p(x_s | x_t))`, at s = 0 `-log p(x_0 | x_t)`; `(...)`, nats, in `dtype` where one is given."""

    @abstractmethod
    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        """The rate at which that divergence grows along the path when steps shrink, per unit of time, as `divergence`."""


class CleanDenoiser(CategoricalDenoiser):
    """A denoiser that says p0, a law of x_0 over the data's symbols.

    Attributes:
        reverse: how p0 becomes a law of x_s.
    """

    reverse: ReverseModel

    @abstractmethod
    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`log p0` up to a constant, `(..., levels)`."""

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return log_clean(self.corruption, self.logits(x_t, t, **cond))

    def step_law(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        p0 = self(x_t, t, **cond).exp()
        with full_precision(x_t):
            return self.reverse(self.corruption, x_t, p0, t, s)

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        logits = self.logits(x_t, t, **cond)
        with full_precision(x_t):
            return self.corruption.draw(self.reverse, logits, x_t, t, s, generator)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        p0 = self(x_t, t, **cond).exp()
        with full_precision(x_t):
            return self.corruption.ratio(x_t, p0, t)

    def divergence(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        logits = _in(self.logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return self.corruption.divergence(self.reverse, logits, x0, x_t, t, s)

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        logits = _in(self.logits(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return self.corruption.path_rate(logits, x0, x_t, t)

    def cross_entropy(self, x0: Tensor, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`-log p(x_0 | x_t)`, `(...)`, nats."""
        return cross_entropy(self.logits(x_t, t, **cond), x0)


@described
class Categorical(CleanDenoiser):
    """A network's output as a denoiser.

    Args:
        network: `(x_t int64, time label (B,), **cond) -> output (..., K)`, or what the head reads.
        transition: what corrupted x_t.
        reverse: `Product` as published for D3PM, or `Marginal`; one and the same for absorption in a mask.
        label: the number that the network is fed for a time.
        head: how the output becomes logits: `direct`, `residual`, `carried` or `logistic`.
    """

    def __init__(
        self,
        network: nn.Module,
        transition: Transition,
        reverse: ReverseModel | None = None,
        label: Label = thousandths,
        head: Head = direct,
    ) -> None:
        super().__init__()
        self.network, self.transition, self.reverse, self.label, self.head = network, transition, reverse or Product(), label, head
        self.corruption, self.conditions = transition, getattr(network, "conditions", None)

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        refuse_strangers(x_t, self.corruption.states, "x_t")
        return self.head(self.network(x_t, on_every_row(self.label(self.corruption, t), x_t), **cond), x_t, self.corruption)


@described
class ScoreEntropyDenoiser(CategoricalDenoiser):
    r"""A network that gives the logarithms of the ratios `q_t(y) / q_t(x_t)` themselves (Lou et al. 2024, SEDD).

    The law of x_s follows by undoing the noise from s to t: `p(x_s | x_t) prop. to (m Q_(s->t)^-1)[x_s] Q_(s->t)[x_s, x_t]`, with the
    ratios m (Lou et al. 2024, eq. 19, their analytic sampler); it needs a process whose steps can be undone, `Uniform` or `Absorbing`.

    Args:
        network: `(x_t int64, time label (B,), **cond) -> (..., K)`.
        transition: in continuous time, that resamples.
        label: the number that the network is fed for a time.
        offset: added to the output before it is read, a number for each time: by default `scaled_by_noise` for a mask, as released,
            and `unscaled` elsewhere.

    Raises:
        UsageError: for another process.
    """

    def __init__(self, network: nn.Module, transition: Interpolating, label: Label = thousandths, offset: Label | None = None) -> None:
        super().__init__()
        if not isinstance(transition, Interpolating) or transition.steps is not None:
            raise UsageError(
                f"{type(transition).__name__} (T={transition.steps}): ratios are learned on a process in continuous time whose steps can "
                "be undone, such as Absorbing(27, LogLinear()) or Uniform(27, Geometric())"
            )
        self.network, self.transition, self.label = network, transition, label
        self.offset = offset or (scaled_by_noise if transition.states > transition.levels else unscaled)
        self.corruption, self.conditions = transition, getattr(network, "conditions", None)

    def log_ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`log m`, `(..., K)`; 0 at x_t itself."""
        refuse_strangers(x_t, self.corruption.states, "x_t")
        out = at_least_float32(self.network(x_t, on_every_row(self.label(self.corruption, t), x_t), **cond))
        out = out + like(self.offset(self.corruption, t).to(out.device), out)
        out = F.pad(out, (0, self.corruption.states - out.shape[-1]), value=-torch.inf)
        return out.scatter(-1, x_t[..., None], 0.0)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.log_ratio(x_t, t, **cond).exp()

    def step_law(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        m = self.ratio(x_t, t, **cond).double()
        kept, lost = (like(c.to(m.device), m) for c in self.corruption.kept(s, t))
        pi, total = self.corruption.stationary().to(m), m.sum(-1, keepdim=True)
        before = ((m - lost * pi * total) / kept.clamp(min=torch.finfo(m.dtype).tiny)).clamp(min=0)
        law = before * self.corruption.likelihood(x_t, s, t)
        if self.corruption.states > self.corruption.levels:  # x_0 is never masked
            allowed = F.one_hot(torch.tensor(self.corruption.levels), self.corruption.states).to(m) == 0
            law = torch.where(like(self.corruption.is_clean(s).to(law.device), law) & ~allowed, 0.0, law)
        return normalised(law)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.step_law(x_t, t, CLEAN, **cond).clamp(min=1e-30).log()

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return categorical(self.step_law(x_t, t, s, **cond), generator)

    def divergence(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        p = self.step_law(x_t, t, s, **cond).clamp(min=1e-30)
        truth = Marginal()(self.corruption, x_t, self.corruption.one_hot(x0, torch.float64), t, s)
        kl = categorical_kl(truth, p)
        return Terms(kl, None)

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        log_ratio = _in(self.log_ratio(x_t, t, **cond), dtype)
        with full_precision(x_t):
            return Terms(self.corruption.score_entropy(log_ratio, x0, x_t, t), None)


@described
def unscaled(transition: Transition, t: Tensor) -> Tensor:
    """0: the output as it is."""
    return torch.zeros_like(t)


@described
def scaled_by_noise(transition: Transition, t: Tensor) -> Tensor:
    r"""`-log(exp(total) - 1) - log(levels)`: at masked positions the ratios sum to `kept / (1 - kept)`, whatever the data (SEDD, released).

    The released code takes the logarithm of the vocabulary with the mask less one, which is `levels`.
    """
    total = transition.noise.total(t)
    return -torch.log(torch.expm1(total)) - math.log(transition.levels)


def refuse_without_p0(denoiser: CategoricalDenoiser, name: str) -> None:
    """Refuses a denoiser that does not say p0, by the name of what needs it.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(denoiser, CleanDenoiser):
        raise UsageError(
            f"{name} needs p(x_0 | x_t), and {type(denoiser).__name__} has no logits of it: take one that has, such as Categorical"
        )


class CategoricalOracle(CleanDenoiser):
    """The exact posterior of symbols that are drawn independently from one law: what the tests hold bounds and samplers to.

    Args:
        p: the law, `(K,)`; zero for a mask.
        transition: what corrupts.
    """

    def __init__(self, p: Tensor, transition: Transition) -> None:
        super().__init__()
        self.p, self.corruption, self.reverse = p, transition, Marginal()

    def logits(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        joint = self.p * self.corruption.likelihood(x_t, CLEAN, t).to(self.p)
        return joint[..., : self.corruption.levels].log()


def _in(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)
