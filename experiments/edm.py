"""Elucidating the design space of diffusion-based generative models (Karras et al. 2022, arXiv 2206.00364).

The networks are those of the paper (`networks.presets`), with 64 channels for each head of ADM. The only augmentation
is mirroring, and networks have no input for it. The decay of the averaged weights ramps up as `(1 + n) / (10 + n)`, and
the times of a batch are stratified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..continuous import DDIM, Churned, Heun, karras
from ..sde import EDM, DenoisingLoss, Learned
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
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
"""The largest relative growth of the noise by churn, as in the paper."""


@serializable(
    "experiments.ElucidatedModel",
    formerly="unnoise.experiments.edm.ElucidatedModel",
    renamed={"spread": "dequantize"},
)
@dataclass(frozen=True)
class ElucidatedModel(Density):
    """A preconditioned denoiser trained at log-normal noise levels, and sampled by Heun's method."""

    sigma_data: float = 0.5
    """Standard deviation of the data in [-1, 1], such as 0.5."""
    sigma_min: float = 0.002
    """Smallest noise level of the sampler, such as 0.002."""
    sigma_max: float = 80.0
    """Largest noise level of the sampler, such as 80."""
    rho: float = 7.0
    """Spacing of the noise levels, whose powers 1 / rho are evenly spaced: 1 for even levels, 7 as published."""
    mean: float = -1.2
    """Mean of ln sigma in training."""
    std: float = 1.2
    """Standard deviation of ln sigma in training."""
    churn: float = 0.0
    """S_churn, such as 40: before a step the noise grows by the factor 1 + churn / --sampling-steps; 0 adds no noise.
    The factor does not depend on the --steps of `unnoise sample`."""
    churn_low: float = 0.05
    """S_min: the smallest noise level with churn, such as 0.05."""
    churn_high: float = 50.0
    """S_max: the largest noise level with churn, such as 50."""
    churn_noise: float = 1.003
    """S_noise: the standard deviation of the added noise, such as 1.003."""
    dequantize: bool = False
    """Whether training data are dequantized uniformly, which the exact code length needs; the paper does not."""

    loss_unit = "weighted MSE of x_0"

    def __post_init__(self) -> None:
        if self.churn < 0 or self.sigma_data <= 0:
            raise UsageError(
                f"churn={self.churn}, sigma_data={self.sigma_data}: give a churn of 0 or more, and a sigma_data above 0"
            )

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.dequantized(k, generator) if self.dequantize else quantization.continuous(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.cell_of(x) if self.dequantize else quantization.quantize(x)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        schedule = EDM(self.sigma_min, self.sigma_max, self.rho, self.mean, self.std)
        network = self.network.build(shape, classes=self.data.classes)
        denoiser = Learned(network, schedule, Preconditioned(self.sigma_data), quarter_log, self.sigma_data)
        return DenoisingLoss.edm(denoiser, self.sigma_data, times=Stratified())

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return self.churned(denoiser, self.churn, self.sampling_steps)

    def churned(self, denoiser: GaussianDenoiser, churn: float, steps: int) -> Sampler:
        """Returns Heun's method, with churn if it is above 0."""
        heun = Heun(denoiser)
        if churn == 0:
            return heun
        return Churned(heun, min(churn / steps, MOST), low=self.churn_low, high=self.churn_high, noise=self.churn_noise)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by evaluations for Heun and Euler, rho = 7 and rho = 1, and churn (figures 2 and 4)."""
        study = Study(self, folder, progress)
        denoiser = trained(self, study.images, folder, progress).denoiser
        churn = self.churn or 40.0
        runs: list[tuple[str, str, Sampler, int, float]] = []
        for steps in (5, 9, 18, 35):
            for rho in (self.rho, 1.0):
                runs.append(("Heun", f"rho {rho:g}", Heun(denoiser), steps, rho))
                runs.append(
                    ("Euler", f"rho {rho:g}", DDIM(denoiser), 2 * steps - 1, rho)
                )  # the same number of evaluations
            runs.append(
                (f"Heun, churn {churn:g}", f"rho {self.rho:g}", self.churned(denoiser, churn, steps), steps, self.rho)
            )
        sweep = Sweep(study, "sampler", "noise levels")
        for solver, grid, sampler, steps, rho in sorted(runs, key=lambda run: run[:2]):
            spaced = karras(steps, denoiser.corruption, rho)
            sweep.run(f"{solver}, {grid}", (solver, grid), sampler, spaced, shown=steps in (9, 17, 18, 35))
        text = (
            f"One model, on noise levels from sigma = {self.sigma_max:g} to {self.sigma_min:g} whose powers 1 / rho "
            f"are evenly spaced, and then 0. Churn acts for sigma from {self.churn_low:g} to {self.churn_high:g}, with "
            f"S_noise = {self.churn_noise:g}."
        )
        return sweep.write("Samplers of one model", text, across=2)


def published(images: float, batch: int, rate: float, half_life: float = 0.5, bfloat16: bool = False) -> Training:
    """Returns the published training: Adam without clipping, with a warm-up of 10 million images.

    `images` and the half-life of the averaged weights are in millions of images.
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
    """CIFAR-10: FID 1.97 at 35 evaluations (table 2, configuration F, VP)."""
    network = Network(128, (2, 2, 2), 4, (2,), 1, dropout=0.13, variant="edm-ddpmpp")
    return ElucidatedModel(Data("uoft-cs/cifar10", 512, flip=True), network, published(200, 512, 1e-3), 18)


def cifar10_classes() -> ElucidatedModel:
    """CIFAR-10 with class labels: FID 1.79 at 35 evaluations (table 2, configuration F, VP)."""
    recipe = cifar10()
    return replace(recipe, data=replace(recipe.data, classes=10))


def ffhq64() -> ElucidatedModel:
    """A folder of FFHQ at 64 x 64: FID 2.39 at 79 evaluations (table 2, configuration F, VP)."""
    network = Network(128, (1, 2, 2, 2), 4, (4,), 1, dropout=0.05, variant="edm-ddpmpp")
    return ElucidatedModel(Data("ffhq", 256, (64, 64), flip=True), network, published(200, 256, 2e-4), 40)


def afhqv2_64() -> ElucidatedModel:
    """A folder of AFHQv2 at 64 x 64: FID 1.96 at 79 evaluations (table 2, configuration F, VP)."""
    recipe = ffhq64()
    return replace(recipe, data=Data("afhqv2", 256, (64, 64), flip=True), network=replace(recipe.network, dropout=0.25))


def imagenet64() -> ElucidatedModel:
    """A folder of ImageNet at 64 x 64 with class labels: FID 1.36 at 511 evaluations, with churn.

    The paper trains in float16, this recipe in bfloat16.
    """
    network = Network(192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, variant="edm-adm", null_label=False)
    data = Data("imagenet", 4096, (64, 64), 1000)
    return ElucidatedModel(data, network, published(2500, 4096, 1e-4, half_life=50, bfloat16=True), 256, churn=40.0)


def digits() -> ElucidatedModel:
    """8 x 8 digits of 17 quantization levels, with standard deviation 0.7."""
    return ElucidatedModel(**common_settings.digits(sampling_steps=18), sigma_data=0.7, dequantize=True, tolerance=1e-3)


def mnist() -> ElucidatedModel:
    """28 x 28 digits of 256 quantization levels, with standard deviation 0.6."""
    return ElucidatedModel(**common_settings.mnist(sampling_steps=18), sigma_data=0.6, dequantize=True)


def smoke() -> ElucidatedModel:
    """A test of a few seconds that every part of the recipe runs."""
    return ElucidatedModel(**common_settings.smoke(), dequantize=True, tolerance=0.1)
