"""Training objectives of categorical diffusion: D3PM's loss, the bound in continuous time, and the cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..shared.denoiser import refuse_other_denoiser
from ..shared.errors import UsageError
from ..shared.objective import Loss, Objective, TimeSampling, independent
from ..shared.random import Source
from ..shared.serialization import serializable
from ..shared.tensors import full_precision
from .denoiser import CategoricalDenoiser, CleanDenoiser, refuse_without_integral, refuse_without_p0
from .transition.base import as_tokens

D = TypeVar("D", bound=CategoricalDenoiser, default=CategoricalDenoiser, covariant=True)


@serializable("discrete.D3PMLoss", formerly="unnoise.discrete.objectives.Hybrid")
class D3PMLoss(Objective[D]):
    r"""D3PM's loss `L_n + lambda E[-log p(x_0 | x_n)]`, mean over dimensions, in nats (Austin et al. 2021, eq. 5).

    Called with tokens x0 `(B, ...)` and conditions by name; returns a `Loss` with one number for each example, at one
    time and one sample of x_n each. `L_n = KL(q(x_(n-1) | x_n, x_0) || p(x_(n-1) | x_n))` at one uniform n; at n = 1 it
    is `-log p(x_0 | x_1)`. As in the published code, lambda is relative to one L_n; relative to the whole bound, the
    sum of T such terms, the same lambda would be T times as large. The cross-entropy is that of the posterior: for a
    leave-one-out posterior (`Product`) it includes the evidence of x_t, where the published code uses the network's
    output, so that both terms have the same minimum. With an eps of the reverse model both distributions of L_n are
    smoothed, as in the published code. The part `path_and_data_bits_per_dim` is T L_n: its mean over uniform n is the
    bound without its prior, except for an eps, which in the bound smooths the model only.

    Args:
        denoiser: a denoiser of a table of steps.
        ce: lambda; 0.001 for the paper's images, 0.01 for its text with absorption, 0 otherwise.
        times: how the times of a batch are drawn: `independent`, or another function `(B, generator) -> u` in [0, 1).
        padding: the token of positions to leave out of the loss, which is then a mean over the tokens of a batch; or
            None.

    Raises:
        UsageError: for a process in continuous time, which has no L_n, and where `ce` is not 0 for a denoiser that does
            not predict p0.
    """

    def __init__(
        self,
        denoiser: D,
        ce: float = 0.001,
        times: TimeSampling = independent,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        refuse_other_denoiser(denoiser, CategoricalDenoiser, "D3PMLoss")
        if denoiser.corruption.steps is None:
            raise UsageError(
                "this process runs in continuous time and has no L_n: train it with ContinuousBound, or give it a "
                "table of steps such as cosine(1000)"
            )
        if ce:
            refuse_without_p0(denoiser, f"ce={ce}")
        self.denoiser, self.ce, self.times, self.padding = denoiser, ce, times, padding

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        x0 = as_tokens(x0, transition.categories, "x_0")
        with full_precision(x0):
            x_t = transition.corrupt(x0, t, generator=generator)
        term, cross_entropy = self.denoiser.divergence(x0, x_t, t, transition.before(t), **cond)
        term = mean_over(term, x0, self.padding)
        parts = {"path_and_data_bits_per_dim": term.detach() * (transition.table_length / math.log(2))}
        return with_cross_entropy(term, cross_entropy, self.ce, x0, self.padding, parts, t)


@serializable("discrete.ContinuousBound", formerly="unnoise.discrete.objectives.ContinuousBound")
class ContinuousBound(Objective[D]):
    r"""The bound in continuous time at one random time, plus `lambda E[-log p(x_0 | x_t)]`, in nats/dim.

    Called with tokens x0 `(B, ...)` and conditions by name; returns a `Loss` with one number for each example, the mean
    over its dimensions at one time in [t_min, 1], uniform by default, and one sample of x_t. It is `(1 - t_min)` times
    the rate of the path, which is the loss of MDLM (under absorption: cross-entropy weighted by
    `-alpha' / (1 - alpha)`, Sahoo et al. 2024, eq. 10), the CTMC bound of tauLDR (Campbell et al. 2022, eq. 6, with its
    jump integrated out, so that the network runs once) and, for a `ScoreEntropyDenoiser`, the score entropy of SEDD
    (Lou et al. 2024, theorem 3.6); on uniform noise with `Product` it is UDLM's and Duo's (Schiff et al. 2024; Sahoo et
    al. 2025). The part `path_bits_per_dim` has neither the bound's prior nor its data term.

    Args:
        denoiser: a denoiser of a process in continuous time.
        ce: lambda, the weight of the cross-entropy of the posterior; 0.001 for tauLDR, else 0.
        times: how the times of a batch are drawn, as for `D3PMLoss`.
        padding: the token of positions to leave out of the loss, which is then a mean over the tokens of a batch; or
            None.

    Raises:
        UsageError: for a table, which has no rates, a path whose integral is infinite, and where `ce` is not 0 for a
            denoiser that does not predict p0.
    """

    def __init__(
        self,
        denoiser: D,
        ce: float = 0.0,
        times: TimeSampling = independent,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        refuse_other_denoiser(denoiser, CategoricalDenoiser, "ContinuousBound")
        if denoiser.corruption.steps is not None:
            raise UsageError(
                "a table of steps has no rates: train it with D3PMLoss, or give the process a schedule such as "
                "LogLinearNoise()"
            )
        refuse_without_integral(denoiser)
        if ce:
            refuse_without_p0(denoiser, f"ce={ce}")
        self.denoiser, self.ce, self.times, self.padding = denoiser, ce, times, padding

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        x0 = as_tokens(x0, transition.categories, "x_0")
        with full_precision(x0):
            x_t = transition.corrupt(x0, t, generator=generator)
        rate, cross_entropy = self.denoiser.path_rate(x0, x_t, t, **cond)
        bound = (1 - transition.t_min) * mean_over(rate, x0, self.padding)
        parts = {"path_bits_per_dim": bound.detach() / math.log(2)}
        return with_cross_entropy(bound, cross_entropy, self.ce, x0, self.padding, parts, t)


@serializable("discrete.CrossEntropy", formerly="unnoise.discrete.objectives.CrossEntropy")
class CrossEntropy(Objective[CleanDenoiser]):
    """The cross-entropy `E[-log p(x_0 | x_t)]`, mean over dimensions, in nats, with equal weights at all times.

    Under absorption in an added mask, the bound is this loss with other weights over time. Called with tokens x0
    `(B, ...)` and conditions by name; returns a `Loss` with one number for each example, at one random time and one
    sample of x_t each.

    Args:
        denoiser: a denoiser that predicts p0, of a table of steps or in continuous time.
        times: how the times of a batch are drawn, as for `D3PMLoss`.
        padding: the token of positions to leave out of the loss, which is then a mean over the tokens of a batch; or
            None.

    Raises:
        UsageError: for a denoiser that does not predict p0.
    """

    denoiser: CleanDenoiser

    def __init__(self, denoiser: CleanDenoiser, times: TimeSampling = independent, padding: int | None = None) -> None:
        super().__init__()
        refuse_without_p0(denoiser, "CrossEntropy")
        self.denoiser, self.times, self.padding = denoiser, times, padding

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        x0 = as_tokens(x0, transition.categories, "x_0")
        with full_precision(x0):
            x_t = transition.corrupt(x0, t, generator=generator)
        nats = mean_over(self.denoiser.cross_entropy(x0, x_t, t, **cond), x0, self.padding)
        return Loss(nats, {"cross_entropy": nats.detach()}, t)


def with_cross_entropy(
    bound: Tensor,
    cross_entropy: Tensor | None,
    ce: float,
    x0: Tensor,
    padding: int | None,
    parts: dict[str, Tensor],
    t: Tensor,
) -> Loss:
    """Returns the loss of a bound `(B,)` plus lambda times the cross-entropy, if the denoiser has one.

    Args:
        bound: `(B,)`, in nats per dimension.
        cross_entropy: at each position, `(B, ...)`, or None for a denoiser that does not predict p0.
        ce: lambda.
        x0: `(B, ...)`.
        padding: the token of positions to leave out, or None.
        parts: quantities to log, `(B,)` each, to which the mean cross-entropy is added.
        t: `(B,)`.
    """
    if cross_entropy is None:
        return Loss(bound, parts, t)
    nats = mean_over(cross_entropy if ce else cross_entropy.detach(), x0, padding)
    return Loss(bound + ce * nats if ce else bound, parts | {"cross_entropy": nats.detach()}, t)


def mean_over(values: Tensor, x0: Tensor, padding: int | None) -> Tensor:
    """Returns the mean over an example's dimensions, `(B, ...)` to `(B,)`.

    Positions at which x0 `(B, ...)` is `padding` are left out unless `padding` is None, and an example is weighted by
    its share of the batch's tokens, so that the mean over the batch is the mean over its tokens, as in MDLM's code
    (Sahoo et al. 2024).
    """
    values = values.flatten(1)
    if padding is None:
        return values.mean(1)
    real = (x0 != padding).flatten(1)
    return torch.where(real, values, 0.0).sum(1) / real.sum(1).to(values).mean().clamp(min=1 / len(x0))
