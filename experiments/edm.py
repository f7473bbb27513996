"""Elucidating the design space of diffusion-based generative models (Karras et al. 2022, arXiv 2206.00364).

The paper's networks are the paper's own (`networks.presets`), ADM with 64 channels a head too, but for the input of the
augmentations: of these there is the mirror alone, of which a network is not told. The half-life of the averaged weights
ramps up as `(1 + n) / (10 + n)`, and the times of a batch are stratified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..continuous import DDIM, Churned, Heun, karras
from ..sde import EDM, DenoisingLoss, Learned
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.prediction import Preconditioned
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.time_inputs import quarter_log
from ..shared.training import Training
from . import common_settings
from .images import Data, Density, Network
from .reproduce import Study, Sweep, trained

MOST = math.sqrt(2) - 1
"""Largest share by which churn lets the noise grow."""


@serializable("experiments.ElucidatedModel", formerly="unnoise.experiments.edm.ElucidatedModel")
@dataclass(frozen=True)
class ElucidatedModel(Density):
    """A preconditioned denoiser at log-normal noise levels, and Heun's method on levels that crowd near the data."""

    sigma_data: float = 0.5
    """Standard deviation of the data, in [-1, 1]."""
    sigma_min: float = 0.002
    """Noise of the sampler's last level."""
    sigma_max: float = 80.0
    """Noise of its first."""
    rho: float = 7.0
    """Of the levels between: their 1 / rho-th powers are evenly spaced."""
    mean: float = -1.2
    """Mean of ln sigma in training."""
    std: float = 1.2
    """Standard deviation of ln sigma in training."""
    churn: float = 0.0
    """S_churn: the share by which the noise grows before a step is churn / sampling_steps, whatever --steps says; 0 for
    the deterministic sampler."""
    churn_low: float = 0.05
    """S_min: noise below which there is no churn."""
    churn_high: float = 50.0
    """S_max: noise above which there is none."""
    churn_noise: float = 1.003
    """S_noise: scale of the fresh noise."""
    spread: bool = False
    """Train on levels spread over their cells, so that the density has a meaning, and not on the levels themselves as
    published.
    """

    loss_unit = "weighted MSE of x_0"

    def __post_init__(self) -> None:
        if self.churn < 0 or self.sigma_data <= 0:
            raise UsageError(
                f"churn={self.churn}, sigma_data={self.sigma_data}: give churn of 0 or more, and a positive sigma_data"
            )

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.dequantized(k, generator) if self.spread else quantization.continuous(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.cell_of(x) if self.spread else quantization.quantize(x)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        schedule = EDM(self.sigma_min, self.sigma_max, self.rho, self.mean, self.std)
        network = self.network.build(shape, classes=self.data.classes)
        denoiser = Learned(network, schedule, Preconditioned(self.sigma_data), quarter_log, self.sigma_data)
        return DenoisingLoss.edm(denoiser, self.sigma_data, times=Stratified())

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return self.churned(denoiser, self.churn, self.sampling_steps)

    def churned(self, denoiser: Denoiser, churn: float, steps: int) -> Sampler:
        """Heun's method, with churn where it is above 0."""
        heun = Heun(denoiser)
        if churn == 0:
            return heun
        return Churned(heun, min(churn / steps, MOST), low=self.churn_low, high=self.churn_high, noise=self.churn_noise)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by evaluations for Heun and Euler, on the paper's levels and on even ones, and with churn
        (figures 2 and 4).
        """
        study = Study(self, folder, progress)
        denoiser = trained(self, study.images, folder, progress).denoiser
        churn = self.churn or 40.0
        runs: list[tuple[str, str, Sampler, int, float]] = []
        for steps in (5, 9, 18, 35):
            for rho in (self.rho, 1.0):
                runs.append(("Heun", f"rho {rho:g}", Heun(denoiser), steps, rho))
                runs.append(("Euler", f"rho {rho:g}", DDIM(denoiser), 2 * steps - 1, rho))  # as many evaluations
            runs.append(
                (f"Heun, churn {churn:g}", f"rho {self.rho:g}", self.churned(denoiser, churn, steps), steps, self.rho)
            )
        sweep = Sweep(study, "sampler", "levels")
        for solver, grid, sampler, steps, rho in sorted(runs, key=lambda run: run[:2]):
            spaced = karras(steps, denoiser.corruption, rho)
            sweep.run(f"{solver}, {grid}", (solver, grid), sampler, spaced, shown=steps in (9, 17, 18, 35))
        text = (
            f"One model; levels from sigma = {self.sigma_max:g} to {self.sigma_min:g} whose 1 / rho-th powers are evenly spaced, and then "
            f"0. Churn between {self.churn_low:g} and {self.churn_high:g}, noise {self.churn_noise:g}."
        )
        return sweep.write("Samplers of one model", text, across=2)


def released(images: float, batch: int, rate: float, half_life: float = 0.5, bfloat16: bool = False) -> Training:
    """Adam without clipping, warmed up over 10 million images.

    `images` and the half-life of the averaged weights are in millions.
    """
    steps, decay = round(images * 1e6 / batch), 0.5 ** (batch / (half_life * 1e6))
    warmup = round(10e6 / batch)
    return Training(
        steps=steps,
        learning_rate=rate,
        warmup=warmup,
        clip=math.inf,
        ema=decay,
        bfloat16=bfloat16,
        watch_every=10_000,
        save_every=5_000,
    )


def cifar10() -> ElucidatedModel:
    """CIFAR-10: FID 1.97 by 35 evaluations (table 2, configuration F, VP)."""
    network = Network(128, (2, 2, 2), 4, (2,), 1, dropout=0.13, style="edm-ddpmpp")
    return ElucidatedModel(Data("uoft-cs/cifar10", 512, flip=True), network, released(200, 512, 1e-3), 18)


def cifar10_classes() -> ElucidatedModel:
    """CIFAR-10 with classes: FID 1.79 by 35 evaluations (table 2, configuration F, VP)."""
    recipe = cifar10()
    return replace(recipe, data=replace(recipe.data, classes=10))


def ffhq64() -> ElucidatedModel:
    """A folder of FFHQ at 64 x 64: FID 2.39 by 79 evaluations (table 2, configuration F, VP)."""
    network = Network(128, (1, 2, 2, 2), 4, (4,), 1, dropout=0.05, style="edm-ddpmpp")
    return ElucidatedModel(Data("ffhq", 256, (64, 64), flip=True), network, released(200, 256, 2e-4), 40)


def afhqv2_64() -> ElucidatedModel:
    """A folder of AFHQv2 at 64 x 64: FID 1.96 by 79 evaluations (table 2, configuration F, VP)."""
    recipe = ffhq64()
    return replace(recipe, data=Data("afhqv2", 256, (64, 64), flip=True), network=replace(recipe.network, dropout=0.25))


def imagenet64() -> ElucidatedModel:
    """A folder of ImageNet at 64 x 64 with classes: FID 1.36 by 511 evaluations with churn (published in float16)."""
    network = Network(192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, style="edm-adm", null_label=False)
    data = Data("imagenet", 4096, (64, 64), 1000)
    return ElucidatedModel(data, network, released(2500, 4096, 1e-4, half_life=50, bfloat16=True), 256, churn=40.0)


def digits() -> ElucidatedModel:
    """8 x 8 digits of 17 levels, whose standard deviation is 0.7."""
    return ElucidatedModel(
        **common_settings.digits() | {"sampling_steps": 18}, sigma_data=0.7, spread=True, tolerance=1e-3
    )


def mnist() -> ElucidatedModel:
    """28 x 28 digits of 256 levels, whose standard deviation is 0.6."""
    return ElucidatedModel(**common_settings.mnist() | {"sampling_steps": 18}, sigma_data=0.6, spread=True)


def smoke() -> ElucidatedModel:
    """Seconds, to see that the whole path runs."""
    return ElucidatedModel(**common_settings.smoke(), spread=True, tolerance=0.1)
