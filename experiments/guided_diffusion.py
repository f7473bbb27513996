"""Diffusion models beat GANs on image synthesis (Dhariwal & Nichol 2021, arXiv 2105.05233): ADM and classifier
guidance.

The paper's networks and classifiers are the paper's own (`networks.presets`): 64 channels a head but for the four heads
of the model of 128 pixels, and no label for none. They are told 1000 t = n where the released code counts from n - 1 =
0. ImageNet 512 is left out: its first multiplier is one half, and recipes have whole ones.
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
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.guidance import ClassifierGradient, ClassifierGuided, NoisyClassifier, Recognition
from ..shared.networks import Encoder
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .experiment import at_most
from .images import STYLES, Chain, Data, Network
from .reproduce import Study, fitted, trained
from .time_grids import spaced


@serializable("experiments.Classifier", formerly="unnoise.experiments.guided_diffusion.Classifier")
@dataclass(frozen=True)
class Classifier:
    """The noise-aware classifier: the down half of the U-Net with attention pooling, trained at uniform t.

    It has the multipliers, attention and heads of the model that it guides.
    """

    classes: int = 10
    """Labels."""
    width: int = 32
    """Channels at full resolution."""
    blocks: int = 1
    """Residual blocks for each resolution, the paper's depth."""
    training: Training = field(default_factory=Training)
    """How to train it."""
    batch: int = 64
    """Images in a batch."""
    style: Literal["plain", "adm"] = "plain"
    """This package's blocks and pooling, or those released, which learn a vector for each position and have 64 channels
    a head.
    """

    def build(self, shape: tuple[int, ...], network: Network) -> Encoder:
        """The classifier beside a model's network."""
        size = (self.width, network.multipliers, self.blocks, network.attention, network.heads)
        return Encoder(shape, self.classes, *size, variant=STYLES[self.style], positional=self.style == "adm")


