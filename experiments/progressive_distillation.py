"""Progressive distillation for fast sampling (Salimans & Ho 2022, arXiv 2202.00512).

The networks are U-Nets of this package with the widths of the paper; their blocks differ from the paper's, and the one
for ImageNet has 4 heads instead of heads of 64 channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..continuous import (
    DDIM,
    Clipped,
    Cosine,
    DenoisingLoss,
    Distillation,
    Learned,
    LogInterpolated,
    VariationalBound,
    tabulate,
    truncated_snr,
    velocity,
)
from ..shared.data import Batches
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .images import Chain, Data, Network
from .reproduce import Study, fitted, trained


@serializable(
    "experiments.ProgressiveDistillation",
    formerly="unnoise.experiments.progressive_distillation.ProgressiveDistillation",
)
@dataclass(frozen=True)
class ProgressiveDistillation(Chain):
    """Velocity prediction in continuous time, and students that halve the number of DDIM steps again and again."""

    until: int = 1
    """Number of DDIM steps of the last student; those of the first teacher are --sampling-steps, such as 64."""
    stage: Training = field(default_factory=Training)
    """Settings of the training of each student, which has no dropout."""
    last_two: int = 1
    """Factor by which the students of 2 steps and of 1 step are trained longer."""
    bound_steps: int = 256
    """Number of steps of the chain whose variational bound is the code length of the teacher."""

    loss_unit = "weighted MSE of the image"

    def __post_init__(self) -> None:
        if self.until < 1 or self.sampling_steps % (2 * self.until) or not self.students():
            raise UsageError(
                f"sampling_steps={self.sampling_steps}, until={self.until}: give sampling_steps that are until times "
                "2, 4, 8, ..."
            )

    def students(self) -> list[int]:
        """Returns the number of steps of each student, such as 32, 16, 8, 4, 2, 1."""
        steps, students = self.sampling_steps, []
        while steps > self.until and steps % 2 == 0:
            steps //= 2
            students.append(steps)
        return students if steps == self.until else []

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        network = self.network.build(shape, classes=self.data.classes)
        return DenoisingLoss(Learned(network, Cosine(-20.0, 20.0), velocity), weight=truncated_snr)

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return DDIM(Clipped(denoiser))

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        chain = denoiser.on(tabulate(denoiser.corruption, self.bound_steps))
        return VariationalBound(Clipped(chain), quantization, variance=LogInterpolated(0.3))

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by steps, of each student and of the first teacher (figure 4)."""
        from ..shared.figures import Lines, save_lines, save_panels

        study = Study(self, folder, progress)
        teacher = trained(self, study.images, folder, progress).denoiser
        runs: list[tuple[str, int, dict[str, float], Tensor]] = []

        def measure(name: str, denoiser: GaussianDenoiser, steps: int) -> None:
            drawn, measured = study.run(self.sampler(denoiser), steps)
            runs.append((name, steps, measured, drawn.levels[:60].float() / (study.images.quantization.levels - 1)))

        measure("teacher", teacher, self.sampling_steps)
        current, plain = teacher, replace(self, network=replace(self.network, dropout=0.0))  # students have no dropout
        for steps in self.students():
            student = plain.objective(study.images.shape, study.images.quantization).denoiser
            student.load_state_dict(current.state_dict())
            training = replace(self.stage, steps=self.stage.steps * (self.last_two if steps <= 2 else 1))
            objective, place = Distillation(student, Clipped(current), steps), folder / f"student-{steps}"
            current = distilled(objective, training, self.batches(study.images), place, progress)
            measure("student", current, steps)
            measure("teacher", teacher, steps)
        first = runs[0][2]["frechet"]
        lines = {
            name: ([n for who, n, _, _ in runs if who == name], [m["frechet"] for who, _, m, _ in runs if who == name])
            for name in ("student", "teacher")
        }
        rows, results, panels = [], {}, {}
        for i, (name, steps, measured, images) in enumerate(runs):
            title = f"{name}, {steps} step{'s' if steps > 1 else ''}"
            agreement = f"{measured['agreement']:.3f}" if "agreement" in measured else "-"
            rows.append(
                [name, str(steps), f"{measured['frechet']:.2f}", f"{measured['frechet'] / first:.2f}", agreement]
            )
            results[title] = measured
            if i == 0 or name == "student":
                panels[title] = images
        panel = Lines("steps", "Fréchet distance", lines, logx=True, logy=True)
        save_lines(folder / "figure.png", {"progressive distillation": panel})
        save_panels(folder / "samples.png", panels)
        head = [
            "model",
            "steps",
            "Fréchet distance",
            f"ratio to the teacher at {self.sampling_steps} steps",
            "agreement with the requested label",
        ]
        text = (
            f"All samples are by DDIM; each student is trained for {self.stage.steps} steps.\n\n![samples](samples.png)"
        )
        return study.write("Progressive distillation", text, head, rows, results)


