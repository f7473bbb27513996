"""Denoising diffusion implicit models (Song, Meng, Ermon 2020, arXiv 2010.02502), and later few-step samplers.

The model is that of Ho et al. (2020), and only the sampler differs. The figure also has DPM-Solver++ (Lu et al. 2022)
and UniPC (Zhao et al. 2023), with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...continuous import DDIM, Ancestral, DPMSolverPP, LinearBetas, UniPC, large
from ...shared.gaussian.denoiser import Clipped
from ...shared.objective import antithetic
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ...shared.training import Training
from ...shared.training.averages import Decay
from ..code_lengths import Bound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..notation import write
from ..parts import part
from ..recipe import Figure
from ..reproduce import Study, Sweep
from ..time_grids import quadratic, strided, trailing
from . import settings


@serializable("experiments.FewSteps")
@dataclass(frozen=True)
class FewSteps(Figure):
    """Fréchet distance by steps (table 1), with later solvers and with the ancestral sampler at all T steps."""

    counts: tuple[int, ...] = (10, 20, 50)
    """Numbers of steps of each sampler, such as 10 20 50."""

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        study = Study(recipe, folder, progress)
        denoiser, sweep = study.trained(), Sweep(study, "sampler")
        table = denoiser.corruption
        samplers = {
            "DDIM": (DDIM(denoiser), recipe.spacing),
            "DDIM, eta 1": (DDIM(denoiser, 1.0), recipe.spacing),
            # Without the long last step to the first row, for which the earlier estimates are of little use.
            "DPM-Solver++(2M)": (DPMSolverPP(denoiser), trailing),
            "UniPC-3": (UniPC(denoiser), trailing),
        }
        steps = getattr(table, "steps", recipe.sampling_steps)
        counts = [count for count in self.counts if count <= steps]
        for name, (sampler, spacing) in samplers.items():
            for count in counts:
                sweep.run(name, (name,), sampler, spacing(count, table))
        sweep.run("ancestral, large", ("ancestral, large",), Ancestral(Clipped(denoiser), large), steps)
        text = (
            f"One model on the schedule {recipe.schedule}. DDIM has {write(recipe.spacing)} spacing of its steps, the "
            "solvers have trailing spacing."
        )
        return sweep.write("Fréchet distance by steps", text, across=len(counts))


OWN = GaussianRecipe(loss=GaussianLoss(times=antithetic), sampler=part(DDIM), sampling_steps=50, figure=FewSteps())
"""What all recipes share: the simple loss at antithetic times, and the deterministic sampler."""


def training(steps: int, rate: float, ema: float = 0.9999) -> Training:
    """Returns the published training: Adam without warm-up, gradients clipped to norm 1."""
    return Training(
        steps=steps, learning_rate=rate, warmup=0, clip=1.0, ema=Decay(ema, warmup=False), watch_every=10_000
    )


def cifar10() -> GaussianRecipe:
    """CIFAR-10 (table 1), FID at 10, 20, 50, 100, 1000 steps: 13.36, 6.84, 4.67, 4.16, 4.04."""
    return replace(
        OWN,
        data=Images("uoft-cs/cifar10", 128, flip=True),
        network=settings.unet("ddpm_cifar10"),
        training=training(800_000, 2e-4),
        spacing=quadratic,
    )


def celeba64() -> GaussianRecipe:
    """A folder of CelebA at 64 x 64 (table 1), FID at 10, 20, 50, 100, 1000 steps: 17.33, 13.73, 9.17, 6.53, 3.51."""
    return replace(
        OWN,
        data=Images("celeba", 128, size=(64, 64), flip=True),
        network=settings.unet("ddim_celeba64"),
        training=training(500_000, 2e-4),
        spacing=strided,
    )


def lsun256() -> GaussianRecipe:
    """A folder of LSUN at 256 x 256, FID at 10, 20, 50, 100 steps: Bedroom 16.95, 8.89, 6.75, 6.62.

    Church 19.45, 12.47, 10.84, 10.58.
    """
    return replace(
        OWN,
        data=Images("lsun", 64, size=(256, 256)),
        network=settings.unet("ddpm_lsun256"),
        training=training(2_400_000, 2e-5, ema=0.999),
        spacing=strided,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels on a table of 1000 steps."""
    return replace(OWN, **settings.digits(sampling_steps=50), schedule=LinearBetas(start=4e-4))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels."""
    return replace(OWN, **settings.mnist(sampling_steps=50))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(), schedule=LinearBetas(100), code_length=Bound(terms=4))