@serializable("experiments.GuidedDiffusion", formerly="unnoise.experiments.guided_diffusion.GuidedDiffusion")
@dataclass(frozen=True)
class GuidedDiffusion(Chain):
    """A hybrid-loss DDPM with learned variance, and a classifier of noisy images that guides it."""

    steps: int = 1000
    """T."""
    betas: Literal["cosine", "linear"] = "linear"
    """The table."""
    first_beta: float = 1e-4
    """beta_1 of the linear table at T = 1000."""
    spacing: str = ""
    """Sampling steps as counts in equal sections, such as 90,60,60,20,20; empty for sampling_steps evenly spaced."""
    bound_terms: int = 100
    """Terms of the bound to evaluate, stratified over the steps."""
    classifier: Classifier = field(default_factory=Classifier)
    """The classifier."""
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Scales of guidance in the figure."""
    ddim_steps: int = 25
    """Steps of the DDIM form in the figure."""

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)
        if (
            self.spacing
            and len(torch.as_tensor(spaced(self.spacing, self.table())).reshape(-1)) != self.sampling_steps + 1
        ):
            raise UsageError(
                f"spacing={self.spacing}: its counts do not add up to sampling_steps={self.sampling_steps}"
            )

    def table(self) -> Tabulated:
        """The chain."""
        return Tabulated(
            linear_betas(self.steps, self.first_beta) if self.betas == "linear" else cosine_betas(self.steps)
        )

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        network = self.network.build(shape, classes=self.data.classes, outputs=2)
        return Hybrid(Learned(network, self.table()), quantization, vlb=1 / self.steps)

    def recognition(self, shape: tuple[int, ...]) -> Objective:
        """The classifier's objective."""
        return Recognition(NoisyClassifier(self.classifier.build(shape, self.network), self.table()))

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), learned_range)

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return spaced(self.spacing, denoiser.corruption) if self.spacing and steps == self.sampling_steps else steps

    def bound(self, denoiser: Denoiser, quantization: Quantization) -> VariationalBound:
        return VariationalBound(Clipped(denoiser), quantization, variance=learned_range, terms=self.bound_terms)

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fidelity against diversity over the scale of the gradient (figure 4), in the ancestral and the DDIM form."""
        from ..shared.figures import Lines, save_lines, save_panels

        study, rows, results, panels = Study(self, folder, progress), [], {}, {}
        denoiser = trained(self, study.images, folder, progress).denoiser
        labelled = replace(self, data=replace(self.data, classes=self.classifier.classes, batch=self.classifier.batch))
        batches = labelled.batches(study.images)
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
                drawn, measured = study.run(make(scale), self.grid(denoiser, steps), recipe=labelled)
                results[f"{form}, {scale:g}"] = measured
                figures = [f"{measured[k]:.3f}" for k in ("agreement", "sure")]
                rows.append([form, str(steps), f"{scale:g}", *figures, f"{measured['frechet']:.2f}"])
                panels[f"{form}, scale {scale:g}"] = drawn.levels[:60].float() / (study.images.quantization.levels - 1)
                x, agreement, distance = lines.setdefault(form, ([], [], []))
                x.append(scale)
                agreement.append(measured["agreement"])
                distance.append(measured["frechet"])
        names = {form: [f"{s:g}" for s in x] for form, (x, _, _) in lines.items()}
        asked = "agreement with the asked label"
        save_lines(
            folder / "figure.png",
            {
                "fidelity": Lines("scale", asked, {form: (x, a) for form, (x, a, _) in lines.items()}),
                "distance": Lines("scale", "Fréchet distance", {form: (x, d) for form, (x, _, d) in lines.items()}),
                "trade-off": Lines(
                    asked, "Fréchet distance", {form: (a, d) for form, (_, a, d) in lines.items()}, points=names
                ),
            },
        )
        save_panels(folder / "samples.png", panels, columns=10, across=min(3, len(self.scales)))
        head = ["form", "steps", "scale", asked, "sure", "Fréchet distance"]
        kind = "unconditional" if self.data.classes is None else "class-conditional"
        text = f"The model is {kind}; a scale of 0 is no guidance.\n\n![samples](samples.png)"
        return study.write("Classifier guidance", text, head, rows, results)


def judge(width: int, blocks: int, steps: int, rate: float, decay: float, batch: int = 256) -> Classifier:
    """The paper's classifiers: AdamW, the rate falling linearly to 0. The paper's random crops are left out."""
    training = Training(
        steps=steps, learning_rate=rate, warmup=0, cooldown=steps, clip=math.inf, weight_decay=decay, ema=0.0
    )
    return Classifier(1000, width, blocks, training, batch, style="adm")


def imagenet64() -> GuidedDiffusion:
    """ImageNet 64 x 64, classes (table 5): FID 2.61, with dropout 2.07, unguided; cosine table."""
    network = Network(192, (1, 2, 3, 4), 3, (2, 4, 8), dropout=0.1, style="adm", null_label=False)
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
    """ImageNet 128 x 128, classes (table 5): FID 5.91, guided 2.97 at scale 0.5, 5.98 by 25 DDIM steps at 1.25."""
    network = Network(256, (1, 1, 2, 3, 4), 2, (4, 8, 16), 4, style="adm-heads", null_label=False)
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
    """ImageNet 256 x 256, classes (table 4): FID 10.94, guided 4.59 at scale 1, 9.11 at 10.

    5.44 by 25 DDIM steps at 2.5.
    """
    network = Network(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), style="adm", null_label=False)
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
    """LSUN Bedroom 256 x 256 (table 5): FID 1.90 by 1000 steps; 2.02 by 250 steps in sections 90,60,60,20,20."""
    network = Network(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), dropout=0.1, style="adm")
    data = Data("lsun", 256, (256, 256), flip=True)
    return GuidedDiffusion(data, network, common_settings.adm(500_000), 250, spacing="90,60,60,20,20")


def digits() -> GuidedDiffusion:
    """8 x 8 digits of 17 levels: an unconditional model and its classifier."""
    budget = common_settings.digits()
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
    budget["data"] = replace(budget["data"], classes=None)
    return GuidedDiffusion(**budget, steps=100, first_beta=4e-4, classifier=Classifier(10, 32, 1, classifier))


def mnist() -> GuidedDiffusion:
    """28 x 28 digits of 256 levels: an unconditional model and its classifier."""
    classifier = Training(steps=5000, learning_rate=6e-4, warmup=100, cooldown=5000, weight_decay=0.05, ema=0.99)
    return GuidedDiffusion(
        **common_settings.mnist() | {"sampling_steps": 250}, classifier=Classifier(10, 64, 1, classifier)
    )


def smoke() -> GuidedDiffusion:
    """Seconds, to see that the whole path runs."""
    budget = common_settings.smoke()
    budget["data"] = replace(budget["data"], classes=None)
    return GuidedDiffusion(
        **budget,
        steps=100,
        bound_terms=4,
        classifier=Classifier(10, 8, 1, budget["training"], 16),
        scales=(0.0, 1.0),
        ddim_steps=2,
    )
