"""ADM and classifier guidance (Dhariwal & Nichol 2021, Diffusion models beat GANs, arXiv 2105.05233).

Networks and classifiers are those of the paper (`networks.presets`), with 64 channels for each head, except for the
model of 128 pixels with its four heads, and without a null label. Their time input is 1000 t = n, where the published
code counts from n - 1 = 0. ImageNet 512 is not included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from ...continuous import DDIM, Ancestral, CosineBetas, LinearBetas
from ...shared.gaussian.denoiser import Clipped
from ...shared.gaussian.guidance import ClassifierGradient, ClassifierGuided, ClassifierLoss, NoisyClassifier
from ...shared.networks import ADM, Encoder
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ...shared.training import Training
from ..code_lengths import Bound
from ..gaussian import GaussianRecipe
from ..image_data import Images
from ..parts import Context, Part, built, part
from ..recipe import Figure
from ..reproduce import Study, Sweep, fitted
from ..time_grids import Sections
from . import improved_ddpm, settings


@serializable("experiments.ClassifierGuidance")
@dataclass(frozen=True)
class ClassifierGuidance(Figure):
    """Fidelity and diversity by guidance scale (figure 4), for the ancestral sampler and for DDIM."""

    classifier: Part[Encoder] = part(Encoder)
    """Network of the classifier of noisy images, which is trained at uniform times; the data determine its shape."""
    classes: int = 10
    """Number of class labels of the classifier, such as 10."""
    batch: int = 64
    """Number of images in a batch of the classifier."""
    training: Training = field(default_factory=Training)
    """Settings of the training of the classifier."""
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Guidance scales, 0 for no guidance, such as 0 1 2."""
    ddim_steps: int = 25
    """Number of steps of guided DDIM."""

    def objective(self, recipe: GaussianRecipe, shape: tuple[int, ...]) -> ClassifierLoss:
        """Returns the loss of a new classifier, on the schedule of the recipe."""
        network = built(self.classifier, Context(shape=shape, classes=self.classes))
        return ClassifierLoss(NoisyClassifier(network, built(recipe.schedule, Context())))

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        study = Study(recipe, folder, progress)
        denoiser = study.trained()
        assert isinstance(recipe.data, Images)
        labeled = replace(recipe, data=replace(recipe.data, classes=self.classes, batch=self.batch))
        batches, objective = labeled.batches(study.images), self.objective(recipe, study.images.shape)
        classifier = fitted(objective, self.training, batches, folder / "classifier", progress).denoiser
        sweep = Sweep(study, "sampler", "steps", "scale", measured=("agreement", "sure", "frechet"))
        for form, steps in (("ancestral", recipe.sampling_steps), ("DDIM", self.ddim_steps)):
            for scale in self.scales:
                gradient = part(Ancestral, gradient=ClassifierGradient(classifier, scale))
                sampler = (
                    replace(recipe, sampler=gradient).sampler_of(denoiser)
                    if form == "ancestral"
                    else DDIM(ClassifierGuided(Clipped(denoiser), classifier, scale))
                )
                cells, name = (form, str(steps), f"{scale:g}"), f"{form}, scale {scale:g}"
                sweep.run(form, cells, sampler, recipe.grid(denoiser, steps), labeled, name=name, scale=scale)
        kind = "unconditional" if recipe.classes is None else "class-conditional"
        text = f"The model is {kind}; at scale 0 there is no guidance."
        across = min(3, len(self.scales))
        return sweep.write("Classifier guidance", text, across, sweep.trade_off("scale"))


OWN = replace(improved_ddpm.OWN, schedule=LinearBetas(1000), figure=ClassifierGuidance())
"""What all recipes share: the hybrid loss, with weight 1 / T of the bound, and a learned variance."""


