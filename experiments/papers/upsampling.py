"""Super-resolution, one stage of a cascade (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021; Ho et al. 2021).

The small image is resized and concatenated to the input of the network. A cascade is a model of small images followed
by this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F

from ...continuous import LinearBetas
from ...shared.metrics.judge import labels_of
from ...shared.networks import ADM
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ..code_lengths import Bound
from ..gaussian import GaussianRecipe
from ..image_data import Images
from ..recipe import Figure
from ..reproduce import Study
from . import improved_ddpm, settings


@serializable("experiments.SuperResolution")
@dataclass(frozen=True)
class SuperResolution(Figure):
    """Held-out images from their small versions, compared with interpolation: error, true label, distance."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        from ...shared.figures import save_panels

        study, data = Study(recipe, folder, progress), recipe.data
        assert isinstance(data, Images)
        denoiser, test, quantization = study.trained(), study.test, study.test.quantization
        count = min(study.samples, len(test.k))
        real, label = test.k[:count], labels_of(test)[:count]
        small = data.small(quantization, real)
        drawn, _ = study.run(recipe.sampler_of(denoiser), recipe.grid(denoiser, recipe.sampling_steps))
        nearest, bilinear = (
            quantization.quantize(F.interpolate(small, size=real.shape[2:], mode=mode))
            for mode in ("nearest", "bilinear")
        )
        made = {"real": real, "diffusion": drawn.levels[:count], "bilinear": bilinear, "nearest": nearest}
        rows, results = [], {}
        for name, k in made.items():
            error = (k.float() - real.float()) / (quantization.levels - 1)
            back = (data.small(quantization, k) - small).abs().mean() / quantization.spacing
            results[name] = found = {
                "psnr": -10 * math.log10(max(float(error.square().mean()), 1e-12)),
                "consistency": float(back),
                "agreement": study.judge.agreement(k, label),
                "frechet": study.judge.quality(k).frechet,
            }
            figures = [format(found[key], form) for key, form in zip(found, (".1f", ".2f", ".3f", ".2f"), strict=True)]
            rows.append([name, "" if name == "real" else figures[0], *figures[1:]])
        panels = {"condition": nearest, "real": real, "diffusion": made["diffusion"], "bilinear": bilinear}
        images = {name: k[:60].float() / (quantization.levels - 1) for name, k in panels.items()}
        save_panels(folder / "figure.png", images, across=4)
        small_error = "error of the small version, quantization levels"
        head = ["images", "PSNR, dB", small_error, "agreement with the true label", "Fréchet distance"]
        text = f"Held-out images of {'x'.join(map(str, test.shape[1:]))} from {'x'.join(map(str, small.shape[2:]))}."
        return study.write("Super-resolution", text, head, rows, results)


OWN = replace(improved_ddpm.OWN, schedule=LinearBetas(1000), figure=SuperResolution())
"""What all recipes share: the hybrid loss, with weight 1 / T of the bound, and a learned variance."""


def imagenet256() -> GaussianRecipe:
    """ImageNet 64 to 256 (Dhariwal & Nichol 2021, table 5): FID 3.94 after a guided base model.

    The published model also has class labels.
    """
    variant = replace(ADM, head_width=None)
    return replace(
        OWN,
        data=Images("imagenet", 256, size=(256, 256), smaller=4),
        network=settings.unet("adm_imagenet256", width=192, heads=4, variant=variant),
        training=settings.adm(500_000, 1e-4),
        sampling_steps=250,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits from 4 x 4."""
    return replace(
        OWN,
        **settings.digits(data=Images("digits", batch=64, smaller=2)),
        schedule=LinearBetas(100, 4e-4),
        loss=improved_ddpm.hybrid(1 / 100),
    )


def mnist() -> GaussianRecipe:
    """28 x 28 digits from 7 x 7."""
    return replace(OWN, **settings.mnist(data=Images("mnist5k", batch=128, smaller=4), sampling_steps=250))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(
        OWN,
        **settings.smoke(data=Images("digits", batch=16, smaller=2)),
        schedule=LinearBetas(100),
        loss=improved_ddpm.hybrid(1 / 100),
        code_length=Bound(terms=4),
    )
