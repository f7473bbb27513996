"""Exact likelihoods and code lengths, by the change of variables along the probability flow."""

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
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, finest, like, refuse_array, refuse_unless
from ..shared.values import notation
from .flow import ProbabilityFlow
from .flow_coordinates import FlowCoefficients, FlowCoordinates, angle_coordinates
from .integrators import Adaptive, Integrator, State


class Trace(ABC):
    """Computes or estimates the divergence of the flow, the trace of its Jacobian J, from products `e^T J e`.

    n is the number of probe vectors e for each of B examples, m the number of estimates made of the n products.
    """

    @abstractmethod
    def probes(self, x: Tensor, generator: Source = None) -> Tensor:
        """Returns the probes e, `(n, B, ...)` for x `(B, ...)`; they are kept along the whole path of the flow."""

    @abstractmethod
    def estimates(self, products: Tensor) -> Tensor:
        """Returns m estimates of the trace, `(m, B)`, from the products `e^T J e` of the n probes, `(n, B)`."""

    @abstractmethod
    def error(self, estimates: Tensor) -> Tensor | None:
        """Returns the standard error, `(B,)`, of the mean of estimates `(m, B)`; None if it is unknown."""


@serializable("sde.Hutchinson")
@dataclass(frozen=True)
class Hutchinson(Trace):
    """Hutchinson's unbiased estimator: random probes with `E[e e^T] = I` (Hutchinson 1990; Song et al. 2021, app. D.2).

    Each probe e gives one estimate, `e^T J e`.

    Attributes:
        count: number of probes for each example; the network is called once for all of them. With two or more the code
            length has a standard error.
        draw: how they are drawn, `(x, generator) -> e`: `rademacher_like` for random signs, or `normal_like` for
            Gaussian probes, whose variance is larger.

    Raises:
        UsageError: for a count below 1.
    """

    count: int = 1
    draw: Callable[[Tensor, Source], Tensor] = rademacher_like

    __repr__ = notation

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count={self.count}: give 1 probe or more, or take ExactTrace() for few dimensions")

    def probes(self, x: Tensor, generator: Source = None) -> Tensor:
        return torch.stack([self.draw(x, generator) for _ in range(self.count)])

    def estimates(self, products: Tensor) -> Tensor:
        return products

    def error(self, estimates: Tensor) -> Tensor | None:
        return estimates.std(0) / math.sqrt(self.count) if self.count > 1 else None


@serializable("sde.ExactTrace")
@dataclass(frozen=True)
class ExactTrace(Trace):
    """The exact trace, with every unit vector as a probe: one vector-Jacobian product for each dimension.

    The sum of the products is the single estimate, with standard error 0.
    """

    def probes(self, x: Tensor, generator: Source = None) -> Tensor:
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
        return basis.expand(-1, len(x), *x.shape[1:])

    def estimates(self, products: Tensor) -> Tensor:
        return products.sum(0, keepdim=True)

    def error(self, estimates: Tensor) -> Tensor | None:
        return torch.zeros_like(estimates[0])


