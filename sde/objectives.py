"""Objectives of the score SDEs, of Karras et al. (2022) and of flow matching.

Each is an error of what the network could say at x_t, so they differ in the weight of each time and in how times are drawn, and a
denoiser trained with one runs under the samplers of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.corruption import Schedule, refuse_zero_snr
from ..shared.denoiser import GaussianDenoiser
from ..shared.describe import described
from ..shared.errors import UsageError
from ..shared.objective import Draw, Loss, Objective, independent, matching, refuse_uneven, refuse_untrained_output
from ..shared.random import Source, normal_like
from ..shared.tensors import at_least_float32, exact, like, moment, per_example, refuse_array, refuse_unreal
from .sde import SDE, rates

ScoreWeight: TypeAlias = Callable[[Schedule, Tensor], Tensor]


@described
def sigma_squared(schedule: Schedule, t: Tensor) -> Tensor:
    """`sigma_t^2`: with this weight the score's error is the noise's (Song et al. 2021, section 3.3)."""
    return schedule(exact(t))[1] ** 2


@described
def g_squared(schedule: Schedule, t: Tensor) -> Tensor:
    """`g(t)^2`: with this weight the loss bounds the negative log-likelihood (Song et al. 2021b, corollary 1)."""
    return SDE(schedule).coefficients(t)[1]


@described
class ScoreMatching(Objective):
    r"""`E lambda(t) ||score_theta(x_t, t) - grad log q(x_t | x_0)||^2`, mean over dimensions, t from [t_min, 1] or a chain's rows.

    Song et al. (2021), eq. 7. On `continuous.Tabulated` with `sigma_squared` this is DDPM's simple loss (eq. 3 there), on `Levels` SMLD's
    (eq. 1), where the code sums over dimensions and halves.

    Args:
        denoiser: on the schedule to train with.
        times: how the times of a batch are drawn.
        weight: lambda, `(schedule, t) -> (B,)`: `sigma_squared`, `g_squared`, or one's own.

    Raises:
        UsageError: on a schedule that ends at zero SNR, and for a network whose variance output would stay untrained.
    """

    def __init__(self, denoiser: GaussianDenoiser, times: Draw = independent, weight: ScoreWeight = sigma_squared) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_blind_end(denoiser.corruption, "ScoreMatching")
        if not bool(weight(denoiser.corruption, torch.ones((), dtype=torch.float64)) > 0):
            raise UsageError(
                f"weight={getattr(weight, '__name__', weight)} is 0 at t = 1, so the level that sampling starts from would never be "
                "trained: take sigma_squared, or on a table of one row another schedule"
            )
        self.denoiser, self.times, self.weight = denoiser, times, weight

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        schedule = self.denoiser.corruption
        mse = per_example(noise_error(self.denoiser, x0, t, generator, **cond) ** 2, torch.mean)
        of_noise = self.weight(schedule, t) / schedule(exact(t))[1] ** 2  # the score is -epsilon / sigma
        return Loss(of_noise.to(mse) * mse, {"mse": mse.detach()}, t)


@described
class MaximumLikelihood(Objective):
    r"""An upper bound on `-log p(x_0)`, in nats summed over dimensions.

    `(lambda_max - lambda_min) / 2 E ||epsilon_theta - epsilon||^2 + C`, with times even in log-SNR. In expectation the first term is
    `1/2 int g^2 ||score_theta - grad log q||^2 dt`: the weight `g_squared` with the times that importance sampling would draw, since
    `g^2 / sigma^2 = -d lambda / dt` (Song et al. 2021b, section 5; Kingma et al. 2021, eq. 18). With the prior `N(0, sigma_1^2)` and d
    dimensions, theorem 3 of the former gives what no parameter moves:
    `C = d (log(2 pi sigma_1^2) + 1 - lambda_max + lambda_min) / 2 + alpha_1^2 ||x_0||^2 / (2 sigma_1^2) - d log(alpha_1 / alpha_(t_min))`.
    The density is that of the data with the noise of t_min.

    Args:
        denoiser: on the schedule to train with.
        times: how the log-SNRs of a batch are drawn, uniformly: 0 is the cleanest.

    Raises:
        UsageError: for times that are not uniform, a schedule that ends at zero SNR, and a network whose variance
            output would stay untrained.
    """

    draws_levels = True

    def __init__(self, denoiser: GaussianDenoiser, times: Draw = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_uneven(times)
        refuse_zero_snr(denoiser.corruption)
        self.denoiser, self.times = denoiser, times
        ends = torch.tensor([1.0, denoiser.corruption.t_min], dtype=torch.float64)
        self.low, self.high = denoiser.corruption.log_snr(ends).tolist()
        if not self.high > self.low:
            raise UsageError("a table of one row has no log-SNRs between its ends, so nothing would be trained: take more rows")
        (alpha, before), (sigma, _) = (c.tolist() for c in denoiser.corruption(ends))
        self._each = 0.5 * (math.log(2 * math.pi * sigma**2) + 1 - self.high + self.low) - math.log(alpha / before)
        self._of_square = 0.5 * (alpha / sigma) ** 2

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        square = per_example(noise_error(self.denoiser, x0, t, generator, **cond) ** 2)
        fixed = self._of_square * per_example(at_least_float32(x0) ** 2) + self._each * x0[0].numel()
        return Loss(0.5 * (self.high - self.low) * square + fixed, {"mse": square.detach() / x0[0].numel()}, t)

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        log_snr = self.high - (self.high - self.low) * exact(self.times(len(refuse_array(x0, "x0")), generator))
        return self.at(x0, self.denoiser.corruption.time(log_snr).to(x0.device), generator=generator, **cond)


@described
class EDMLoss(Objective):
    r"""`E (sigma^2 + s^2) / (sigma s)^2 ||D(x_0 + sigma epsilon) - x_0||^2`, mean over dimensions (Karras et al. 2022, eqs. 2 and 3).

    With `predicts=Preconditioned(s)` the weight is `1 / c_out^2`: the plain error of the network's output. The levels of training are those
    of the schedule `EDM`. The code sums over dimensions.

    Args:
        denoiser: on `EDM`, or any schedule, with sigma standing for `sigma_t / alpha_t`.
        sigma_data: s; None for the denoiser's own.
        times: how the times of a batch are drawn.
    """

    def __init__(self, denoiser: GaussianDenoiser, sigma_data: float | None = None, times: Draw = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        sigma_data = getattr(denoiser, "sigma_data", None) if sigma_data is None else sigma_data
        if sigma_data is None or not sigma_data > 0:
            raise UsageError(f"sigma_data={sigma_data}: give the standard deviation of the data, such as 0.5")
        self.denoiser, self.sigma_data, self.times = denoiser, sigma_data, times

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weight of the error of x_0."""
        return alpha**2 / sigma**2 + 1 / self.sigma_data**2

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return matching(self.denoiser, x0, t, self.weight, generator=generator, **cond)


