"""Objectives that train the variational bound: alone, or together with the simple loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.denoiser import refuse_other_denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.loss import refuse_untrained_output
from ..shared.gaussian.weights import Weight, refuse_zero_weight, snr
from ..shared.objective import Loss, Objective, TimeSampling, independent, refuse_nonuniform_times
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.serialization import name_of, serializable
from ..shared.tensors import at_least_float32, exact, per_example
from .bound import VariationalBound
from .posterior import ReverseVariance, large, learned_range, reads_network


@serializable(
    "continuous.Variational", formerly="unnoise.continuous.objectives.Variational", renamed={"scale": "quantization"}
)
class Variational(Objective[GaussianDenoiser]):
    r"""The variational bound at one random step: `T L_(n-1)` in bits/dim (Ho et al. 2020, eq. 5).

    Called with x0 `(B, ...)`, real numbers as `quantization.continuous` gives them; the total of the returned `Loss` is
    `T L_(n-1)` at one random t = n / T for each example, with one draw of x_t. L_(n-1) is the KL divergence of a
    reverse step, for n = 1 the code length of the data (see `VariationalBound`). The mean over n = 1..T is the bound
    without the prior L_T. Nichol & Dhariwal (2021) call it L_vlb, and train it in an `ImportanceSampling`.

    Args:
        denoiser: on a table of steps, such as `Tabulated`, not clipped.
        quantization: the quantization levels of the data.
        variance: the variance of the reverse steps: `large`, `small`, `LogInterpolated`, `learned_range`, ..
        times: how the times of a batch are drawn, uniformly.
        tanh: whether L_0 takes the published tanh approximation of the Gaussian distribution function.

    Raises:
        UsageError: for a schedule in continuous time, times that are not uniform, and for a network whose variance
            output would stay untrained because the variance is fixed.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        quantization: Quantization,
        variance: ReverseVariance = large,
        times: TimeSampling = independent,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        refuse_other_denoiser(denoiser, GaussianDenoiser, "Variational")
        refuse_nonuniform_times(times)
        if not reads_network(variance, denoiser):
            refuse_untrained_output(denoiser)
        self.denoiser, self.quantization, self.variance = denoiser, quantization, variance
        self.times, self.tanh = times, tanh
        self._bound = VariationalBound(denoiser, quantization, variance=variance, tanh=tanh)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        nats = self._bound.schedule.steps * self._bound.term(x0, t, generator=generator, **cond)
        bits = nats / (x0[0].numel() * math.log(2))
        return Loss(bits.to(at_least_float32(x0)), {"bits_per_dim": bits.detach()}, t)


@serializable("continuous.Hybrid", formerly="unnoise.continuous.objectives.Hybrid", renamed={"scale": "quantization"})
class Hybrid(Objective[GaussianDenoiser]):
    r"""The hybrid loss `L_simple + vlb T L_(n-1)`, L_(n-1) in bits/dim (Nichol & Dhariwal 2021, eq. 16).

    L_simple is `weight` times the squared error of x_0, mean over dimensions; at the default `snr` this is the squared
    error of the noise. `T L_(n-1)` is that of `Variational`, at the same x_t. The mean is detached there, so that this
    term trains the variance alone. Its factor is published twice: `vlb=0.001` in the paper and in runs that rescale (T
    / 1000 in their code), `vlb=1 / T` in the published configurations that do not; at T = 1000 they agree.

    Args:
        denoiser: on a table of steps, such as `Tabulated`, with a network of two outputs.
        quantization: the quantization levels of the data.
        vlb: weight of the second term.
        variance: the variance of the reverse steps, a learned one: `learned_range` or `learned_diagonal`.
        weight: weight of the squared error of x_0 in the first term, `(schedule, t) -> weight`.
        times: how the times of a batch are drawn.
        tanh: whether L_0 takes the published tanh approximation of the Gaussian distribution function.

    Raises:
        UsageError: for a schedule in continuous time, a fixed variance, and for a weight that is 0 at t = 1.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        quantization: Quantization,
        vlb: float = 0.001,
        variance: ReverseVariance = learned_range,
        weight: Weight = snr,
        times: TimeSampling = independent,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        refuse_other_denoiser(denoiser, GaussianDenoiser, "Hybrid")
        refuse_zero_weight(weight, denoiser.corruption)
        if not reads_network(variance, denoiser):
            raise UsageError(
                f"variance={name_of(variance)}: in the hybrid loss the bound trains the variance alone, and this one "
                "is fixed: take learned_range, or DenoisingLoss.simple"
            )
        self.denoiser, self.quantization, self.vlb, self.variance = denoiser, quantization, vlb, variance
        self.weight, self.times, self.tanh = weight, times, tanh
        self._bound = VariationalBound(denoiser, quantization, variance=variance, tanh=tanh)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        schedule = self.denoiser.corruption
        x_t = schedule.corrupt(x0, t, generator=generator)
        estimate = self.denoiser.estimate(x_t, t, **cond)
        mean = estimate.mean(x_t)
        error = at_least_float32(mean - x0)
        mse = self.weight(schedule, t).to(error) * per_example(error**2, torch.mean)
        nats = self._bound.between(x0, x_t, mean.detach(), estimate.variance_output, exact(t))
        bits = self._bound.schedule.steps * (nats / (x0[0].numel() * math.log(2)))
        return Loss(mse + self.vlb * bits.to(mse), {"mse": mse.detach(), "bits_per_dim": bits.detach()}, t)
