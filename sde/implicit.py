"""Implicit and sliced score matching, which do not need the score of the noise, for data of few dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.loss import refuse_untrained_output
from ..shared.gaussian.weights import refuse_zero_weight, snr
from ..shared.objective import Loss, Objective, TimeSampling, independent
from ..shared.random import Source, normal_like, rademacher_like
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, exact, full_precision, per_example

Probe: TypeAlias = Callable[[Tensor, Source], Tensor]  # (x, generator) -> probe, of the shape of x


@serializable("sde.signs", formerly="unnoise.sde.implicit.signs")
def signs(x: Tensor, generator: Source = None) -> Tensor:
    """Returns a probe of independent random signs, -1 or 1, of the shape of x: the smallest variance of all probes."""
    return rademacher_like(x, generator)


@serializable("sde.gaussian", formerly="unnoise.sde.implicit.gaussian")
def gaussian(x: Tensor, generator: Source = None) -> Tensor:
    """Returns a probe of standard normal numbers, of the shape of x."""
    return normal_like(x, generator)


@serializable("sde.ImplicitScoreMatching", formerly="unnoise.sde.implicit.Implicit")
class ImplicitScoreMatching(Objective[GaussianDenoiser]):
    r"""Implicit score matching: `E sigma_t^2 (||s||^2 / 2 + div s)`, mean over dimensions (Hyvarinen 2005, theorem 1).

    s is the denoiser's score at x_t, one draw for each example. The returned `Loss` has the two terms as parts,
    `half_square` and `divergence`. The loss differs from half of the explicit `E sigma_t^2 ||s - grad log q(x_t)||^2`
    by `E sigma_t^2 ||grad log q(x_t)||^2 / 2`, which does not depend on the parameters, and so by another constant from
    half of `DenoisingLoss.score_matching`, whose target is `grad log q(x_t | x_0)`. The divergence is exact: one
    vector-Jacobian product for each dimension, itself differentiable for training.

    Args:
        denoiser: on the schedule to train with.
        times: how the times of a batch are drawn.

    Raises:
        UsageError: for a network whose variance output would stay untrained, and a schedule that ends at zero SNR.
    """

    def __init__(self, denoiser: GaussianDenoiser, times: TimeSampling = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_zero_weight(snr, denoiser.corruption)
        self.denoiser, self.times = denoiser, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return _loss(self.denoiser, x0, t, divergence, generator, cond)


@serializable("sde.SlicedScoreMatching", formerly="unnoise.sde.implicit.Sliced")
class SlicedScoreMatching(Objective[GaussianDenoiser]):
    r"""Sliced score matching "with variance reduction": `E sigma_t^2 (||s||^2 / 2 + v^T grad(v^T s))`.

    s is the denoiser's score at x_t, v a random probe; mean over dimensions (Song et al. 2019, eq. 8). The returned
    `Loss` has the two terms as parts, `half_square` and `divergence`. Of the two terms only the divergence is
    estimated, by Hutchinson's estimator, so the expected loss equals `ImplicitScoreMatching`, at the cost of `probes`
    vector-Jacobian products in any dimension.

    Args:
        denoiser: on the schedule to train with.
        probes: number of probes for each example, over which the estimate is averaged.
        probe: how they are drawn, `(x, generator) -> v`, `signs` or `gaussian`: any distribution with zero mean and
            unit covariance.
        times: how the times of a batch are drawn.

    Raises:
        UsageError: for fewer than one probe, a network whose variance output would stay untrained, and a schedule that
            ends at zero SNR.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, probes: int = 1, probe: Probe = signs, times: TimeSampling = independent
    ) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_zero_weight(snr, denoiser.corruption)
        if probes < 1:
            raise UsageError(f"probes={probes}: give 1 or more")
        self.denoiser, self.probes, self.probe, self.times = denoiser, probes, probe, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        def estimate(score: Tensor, x: Tensor) -> Tensor:
            drawn = [self.probe(x.detach(), generator) for _ in range(self.probes)]
            return torch.stack([per_example(v * _pulled(score, x, v)) for v in drawn]).mean(0)

        return _loss(self.denoiser, x0, t, estimate, generator, cond)


def divergence(score: Tensor, x: Tensor) -> Tensor:
    """Returns `sum_i ds_i / dx_i`, `(B,)`, for score and x `(B, ...)`: one vector-Jacobian product for each dimension.

    It is differentiable. The score must have been computed from x, which requires a gradient.
    """
    columns = score.reshape(len(score), -1).unbind(1)
    return torch.stack(
        [_pulled(c, x, torch.ones_like(c)).reshape(len(x), -1)[:, i] for i, c in enumerate(columns)]
    ).sum(0)


def _pulled(out: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Returns `v^T d out / dx`, of the shape of x; zeros where out does not depend on x."""
    (pulled,) = torch.autograd.grad(out, x, v, create_graph=True, allow_unused=True, materialize_grads=True)
    return pulled


def _loss(
    denoiser: GaussianDenoiser,
    x0: Tensor,
    t: Tensor,
    trace: Callable[[Tensor, Tensor], Tensor],
    generator: Source,
    cond: dict[str, Any],
) -> Loss:
    trained = torch.is_grad_enabled()
    with torch.enable_grad():
        x = denoiser.corruption.corrupt(x0, t, generator=generator).detach().requires_grad_()
        score = denoiser.score(x, t, **cond)
        with full_precision(x):
            half, of_trace = 0.5 * per_example(at_least_float32(score) ** 2), at_least_float32(trace(score, x))
            weight = (denoiser.corruption(exact(t))[1] ** 2 / x0[0].numel()).to(half.dtype)
            total = weight * (half + of_trace)
    total = total if trained else total.detach()
    return Loss(total, {"half_square": (weight * half).detach(), "divergence": (weight * of_trace).detach()}, t)