@described
class FlowMatching(Objective):
    r"""`E ||v_theta(x_t, t) - (alpha_t' x_0 + sigma_t' epsilon)||^2`, mean over dimensions (Lipman et al. 2023, eqs. 9 and 14).

    On `Straight` the target is `epsilon - x_0` (Liu et al. 2023, eq. 1, with time turned round), and a network that `predicts=straight` is
    v_theta itself.

    Args:
        denoiser: on the schedule to train with.
        times: how the times of a batch are drawn.
    """

    def __init__(self, denoiser: GaussianDenoiser, times: Draw = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        if not any(bool(speed != 0) for speed in rates(denoiser.corruption, torch.ones((), dtype=torch.float64))):
            raise UsageError("nothing moves on a table of one row: take more, or continuous.Simple")
        self.denoiser, self.times = denoiser, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        x0, t = at_least_float32(refuse_unreal(x0, "x0")), moment(t)
        schedule, epsilon = self.denoiser.corruption, normal_like(x0, generator)
        (alpha, sigma), (d_alpha, d_sigma) = schedule(exact(t)), rates(schedule, t)
        x_t, target = (like(a, x0) * x0 + like(b, x0) * epsilon for a, b in ((alpha, sigma), (d_alpha, d_sigma)))
        of_x = d_sigma / sigma
        v = self.denoiser.combined(x_t, t, of_x, d_alpha - alpha * of_x, **cond)
        mse = per_example(at_least_float32(v - target) ** 2, torch.mean)
        return Loss(mse, {"mse": mse.detach()}, t)


def refuse_blind_end(schedule: Schedule, name: str) -> None:
    """Refuses a schedule that ends at zero SNR, where the error of the score does not depend on x_0.

    Raises:
        UsageError: with what to do.
    """
    if not bool(torch.isfinite(schedule.log_snr(torch.ones((), dtype=torch.float64)))):
        raise UsageError(
            f"the schedule ends at zero SNR, where the score does not depend on x_0, so {name} would never train the level that "
            "sampling starts from: take FlowMatching, or continuous.Simple with weight=truncated_snr"
        )


def noise_error(denoiser: GaussianDenoiser, x0: Tensor, t: Tensor, generator: Source = None, **cond: Any) -> Tensor:
    """`epsilon_theta(x_t, t) - epsilon` at a fresh x_t, of the shape of x_0, float32 or better."""
    x0, t = at_least_float32(refuse_unreal(x0, "x0")), moment(t)
    epsilon = normal_like(x0, generator)
    alpha, sigma = denoiser.corruption(exact(t))
    x_t = like(alpha, x0) * x0 + like(sigma, x0) * epsilon
    return at_least_float32(denoiser.combined(x_t, t, 1 / sigma, -alpha / sigma, **cond) - epsilon)
