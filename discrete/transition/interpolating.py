"""Processes in which each event resamples a token from a fixed distribution, with closed forms for everything."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.blocks import at_rows, row_by_row
from ...shared.random import Source, quantile, uniform
from ...shared.tensors import at_least_float32, checked_time, exact, like
from ..fused import cross_entropy
from ..schedules import NoiseSchedule, scheduled
from .base import CLEAN, ReverseModel, Transition, as_tokens

TINY = 1e-30


class Pair(NamedTuple):
    """The constants of `p(x_s | x_t)` for a pair of times and x_t, float64, `(...)` each.

    p0 is the network's distribution of x_0, and pi the distribution from which an event draws a token:
    `p(x_s = k | x_t) prop. to back_k w_k`, `back_k = a 1[k = x_t] + b`, `w_k = c g_k p0_k + (1 - c) h pi_k`, where
    `g_k` is g at x_t and 1 elsewhere, `h = 1 - (1 - g) p0_(x_t)`, and the sum over k is `Z = b h + a w_(x_t)`.

    Attributes:
        a: the probability to be kept from s to t.
        b: the probability to become x_t by an event between s and t, `(1 - a) pi_(x_t)`.
        c: the probability to be kept from 0 to s.
        g: `ReverseModel.own`, the factor by which the reverse model multiplies p0 at x_0 = x_t relative to other x_0.
        pi_t: `pi_(x_t)`.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    g: Tensor
    pi_t: Tensor


