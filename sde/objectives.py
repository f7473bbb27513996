"""The likelihood bound of score SDEs as an objective; their other losses are constructors of `DenoisingLoss`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.loss import refuse_untrained_output
from ..shared.gaussian.schedule import refuse_zero_snr
from ..shared.objective import (
    Loss,
    Objective,
    TimeSampling,
    independent,
    refuse_nonuniform_times,
    times_of_rows,
)
from ..shared.random import Source, normal_like
from ..shared.serialization import serializable
from ..shared.tensors import (
    at_least_float32,
    checked_time,
    exact,
    like,
    per_example,
    refuse_array,
    refuse_non_float,
    times_at,
)


@serializable("sde.MaximumLikelihood", formerly="unnoise.sde.objectives.MaximumLikelihood")
class MaximumLikelihood(Objective[GaussianDenoiser]):
    r"""Maximum-likelihood training: an upper bound on `-log p(x_0)` in nats, summed over dimensions.

    `(lambda_max - lambda_min) / 2 E ||epsilon_theta - epsilon||^2 + C`, with times even in log-SNR lambda, which is
    lambda_max at t_min and lambda_min at t = 1; epsilon_theta is the noise for the denoiser's estimate of x_0. Called
    with x0 `(B, ...)`; the total of the returned `Loss` takes one random time and one draw of x_t for each example. In
    expectation the first term is `1/2 int g^2 ||score_theta - grad log q(x_t | x_0)||^2 dt`: the weight
    `likelihood_weight` with times drawn by importance sampling, since `g^2 / sigma^2 = -d lambda / dt` (Song et al.
    2021b, section 5; Kingma et al. 2021, eq. 18). With the prior `N(0, sigma_1^2)` and d dimensions, C, which does not
    depend on the parameters, is by theorem 3 of Song et al. (2021b)
    `d (log(2 pi sigma_1^2) + 1 - lambda_max + lambda_min) / 2 + alpha_1^2 ||x_0||^2 / (2 sigma_1^2)` minus
    `d log(alpha_1 / alpha_(t_min))`. The density p is that of data with the noise of t_min, the smallest training time.

    Args:
        denoiser: on the schedule to train with.
        times: how the numbers u of a batch are drawn, uniformly on [0, 1); the log-SNR is
            `lambda_max - u (lambda_max - lambda_min)`.

    Raises:
        UsageError: for times that are not uniform, a schedule that ends at zero SNR, a table of one row, and a network
            whose variance output would stay untrained.
    """

    draws_times = True

    def __init__(self, denoiser: GaussianDenoiser, times: TimeSampling = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_nonuniform_times(times)
        refuse_zero_snr(denoiser.corruption)
        self.denoiser, self.times = denoiser, times
        ends = torch.tensor([1.0, denoiser.corruption.t_min], dtype=torch.float64)
        self.low, self.high = denoiser.corruption.log_snr(ends).tolist()
        if not self.high > self.low:
            raise UsageError(
                "a table of one row has a single log-SNR, so nothing would be trained: take a table with more rows"
            )
        (alpha, before), (sigma, _) = (c.tolist() for c in denoiser.corruption(ends))
        self._each = 0.5 * (math.log(2 * math.pi * sigma**2) + 1 - self.high + self.low) - math.log(alpha / before)
        self._of_square = 0.5 * (alpha / sigma) ** 2

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        square = per_example(noise_error(self.denoiser, x0, t, generator, **cond) ** 2)
        fixed = self._of_square * per_example(at_least_float32(x0) ** 2) + self._each * x0[0].numel()
        return Loss(0.5 * (self.high - self.low) * square + fixed, {"mse": square.detach() / x0[0].numel()}, t)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        log_snr = self.high - (self.high - self.low) * exact(
            times_of_rows(self.times, len(refuse_array(x0, "x0")), generator)
        )
        return self.at(x0, times_at(self.denoiser.corruption.time(log_snr), x0), generator=generator, **cond)


def noise_error(denoiser: GaussianDenoiser, x0: Tensor, t: Tensor, generator: Source = None, **cond: Any) -> Tensor:
    """Returns `epsilon_theta(x_t, t) - epsilon` at a newly drawn x_t, of the shape of x_0, float32 or better.

    `epsilon_theta = (x_t - alpha_t x_0) / sigma_t` with the denoiser's estimate of x_0.
    """
    x0, t = at_least_float32(refuse_non_float(x0, "x0")), checked_time(t)
    epsilon = normal_like(x0, generator)
    alpha, sigma = denoiser.corruption(exact(t))
    x_t = like(alpha, x0) * x0 + like(sigma, x0) * epsilon
    return at_least_float32(denoiser.estimate(x_t, t, **cond).combined(x_t, 1 / sigma, -alpha / sigma) - epsilon)
