"""Exact code lengths by the change of variables along the probability flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..shared.bits import Codelength, total_nats
from ..shared.denoiser import GaussianDenoiser
from ..shared.random import Source, rademacher_like
from ..shared.scale import Scale
from ..shared.tensors import per_example, refuse_unless
from .flow import ProbabilityFlow, solve


class ChangeOfVariables:
    r"""`log p(x) = log p_1(x_1) + int div(dx/dt) dt` along the flow from t_min to 1 (Song et al. 2021, eq. 39).

    The divergence is estimated with one Rademacher probe for each example (Hutchinson; unbiased), or taken exactly with one
    vector-Jacobian product for each dimension. With a scale, the data are quantised: each level is spread uniformly over its cell,
    and the code length of the levels is at most the expected one of the spread value less the log of the cell ("exact up to
    dequantisation"; Theis et al. 2016).

    Args:
        denoiser: gives the score.
        scale: the levels of the data; None for real-valued data, whose code length is a density's.
        exact_trace: take the divergence exactly.
        method, rtol, atol: of the solver.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        scale: Scale | None = None,
        *,
        exact_trace: bool = False,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> None:
        self.flow, self.scale, self.exact_trace = ProbabilityFlow(denoiser, method, rtol, atol), scale, exact_trace

    def __call__(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Codelength:
        """`x0`: levels, int64 `(B, ...)`, with a scale; real numbers without."""
        data = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        if self.scale is not None:
            if x0.is_floating_point():
                refuse_unless(x0 == x0.round(), "x0 has fractions: with a scale the likelihood takes levels, whole numbers 0, 1, ..")
            data = data + x0[0].numel() * self.scale.offset_nats
            x0 = self.scale.dequantised(x0, generator)
        x1, gained = self._transport(x0, rademacher_like(x0, generator), **cond)
        variance = float(self.flow.corruption(torch.ones((), dtype=torch.float64))[1] ** 2)
        prior = 0.5 * total_nats(x1.double() ** 2 / variance + math.log(2 * math.pi * variance))
        return Codelength(prior, -gained.double(), data)

    def _transport(self, x0: Tensor, probe: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """x_1 and the log-volume gained on the way, `(B,)`."""

        def velocity(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = state[0].detach().requires_grad_()
                v = self.flow.velocity(x, t, **cond)
                divergence = exact_divergence(v, x) if self.exact_trace else per_example(probe * torch.autograd.grad(v, x, probe)[0])
            return v.detach(), divergence.detach()

        times = torch.tensor([self.flow.corruption.t_min, 1.0], dtype=torch.float64)
        flow = self.flow
        x, gained = solve(velocity, (x0, torch.zeros_like(x0.flatten(1)[:, 0])), times, flow.method, flow.rtol, flow.atol)
        return x[-1], gained[-1]


def exact_divergence(v: Tensor, x: Tensor) -> Tensor:
    """`sum_i dv_i / dx_i` of each example, `(B,)`, one vector-Jacobian product for each dimension."""
    columns = v.reshape(len(v), -1).unbind(1)
    rows = [torch.autograd.grad(c.sum(), x, retain_graph=True)[0].reshape(len(x), -1)[:, i] for i, c in enumerate(columns)]
    return torch.stack(rows).sum(0)
