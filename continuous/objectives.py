"""Objectives of the DDPM papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.denoiser import GaussianDenoiser
from ..shared.describe import described
from ..shared.errors import UsageError
from ..shared.objective import Draw, Loss, Objective, independent, matching, snr
from ..shared.random import Source, categorical
from ..shared.scale import Scale
from ..shared.tensors import at_least_float32, exact, per_example
from .bound import VariationalBound, chain_of
from .posterior import ReverseVariance, large, learned_range, reads_network

Weight: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@described
class Simple(Objective):
    r"""`E ||epsilon - epsilon_theta(x_t, t)||^2`, mean over dimensions, t uniform over the steps (Ho et al. 2020, eq. 14).

    Written for any prediction: the squared error of the noise is `alpha^2 / sigma^2` times that of x_0.

    Args:
        denoiser: on the schedule to train with.
        times: how the times of a batch are drawn.
        weight: of the squared error of x_0; `snr` is the simple loss, others are in `continuous.weights`.

    Raises:
        UsageError: for a weight that is 0 at t = 1, which sampling starts from, and for a network whose second output would stay untrained.
    """

    def __init__(self, denoiser: GaussianDenoiser, times: Draw = independent, weight: Weight = snr) -> None:
        super().__init__()
        if denoiser.spread:
            raise UsageError("the network's second output would stay untrained: build it with outputs=1, or take Hybrid or Variational")
        refuse_blind(weight, denoiser)
        self.denoiser, self.times, self.weight = denoiser, times, weight

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return matching(self.denoiser, x0, t, self.weight, generator=generator, **cond)


@described
class Variational(Objective):
    r"""`T L_(n-1)` in bits/dim at one n: an unbiased estimate of the bound less its prior (Ho et al. 2020, eq. 5).

    Nichol & Dhariwal (2021) call it L_vlb, and train it in an `Importance`.

    Args:
        denoiser: on a `Tabulated` schedule, not clipped.
        scale: the levels of the data.
        variance: of the reverse steps.
        times: how the times of a batch are drawn.
        tanh: the decoder with the published approximation.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        scale: Scale,
        variance: ReverseVariance = large,
        times: Draw = independent,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser, self.scale, self.variance, self.times, self.tanh = denoiser, scale, variance, times, tanh
        self._bound = VariationalBound(denoiser, scale, variance=variance, tanh=tanh)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        steps = self.denoiser.corruption.steps
        bits = steps * self._bound.term(x0, t, generator=generator, **cond) / (x0[0].numel() * math.log(2))
        return Loss(bits.to(at_least_float32(x0)), {"bits_per_dim": bits.detach()}, t)


