"""Structured denoising diffusion in discrete state spaces, on images (Austin et al. 2021, arXiv 2107.03006).

The network is that of DDPM, as in the paper. It takes a quantization level as one of 256 categories and not as a number
in [-1, 1], so its first layer is wider.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...discrete import (
    D3PMLoss,
    DiscretizedGaussian,
    Marginal,
    Product,
    Transition,
    Uniform,
    cosine,
    linear,
    logistic,
    reciprocal,
    residual,
)
from ...shared.errors import UsageError
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.quantization import Quantization
from ...shared.serialization import serializable
from ...shared.training import Training
from ...shared.training.averages import Decay
from ..categorical import CategoricalLoss, CategoricalRecipe
from ..categorical_builders import absorbing_gray
from ..code_lengths import TokenBound
from ..image_data import Images
from ..notation import write
from ..parts import Part, part
from ..recipe import Figure
from ..reproduce import Study
from . import settings


def uniform(steps: int) -> Part[Transition]:
    """Returns uniform transitions in T steps."""
    return part(Uniform, schedule=part(cosine, steps=steps))


def absorbing(steps: int) -> Part[Transition]:
    """Returns transitions in T steps that are absorbing in the middle gray."""
    return part(absorbing_gray, schedule=part(reciprocal, steps=steps))


def gaussian(steps: int) -> Part[Transition]:
    """Returns discretized Gaussian transitions in T steps; beta grows from 1e-4 to 0.02, both scaled by 1000 / T."""
    return part(DiscretizedGaussian, schedule=part(linear, steps=steps, start=0.1 / steps, stop=20 / steps))


def steps_of(recipe: CategoricalRecipe, quantization: Quantization) -> int:
    """Returns the number of steps T of a recipe's transition.

    Raises:
        UsageError: for a transition in continuous time.
    """
    steps = recipe.transition_of(quantization).steps
    if steps is None:
        raise UsageError(
            f"transition={recipe.transition} has continuous time, and the figure compares transitions in T steps: give "
            'a table of steps, such as --transition "Uniform(schedule=cosine(steps=100))"'
        )
    return steps


@serializable("experiments.TransitionsOfImages")
@dataclass(frozen=True)
class TransitionsOfImages(Figure):
    """Bits/dim and Fréchet distance of uniform, absorbing, Gaussian and Gaussian + logistic (rows of table 3)."""

    def draw(self, recipe: CategoricalRecipe, folder: Path, progress: Progress = silent) -> Path:
        study = Study(recipe, folder, progress)
        steps = steps_of(recipe, study.images.quantization)
        variants = {
            "uniform": replace(recipe, transition=uniform(steps), head=residual),
            "absorbing": replace(recipe, transition=absorbing(steps), head=residual),
            "Gaussian": replace(recipe, transition=gaussian(steps), head=residual),
            "Gaussian + logistic": replace(recipe, transition=gaussian(steps), head=logistic),
        }
        objective = recipe.loss.objective
        given = ", ".join(f"{name}={write(value)}" for name, value in objective.arguments)
        text = (
            f"T = {steps}, {objective.name}({given}), reverse model {recipe.reverse or Product()}, "
            f"{recipe.sampling_steps} sampling steps."
        )
        return study.compare(variants, "transition", "D3PM on images", text)


def loss(ce: float) -> CategoricalLoss:
    """Returns the hybrid loss, one term of the bound and `ce` times the cross-entropy, at stratified times."""
    return CategoricalLoss(objective=part(D3PMLoss, ce=ce), times=Stratified())


MODEL = CategoricalRecipe(transition=gaussian(1000), reverse=Marginal(), loss=loss(0.001), figure=TransitionsOfImages())
"""Discretized Gaussian transitions in 1000 steps, with the exact reverse model."""


def cifar10() -> CategoricalRecipe:
    """CIFAR-10, Gaussian + logistic: FID 7.34, 3.435 bits/dim.

    With --head residual 8.34 and 3.975. With --head residual, --transition "absorbing-gray(schedule=reciprocal(1000))"
    gives 30.97 and 4.40, --transition "Uniform(schedule=cosine(1000))" 51.27 and 5.08.
    """
    return replace(
        MODEL,
        data=Images("uoft-cs/cifar10", 128, flip=True),
        network=settings.unet("ddpm_cifar10"),
        reverse=Product(),
        head=logistic,
        training=Training(
            steps=1_500_000, learning_rate=2e-4, warmup=0, clip=1.0, ema=Decay(0.9999, warmup=False), watch_every=10_000
        ),
        sampling_steps=1000,
    )


def digits() -> CategoricalRecipe:
    """8 x 8 digits of 17 quantization levels, T = 100.

    The published beta of 1e-4 at T = 1000 is too small to move between 17 quantization levels at all.
    """
    return replace(MODEL, **settings.digits(), transition=gaussian(100), loss=loss(0.02))


def mnist() -> CategoricalRecipe:
    """28 x 28 digits of 256 quantization levels."""
    return replace(MODEL, **settings.mnist(), head=residual)


def smoke() -> CategoricalRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(MODEL, **settings.smoke(), transition=gaussian(100), code_length=TokenBound(terms=4))
