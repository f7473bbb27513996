"""Exact likelihoods of score SDEs: an evaluation of the flow beside a forward pass and a vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unnoise.sde import (
    VP,
    Adaptive,
    ChangeOfVariables,
    Hutchinson,
    Integrator,
    Learned,
    SciPy,
    TorchDiffEq,
    angle_coordinates,
    time_coordinates,
)
from unnoise.sde.flow_coordinates import FlowCoordinates
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.schedule import Schedule
from unnoise.shared.networks import UNet
from unnoise.shared.sampler import counted
from unnoise.shared.tensors import exact, like

from .floors import VPFlow
from .samplers import Half
from .timing import Contender, Work, Workload

GROUP, BASE = "likelihood", "forward and vector-Jacobian product"


class Diagonal(GaussianDenoiser):
    """`E[x_0 | x_t]` of independent `N(0, v_i)`, whose code length is known: a few operations in place of a network."""

    def __init__(self, variance: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.variance, self.corruption = variance, schedule

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        alpha, sigma = (like(c, x_t) for c in self.corruption(exact(t)))
        return Estimate.of_mean(alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x_t)

    def on(self, schedule: Schedule) -> Diagonal:
        return Diagonal(self.variance, schedule)

    def nats(self, x: Tensor) -> Tensor:
        """Returns `-log p(x)`, `(B,)`."""
        return -torch.distributions.Normal(0.0, self.variance.double().sqrt()).log_prob(x.double()).flatten(1).sum(1)


def gaussian(smoke: bool) -> tuple[Diagonal, Tensor]:
    """Returns a closed-form denoiser on VP and data of its distribution."""
    source, shape = torch.Generator().manual_seed(0), (2, 1, 2, 2) if smoke else (16, 3, 32, 32)
    variance = 0.02 + 0.5 * torch.rand(shape[1:], generator=source)
    return Diagonal(variance, VP()), variance.sqrt() * torch.randn(shape, generator=source)


def forward_and_vjp(call: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    """Returns a function that evaluates a network and a product with its Jacobian."""

    def work() -> None:
        y = x.clone().requires_grad_()
        torch.autograd.grad(call(y), y, x)

    return work


def coded(
    smoke: bool, integrator: Integrator, coordinates: FlowCoordinates = angle_coordinates, probes: int = 1
) -> str:
    """Compares code lengths of Gaussian data with the exact ones."""
    denoiser, x = gaussian(smoke)
    code = ChangeOfVariables(denoiser, trace=Hutchinson(probes), integrator=integrator, coordinates=coordinates)
    found = code(x, generator=torch.Generator().manual_seed(1)).nats
    apart = float((found - denoiser.nats(x)).abs().mean()) / x[0].numel()
    assert apart < (0.3 if smoke else 0.05), f"code lengths differ by {apart:.2f} nats/dim from the exact ones"
    return f"code lengths of a Gaussian to {apart:.0e} nats/dim"


def around_a_network(smoke: bool) -> Workload:
    """Returns the likelihood of a U-Net of 1.2 M parameters on digits, and as score_sde computes it."""
    batch, tolerance = (1, 0.3) if smoke else (8, 1e-3)
    torch.manual_seed(0)
    network = Half() if smoke else UNet((1, 8, 8), 32, (1, 2, 2), 1, (2,), 4)
    network = network.requires_grad_(False).eval()
    x, t = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((batch,), 300.0)
    integrator = Adaptive(tolerance, tolerance)
    likelihood = ChangeOfVariables(Learned(network, VP()), integrator=integrator)
    with counted(likelihood.flow.denoiser) as count:
        likelihood(x)
    _, evaluations = scipy_likelihood(network, x, tolerance)
    return Workload(
        name="exact likelihood, U-Net of the digits",
        group=GROUP,
        unit="evaluation",
        ours=Contender(lambda: likelihood(x), count.calls),
        base=BASE,
        references={
            BASE: Contender(forward_and_vjp(lambda y: network(y, t), x)),
            "SciPy, as in score_sde": Contender(lambda: scipy_likelihood(network, x, tolerance), evaluations),
        },
        equal=lambda: coded(smoke, integrator),
        target=1.1,
        note=f"{count.calls} evaluations, SciPy {evaluations}",
    )


def scipy_likelihood(network: nn.Module, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """Integrates state and log-density by SciPy's RK45 in t on flattened batches, as score_sde does.

    Returns the change of the log-density, `(B,)`, and the number of evaluations.
    """
    from scipy.integrate import solve_ivp

    flow, probe = VPFlow(), torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(2)) * 2.0 - 1

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat[: x.numel()].reshape(x.shape)).to(torch.float32).requires_grad_()
        of_x, of_out = flow.slope(t)
        with torch.enable_grad():
            drift = of_x * state + of_out * network(state, torch.full((len(x),), 1000 * t))
            (pulled,) = torch.autograd.grad((drift * probe).sum(), state)
        trace = (pulled * probe).flatten(1).sum(1)
        return np.concatenate([drift.detach().numpy().reshape(-1), trace.numpy()])

    begin = np.concatenate([x.numpy().reshape(-1), np.zeros(len(x))])
    found: Any = solve_ivp(slope, (1e-5, 1.0), begin, rtol=tolerance, atol=tolerance, method="RK45")
    return torch.from_numpy(found.y[x.numel() :, -1]), found.nfev


KINDS: dict[str, tuple[Callable[[float], Integrator], FlowCoordinates, int]] = {
    "RK45, angle": (lambda e: Adaptive(e, e), angle_coordinates, 1),
    "RK45, angle, 8 probes": (lambda e: Adaptive(e, e), angle_coordinates, 8),
    "RK45, t": (lambda e: Adaptive(e, e), time_coordinates, 1),
    "torchdiffeq, angle": (lambda e: TorchDiffEq("dopri5", e, e), angle_coordinates, 1),
    "SciPy RK45, t": (lambda e: SciPy("RK45", e, e), time_coordinates, 1),
}


def closed_form(kind: str, smoke: bool) -> Workload:
    """Returns the likelihood around a closed-form denoiser, whose time is mostly that of the integrator."""
    (make, coordinates, probes), (denoiser, x) = KINDS[kind], gaussian(smoke)
    integrator = make(1e-2 if smoke else 1e-5)
    code = ChangeOfVariables(denoiser, trace=Hutchinson(probes), integrator=integrator, coordinates=coordinates)
    source, t = torch.Generator().manual_seed(1), torch.tensor(0.3, dtype=torch.float64)
    with counted(denoiser) as count:
        code(x, generator=source)
    return Workload(
        name=f"likelihood of a closed form, {kind}",
        group=GROUP,
        unit="evaluation",
        ours=Contender(lambda: code(x, generator=source), count.calls),
        base=BASE,
        references={BASE: Contender(forward_and_vjp(lambda y: denoiser(y, t), x))},
        equal=lambda: coded(smoke, integrator, coordinates, probes),
        note=f"{count.calls} evaluations",
    )


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name."""
    first = "RK45, angle"
    return {
        "exact likelihood, U-Net of the digits": partial(around_a_network, smoke),
        f"likelihood of a closed form, {first}": partial(closed_form, first, smoke),
    }


def further(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of `--full` alone: the other integrators."""
    return {f"likelihood of a closed form, {kind}": partial(closed_form, kind, smoke) for kind in [*KINDS][1:]}