class ChangeOfVariables:
    r"""The log-likelihood `log p(x_0) = log p_1(x_1) + int div(dx/dt) dt` of the probability flow, as a code length.

    Called with x0 `(B, ...)`; returns a `CodeLength` in nats, one for each example: prior `-log p_1(x_1)` with
    `p_1 = N(0, sigma_1^2 I)`, path minus the integral, and data, the term of the dequantizer. x_0 is taken as the state
    at t_min, from where the flow and the integral run to t = 1 (Song et al. 2021, eq. 39), with one network call per
    evaluation. Data on quantization levels need a dequantizer: `UniformDequantization(quantization)` adds noise that is
    uniform over the bin of each value. `E[-log p(x)] - log(volume of the bin)`, x the noisy data, is an upper bound on
    the code length of the quantized data (Theis et al. 2016), here with one draw of x. A trained
    `VariationalDequantization` gives a tighter bound (Ho et al. 2019).

    Args:
        denoiser: the denoiser whose probability flow is the model.
        dequantizer: for data on quantization levels; None for real-valued data, whose code length is `-log p(x_0)` of
            the density p.
        trace: how the divergence is found; None for `Hutchinson()`, an estimate with one random probe; `ExactTrace()`
            for few dimensions.
        integrator: how the flow is solved; None for `Adaptive()`. Tolerances of the integral are in nats per dimension.
        coordinates: the variables in which it is solved: `angle_coordinates`, or `time_coordinates` for x and t.

    Raises:
        UsageError: for a dequantizer or integrator of another type, and `time_coordinates` on a schedule whose velocity
            is infinite at zero SNR; when it is called, for data outside of the quantization levels, quantized data
            without a dequantizer, and for data or a code length that are not finite.
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
                f"dequantizer={dequantizer!r}: give UniformDequantization(quantization), or None for real-valued data"
            )
        self.flow = ProbabilityFlow(denoiser, Adaptive() if integrator is None else integrator, coordinates)
        self.dequantizer, self.trace = dequantizer, Hutchinson() if trace is None else trace

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> CodeLength:
        """Returns the code length of each example in nats; its `error` is the standard error over probes, or None.

        Args:
            x0: `(B, ...)`: quantization levels with a dequantizer, real numbers without one.
            generator: the source of noise, of the dequantizer and of random probes.
            progress: how to report progress; it counts evaluations of the network.
            cond: conditions, by name.
        """
        warn_in_training(self.flow.denoiser)
        data = finest(torch.zeros(len(refuse_array(x0, "x0")), device=x0.device))
        if self.dequantizer is not None:
            warn_in_training(self.dequantizer)
            x0, data = self.dequantizer(x0, generator)
        elif not x0.is_floating_point():  # complex numbers and booleans, too
            raise UsageError(
                f"x0 is {x0.dtype}, and a density needs real numbers: for quantized data give "
                "dequantizer=UniformDequantization(quantization)"
            )
        x0 = at_least_float32(x0)
        finite = torch.isfinite(x0)
        refuse_unless(
            finite, "the data contain NaN or infinity, which have no density: check how they were loaded", wait=True
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
        """Returns x_1 and m estimates, `(m, B)`, of the integral of the divergence from t_min to 1, in nats.

        For x0 `(B, ...)`, real numbers, and probes `(n, B, ...)` of the trace. m is n for `Hutchinson`, 1 for
        `ExactTrace`.
        """
        flow, coordinates, schedule = self.flow, self.flow.coordinates, self.flow.corruption

        def slope(here: FlowCoefficients, state: State) -> State:
            next(evaluations)
            with gradients(state[0] * here.scale, here.t, cond) as (x, t, given):
                x = x.detach().requires_grad_()
                estimate = flow.denoiser.estimate(x, t, **given)
                out = estimate.out
                out = out if out.requires_grad else out + 0 * x  # a denoiser that does not depend on x
            # v = a x + b out: only out is pulled back, and the Jacobian of a x is known.
            a, b = here.of_x + here.of_clean * float(estimate.a), here.of_clean * float(estimate.b)
            v = torch.add(x.detach() * a, out.detach(), alpha=b)
            batched = len(probes) > 1
            (pulled,) = torch.autograd.grad(out, x, probes if batched else probes[0], is_grads_batched=batched)
            # Near t = 0 both terms are large, so they are added before they are summed.
            whole = torch.add(pulled if batched else pulled[None], probes, alpha=a / b)
            products = torch.linalg.vecdot(probes.flatten(2), whole.flatten(2)).mul_(here.scale * b / dims)
            return v, self.trace.estimates(products)

        dims = x0[0].numel()
        evaluations = iter(progress(itertools.count(), None, "evaluations of the likelihood"))
        low, high = (torch.tensor(t, dtype=torch.float64) for t in (schedule.t_min, 1.0))
        r0, r1 = coordinates.scale(schedule, low), coordinates.scale(schedule, high)
        start = (
            x0 / like(r0, x0),
            self.trace.estimates(torch.zeros(len(probes), len(x0), dtype=x0.dtype, device=x0.device)),
        )
        z, gained = flow.integrator(
            flow.field(slope), start, coordinates.variable(schedule, low), coordinates.variable(schedule, high)
        )
        # divided by dims until here, so that the tolerance is in nats per dimension
        return like(r1, z) * z, (gained + float(torch.log(r1 / r0))) * dims