@described
class Hybrid(Objective):
    r"""`L_simple + vlb T L_(n-1)`, L in bits/dim, the mean detached in the second term (Nichol & Dhariwal 2021, eq. 16).

    The second term trains the variance alone. Its factor is published twice: `vlb=0.001` in the paper and in runs that rescale (T / 1000 in
    their code), `vlb=1 / T` in the released configurations that do not; at T = 1000 they agree.

    Args:
        denoiser: on a `Tabulated` schedule, with a network of two outputs.
        scale: the levels of the data.
        vlb: weight of the bound's estimate.
        variance: of the reverse steps, a learned one.
        weight: of the squared error of x_0 in the first term.
        times: how the times of a batch are drawn.
        tanh: the decoder with the published approximation.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        scale: Scale,
        vlb: float = 0.001,
        variance: ReverseVariance = learned_range,
        weight: Weight = snr,
        times: Draw = independent,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        refuse_blind(weight, denoiser)
        if not reads_network(variance, denoiser):
            raise UsageError("in the hybrid loss the bound trains the variance alone, and this one is fixed: take learned_range, or Simple")
        self.denoiser, self.scale, self.vlb, self.variance, self.weight = denoiser, scale, vlb, variance, weight
        self.times, self.tanh = times, tanh
        self._bound = VariationalBound(denoiser, scale, variance=variance, tanh=tanh)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        schedule = self.denoiser.corruption
        x_t = schedule.corrupt(x0, t, generator=generator)
        estimate, v = self.denoiser.with_spread(x_t, t, **cond)
        error = at_least_float32(estimate - x0)
        mse = self.weight(*schedule(exact(t))).to(error) * per_example(error**2, torch.mean)
        term = self._bound.between(x0, x_t, estimate.detach(), v, exact(t)) / (x0[0].numel() * math.log(2))
        bits = schedule.steps * term
        return Loss(mse + self.vlb * bits.to(mse), {"mse": mse.detach(), "bits_per_dim": bits.detach()}, t)


@described
class Importance(Objective):
    r"""Draws n with chance `p_n ~ sqrt(E[L_n^2])` and weighs the loss by `1 / (T p_n)` (Nichol & Dhariwal 2021, section 3.3).

    The second moments are means over the last `history` losses of each step; until every step has as many, n is uniform. They are part
    of the state, so a resumed run goes on with them.

    Args:
        objective: on a table of steps, such as `Variational`.
        history: losses to remember for each step.
        uniform: share of draws that stay uniform.
    """

    def __init__(self, objective: Objective, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform <= 1:
            raise UsageError(f"history={history}, uniform={uniform}: give one loss or more to remember, and a share above 0 and up to 1")
        self.objective, self.history, self.uniform, self.times = objective, history, uniform, objective.times
        self.steps = chain_of(objective.denoiser).steps
        self.register_buffer("squares", torch.zeros(self.steps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(self.steps, dtype=torch.int64))

    @property
    def denoiser(self) -> GaussianDenoiser:
        """That of the objective."""
        return self.objective.denoiser

    def chances(self) -> Tensor:
        """p_1..p_T, `(T,)`, float64."""
        root = self.squares.mean(1).sqrt()
        even = torch.full_like(root, 1 / self.steps)
        return torch.where((self.counts >= self.history).all(), (1 - self.uniform) * root / root.sum() + self.uniform * even, even)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective.at(x0, t, generator=generator, **cond)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        p = self.chances()
        index = categorical(p.expand(len(x0), -1), generator)
        loss = self.at(x0, (index + 1).double() / self.steps, generator=generator, **cond)
        if self.training:
            self.record(index, loss.total.detach().double())
        return loss._replace(total=loss.total / (self.steps * p[index]).to(loss.total))

    def record(self, index: Tensor, losses: Tensor) -> None:
        """Notes losses `(B,)` of steps `index` `(B,)`, 0-based, in rings of `history` places, without waiting for the device."""
        earlier = (index[:, None] == index).tril(-1).sum(1)  # how often this step came before in the batch
        later = (index[:, None] == index).triu(1).sum(1)
        place = (self.counts[index] + earlier) % self.history
        # Of more than `history` losses of one step the last ones stay; the others keep what is there, at no place that the last ones take.
        stays = later < self.history
        fresh = torch.where(stays, losses**2, 0.0)
        chosen = torch.zeros_like(self.squares).index_put((index, place), stays.double(), accumulate=True)
        added = torch.zeros_like(self.squares).index_put((index, place), fresh, accumulate=True)
        self.squares.copy_(torch.where(chosen > 0, added, self.squares))
        self.counts.index_add_(0, index, torch.ones_like(index))


def refuse_blind(weight: Weight, denoiser: GaussianDenoiser) -> None:
    """Refuses a weight that gives the level at t = 1 no say."""
    if not bool(weight(*denoiser.corruption(torch.ones((), dtype=torch.float64))) > 0):
        name = getattr(weight, "__name__", weight)
        raise UsageError(
            f"weight={name} is 0 at the schedule's zero SNR, so the level that sampling starts from would never be trained: "
            "give weight=truncated_snr or PlainError(velocity)"
        )