def guided_by(
    network: Part[nn.Module],
    scales: tuple[float, ...],
    blocks: int,
    steps: int,
    rate: float,
    decay: float,
    batch: int = 256,
) -> ClassifierGuidance:
    """Returns guidance by a classifier of the paper, with the multipliers and the attention of a model's network.

    It is trained by AdamW, with a learning rate that decays linearly to 0, but without random crops.
    """
    training = Training(
        steps=steps, learning_rate=rate, warmup=0, cooldown=steps, clip=math.inf, weight_decay=decay, ema=0.0
    )
    same = {name: network[name] for name in ("multipliers", "attention")}
    encoder = part(Encoder, width=128, blocks=blocks, variant=ADM, positional=True, **same)
    return ClassifierGuidance(encoder, 1000, batch, training, scales)


def imagenet64() -> GaussianRecipe:
    """ImageNet 64 x 64 with class labels (table 5): FID 2.61, with dropout 2.07, unguided; cosine table."""
    network = settings.unet("adm_imagenet64")
    return replace(
        OWN,
        data=Images("imagenet", 2048, (64, 64), 1000, flip=True),
        network=network,
        schedule=CosineBetas(1000),
        training=settings.adm(540_000, 3e-4),
        sampling_steps=250,
        figure=guided_by(network, (0.0, 0.5, 1.0, 2.0, 4.0), 4, 300_000, 6e-4, 0.2, 1024),
    )


def imagenet128() -> GaussianRecipe:
    """ImageNet 128 x 128 with class labels (table 5): FID 5.91 unguided, 2.97 at scale 0.5.

    5.98 with 25 DDIM steps at scale 1.25.
    """
    network = settings.unet("adm_imagenet128")
    return replace(
        OWN,
        data=Images("imagenet", 256, (128, 128), 1000, flip=True),
        network=network,
        training=settings.adm(4_360_000),
        sampling_steps=250,
        figure=guided_by(network, (0.0, 0.5, 1.25), 2, 300_000, 3e-4, 0.05),
    )


def imagenet256() -> GaussianRecipe:
    """ImageNet 256 x 256 with class labels (table 4): FID 10.94 unguided, 4.59 at scale 1, 9.11 at scale 10.

    5.44 with 25 DDIM steps at scale 2.5.
    """
    network = settings.unet("adm_imagenet256")
    return replace(
        OWN,
        data=Images("imagenet", 256, (256, 256), 1000, flip=True),
        network=network,
        training=settings.adm(1_980_000),
        sampling_steps=250,
        figure=guided_by(network, (0.0, 1.0, 2.5, 10.0), 2, 500_000, 3e-4, 0.05),
    )


def lsun256() -> GaussianRecipe:
    """LSUN Bedroom 256 x 256 (table 5): FID 1.90 at 1000 steps, 2.02 at 250 steps in sections 90,60,60,20,20."""
    return replace(
        OWN,
        data=Images("lsun", 256, (256, 256), flip=True),
        network=settings.unet("adm_imagenet256", dropout=0.1),
        training=settings.adm(500_000),
        sampling_steps=250,
        spacing=Sections((90, 60, 60, 20, 20)),
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels: an unconditional model and its classifier."""
    training = Training(
        steps=600,
        learning_rate=1e-3,
        warmup=50,
        cooldown=300,
        weight_decay=0.05,
        ema=0.99,
        log_every=25,
        save_every=600,
    )
    return replace(
        OWN,
        **settings.digits(data=Images("digits", batch=64)),
        schedule=LinearBetas(100, 4e-4),
        loss=improved_ddpm.hybrid(1 / 100),
        figure=ClassifierGuidance(training=training),
    )


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels: an unconditional model and its classifier."""
    training = Training(steps=5000, learning_rate=6e-4, warmup=100, cooldown=5000, weight_decay=0.05, ema=0.99)
    encoder = part(Encoder, width=64, attention=(4,))
    return replace(OWN, **settings.mnist(sampling_steps=250), figure=ClassifierGuidance(encoder, training=training))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    own = settings.smoke(data=Images("digits", batch=16))
    encoder = part(Encoder, width=8, multipliers=(1,), attention=(), heads=1)
    return replace(
        OWN,
        **own,
        schedule=LinearBetas(100),
        loss=improved_ddpm.hybrid(1 / 100),
        code_length=Bound(terms=4),
        figure=ClassifierGuidance(encoder, 10, 16, own["training"], scales=(0.0, 1.0), ddim_steps=2),
    )
