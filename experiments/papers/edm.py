"""Elucidating the design space of diffusion-based generative models (Karras et al. 2022, arXiv 2206.00364).

The networks are those of the paper, with 64 channels for each head of ADM. The only augmentation is mirroring, and
networks have no input for it. The decay of the averaged weights ramps up as `(1 + n) / (10 + n)`, and the times of a
batch are stratified. Data are not dequantized, except in the recipes of small data sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ...continuous import DDIM, Heun, Preconditioned, karras
from ...sde import EDM
from ...shared.errors import UsageError
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.sampler import Sampler
from ...shared.serialization import serializable
from ...shared.time_inputs import quarter_log
from ...shared.training import Training
from ...shared.training.averages import HalfLife
from ...shared.training.precision import PrecisionName
from ..code_lengths import Exact
from ..gaussian import GaussianLoss, GaussianRecipe
from ..gaussian_builders import churned_heun
from ..image_data import Images
from ..parts import Context, Part, parameters_of, part
from ..recipe import Figure
from ..reproduce import Study, Sweep
from . import settings


@serializable("experiments.ElucidatedSampling")
@dataclass(frozen=True)
class ElucidatedSampling(Figure):
    """Fréchet distance by evaluations for Heun and Euler, rho of the model and rho = 1, and churn (figures 2, 4)."""

    churn: Part[Sampler] = part(churned_heun)
    """Stochastic sampler, such as churned_heun(churn=40)."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        study = Study(recipe, folder, progress)
        denoiser = study.trained()
        schedule, churn = denoiser.corruption, self.churn
        if not isinstance(schedule, EDM):
            raise UsageError(f"schedule={schedule}: this figure varies the noise levels of EDM: give the schedule EDM")
        if "churn" not in parameters_of(churn.build):
            raise UsageError(f"churn={churn}: give churned_heun, such as churned_heun(churn=40)")
        runs: list[tuple[str, str, Sampler, int, float]] = []
        for steps in (5, 9, 18, 35):
            for rho in (schedule.rho, 1.0):
                runs.append(("Heun", f"rho {rho:g}", Heun(denoiser), steps, rho))
                once = 2 * steps - 1  # the same number of evaluations
                runs.append(("Euler", f"rho {rho:g}", DDIM(denoiser), once, rho))
            churned = churn.built(Context(denoiser=denoiser, sampling_steps=steps))
            runs.append((f"Heun, churn {churn['churn']:g}", f"rho {schedule.rho:g}", churned, steps, schedule.rho))
        sweep = Sweep(study, "sampler", "noise levels")
        for solver, grid, sampler, steps, rho in sorted(runs, key=lambda run: run[:2]):
            spaced = karras(steps, schedule, rho)
            sweep.run(f"{solver}, {grid}", (solver, grid), sampler, spaced, shown=steps in (9, 17, 18, 35))
        text = (
            f"One model, on noise levels from sigma = {schedule.sigma_max:g} to {schedule.sigma_min:g} whose powers 1 "
            f"/ rho are evenly spaced, and then 0. Churn acts for sigma from {churn['low']:g} to {churn['high']:g}, "
            f"with S_noise = {churn['noise']:g}."
        )
        return sweep.write("Samplers of one model", text, across=2)


OWN = GaussianRecipe(
    schedule=EDM(),
    predicts=Preconditioned(0.5),
    time_input=quarter_log,
    loss=GaussianLoss(weight=None, times=Stratified()),
    sampler=part(Heun),
    code_length=Exact(),
    figure=ElucidatedSampling(),
)
"""The preconditioned denoiser, trained at log-normal noise levels and sampled by Heun's method."""


def training(
    images: float, batch: int, rate: float, half_life: float = 0.5, precision: PrecisionName = "float32"
) -> Training:
    """Returns the published training: Adam without clipping, with a warm-up of 10 million images.

    `images` and the half-life of the averaged weights are in millions of images; it grows from 0 as they are seen.
    """
    return Training(
        steps=round(images * 1e6 / batch),
        learning_rate=rate,
        warmup=round(10e6 / batch),
        clip=math.inf,
        ema=HalfLife(half_life * 1e6),
        precision=precision,
        watch_every=10_000,
        save_every=5_000,
    )


def cifar10() -> GaussianRecipe:
    """CIFAR-10: FID 1.97 at 35 evaluations (table 2, configuration F, VP)."""
    return replace(
        OWN,
        data=Images("uoft-cs/cifar10", 512, augment=0.12),
        network=settings.unet("edm_cifar10_vp"),
        training=training(200, 512, 1e-3),
        sampling_steps=18,
    )


def cifar10_classes() -> GaussianRecipe:
    """CIFAR-10 with class labels: FID 1.79 at 35 evaluations (table 2, configuration F, VP)."""
    return replace(cifar10(), data=Images("uoft-cs/cifar10", 512, classes=10, augment=0.12))


def ffhq64() -> GaussianRecipe:
    """A folder of FFHQ at 64 x 64: FID 2.39 at 79 evaluations (table 2, configuration F, VP)."""
    return replace(
        OWN,
        data=Images("ffhq", 256, (64, 64), augment=0.15),
        network=settings.unet("edm_ffhq64_vp"),
        training=training(200, 256, 2e-4),
        sampling_steps=40,
    )


def afhqv2_64() -> GaussianRecipe:
    """A folder of AFHQv2 at 64 x 64: FID 1.96 at 79 evaluations (table 2, configuration F, VP)."""
    network = settings.unet("edm_ffhq64_vp", dropout=0.25)
    return replace(ffhq64(), data=Images("afhqv2", 256, (64, 64), augment=0.15), network=network)


def imagenet64() -> GaussianRecipe:
    """A folder of ImageNet at 64 x 64 with class labels: FID 1.36 at 511 evaluations, with churn.

    The paper trains in float16, this recipe in bfloat16, whose loss needs no scale.
    """
    return replace(
        OWN,
        data=Images("imagenet", 4096, (64, 64), 1000),
        network=settings.unet("edm_imagenet64"),
        training=training(2500, 4096, 1e-4, half_life=50, precision="bfloat16"),
        sampler=part(churned_heun, churn=40.0),
        sampling_steps=256,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels, with standard deviation 0.7."""
    own = settings.digits(sampling_steps=18, code_length=Exact(1e-3))
    return replace(OWN, **own, predicts=Preconditioned(0.7), dequantize=True)


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels, with standard deviation 0.6."""
    return replace(OWN, **settings.mnist(sampling_steps=18), predicts=Preconditioned(0.6), dequantize=True)


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(code_length=Exact(0.1)), dequantize=True)