class Interpolating(Transition):
    """`Q_(s->t) = kept I + (1 - kept) 1 pi^T`, `kept = exp(total(s) - total(t))`: each event resamples a token from pi.

    `kept` is the probability that a token meets no event between s and t; pi is `stationary()`.

    Args:
        categories: the number of categories in the data.
        states: K, with an added mask `categories + 1`.
        schedule: betas `(T,)`, the probabilities that step n resamples a token, or a `NoiseSchedule`.

    Attributes:
        schedule: the schedule as it was given.
        noise: the schedule as a `NoiseSchedule`.
    """

    def __init__(self, categories: int, states: int, schedule: Tensor | NoiseSchedule) -> None:
        self.schedule, self.noise = schedule, scheduled(schedule)
        super().__init__(categories, states, self.noise.steps, self.noise.t_min)

    @abstractmethod
    def fresh(self, x: Tensor) -> Tensor:
        """Returns `pi_x`, `(...)`, float64: the probability that an event draws the token x."""

    @abstractmethod
    def score_entropy(self, log_ratio: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Computes `generic.score_entropy` in closed form, `(...)`, from one sum over the states.

        In nats per unit of time.

        Args:
            log_ratio: the logarithms of the model's `q_t(y) / q_t(x_t)`, `(..., K)`; 0 at x_t.
            x0, x_t: `(...)`, int64.
            t: a scalar or `(B,)`.
        """

    @property
    def unmasked_is_clean(self) -> bool:
        """Whether events draw only a mask token that is not a category of the data."""
        return not bool(self.stationary()[: self.categories].any())

    def survival(self, t: Tensor) -> float:
        return float(self.kept(CLEAN, t)[0]) if bool((self.stationary() == 1).any()) else 0.0

    @abstractmethod
    def undone(self, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Returns `kept m Q_(s->t)^-1`, `(..., K)`: what the process from s to t turns into m, up to a constant.

        m is `(..., K)`, such as ratios; entries may be negative. t and s are scalars or `(B,)`.
        """

    def kept(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(kept, 1 - kept)` between times s < t, float64, both without cancellation.

        `kept = exp(total(s) - total(t))` is the probability that a token meets no event between s and t.
        """
        log_ratio = -self.noise.total(t)
        if s is not CLEAN:
            before = self.noise.total(s)
            # In the last row of a table both may be infinite.
            log_ratio = torch.where(before == -log_ratio, 0.0, before + log_ratio)
        return log_ratio.exp(), -torch.expm1(log_ratio)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        kept, lost = (like(c, p) for c in self.kept(s, t))
        return kept * p + lost * p.sum(-1, keepdim=True) * self.stationary().to(p)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        hit = self.one_hot(x_t, torch.float64)
        kept, lost = (like(c, hit) for c in self.kept(s, t))
        return kept * hit + lost * self.fresh(x_t)[..., None]

    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return (like(self.noise.rate(t), x_t).to(x_t.device) * self.fresh(x_t))[..., None].expand(
            *x_t.shape, self.states
        )

    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return like(self.noise.rate(t), x_t[..., None]).to(x_t.device) * self.stationary().to(x_t.device).expand(
            *x_t.shape, -1
        )

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x0 = as_tokens(x0, self.categories, "x_0")
        return self._hit(x0, CLEAN, checked_time(t, len(x0)), generator)

    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x_s = as_tokens(x_s, self.states, "x_s")
        return self._hit(x_s, checked_time(s), checked_time(t, len(x_s)), generator)

    def _hit(self, x: Tensor, s: Tensor, t: Tensor, generator: Source) -> Tensor:
        """Samples with one uniform number for each position, which decides on an event and on its token."""
        kept, lost = (like(c.to(x.device), x) for c in self.kept(s, t))
        u = 1 - uniform(x.shape, generator, dtype=torch.float64, device=x.device)
        return torch.where(u <= kept, x, self.quantile(((u - kept) / lost.clamp(min=TINY)).clamp(0, 1)))

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Returns the token at the quantile u in [0, 1] of pi, int64."""

    def pair(self, reverse: ReverseModel, x_t: Tensor, t: Tensor, s: Tensor) -> Pair:
        """Returns the constants of `p(x_s | x_t)` for x_t `(...)` and s < t, scalars or `(B,)`."""
        t, s = exact(t).to(x_t.device), exact(s).to(x_t.device)
        a, lost = (like(c, x_t) for c in self.kept(s, t))
        kept_t, lost_t = (like(c, x_t) for c in self.kept(CLEAN, t))
        c, pi_t = like(self.kept(CLEAN, s)[0], x_t), self.fresh(x_t)
        return Pair(a, lost * pi_t, c, reverse.own(self, t, kept_t, lost_t * pi_t), pi_t)

    def reach(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `q = q(x_t | x_0)` for any x_0 != x_t, and `q(x_t | x_0 = x_t) / q - 1`, `(...)` each, float64."""
        kept, lost = (like(c, x_t) for c in self.kept(CLEAN, exact(t).to(x_t.device)))
        others = lost * self.fresh(x_t)
        return others, kept / others.clamp(min=TINY)

    def log_evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        others, excess = (v[..., None] for v in self.reach(x_t, t))
        alike = torch.where(others > 0, torch.zeros_like(others), -torch.inf).expand(*x_t.shape, self.categories)
        here = torch.where(others > 0, torch.log1p(excess), 0.0)
        # An added mask is never x_0: its column is cut off again.
        return F.pad(alike, (0, self.states - self.categories)).scatter(-1, x_t[..., None], here)[
            ..., : self.categories
        ]

    def cross_entropy(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        others, excess = self.reach(x_t, t)
        excess = torch.where(like(reverse.reads_posterior(self, t).to(x_t.device), x_t), 0.0, excess)
        log_p_t = -cross_entropy(logits, x_t.clamp(max=self.categories - 1))
        p_t = torch.where(x_t < self.categories, log_p_t.double().exp(), 0.0)
        gain = torch.log1p(excess * p_t) - torch.log1p(excess * (x0 == x_t))
        nats = cross_entropy(logits, x0)
        certain = (others <= 0) & ~like(self.takes_output(t).to(x_t.device), x_t)
        return torch.where(certain, 0.0, nats + gain.to(nats))

    def known_draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source
    ) -> Tensor:
        """Samples `x_s ~ p(x_s | x_t)`, s > 0, with one uniform number for each position.

        The distribution is a mixture: a sample of p0 with weight `b c`, one of pi with `b (1 - c) h`, and x_t itself
        with `a w_t - b c (1 - g) p_t`, in the notation of `Pair`. Arguments as `draw`, for a reverse model without eps.
        """
        u = 1 - uniform(x_t.shape, generator, dtype=torch.float64, device=x_t.device)
        constants = (v.expand(x_t.shape) for v in self.pair(reverse, x_t, t, s))
        return row_by_row(self._known_rows, logits, x_t, u, *constants)

    def _known_rows(
        self, logits: Tensor, x_t: Tensor, u: Tensor, a: Tensor, b: Tensor, c: Tensor, g: Tensor, pi_t: Tensor
    ) -> Tensor:
        """Returns `known_draw` for logits `(n, categories)` and numbers `(n,)`, from uniform numbers u."""
        p0, p_t = None, torch.zeros_like(u)
        if not self.unmasked_is_clean:  # else p_t is 0 at a mask, and any other x_t stays
            p0, token = at_least_float32(logits).softmax(-1), x_t.clamp(max=self.categories - 1)
            p_t = p0.gather(-1, token[:, None]).squeeze(-1).double() * (x_t < self.categories)
        h = 1 - (1 - g) * p_t
        predicted, resampled = b * c, b * (1 - c) * h
        stays = torch.where(
            b > 0, (a * (c * g * p_t + (1 - c) * h * pi_t) - predicted * (1 - g) * p_t).clamp(min=0), 1.0
        )
        u = u * (predicted + resampled + stays)
        from_pi = self.quantile(((u - predicted) / resampled.clamp(min=TINY)).clamp(0, 1))
        other = torch.where(u <= predicted + resampled, from_pi, x_t)
        place = (u / predicted.clamp(min=TINY)).clamp(max=1)
        if p0 is None:
            return at_rows(u <= predicted, quantile_of_logits, other, logits, place)
        return at_rows(u <= predicted, quantile, other, p0, place)


def quantile_of_logits(logits: Tensor, u: Tensor) -> Tensor:
    """Returns the category at the quantile u, `(n,)`, of the softmax of logits `(n, K)`."""
    return quantile(at_least_float32(logits).softmax(-1), u)
