"""ADM and classifier guidance (Dhariwal & Nichol 2021, Diffusion models beat GANs, arXiv 2105.05233).

Networks and classifiers are those of the paper (`networks.presets`), with 64 channels for each head, except for the
model of 128 pixels with its four heads, and without a null label. Their time input is 1000 t = n, where the published
code counts from n - 1 = 0. ImageNet 512 is not included: its first channel multiplier is one half, and recipes have
whole multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..continuous import (
    DDIM,
    Ancestral,
    Clipped,
    Hybrid,
    Learned,
    Tabulated,
    VariationalBound,
    cosine_betas,
    learned_range,
    linear_betas,
)
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.guidance import ClassifierGradient, ClassifierGuided, ClassifierLoss, NoisyClassifier
from ..shared.networks import Encoder
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .experiment import at_most
from .images import VARIANTS, Chain, Data, Network
from .reproduce import Study, fitted, trained
from .time_grids import spaced


@serializable(
    "experiments.Classifier",
    formerly="unnoise.experiments.guided_diffusion.Classifier",
    renamed={"style": "variant"},
)
@dataclass(frozen=True)
class Classifier:
    """A classifier of noisy images: the encoder half of the U-Net with attention pooling, trained at uniform times.

    It has the channel multipliers, attention and heads of the model that it guides.
    """

    classes: int = 10
    """Number of class labels, such as 10."""
    width: int = 32
    """Number of channels at full resolution, an even number such as 128."""
    blocks: int = 1
    """Number of residual blocks at each resolution, the depth of the paper."""
    training: Training = field(default_factory=Training)
    """The settings of its training."""
    batch: int = 64
    """Number of images in a batch."""
    variant: Literal["plain", "adm"] = "plain"
    """Architecture: this package's own (plain), or that of the paper (adm).
    adm has learned position vectors, and 64 channels for each head."""

    def build(self, shape: tuple[int, ...], network: Network) -> Encoder:
        """Returns the classifier that goes with the network of a model."""
        size = (self.width, network.multipliers, self.blocks, network.attention, network.heads)
        return Encoder(shape, self.classes, *size, variant=VARIANTS[self.variant], positional=self.variant == "adm")


@serializable("experiments.GuidedDiffusion", formerly="unnoise.experiments.guided_diffusion.GuidedDiffusion")
@dataclass(frozen=True)
class GuidedDiffusion(Chain):
    """A DDPM with learned variance and the hybrid loss, guided by a classifier of noisy images."""

    steps: int = 1000
    """Number of steps of the diffusion, T, such as 1000."""
    betas: Literal["cosine", "linear"] = "linear"
    """Schedule of the betas."""
    first_beta: float = 1e-4
    """beta_1 of the linear table at T = 1000."""
    spacing: str = ""
    """Sampling steps in equal sections of the table, such as 90,60,60,20,20; empty for even steps.
    They add up to --sampling-steps."""
    bound_terms: int = 100
    """Number of terms of the bound that are evaluated for each image, stratified over the steps, such as 100."""
    classifier: Classifier = field(default_factory=Classifier)
    """The classifier of noisy images."""
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Guidance scales in the figure, 0 for no guidance, such as 0 1 2."""
    ddim_steps: int = 25
    """Number of steps of guided DDIM in the figure."""

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)
        if (
            self.spacing
            and len(torch.as_tensor(spaced(self.spacing, self.table())).reshape(-1)) != self.sampling_steps + 1
        ):
            raise UsageError(
                f"spacing={self.spacing}: its numbers do not add up to sampling_steps={self.sampling_steps}: change "
                "one of them"
            )

    def table(self) -> Tabulated:
        """Returns the schedule."""
        return Tabulated(
            linear_betas(self.steps, self.first_beta) if self.betas == "linear" else cosine_betas(self.steps)
        )

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        network = self.network.build(shape, classes=self.data.classes, outputs=2)
        return Hybrid(Learned(network, self.table()), quantization, vlb=1 / self.steps)

    def recognition(self, shape: tuple[int, ...]) -> ClassifierLoss:
        """Returns the objective of the classifier."""
        return ClassifierLoss(NoisyClassifier(self.classifier.build(shape, self.network), self.table()))

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), learned_range)

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return spaced(self.spacing, denoiser.corruption) if self.spacing and steps == self.sampling_steps else steps

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        return VariationalBound(Clipped(denoiser), quantization, variance=learned_range, terms=self.bound_terms)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fidelity and diversity by guidance scale (figure 4), for the ancestral sampler and for DDIM."""
        from ..shared.figures import Lines, save_lines, save_panels

        study, rows, results, panels = Study(self, folder, progress), [], {}, {}
        denoiser = trained(self, study.images, folder, progress).denoiser
        labeled = replace(self, data=replace(self.data, classes=self.classifier.classes, batch=self.classifier.batch))
        batches = labeled.batches(study.images)
        recognition = fitted(
            self.recognition(study.images.shape), self.classifier.training, batches, folder / "classifier", progress
        )
        classifier, lines = recognition.denoiser, {}
        forms: dict[str, tuple[int, Callable[[float], Sampler]]] = {
            "ancestral": (
                self.sampling_steps,
                lambda s: Ancestral(Clipped(denoiser), learned_range, gradient=ClassifierGradient(classifier, s)),
            ),
            "DDIM": (self.ddim_steps, lambda s: DDIM(ClassifierGuided(Clipped(denoiser), classifier, s))),
        }
        for form, (steps, make) in forms.items():
            for scale in self.scales:
                drawn, measured = study.run(make(scale), self.grid(denoiser, steps), recipe=labeled)
                results[f"{form}, {scale:g}"] = measured
                figures = [f"{measured[k]:.3f}" for k in ("agreement", "sure")]
                rows.append([form, str(steps), f"{scale:g}", *figures, f"{measured['frechet']:.2f}"])
                panels[f"{form}, scale {scale:g}"] = drawn.levels[:60].float() / (study.images.quantization.levels - 1)
                x, agreement, distance = lines.setdefault(form, ([], [], []))
                x.append(scale)
                agreement.append(measured["agreement"])
                distance.append(measured["frechet"])
        names = {form: [f"{s:g}" for s in x] for form, (x, _, _) in lines.items()}
        fidelity = "agreement with the requested label"
        save_lines(
            folder / "figure.png",
            {
                "fidelity": Lines("scale", fidelity, {form: (x, a) for form, (x, a, _) in lines.items()}),
                "distance": Lines("scale", "Fréchet distance", {form: (x, d) for form, (x, _, d) in lines.items()}),
                "trade-off": Lines(
                    fidelity, "Fréchet distance", {form: (a, d) for form, (_, a, d) in lines.items()}, points=names
                ),
            },
        )
        save_panels(folder / "samples.png", panels, columns=10, across=min(3, len(self.scales)))
        head = ["sampler", "steps", "scale", fidelity, "sure", "Fréchet distance"]
        kind = "unconditional" if self.data.classes is None else "class-conditional"
        text = f"The model is {kind}; at scale 0 there is no guidance.\n\n![samples](samples.png)"
        return study.write("Classifier guidance", text, head, rows, results)


def judge(width: int, blocks: int, steps: int, rate: float, decay: float, batch: int = 256) -> Classifier:
    """Returns a classifier of the paper: AdamW, learning rate decaying linearly to 0, but without random crops."""
    training = Training(
        steps=steps, learning_rate=rate, warmup=0, cooldown=steps, clip=math.inf, weight_decay=decay, ema=0.0
    )
    return Classifier(1000, width, blocks, training, batch, variant="adm")


def imagenet64() -> GuidedDiffusion:
    """ImageNet 64 x 64 with class labels (table 5): FID 2.61, with dropout 2.07, unguided; cosine table."""
    network = Network(192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, variant="adm", null_label=False)
    data = Data("imagenet", 2048, (64, 64), 1000, flip=True)
    return GuidedDiffusion(
        data,
        network,
        common_settings.adm(540_000, 3e-4),
        250,
        betas="cosine",
        classifier=judge(128, 4, 300_000, 6e-4, 0.2, 1024),
    )


def imagenet128() -> GuidedDiffusion:
    """ImageNet 128 x 128 with class labels (table 5): FID 5.91 unguided, 2.97 at scale 0.5.

    5.98 with 25 DDIM steps at scale 1.25.
    """
    network = Network(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), 4, variant="adm-heads", null_label=False)
    data = Data("imagenet", 256, (128, 128), 1000, flip=True)
    return GuidedDiffusion(
        data,
        network,
        common_settings.adm(4_360_000),
        250,
        classifier=judge(128, 2, 300_000, 3e-4, 0.05),
        scales=(0.0, 0.5, 1.25),
    )


def imagenet256() -> GuidedDiffusion:
    """ImageNet 256 x 256 with class labels (table 4): FID 10.94 unguided, 4.59 at scale 1, 9.11 at scale 10.

    5.44 with 25 DDIM steps at scale 2.5.
    """
    network = Network(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), variant="adm", null_label=False)
    data = Data("imagenet", 256, (256, 256), 1000, flip=True)
    return GuidedDiffusion(
        data,
        network,
        common_settings.adm(1_980_000),
        250,
        classifier=judge(128, 2, 500_000, 3e-4, 0.05),
        scales=(0.0, 1.0, 2.5, 10.0),
    )


def lsun256() -> GuidedDiffusion:
    """LSUN Bedroom 256 x 256 (table 5): FID 1.90 at 1000 steps, 2.02 at 250 steps in sections 90,60,60,20,20."""
    network = Network(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), dropout=0.1, variant="adm")
    data = Data("lsun", 256, (256, 256), flip=True)
    return GuidedDiffusion(data, network, common_settings.adm(500_000), 250, spacing="90,60,60,20,20")


def digits() -> GuidedDiffusion:
    """8 x 8 digits of 17 quantization levels: an unconditional model and its classifier."""
    classifier = Training(
        steps=600,
        learning_rate=1e-3,
        warmup=50,
        cooldown=300,
        weight_decay=0.05,
        ema=0.99,
        log_every=25,
        save_every=600,
    )
    settings = common_settings.digits(data=Data("digits", batch=64))
    return GuidedDiffusion(**settings, steps=100, first_beta=4e-4, classifier=Classifier(10, 32, 1, classifier))


def mnist() -> GuidedDiffusion:
    """28 x 28 digits of 256 quantization levels: an unconditional model and its classifier."""
    classifier = Training(steps=5000, learning_rate=6e-4, warmup=100, cooldown=5000, weight_decay=0.05, ema=0.99)
    return GuidedDiffusion(**common_settings.mnist(sampling_steps=250), classifier=Classifier(10, 64, 1, classifier))


def smoke() -> GuidedDiffusion:
    """A test of a few seconds that every part of the recipe runs."""
    settings = common_settings.smoke(data=Data("digits", batch=16))
    return GuidedDiffusion(
        **settings,
        steps=100,
        bound_terms=4,
        classifier=Classifier(10, 8, 1, settings["training"], 16),
        scales=(0.0, 1.0),
        ddim_steps=2,
    )
