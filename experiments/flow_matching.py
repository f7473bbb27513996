"""Flow matching (Lipman et al. 2023, arXiv 2210.02747) on straight paths (rectified flow, Liu et al. 2023, 2209.03003).

The paths are the "optimal transport" paths of Lipman et al. at sigma_min = 0, with time reversed: t = 0 is the data and
t = 1 the noise. The network of the paper is the U-Net of ADM (Dhariwal & Nichol 2021). Rectification, which trains
again on pairs of noise and samples of the model, is not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..continuous import DDIM
from ..sde import (
    Adaptive,
    DenoisingLoss,
    FixedSteps,
    Learned,
    ProbabilityFlow,
    Straight,
    euler,
    heun2,
    midpoint_rule,
    straight,
    time_coordinates,
)
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler, device_of
from ..shared.serialization import serializable
from ..shared.tensors import per_example
from ..shared.training import Training
from . import common_settings
from .images import Data, Density, Network
from .reproduce import Study, Sweep, trained
from .time_grids import whole

METHODS = {"euler": euler, "midpoint": midpoint_rule, "heun": heun2}


@serializable("experiments.FlowMatchingModel", formerly="unnoise.experiments.flow_matching.FlowMatchingModel")
@dataclass(frozen=True)
class FlowMatchingModel(Density):
    """The velocity of straight paths between data and noise; data are dequantized, which the likelihood needs."""

    solver: Literal["euler", "midpoint", "heun", "rk45"] = "rk45"
    """Solver of the probability flow; rk45 chooses its steps by --tolerance and ignores their number."""

    loss_unit = "MSE of the velocity"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        return DenoisingLoss.flow_matching(
            Learned(self.network.build(shape, classes=self.data.classes), Straight(), straight), times=Stratified()
        )

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return self.flow(denoiser, self.solver)

    def flow(self, denoiser: GaussianDenoiser, solver: str) -> ProbabilityFlow:
        """Returns the flow with a solver by name, in the coordinates of time, in which the paths are straight."""
        integrator = Adaptive(self.tolerance, self.tolerance) if solver == "rk45" else FixedSteps(METHODS[solver])
        return ProbabilityFlow(denoiser, integrator, time_coordinates)

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return whole(denoiser.corruption) if self.solver == "rk45" else steps

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by evaluations for solvers of the flow and a stochastic sampler; curvature of the paths."""
        study = Study(self, folder, progress)
        denoiser = trained(self, study.images, folder, progress).denoiser
        runs: list[tuple[str, str, Sampler, int | Tensor]] = []
        for steps in (3, 5, 9, 18):
            once = 2 * steps - 1  # the same number of evaluations, with one a step
            for name, sampler in (("Euler", self.flow(denoiser, "euler")), ("DDIM, eta 1", DDIM(denoiser, 1.0))):
                runs.append((name, f"{once} steps", sampler, once))
            for name, sampler in (("midpoint", self.flow(denoiser, "midpoint")), ("Heun", self.flow(denoiser, "heun"))):
                runs.append((name, f"{steps} steps", sampler, steps))
        for tolerance in (0.1, 0.01, 0.001):
            adaptive = ProbabilityFlow(denoiser, Adaptive(tolerance, tolerance), time_coordinates)
            runs.append(("RK45", f"tolerance {tolerance:g}", adaptive, whole(denoiser.corruption)))
        sweep = Sweep(study, "sampler", "effort")
        for name, effort, sampler, steps in sorted(runs, key=lambda run: run[0]):
            sweep.run(name, (name, effort), sampler, steps)
        bend = self.bend(denoiser, study.images.shape)
        sweep.results["bend"] = {"bend": bend}
        text = (
            "One model; DDIM with eta 1 is the stochastic sampler of the same marginals. The mean squared difference "
            f"between the velocity and the chord of its path is {bend:.3f} times the squared chord; for a straight "
            "path it is 0, and one Euler step is exact."
        )
        return sweep.write("Solvers of one flow", text, across=4)

    def bend(self, denoiser: GaussianDenoiser, shape: tuple[int, ...], count: int = 100, steps: int = 50) -> float:
        """Returns the `bend` of `count` paths of the model, from noise to samples, in `steps` Euler steps."""
        device = device_of(denoiser)
        start = denoiser.corruption.prior((count, *shape), generator=torch.Generator().manual_seed(0)).to(device)
        labels: dict[str, Any] = self.conditions(torch.arange(count, device=device))
        sampler = self.flow(denoiser, "euler")
        states = [start, *sampler.trajectory(start, steps=steps, **labels)]
        return bend(states, sampler.times(steps))


def bend(states: Sequence[Tensor], times: Tensor) -> float:
    r"""Returns `int E ||(x_1 - x_0) - dx_t / dt||^2 dt / E ||x_1 - x_0||^2`, 0 for straight paths.

    Source: Liu et al. 2023, section 2.2.

    Args:
        states: the states along the paths, `(B, ...)` each.
        times: the times of the states, from 1 to 0.
    """
    chord = states[0] - states[-1]
    spans = [float(t - s) for t, s in pairwise(times)]
    off = [
        span * per_example((chord - (x - y) / span) ** 2).mean()
        for span, (x, y) in zip(spans, pairwise(states), strict=True)
    ]
    return float(torch.stack(off).sum() / per_example(chord**2).mean())


def cifar10() -> FlowMatchingModel:
    """CIFAR-10 (Lipman et al. 2023, table 3); the settings are from memory, and the published FID is not given here."""
    network = Network(256, (1, 2, 2, 2), 2, (2,), 4, variant="adm")
    training = Training(steps=391_000, learning_rate=5e-4, warmup=45_000, cooldown=346_000, watch_every=10_000)
    return FlowMatchingModel(Data("uoft-cs/cifar10", 256, flip=True), network, training)


def digits() -> FlowMatchingModel:
    """8 x 8 digits of 17 quantization levels, sampled in 49 evaluations."""
    return FlowMatchingModel(**common_settings.digits(sampling_steps=25), solver="midpoint", tolerance=1e-3)


def mnist() -> FlowMatchingModel:
    """28 x 28 digits of 256 quantization levels, sampled in 49 evaluations."""
    return FlowMatchingModel(**common_settings.mnist(sampling_steps=25), solver="midpoint")


def smoke() -> FlowMatchingModel:
    """A test of a few seconds that every part of the recipe runs."""
    return FlowMatchingModel(**common_settings.smoke(), solver="midpoint", tolerance=0.1)
