"""Progressive distillation for fast sampling (Salimans & Ho 2022, arXiv 2202.00512).

The networks are U-Nets of this package with the widths of the paper; their blocks differ from the paper's, and the one
for ImageNet has 4 heads instead of heads of 64 channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ...continuous import DDIM, Cosine, Distillation, LogInterpolated, truncated_snr, velocity
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import Clipped, GaussianDenoiser
from ...shared.networks import UNet
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ...shared.training import Training
from ...shared.training.averages import Decay
from ..code_lengths import Bound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import parameters_of, part
from ..recipe import Figure, NoFigure
from ..reproduce import Study, Sweep, fitted
from . import settings


@serializable("experiments.Students")
@dataclass(frozen=True)
class Students(Figure):
    """Fréchet distance by steps, of each student and of the first teacher (figure 4).

    A student takes half as many DDIM steps as its teacher, and is the teacher of the next one. The first teacher is the
    model of the recipe.
    """

    until: int = 1
    """Number of DDIM steps of the last student; those of the first teacher are --sampling-steps, such as 64."""
    stage: Training = field(default_factory=Training)
    """Settings of the training of each student, which has no dropout."""
    last_two: int = 1
    """Factor by which the students of 2 steps and of 1 step are trained longer."""

    def counts(self, steps: int) -> list[int]:
        """Returns the number of steps of each student of a teacher of `steps` steps, such as 32, 16, 8, 4, 2, 1.

        Raises:
            UsageError: unless they are `until` times 2, 4, 8, ...
        """
        found = [steps >> i for i in range(1, steps.bit_length()) if steps >> i >= self.until]
        if self.until < 1 or not found or found[-1] != self.until or self.until << len(found) != steps:
            raise UsageError(
                f"sampling_steps={steps}, until={self.until}: give sampling_steps that are until times 2, 4, 8, ..."
            )
        return found

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        first, counts = recipe.sampling_steps, self.counts(recipe.sampling_steps)
        study = Study(recipe, folder, progress)
        teacher, ratio = study.trained(), f"ratio to the teacher at {first} steps"
        sweep = Sweep(study, "model", measured=("evaluations", "frechet", ratio, "agreement"))

        def measure(name: str, denoiser: GaussianDenoiser, steps: int) -> None:
            title, shown = f"{name}, {steps} step{'s' * (steps > 1)}", name == "student" or steps == first
            found = sweep.run(name, (name,), recipe.sampler_of(denoiser), steps, shown=shown, name=title)
            found[ratio] = found["frechet"] / sweep.runs[0].numbers["frechet"]

        measure("teacher", teacher, first)
        student = teacher
        for steps in counts:
            student = self.student(recipe, student, study, steps)
            measure("student", student, steps)
            measure("teacher", teacher, steps)
        text = f"All samples are by {recipe.sampler}; each student is trained for {self.stage.steps} steps."
        return sweep.write("Progressive distillation", text)

    def student(self, recipe: GaussianRecipe, teacher: GaussianDenoiser, study: Study, steps: int) -> GaussianDenoiser:
        """Returns the student of `steps` steps of a teacher, trained where needed; its run folder is `student-STEPS`.

        Raises:
            UsageError: if the student in the folder was trained with another teacher.
        """
        folder, network = study.folder / f"student-{steps}", recipe.network
        if "dropout" in parameters_of(network.build):
            network = network.changed(dropout=0.0)
        stage = replace(self.stage, steps=self.stage.steps * (self.last_two if steps <= 2 else 1))
        own = replace(recipe, network=network, training=stage, sampling_steps=steps, figure=NoFigure())
        denoiser = own.objective(study.images.shape, study.images.quantization).denoiser
        denoiser.load_state_dict(teacher.state_dict())
        objective = Distillation(denoiser, Clipped(teacher), steps)
        expected = [p.detach().clone() for p in objective.teacher.parameters()]
        batches = own.batches(study.images)
        result = fitted(objective, stage, batches, folder, study.progress, experiment=own.self_contained())
        if not all(torch.equal(a, b.to(a)) for a, b in zip(expected, result.teacher.parameters(), strict=True)):
            raise UsageError(
                f"the student in {folder} was trained with another teacher: remove the folder, or choose another --out"
            )
        return result.denoiser


def teacher_of(steps: int, rate: float) -> Training:
    """Returns the published training of the teacher: Adam with weight decay 0.001."""
    return Training(
        steps=steps,
        learning_rate=rate,
        weight_decay=0.001,
        warmup=1000,
        clip=1.0,
        ema=Decay(0.9999, warmup=False),
        watch_every=10_000,
    )


def stage_of(steps: int, rate: float, warmup: int = 0) -> Training:
    """Returns the training of a student: learning rate decaying linearly to 0, no averaged weights."""
    return Training(
        steps=steps, learning_rate=rate, weight_decay=0.001, warmup=warmup, cooldown=steps, clip=1.0, ema=0.0
    )


OWN = GaussianRecipe(
    schedule=Cosine(-20.0, 20.0),
    predicts=velocity,
    loss=GaussianLoss(weight=truncated_snr),
    variance=LogInterpolated(0.3),
    sampler=part(DDIM),
    clip=part(Clipped),
    code_length=Bound(terms=None, steps=256),
    figure=Students(stage=stage_of(50_000, 5e-5), last_two=2),
)
"""The model of the paper: velocity prediction in continuous time with the truncated-SNR weight, sampled by DDIM."""


def cifar10() -> GaussianRecipe:
    """CIFAR-10, students of 8, 4, 2, 1 steps: FID 2.57, 3.00, 4.51, 9.12.

    The teacher has FID 2.75 by DDIM (table 1: velocity, truncated SNR). The paper distills the network that predicts
    the image, with FID 2.51.
    """
    return replace(
        OWN,
        data=Images("uoft-cs/cifar10", 128, flip=True),
        network=part(UNet, width=256, multipliers=(1, 1, 1), blocks=3, attention=(2, 4), dropout=0.2),
        training=teacher_of(800_000, 2e-4),
        sampling_steps=8192,
    )


def imagenet64() -> GaussianRecipe:
    """ImageNet 64 x 64 with class labels, from 1024 steps (figure 4).

    The network of the paper predicts the image and the noise.
    """
    size = {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (2, 4, 8), "heads": 4}
    return replace(
        OWN,
        data=Images("imagenet", 2048, size=(64, 64), classes=1000, flip=True),
        network=part(UNet, **size, dropout=0.1, null_label=False),
        training=teacher_of(550_000, 3e-4),
        sampling_steps=1024,
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels, from 64 steps."""
    return replace(OWN, **settings.digits(sampling_steps=64), figure=Students(stage=stage_of(300, 3e-4, warmup=20)))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels, from 256 steps."""
    return replace(OWN, **settings.mnist(sampling_steps=256), figure=Students(stage=stage_of(5000, 1e-4)))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    figure = Students(until=2, stage=stage_of(4, 1e-4))
    return replace(OWN, **settings.smoke(), code_length=Bound(terms=None, steps=8), figure=figure)
