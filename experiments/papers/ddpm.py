"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020, arXiv 2006.11239).

The networks are those of the paper, except for the digits, which use this package's own. Their time input is
1000 t = n, where the published code counts from n - 1 = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...continuous import LinearBetas, small
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import Clipped
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.sampler import device_of
from ...shared.serialization import serializable
from ...shared.training import Training
from ...shared.training.averages import Decay
from .. import report
from ..code_lengths import Bound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import part
from ..recipe import Figure
from ..reproduce import trained
from . import settings


@serializable("experiments.ProgressiveCoding")
@dataclass(frozen=True)
class ProgressiveCoding(Figure):
    """Rate and distortion of progressive coding (figure 5 and table 4), and progressive decoding (figure 6)."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        from ...shared.figures import Lines, save_lines, save_strip

        if not isinstance(recipe.code_length, Bound):
            raise UsageError(f"code_length={recipe.code_length}: this figure shows the terms of a bound: give Bound")
        images, test = recipe.load("train", progress), recipe.load("test", progress)
        denoiser = trained(recipe, images, folder, progress).denoiser
        quantization = recipe.in_range(images.quantization)
        bound = recipe.code_length.bound(denoiser, quantization, recipe.variance)
        steps, count, device = bound.schedule.steps, min(len(test.k), 256), device_of(denoiser)
        x0, generator = quantization.continuous(test.k[:count]).to(device), torch.Generator(device).manual_seed(0)
        cond = {name: value[:count].to(device) for name, value in recipe.data.conditions_of(test).items()}
        curve = bound.rate_distortion(x0, generator=generator, progress=progress, **cond)
        rate, rmse = curve.rate.mean(1).tolist(), curve.rmse.square().mean(1).sqrt().tolist()
        remaining = list(range(steps, 0, -1))
        unit = f"RMSE in quantization levels (0 to {quantization.levels - 1})"
        save_lines(
            folder / "figure.png",
            {
                "distortion": Lines("reverse steps remaining", unit, {"": (remaining, rmse)}),
                "rate": Lines("reverse steps remaining", "bits/dim received", {"": (remaining, rate)}),
                "rate-distortion": Lines("bits/dim received", unit, {"": (rate, rmse)}),
            },
        )
        times = [t / 10 for t in range(10, 0, -1)]
        states = []
        for t in torch.tensor(times, dtype=torch.float64):
            at = torch.round(t * steps) / steps
            x_t = bound.schedule.corrupt(x0[:6], at, generator=generator)
            with torch.no_grad():
                estimate = bound.denoiser(x_t, at, **{k: v[:6] for k, v in cond.items()})
            states.append(quantization.quantize(estimate).cpu() / (quantization.levels - 1))
        save_strip(
            folder / "decoding.png",
            {"received so far": (times, states)},
            "progressive decoding: the estimate of x_0 from x_t",
        )
        chosen = sorted({round(i * steps / 10) for i in range(10, 0, -1)} | {1}, reverse=True)
        rows = [[str(n), f"{rate[steps - n]:.4f}", f"{rmse[steps - n]:.3f}"] for n in chosen]
        total = float(bound(x0, generator=generator, progress=progress, **cond).bits_per_dim(test.dims).mean())
        page = folder / "table.md"
        page.write_text(
            f"# Rate and distortion\n\n{count} held-out images of {recipe.data.name}. The bound is {total:.3f} bits/dim"
            f" in all: the rate of all steps but the last, and {total - rate[-1]:.3f} bits/dim of the last step, which "
            "codes the image without loss.\n\n![rate and distortion](figure.png)\n\n![decoding](decoding.png)\n\n"
            f"{report.table(['reverse steps remaining', 'rate, bits/dim', unit], rows)}\n"
        )
        return page


FIGURE = ProgressiveCoding()
OWN = GaussianRecipe(clip=part(Clipped), variance=small, loss=GaussianLoss(times=Stratified()), figure=FIGURE)
"""The settings of the small data sets: noise prediction with the simple loss at stratified times."""


def training(steps: int, rate: float) -> Training:
    """Returns the published training: Adam with a warm-up, gradients clipped to norm 1."""
    return Training(
        steps=steps, learning_rate=rate, warmup=5000, clip=1.0, ema=Decay(0.9999, warmup=False), watch_every=10_000
    )


def cifar10() -> GaussianRecipe:
    """CIFAR-10 (table 1): FID 3.17, IS 9.46 at 1000 steps, bound <= 3.75 bits/dim."""
    return GaussianRecipe(
        data=Images("uoft-cs/cifar10", 128, flip=True),
        network=settings.unet("ddpm_cifar10"),
        training=training(800_000, 2e-4),
        clip=part(Clipped),
        sampling_steps=1000,
        figure=FIGURE,
    )


def lsun256() -> GaussianRecipe:
    """A folder of LSUN Church at 256 x 256 (table 3): FID 7.89.

    The paper's Cat (FID 19.75) is trained for 1.8M steps, its Bedroom (6.36) for 2.4M and without flips.
    """
    return replace(
        cifar10(),
        data=Images("lsun", 64, size=(256, 256), flip=True),
        network=settings.unet("ddpm_lsun256"),
        training=training(1_200_000, 2e-5),
        variance=small,
    )


def celebahq256() -> GaussianRecipe:
    """A folder of CelebA-HQ at 256 x 256; the paper shows samples and reports no FID."""
    data = Images("celebahq", 64, size=(256, 256), flip=True)
    return replace(lsun256(), data=data, training=training(500_000, 2e-5))


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels.

    The first noise level is 0.06, half of the distance between quantization levels. With the published 0.01, chosen for
    256 levels, half of the bound would be spent on noise so small that rounding removes it.
    """
    return replace(OWN, **settings.digits(), schedule=LinearBetas(100, 4e-4))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels."""
    return replace(OWN, **settings.mnist())


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(), schedule=LinearBetas(100), code_length=Bound(terms=4))
