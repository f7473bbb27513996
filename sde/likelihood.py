"""Exact code lengths by the change of variables along the probability flow."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..shared.calling import warn_in_training
from ..shared.code_length import CodeLength, total_nats
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.dequantization import Dequantizer
from ..shared.gradients import gradients
from ..shared.progress import Progress, silent
from ..shared.random import Source, rademacher_like
from ..shared.tensors import at_least_float32, finest, like, refuse_array, refuse_unless
from .flow import ProbabilityFlow
from .flow_coordinates import FlowCoordinates, Place, angle_coordinates
from .integrators import Adaptive, Integrator, State


class Trace(ABC):
    """How the divergence of the flow is found: from products `e^T J e` with probes e."""

    @abstractmethod
    def probes(self, x: Tensor, generator: Source = None) -> Tensor:
        """`(n, B, ...)` for x `(B, ...)`."""

    @abstractmethod
    def estimates(self, products: Tensor) -> Tensor:
        """Estimates of the trace, `(m, B)`, from products `(n, B)`."""

    @abstractmethod
    def error(self, estimates: Tensor) -> Tensor | None:
        """The standard error of the mean of estimates `(m, B)`, `(B,)`; None where it cannot be told."""


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Random probes with `E[e e^T] = I` (Hutchinson 1990; Song et al. 2021, appendix D.2): unbiased.

    Attributes:
        count: probes for each example; the network is called once for all of them. From two on the code length has a
            standard error.
        draw: `rademacher_like`, or `normal_like` for Gaussian probes, whose variance is larger.
    """

    count: int = 1
    draw: Callable[[Tensor, Source], Tensor] = rademacher_like

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count={self.count}: give one probe or more, or take ExactTrace() for few dimensions")

    def probes(self, x: Tensor, generator: Source = None) -> Tensor:
        return torch.stack([self.draw(x, generator) for _ in range(self.count)])

    def estimates(self, products: Tensor) -> Tensor:
        return products

    def error(self, estimates: Tensor) -> Tensor | None:
        return estimates.std(0) / math.sqrt(self.count) if self.count > 1 else None


@dataclass(frozen=True)
class ExactTrace(Trace):
    """Every unit vector as a probe: exact, at the cost of one vector-Jacobian product for each dimension."""

    def probes(self, x: Tensor, generator: Source = None) -> Tensor:
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
        return basis.expand(-1, len(x), *x.shape[1:])

    def estimates(self, products: Tensor) -> Tensor:
        return products.sum(0, keepdim=True)

    def error(self, estimates: Tensor) -> Tensor | None:
        return torch.zeros_like(estimates[0])


class ChangeOfVariables:
    r"""`log p(x) = log p_1(x_1) + int div(dx/dt) dt` along the flow from t_min to 1 (Song et al. 2021, eq. 39).

    One call of the network an evaluation. With a dequantiser the data are levels: `dequantisation.Uniform(scale)`
    spreads each over its cell, and the code length of the levels is at most the expected one of the spread value less
    the log of the cell ("exact up to dequantisation"; Theis et al. 2016); a trained `Variational` comes closer (Ho et
    al. 2019).

    Args:
        denoiser: gives the flow.
        dequantiser: of the levels; None for real-valued data, whose code length is a density's.
        trace: `Hutchinson()`, or `ExactTrace()`.
        integrator: of the flow.
        coordinates: its coordinates.

    Raises:
        UsageError: for levels outside the scale, or data or a code length that are not finite.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        dequantizer: Dequantizer | None = None,
        *,
        trace: Trace | None = None,
        integrator: Integrator | None = None,
        coordinates: FlowCoordinates = angle_coordinates,
    ) -> None:
        if dequantizer is not None and not isinstance(dequantizer, Dequantizer):
            raise UsageError(
                f"dequantiser={dequantizer!r}: give dequantisation.Uniform(scale), or None for real-valued data"
            )
        self.flow = ProbabilityFlow(denoiser, Adaptive() if integrator is None else integrator, coordinates)
        self.dequantizer, self.trace = dequantizer, Hutchinson() if trace is None else trace

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> CodeLength:
        """`x0`: levels `(B, ...)` with a dequantiser; real numbers without. `progress` counts evaluations."""
        warn_in_training(self.flow.denoiser)
        data = finest(torch.zeros(len(refuse_array(x0, "x0")), device=x0.device))
        if self.dequantizer is not None:
            warn_in_training(self.dequantizer)
            x0, data = self.dequantizer(x0, generator)
        elif not x0.is_floating_point():  # complex numbers and truth values, too
            raise UsageError(
                f"x0 of {x0.dtype} holds levels, which a density does not code: give dequantiser=Uniform(scale)"
            )
        x0 = at_least_float32(x0)
        finite = torch.isfinite(x0)
        refuse_unless(
            finite, "the data hold NaN or infinity, which no density covers: look at how they were loaded", wait=True
        )
        x1, gained = self.transport(x0, self.trace.probes(x0, generator), progress, **cond)
        finite = torch.isfinite(gained)
        refuse_unless(
            finite, "the code length is NaN or infinite: look for NaN in the network, or take Adaptive steps", wait=True
        )
        variance = float(self.flow.corruption(torch.ones((), dtype=torch.float64))[1] ** 2)
        prior = 0.5 * total_nats(x1**2 / variance + math.log(2 * math.pi * variance))
        return CodeLength(prior, -gained.mean(0).to(prior), data.to(prior), self.trace.error(gained))

    def transport(self, x0: Tensor, probes: Tensor, progress: Progress = silent, **cond: Any) -> tuple[Tensor, Tensor]:
        """x_1 and estimates of the log-volume gained on the way, `(m, B)`."""
        flow, coordinates, schedule = self.flow, self.flow.coordinates, self.flow.corruption

        def slope(place: Place, state: State) -> State:
            next(evaluations)
            with gradients(state[0] * place.scale, place.t, cond) as (x, t, given):
                x = x.detach().requires_grad_()
                estimate = flow.denoiser.estimate(x, t, **given)
                out = estimate.out
                out = out if out.requires_grad else out + 0 * x  # a denoiser that does not look at x
            # v = a x + b out: only out is pulled back, and the Jacobian of a x is known.
            a, b = place.of_x + place.of_clean * float(estimate.a), place.of_clean * float(estimate.b)
            v = torch.add(x.detach() * a, out.detach(), alpha=b)
            batched = len(probes) > 1
            (pulled,) = torch.autograd.grad(out, x, probes if batched else probes[0], is_grads_batched=batched)
            # Near t = 0 both terms are large, so they are added before they are summed.
            whole = torch.add(pulled if batched else pulled[None], probes, alpha=a / b)
            products = torch.linalg.vecdot(probes.flatten(2), whole.flatten(2)).mul_(place.scale * b / dims)
            return v, self.trace.estimates(products)

        dims = x0[0].numel()
        evaluations = iter(
            progress(itertools.count(), None, "evaluations of the likelihood")
        )  # how many there will be, no one knows
        low, high = (torch.tensor(t, dtype=torch.float64) for t in (schedule.t_min, 1.0))
        r0, r1 = coordinates.scale(schedule, low), coordinates.scale(schedule, high)
        start = (
            x0 / like(r0, x0),
            self.trace.estimates(torch.zeros(len(probes), len(x0), dtype=x0.dtype, device=x0.device)),
        )
        z, gained = flow.integrator(
            flow.field(slope), start, coordinates.position(schedule, low), coordinates.position(schedule, high)
        )
        return like(r1, z) * z, (
            gained + float(torch.log(r1 / r0))
        ) * dims  # the tolerance was of nats for each dimension
