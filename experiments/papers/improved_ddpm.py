"""Improved denoising diffusion probabilistic models (Nichol & Dhariwal 2021, arXiv 2102.09672).

The networks are those of the paper (`networks.presets`), except for the digits, which use this package's own. Their
time input is 1000 t for tables of any length: the rescaled step of the published code, except that steps count from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...continuous import CosineBetas, Hybrid, ImportanceSampling, LinearBetas, Variational, large, learned_range
from ...shared.gaussian.denoiser import Clipped
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ..code_lengths import Bound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import part
from ..recipe import Figure
from ..reproduce import Study
from . import settings

VLB = GaussianLoss(objective=part(ImportanceSampling, objective=part(Variational)))
"""L_vlb, with importance sampling of the times."""


def hybrid(vlb: float = 0.001) -> GaussianLoss:
    """Returns L_hybrid with the weight `vlb` of the bound: 0.001 as in the paper, or 1 / T as in published code."""
    return GaussianLoss(objective=part(Hybrid, vlb=vlb))


@serializable("experiments.LossComparison")
@dataclass(frozen=True)
class LossComparison(Figure):
    """Bits/dim and Fréchet distance of the losses L_simple, L_hybrid and L_vlb, with the same training (table 1)."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        text = f"Schedule {recipe.schedule}; samples in {recipe.sampling_steps} steps of {recipe.sampler}."
        study = Study(recipe, folder, progress)
        return study.compare(self.variants(recipe), "loss", "The losses of Improved DDPM", text)

    def variants(self, recipe: GaussianRecipe) -> dict[str, GaussianRecipe]:
        """Returns the recipe with each loss, and the variance of the reverse steps that the loss needs."""
        own = recipe.loss.objective.build is Hybrid
        return {
            "L_simple": replace(recipe, loss=GaussianLoss(), variance=large),
            "L_hybrid": recipe if own else replace(recipe, loss=hybrid(), variance=learned_range),
            "L_vlb": replace(recipe, loss=VLB, variance=learned_range),
        }


OWN = GaussianRecipe(loss=hybrid(), variance=learned_range, clip=part(Clipped), figure=LossComparison())
"""What all recipes share: noise prediction with the hybrid loss, and a learned variance of the reverse steps."""


def cifar10() -> GaussianRecipe:
    """CIFAR-10: hybrid 3.17 bits/dim, FID 3.19; vlb 2.94, FID 11.47."""
    return replace(
        OWN,
        data=Images("uoft-cs/cifar10", 128),
        network=settings.unet("improved_cifar10"),
        schedule=CosineBetas(4000),
        training=settings.adm(500_000, 1e-4),
        sampling_steps=4000,
    )


def imagenet64() -> GaussianRecipe:
    """ImageNet 64 x 64, unconditional: hybrid 3.57 bits/dim, FID 19.2; vlb 3.53, FID 40.1 (1.5M iterations)."""
    return replace(
        cifar10(),
        data=Images("imagenet", 128, size=(64, 64)),
        network=settings.unet("improved_imagenet64"),
        training=settings.adm(1_500_000, 1e-4),
    )


def imagenet64_classes() -> GaussianRecipe:
    """ImageNet 64 x 64 with class labels, the larger model: FID 2.92 at 250 steps; weight of the bound 1 / T."""
    return replace(
        cifar10(),
        data=Images("imagenet", 2048, size=(64, 64), classes=1000),
        network=settings.unet("improved_imagenet64_classes"),
        loss=hybrid(1 / 4000),
        training=settings.adm(250_000, 3e-4),
        sampling_steps=250,
    )


def lsun256() -> GaussianRecipe:
    """LSUN Bedroom 256 x 256, linear table of 1000 steps."""
    return replace(
        OWN,
        data=Images("lsun", 128, size=(256, 256)),
        network=settings.unet("improved_lsun256"),
        schedule=LinearBetas(1000),
        training=settings.adm(1_200_000, 1e-4),
        sampling_steps=1000,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels; training takes a few minutes for each loss."""
    return replace(OWN, **settings.digits(), schedule=CosineBetas(100))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels."""
    return replace(OWN, **settings.mnist(), schedule=CosineBetas(4000))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(), schedule=CosineBetas(100), code_length=Bound(terms=4))
