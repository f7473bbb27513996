"""Flow matching (Lipman et al. 2023, arXiv 2210.02747) on the straight paths of rectified flow (Liu et al. 2023, arXiv
2209.03003).

The paths are Lipman et al.'s "optimal transport" ones at sigma_min = 0, with t turned round: 0 is the data, 1 the
noise. The paper's network is ADM's U-Net (Dhariwal & Nichol 2021). Rectification, which trains again on the model's own
pairs, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

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
from ..shared.denoiser import Denoiser
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
    """The velocity of straight paths from data to noise, trained on dequantised data so that its density has a meaning."""

    solver: Literal["euler", "midpoint", "heun", "rk45"] = "rk45"
    """Of the flow; rk45 takes as many steps as its tolerance asks for, whatever their number."""

    loss_unit = "MSE of the velocity"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        return DenoisingLoss.flow_matching(
            Learned(self.network.build(shape, classes=self.data.classes), Straight(), straight), times=Stratified()
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return self.flow(denoiser, self.solver)

    def flow(self, denoiser: Denoiser, solver: str) -> ProbabilityFlow:
        """The flow by a solver of that name, in t, where its paths are straight."""
        integrator = Adaptive(self.tolerance, self.tolerance) if solver == "rk45" else FixedSteps(METHODS[solver])
        return ProbabilityFlow(denoiser, integrator, time_coordinates)

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return whole(denoiser.corruption) if self.solver == "rk45" else steps

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by evaluations for solvers of the flow and for a stochastic sampler, and how straight the
        paths are.
        """
        study = Study(self, folder, progress)
        denoiser = trained(self, study.images, folder, progress).denoiser
        runs: list[tuple[str, str, Sampler, int | Tensor]] = []
        for steps in (3, 5, 9, 18):
            once = 2 * steps - 1  # as many evaluations with one a step
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
            "One model; DDIM with eta 1 is the stochastic sampler of the same marginals. The velocity's mean squared distance from the "
            f"chord of its path is {bend:.3f} of the chord's square; 0 is a straight path, which one step of Euler would walk."
        )
        return sweep.write("Solvers of one flow", text, across=4)

    def bend(self, denoiser: Denoiser, shape: tuple[int, ...], count: int = 100, steps: int = 50) -> float:
        """The `bend` of as many paths of the model, from its noise to its samples, by steps of Euler's method."""
        device = device_of(denoiser)
        start = denoiser.corruption.prior((count, *shape), generator=torch.Generator().manual_seed(0)).to(device)
        labels = self.conditions(torch.arange(count, device=device))
        sampler = self.flow(denoiser, "euler")
        states = [start, *sampler.trajectory(start, steps=steps, **labels)]
        return bend(states, sampler.times(steps))


def bend(states: Sequence[Tensor], times: Tensor) -> float:
    r"""`int E ||(x_1 - x_0) - dx_t / dt||^2 dt / E ||x_1 - x_0||^2` of paths: 0 where they are straight (Liu et al.
    2023, section 2.2).

    Args:
        states: along the paths, `(B, ...)` each.
        times: of the states, from 1 to 0.
    """
    chord = states[0] - states[-1]
    spans = [float(t - s) for t, s in pairwise(times)]
    off = [
        span * per_example((chord - (x - y) / span) ** 2).mean()
        for span, (x, y) in zip(spans, pairwise(states), strict=True)
    ]
    return float(torch.stack(off).sum() / per_example(chord**2).mean())


def cifar10() -> FlowMatchingModel:
    """CIFAR-10 (Lipman et al. 2023, table 3, settings recalled; its figures are not sourced here)."""
    network = Network(256, (1, 2, 2, 2), 2, (2,), 4, style="adm")
    training = Training(steps=391_000, learning_rate=5e-4, warmup=45_000, cooldown=346_000, watch_every=10_000)
    return FlowMatchingModel(Data("uoft-cs/cifar10", 256, flip=True), network, training)


def digits() -> FlowMatchingModel:
    """8 x 8 digits of 17 levels, by 49 evaluations."""
    return FlowMatchingModel(**common_settings.digits() | {"sampling_steps": 25}, solver="midpoint", tolerance=1e-3)


def mnist() -> FlowMatchingModel:
    """28 x 28 digits of 256 levels, by 49 evaluations."""
    return FlowMatchingModel(**common_settings.mnist() | {"sampling_steps": 25}, solver="midpoint")


def smoke() -> FlowMatchingModel:
    """Seconds, to see that the whole path runs."""
    return FlowMatchingModel(**common_settings.smoke(), solver="midpoint", tolerance=0.1)
