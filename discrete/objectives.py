"""Objectives of categorical diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.describe import described
from ..shared.errors import UsageError
from ..shared.objective import Draw, Loss, Objective, independent
from ..shared.random import Source
from ..shared.tensors import full_precision, like
from .denoiser import CategoricalDenoiser, CleanDenoiser, refuse_without_p0


@described
class Hybrid(Objective):
    r"""`L_n + lambda E[-log p(x_0 | x_n)]`, mean over dimensions, in nats (Austin et al. 2021, eq. 5, as released).

    `L_n = KL(q(x_(n-1) | x_n, x_0) || p(x_(n-1) | x_n))` at one uniform n; at n = 1 it is `-log p(x_0 | x_1)`. Beside one L_n, lambda
    weighs as in the released code; beside the whole bound, the sum of T such terms, the same lambda would be T times as large.

    Args:
        denoiser: on the table to train with.
        ce: lambda; 0.001 for the paper's images, 0.01 for its text with absorption, 0 otherwise.
        times: how the times of a batch are drawn.
        padding: the symbol of positions that are left out of the loss, or None.

    Raises:
        UsageError: for a process in continuous time, which has no L_n.
    """

    def __init__(self, denoiser: CategoricalDenoiser, ce: float = 0.001, times: Draw = independent, padding: int | None = None) -> None:
        super().__init__()
        if denoiser.corruption.steps is None:
            raise UsageError("this process runs in continuous time and has no L_n: train it with ContinuousBound, or give it a table")
        if ce:
            refuse_without_p0(denoiser, f"ce={ce}")
        self.denoiser, self.ce, self.times, self.padding = denoiser, ce, times, padding

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        with full_precision(x0):
            x_t = transition.corrupt(x0, t, generator=generator)
        term, cross_entropy = self.denoiser.divergence(x0, x_t, t, transition.before(t), **cond)
        term = mean_over(term, x0, self.padding)
        parts = {"bits_per_dim": term.detach() * (transition.steps / math.log(2))}
        return with_cross_entropy(term, cross_entropy, self.ce, x0, self.padding, parts, t)


@described
class ContinuousBound(Objective):
    r"""The bound in continuous time at one time, `(1 - t_min)` times the rate of the path plus `lambda E[-log p(x_0 | x_t)]`, in nats/dim.

    One formula for MDLM (absorption: cross-entropy weighted by `-alpha' / (1 - alpha)`, Sahoo et al. 2024, eq. 10), for the CTMC bound of
    tauLDR (Campbell et al. 2022, eq. 6, with its jump integrated out and so one pass of the network) and, of a
    `ScoreEntropyDenoiser`, for the score entropy of SEDD (Lou et al. 2024, theorem 3.6).

    Args:
        denoiser: on a process in continuous time.
        ce: lambda; 0.001 for tauLDR, else 0.
        times: how the times of a batch are drawn.
        padding: the symbol of positions that are left out of the loss, or None.

    Raises:
        UsageError: for a table, which has no rates.
    """

    def __init__(self, denoiser: CategoricalDenoiser, ce: float = 0.0, times: Draw = independent, padding: int | None = None) -> None:
        super().__init__()
        if denoiser.corruption.steps is not None:
            raise UsageError("a table has no rates: train it with Hybrid, or give the process a schedule such as LogLinear()")
        if ce:
            refuse_without_p0(denoiser, f"ce={ce}")
        self.denoiser, self.ce, self.times, self.padding = denoiser, ce, times, padding

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        with full_precision(x0):
            x_t = transition.corrupt(x0, t, generator=generator)
        rate, cross_entropy = self.denoiser.path_rate(x0, x_t, t, **cond)
        bound = (1 - transition.t_min) * mean_over(rate, x0, self.padding)
        return with_cross_entropy(bound, cross_entropy, self.ce, x0, self.padding, {"bits_per_dim": bound.detach() / math.log(2)}, t)


@described
class CrossEntropy(Objective):
    """`E[-log p(x_0 | x_t)]` alone, mean over dimensions, in nats: the bound with another weight for each time.

    Args:
        denoiser: any that says p0.
        times: how the times of a batch are drawn.
        padding: the symbol of positions that are left out of the loss, or None.

    Raises:
        UsageError: for one that does not.
    """

    def __init__(self, denoiser: CleanDenoiser, times: Draw = independent, padding: int | None = None) -> None:
        super().__init__()
        refuse_without_p0(denoiser, "CrossEntropy")
        self.denoiser, self.times, self.padding = denoiser, times, padding

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        transition = self.denoiser.corruption
        with full_precision(x0):
            x_t = transition.corrupt(x0, t, generator=generator)
        nats = mean_over(self.denoiser.cross_entropy(x0, x_t, t, **cond), x0, self.padding)
        return Loss(nats, {"cross_entropy": nats.detach()}, t)


def with_cross_entropy(
    bound: Tensor, cross_entropy: Tensor | None, ce: float, x0: Tensor, padding: int | None, parts: dict[str, Tensor], t: Tensor
) -> Loss:
    """A bound `(B,)` plus lambda times the cross-entropy, where there is one."""
    if cross_entropy is None:
        return Loss(bound, parts, t)
    nats = mean_over(cross_entropy if ce else cross_entropy.detach(), x0, padding)
    return Loss(bound + ce * nats if ce else bound, parts | {"cross_entropy": nats.detach()}, t)


def mean_over(values: Tensor, x0: Tensor, padding: int | None) -> Tensor:
    """The mean over an example's dimensions, `(B, ...)` to `(B,)`, without those where x_0 is padding."""
    if padding is None:
        return values.flatten(1).mean(1)
    real = (x0 != padding).flatten(1)
    return torch.where(real, values.flatten(1), 0.0).sum(1) / like(real.sum(1).clamp(min=1), values[:, 0].flatten())
