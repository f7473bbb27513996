"""The cost of the likelihood of score SDEs, as ratios within one run: `make bench-sde`.

`python -m benchmarks.sde --smoke` runs everything once at the smallest sizes, as a test; its ratios have no meaning.
"""

from __future__ import annotations

from typing import Any

import torch
import tyro
from torch import Tensor

from unnoise.sde import (
    VE,
    VP,
    Adaptive,
    ChangeOfVariables,
    Hutchinson,
    SciPy,
    SubVP,
    TorchDiffEq,
    angle_coordinates,
    time_coordinates,
)
from unnoise.shared.gaussian.analytic import AnalyticMixture
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.schedule import Schedule
from unnoise.shared.sampler import counted
from unnoise.shared.tensors import exact, like

from .speed import seconds

SHAPE, SMOKE = (16, 3, 32, 32), (2, 1, 2, 2)


class Diagonal(GaussianDenoiser):
    """`E[x_0 | x_t]` of independent `N(0, v_i)`: a few elementwise operations in place of a network.

    The time of a likelihood is then mostly that of the solver.
    """

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


def main(smoke: bool = False) -> None:
    """Prints a line for each integrator: evaluations, error, and the relative time of an evaluation.

    The time is relative to one forward pass and one vector-Jacobian product.

    Args:
        smoke: runs everything once at the smallest sizes, as a test.
    """
    source, shape = torch.Generator().manual_seed(0), SMOKE if smoke else SHAPE
    variance = 0.02 + 0.5 * torch.rand(shape[1:], generator=source)
    x = variance.sqrt() * torch.randn(shape, generator=source)
    for name, schedule in (("VP", VP()), ("sub-VP", SubVP()), ("VE", VE(0.01, 50.0))):
        denoiser = Diagonal(variance, schedule)
        compare(f"Gaussian, {name}", denoiser, x, denoiser.nats(x), smoke)
    points = torch.randn(4, x[0].numel(), generator=source) * 0.3
    weights = torch.full((4,), 0.25)
    mixture = AnalyticMixture(weights, points, torch.full((4,), 0.1), VP())
    x = points.repeat(4, 1)[: len(x)]
    x = x + 0.1**0.5 * torch.randn(x.shape, generator=source)
    exact = AnalyticMixture(weights.double(), points.double(), torch.full((4,), 0.1, dtype=torch.float64), VP())
    compare("mixture of 4, VP", mixture, x, -exact.log_prob(x.double(), torch.zeros(())), smoke)


def compare(name: str, denoiser: GaussianDenoiser, x: Tensor, nats: Tensor, smoke: bool = False) -> None:
    """Compares all integrators on one denoiser, whose exact code length `nats` is known."""
    source, t, tight = torch.Generator().manual_seed(1), torch.tensor(0.3, dtype=torch.float64), 1e-3 if smoke else 1e-5

    def plain() -> None:
        y = x.clone().requires_grad_()
        torch.autograd.grad(denoiser(y, t), y, x)

    bare = seconds(plain, 1 if smoke else 200)
    print(f"{name}: one forward pass and one vector-Jacobian product take {bare * 1e3:.2f} ms")
    kinds = {
        "RK45, angle": (Adaptive(tight, tight), angle_coordinates, 1),
        "RK45, angle, 8 probes": (Adaptive(tight, tight), angle_coordinates, 8),
        "RK45, t": (Adaptive(tight, tight), time_coordinates, 1),
        "torchdiffeq, angle": (TorchDiffEq("dopri5", tight, tight), angle_coordinates, 1),
        "SciPy RK45, t": (SciPy("RK45", tight, tight), time_coordinates, 1),
    }
    for kind, (integrator, coordinates, probes) in kinds.items():
        code = ChangeOfVariables(denoiser, trace=Hutchinson(probes), integrator=integrator, coordinates=coordinates)
        with counted(denoiser) as count:
            error = float((code(x, generator=source).nats - nats).mean()) / x[0].numel()
        ratio = seconds(lambda code=code: code(x, generator=source), 1 if smoke else 5) / count.calls / bare
        print(
            f"  {kind:22} {count.calls:4} evaluations of {ratio:5.2f} x that time, error {error:+.1e} nats/dim",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