def distilled(
    objective: Distillation, training: Training, batches: Batches, folder: Path, progress: Progress
) -> GaussianDenoiser:
    """Returns the student in a folder, trained where needed.

    Raises:
        UsageError: if it was trained with another teacher.
    """
    expected = [p.detach().clone() for p in objective.teacher.parameters()]
    result = fitted(objective, training, batches, folder, progress)
    if not all(torch.equal(a, b.to(a)) for a, b in zip(expected, result.teacher.parameters(), strict=True)):
        raise UsageError(
            f"the student in {folder} was trained with another teacher: remove the folder, or choose another --out"
        )
    return result.denoiser


def teacher_of(steps: int, rate: float) -> Training:
    """Returns the published training of the teacher: Adam with weight decay 0.001."""
    return Training(
        steps=steps, learning_rate=rate, weight_decay=0.001, warmup=1000, clip=1.0, ema=0.9999, watch_every=10_000
    )


def stage_of(steps: int, rate: float, warmup: int = 0) -> Training:
    """Returns the training of a student: learning rate decaying linearly to 0, no averaged weights."""
    return Training(
        steps=steps, learning_rate=rate, weight_decay=0.001, warmup=warmup, cooldown=steps, clip=1.0, ema=0.0
    )


def cifar10() -> ProgressiveDistillation:
    """CIFAR-10, students of 8, 4, 2, 1 steps: FID 2.57, 3.00, 4.51, 9.12.

    The teacher has FID 2.75 by DDIM (table 1: velocity, truncated SNR). The paper distills the network that predicts
    the image, with FID 2.51.
    """
    network, data = Network(256, (1, 1, 1), 3, (2, 4), 1, dropout=0.2), Data("uoft-cs/cifar10", 128, flip=True)
    return ProgressiveDistillation(
        data, network, teacher_of(800_000, 2e-4), 8192, stage=stage_of(50_000, 5e-5), last_two=2
    )


def imagenet64() -> ProgressiveDistillation:
    """ImageNet 64 x 64 with class labels, from 1024 steps (figure 4).

    The network of the paper predicts the image and the noise.
    """
    network = Network(192, (1, 2, 3, 4), 3, (2, 4, 8), 4, dropout=0.1, null_label=False)
    data = Data("imagenet", 2048, size=(64, 64), classes=1000, flip=True)
    return ProgressiveDistillation(
        data, network, teacher_of(550_000, 3e-4), 1024, stage=stage_of(50_000, 5e-5), last_two=2
    )


def digits() -> ProgressiveDistillation:
    """8 x 8 digits of 17 quantization levels, from 64 steps."""
    return ProgressiveDistillation(**common_settings.digits(sampling_steps=64), stage=stage_of(300, 3e-4, warmup=20))


def mnist() -> ProgressiveDistillation:
    """28 x 28 digits of 256 quantization levels, from 256 steps."""
    return ProgressiveDistillation(**common_settings.mnist(sampling_steps=256), stage=stage_of(5000, 1e-4))


def smoke() -> ProgressiveDistillation:
    """A test of a few seconds that every part of the recipe runs."""
    return ProgressiveDistillation(**common_settings.smoke(), until=2, stage=stage_of(4, 1e-4), bound_steps=8)
