"""Noise-conditional score networks (Song & Ermon 2019, arXiv 1907.05600, and 2020, arXiv 2006.09011: NCSNv2).

Denoising score matching at a table of noise levels for dequantized data in [0, 1], and annealed Langevin dynamics from
the largest to the smallest. The recipes of the 2020 paper train its RefineNet, all others a U-Net. Sampling starts from
Gaussian noise of the largest noise level; the published code starts from uniform noise on [0, 1], which makes no
difference after that level. The code length is that of the probability flow, whose prior is the noise of the largest
noise level, and which evaluates the network between its noise levels too; the papers report none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ...sde import NoiseLevels, ReverseDiffusion, best_epsilon, largest_sigma, level_count, level_ratio
from ...shared.data import ImageDataset
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import Learned
from ...shared.gaussian.prediction import scaled_score
from ...shared.networks import RefineNet, UNet
from ...shared.networks.adapters import CenteredInput
from ...shared.progress import Progress, silent
from ...shared.sampler import Sampler
from ...shared.serialization import serializable
from ...shared.time_inputs import reversed_index
from ...shared.training import Training
from ...shared.training.averages import Decay
from ..code_lengths import Exact
from ..gaussian import GaussianRecipe
from ..gaussian_builders import annealed_langevin, geometric_noise_levels
from ..image_data import Images
from ..parts import Part, part
from ..recipe import Figure
from ..reproduce import Study, Sweep
from . import settings


@serializable("experiments.AnnealedSampling")
@dataclass(frozen=True)
class AnnealedSampling(Figure):
    """Fréchet distance by Langevin steps at each noise level, with and without last denoising (2020, table 1).

    The step sizes follow the published rule, except for those of the recipe's own sampler.
    """

    repeats: tuple[int, ...] = (1, 2, 5, 10)
    """Numbers of Langevin steps at each noise level to compare with that of the recipe, such as 1 2 5 10."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        if recipe.sampler.build is not annealed_langevin:
            raise UsageError(f"sampler={recipe.sampler}: this figure is of annealed_langevin(epsilon=...): give that")
        own, epsilon = recipe.sampler["repeats"], recipe.sampler["epsilon"]
        study = Study(recipe, folder, progress)
        denoiser = study.trained()
        assert isinstance(denoiser.corruption, NoiseLevels)  # which the sampler needs
        sigmas = denoiser.corruption.sigmas
        low, high = float(sigmas.min()), float(sigmas.max())
        ratio = (high / low) ** (1 / max(recipe.sampling_steps - 1, 1))
        runs: list[tuple[str, int, Sampler]] = []
        for denoise, name in ((False, "annealed Langevin"), (True, "annealed Langevin, denoised")):
            for repeats in sorted({*self.repeats, own}):
                size = epsilon if repeats == own else best_epsilon(ratio, repeats, low)
                runs.append((name, repeats, annealed_langevin(denoiser, size, repeats, denoise)))
        runs.append(("reverse diffusion", 0, ReverseDiffusion(denoiser)))
        sweep = Sweep(study, "sampler", "T, steps at each noise level")
        for name, repeats, sampler in runs:
            sweep.run(name, (name, str(repeats)), sampler, recipe.sampling_steps)
        text = (
            f"One model, {recipe.sampling_steps} noise levels from {high:g} down to {low:g}, with and without the last "
            f"denoising. The step sizes follow the published rule for each T; for T = {own} epsilon is {epsilon:g}."
        )
        return sweep.write("Annealed Langevin dynamics", text, across=len(runs) // 2)


def by_the_rules(images: ImageDataset, low: float, repeats: int) -> dict[str, float]:
    """Returns high, steps and epsilon for a data set, by techniques 1, 2 and 4 of the 2020 paper.

    `steps` is the number of noise levels. The recipes of small data sets contain these numbers.
    """
    high = largest_sigma((images.in_memory.double() + 0.5) / images.quantization.levels)
    steps = level_count(low, high, level_ratio(images.dims))
    epsilon = best_epsilon((high / low) ** (1 / (steps - 1)), repeats, low)
    return {"high": high, "steps": steps, "epsilon": epsilon}


def levels(low: float, high: float, steps: int) -> dict[str, Any]:
    """Returns the settings of noise levels in geometric progression, at all of which the sampler steps."""
    return {"schedule": part(geometric_noise_levels, low=low, high=high, steps=steps), "sampling_steps": steps}


def training(steps: int, rate: float, ema: float) -> Training:
    """Returns the published training: Adam without gradient clipping or warm-up."""
    return Training(
        steps=steps, learning_rate=rate, warmup=0, clip=math.inf, ema=Decay(ema, warmup=False), watch_every=10_000
    )


OWN = GaussianRecipe(
    **levels(0.02, 4.53, 19),
    sampler=part(annealed_langevin, epsilon=9.5e-5),
    code_length=Exact(),
    dequantize=True,
    range=(0.0, 1.0),
    figure=AnnealedSampling(),
)
"""Denoising score matching at geometric noise levels, for dequantized data in [0, 1]."""


def refinenet(**arguments: Any) -> dict[str, Any]:
    """Returns the settings of the RefineNet of NCSNv2, which has neither time input nor class labels."""
    network: Part[nn.Module] = part(CenteredInput, inner=part(RefineNet, **arguments))
    own = {"predicts": scaled_score, "time_input": reversed_index, "denoiser": part(Learned, scaled=False)}
    return {"network": network} | own


def cifar10() -> GaussianRecipe:
    """CIFAR-10 (2019, table 1): FID 25.32, IS 8.87, without a last denoising and without averaged weights."""
    return replace(
        OWN,
        **levels(0.01, 1.0, 10),
        data=Images("uoft-cs/cifar10", 128, flip=True),
        network=part(UNet, width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(2,), heads=1),
        training=training(200_000, 1e-3, 0.0),
        sampler=part(annealed_langevin, epsilon=2e-5, repeats=100, denoise=False),
    )


def cifar10_v2() -> GaussianRecipe:
    """CIFAR-10 (2020, table 1): FID 10.87, IS 8.40; 31.75 and 8.73 without the last denoising."""
    return replace(
        OWN,
        **levels(0.01, 50.0, 232),
        **refinenet(),
        data=Images("uoft-cs/cifar10", 128, flip=True),
        training=training(300_000, 1e-4, 0.999),
        sampler=part(annealed_langevin, epsilon=6.2e-6),
    )


def celeba64_v2() -> GaussianRecipe:
    """A folder of CelebA, cropped to 140 x 140 beforehand and scaled to 64 x 64 (2020, table 1): FID 10.23.

    28.86 without the last denoising.
    """
    return replace(
        cifar10_v2(),
        **levels(0.01, 90.0, 500),
        data=Images("celeba", 128, size=(64, 64), flip=True),
        training=training(210_000, 1e-4, 0.999),
        sampler=part(annealed_langevin, epsilon=3.3e-6),
    )


def lsun128_v2() -> GaussianRecipe:
    """A folder of LSUN Tower at 128 x 128; the paper reports no FID.

    epsilon follows the published rule, and the number of training steps is from memory.
    """
    return replace(
        cifar10_v2(),
        **levels(0.01, 190.0, 1086),
        **refinenet(multipliers=(1, 2, 2, 4, 4), dilations=(1, 1, 1, 2, 4)),
        data=Images("lsun", 128, size=(128, 128), flip=True),
        training=training(150_000, 1e-4, 0.999),
        sampler=part(annealed_langevin, epsilon=1.8e-6, repeats=3),
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels; the smallest noise level is a third of a cell.

    The other numbers follow the published rules: `by_the_rules(Images("digits").load(), 0.02, 5)`.
    """
    return replace(OWN, **settings.digits(sampling_steps=19, code_length=Exact(1e-3)))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels.

    The numbers follow the published rules: `by_the_rules(Images("mnist5k").load(), 0.01, 5)`.
    """
    own = settings.mnist(**levels(0.01, 15.8, 94), code_length=Exact(1e-3))
    return replace(OWN, **own, sampler=part(annealed_langevin, epsilon=1.11e-5))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    own = settings.smoke(code_length=Exact(0.1))
    return replace(OWN, **own, sampler=part(annealed_langevin, epsilon=9.5e-5, repeats=2))
