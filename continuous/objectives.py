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
from ..shared.objective import Draw, Loss, Objective, independent, matching, refuse_uneven, refuse_untrained_output, snr
from ..shared.random import Source
from ..shared.scale import Scale
from ..shared.tensors import at_least_float32, exact, per_example
from .bound import VariationalBound
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
        refuse_untrained_output(denoiser)
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
        times: how the times of a batch are drawn, uniformly.
        tanh: the decoder with the published approximation.

    Raises:
        UsageError: for times that are not uniform, and a network whose variance output a fixed variance leaves
            untrained.
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
        refuse_uneven(times)
        if not reads_network(variance, denoiser):
            refuse_untrained_output(denoiser)
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


def refuse_blind(weight: Weight, denoiser: GaussianDenoiser) -> None:
    """Refuses a weight that gives the level at t = 1 no say."""
    if not bool(weight(*denoiser.corruption(torch.ones((), dtype=torch.float64))) > 0):
        name = getattr(weight, "__name__", weight)
        raise UsageError(
            f"weight={name} is 0 at the schedule's zero SNR, so the level that sampling starts from would never be trained: "
            "give weight=truncated_snr or PlainError(velocity)"
        )
