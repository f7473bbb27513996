"""Classifier-free diffusion guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...continuous import Cosine, LogInterpolated
from ...shared.gaussian.denoiser import Clipped
from ...shared.gaussian.guidance import ClassifierFree
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ..code_lengths import Bound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import part
from ..recipe import Figure
from ..reproduce import Study, Sweep
from . import settings


@serializable("experiments.GuidanceStrengths")
@dataclass(frozen=True)
class GuidanceStrengths(Figure):
    """Fidelity and diversity by guidance strength w (figure 4): agreement with the label, Fréchet distance."""

    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Guidance strengths w, 0 for no guidance, such as 0 1 2."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        study = Study(recipe, folder, progress)
        sweep = Sweep(study, "w", "s = 1 + w", measured=("agreement", "sure", "frechet"))
        denoiser, guidance = study.trained(), recipe.guidance or part(ClassifierFree)
        grid = recipe.grid(denoiser, recipe.sampling_steps)
        for w in self.strengths:
            sampler = replace(recipe, guidance=guidance.changed(w=w)).sampler_of(denoiser)
            sweep.run("", (f"{w:g}", f"{1 + w:g}"), sampler, grid, name=f"w = {w:g}", w=w)
        text = (
            f"In training the class label was dropped with probability {recipe.loss.drop_label:g}. "
            f"{recipe.sampling_steps} steps, with two network evaluations each where w > 0."
        )
        return sweep.write("Classifier-free guidance", text, plots=sweep.trade_off("w"))


def recipe_of(w: float = 0.5, drop_label: float = 0.1, share: float = 0.3) -> GaussianRecipe:
    """Returns the model of the paper: noise prediction in continuous time, trained with and without class labels.

    Args:
        w: guidance strength, 0 for no guidance; the "guidance scale" of other code is 1 + w.
        drop_label: probability that the class label of a training example is dropped, p_uncond.
        share: interpolation weight of the reverse log variance, v of the paper: 0 for small variance, 1 for large.
    """
    return GaussianRecipe(
        schedule=Cosine(-20.0, 20.0),
        loss=GaussianLoss(drop_label=drop_label),
        variance=LogInterpolated(share),
        clip=part(Clipped),
        guidance=part(ClassifierFree, w=w),
        code_length=Bound(terms=None, steps=256),
        figure=GuidanceStrengths(),
    )


def imagenet64() -> GaussianRecipe:
    """ImageNet 64 x 64 (table 1): FID 1.55 at w = 0.1, IS 260.2 at w = 4; 256 steps."""
    return replace(
        recipe_of(w=0.1, drop_label=0.1, share=0.3),
        data=Images("imagenet", 2048, size=(64, 64), classes=1000, flip=True),
        network=settings.unet("adm_imagenet64", null_label=True),
        training=settings.adm(400_000, 3e-4),
        sampling_steps=256,
    )


def imagenet128() -> GaussianRecipe:
    """ImageNet 128 x 128 (table 2): FID 2.43 at w = 0.3, IS 421 at w = 4; 256 steps."""
    return replace(
        recipe_of(w=0.3, drop_label=0.2, share=0.2),
        data=Images("imagenet", 256, size=(128, 128), classes=1000, flip=True),
        network=settings.unet("adm_imagenet128", null_label=True),
        training=settings.adm(2_700_000, 1e-4),
        sampling_steps=256,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels."""
    return replace(recipe_of(), **settings.digits(sampling_steps=64))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels."""
    return replace(recipe_of(), **settings.mnist(sampling_steps=256, data=Images("mnist5k", batch=128, classes=10)))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(recipe_of(), **settings.smoke(), code_length=Bound(terms=None, steps=8))
