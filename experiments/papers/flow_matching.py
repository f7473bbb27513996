"""Flow matching (Lipman et al. 2023, arXiv 2210.02747) on straight paths (rectified flow, Liu et al. 2023, 2209.03003).

The paths are the "optimal transport" paths of Lipman et al. at sigma_min = 0, with time reversed: t = 0 is the data and
t = 1 the noise. The network of the paper is the U-Net of ADM (Dhariwal & Nichol 2021). Data are dequantized, which the
likelihood needs. Rectification, which trains again on pairs of noise and samples of the model, is not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...continuous import DDIM
from ...sde import (
    Adaptive,
    FixedSteps,
    ProbabilityFlow,
    Straight,
    euler,
    heun2,
    midpoint_rule,
    straight,
    time_coordinates,
    velocity_weight,
)
from ...shared.gaussian.denoiser import GaussianDenoiser
from ...shared.networks import ADM, UNet
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.sampler import Sampler, device_of
from ...shared.serialization import serializable
from ...shared.tensors import per_example
from ...shared.training import Training
from ..code_lengths import Exact
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import part
from ..recipe import Figure
from ..reproduce import Study, Sweep
from ..time_grids import adaptive, whole
from . import settings


@serializable("experiments.FlowSolvers")
@dataclass(frozen=True)
class FlowSolvers(Figure):
    """Fréchet distance by evaluations for solvers of the flow and a stochastic sampler; curvature of the paths."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        study = Study(recipe, folder, progress)
        denoiser = study.trained()
        solvers = {
            name: ProbabilityFlow(denoiser, FixedSteps(method), time_coordinates)
            for name, method in (("Euler", euler), ("midpoint", midpoint_rule), ("Heun", heun2))
        }
        runs: list[tuple[str, str, Sampler, int | Tensor]] = []
        for steps in (3, 5, 9, 18):
            once = 2 * steps - 1  # the same number of evaluations, with one a step
            for name, sampler in (("Euler", solvers["Euler"]), ("DDIM, eta 1", DDIM(denoiser, 1.0))):
                runs.append((name, f"{once} steps", sampler, once))
            for name in ("midpoint", "Heun"):
                runs.append((name, f"{steps} steps", solvers[name], steps))
        for tolerance in (0.1, 0.01, 0.001):
            rk45 = ProbabilityFlow(denoiser, Adaptive(tolerance, tolerance), time_coordinates)
            runs.append(("RK45", f"tolerance {tolerance:g}", rk45, whole(denoiser.corruption)))
        sweep = Sweep(study, "sampler", "effort")
        for name, effort, sampler, steps in sorted(runs, key=lambda run: run[0]):
            sweep.run(name, (name, effort), sampler, steps)
        bent = bend_of(recipe, denoiser, study.images.shape)
        sweep.results["bend"] = {"bend": bent}
        text = (
            "One model; DDIM with eta 1 is the stochastic sampler of the same marginals. The mean squared difference "
            f"between the velocity and the chord of its path is {bent:.3f} times the squared chord; for a straight "
            "path it is 0, and one Euler step is exact."
        )
        return sweep.write("Solvers of one flow", text, across=4)


def bend_of(recipe: GaussianRecipe, denoiser: GaussianDenoiser, shape: tuple[int, ...]) -> float:
    """Returns the `bend` of 100 paths of the model, from noise to samples, in 50 Euler steps."""
    count, steps, device = 100, 50, device_of(denoiser)
    start = denoiser.corruption.prior((count, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    labels: dict[str, Any] = recipe.conditions(torch.arange(count, device=device))
    sampler = ProbabilityFlow(denoiser, FixedSteps(euler), time_coordinates)
    return bend([start, *sampler.trajectory(start, steps=steps, **labels)], sampler.times(steps))


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


OWN = GaussianRecipe(
    schedule=Straight(),
    predicts=straight,
    loss=GaussianLoss(weight=velocity_weight, times=Stratified()),
    sampler=part(ProbabilityFlow, integrator=FixedSteps(midpoint_rule), coordinates=time_coordinates),
    sampling_steps=25,
    code_length=Exact(),
    dequantize=True,
    figure=FlowSolvers(),
)
"""The velocity of straight paths between data and noise, integrated in the variables in which they are straight."""


def cifar10() -> GaussianRecipe:
    """CIFAR-10 (Lipman et al. 2023, table 3); the settings are from memory, and the published FID is not given here."""
    return replace(
        OWN,
        data=Images("uoft-cs/cifar10", 256, flip=True),
        network=part(UNet, width=256, multipliers=(1, 2, 2, 2), blocks=2, attention=(2,), heads=4, variant=ADM),
        training=Training(steps=391_000, learning_rate=5e-4, warmup=45_000, cooldown=346_000, watch_every=10_000),
        sampler=part(ProbabilityFlow, integrator=Adaptive(1e-5, 1e-5), coordinates=time_coordinates),
        sampling_steps=100,
        spacing=adaptive,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels, sampled in 49 evaluations."""
    return replace(OWN, **settings.digits(sampling_steps=25, code_length=Exact(1e-3)))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels, sampled in 49 evaluations."""
    return replace(OWN, **settings.mnist(sampling_steps=25))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(code_length=Exact(0.1)))
