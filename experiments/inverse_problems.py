"""Inpainting, colorization and super-resolution with an unconditional model (Song et al. 2021, appendix I, and later).

Replacement (Song et al. 2021), DPS (Chung et al. 2023), Pi-GDM (Song et al. 2023) and moment matching (Boys et al.
2023, Rozet et al. 2024) sample images given a measurement `y = A x_0 + noise`, with the same score model and the same
noise. Gray images are tinted by their class label, in colors of equal mean, so that colorizing a digit requires
recognizing it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..continuous import Ancestral, small
from ..sde import VP, DenoisingLoss, Learned
from ..shared.data import ImageDataset
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import Clipped, GaussianDenoiser
from ..shared.gaussian.inverse import (
    DPS,
    Averaged,
    Gray,
    Masked,
    MatrixOperator,
    MomentMatching,
    Operator,
    PseudoInverse,
    Replacement,
)
from ..shared.gaussian.schedule import Schedule
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Streams, normal_like
from ..shared.sampler import Sampler, counted, device_of
from ..shared.serialization import serializable
from ..shared.training import Training
from ..shared.training.folder import writable
from . import common_settings
from .evaluation import judge_of, labels_of
from .images import Data, Density, Network
from .report import table
from .reproduce import trained

SHOWN = 12


class Problem(NamedTuple):
    """A linear inverse problem: its name, its operator, and how many numbers it measures of one image."""

    name: str
    operator: Operator
    numbers: int


@serializable("experiments.InverseProblems", formerly="unnoise.experiments.inverse_problems.InverseProblems")
@dataclass(frozen=True)
class InverseProblems(Density):
    """An unconditional score model of color images on the VP SDE, which restores images from measurements."""

    noise: float = 0.05
    """Standard deviation of the noise of the measurements, for images in [-1, 1], such as 0.05."""
    zeta: float = 1.0
    """Step size of DPS, such as 1; fewer sampling steps need a larger one."""
    iterations: int = 3
    """Number of conjugate-gradient iterations in moment matching."""
    count: int = 60
    """Number of held-out images to restore."""
    t_last: float = 1e-3
    """Time of the last noisy state of the sampler, between 0 and 1, such as 0.001; its last step denoises."""
    time_power: float = 1.0
    """Exponent p of the training times u^p, u uniform: 1 as published, larger values draw small noise more often."""

    loss_unit = "sigma² MSE of the score"

    def __post_init__(self) -> None:
        if self.data.classes is not None or not self.noise >= 0 or self.count < 1:
            raise UsageError(
                f"classes={self.data.classes}, noise={self.noise}, count={self.count}: the model is unconditional: "
                "give classes=None, a noise of 0 or more, and a count of 1 or more"
            )
        if not self.zeta > 0 or self.iterations < 1:
            raise UsageError(
                f"zeta={self.zeta}, iterations={self.iterations}: give a zeta above 0, and 1 or more iterations"
            )

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        """Loads a split in color: gray images are tinted."""
        return tinted(self.data.load(split, progress))

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        return DenoisingLoss.score_matching(
            Learned(self.network.build(shape), VP(t_last=self.t_last)), times=Stratified(self.time_power)
        )

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler[GaussianDenoiser, Schedule]:
        return Ancestral(Clipped(denoiser), small)

    def methods(self, denoiser: GaussianDenoiser, deviation: float) -> dict[str, Callable[[Operator, Tensor], Sampler]]:
        """Returns the samplers given a measurement, by name; `deviation` is the standard deviation of the data."""
        plain, noise = self.sampler(denoiser), self.noise
        return {
            "replacement": lambda a, y: Replacement(plain, a, y),
            "DPS": lambda a, y: DPS(plain, a, y, self.zeta),
            "Pi-GDM": lambda a, y: self.sampler(PseudoInverse(denoiser, a, y, noise, deviation)),
            "moment matching": lambda a, y: self.sampler(MomentMatching(denoiser, a, y, noise, self.iterations)),
        }

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Held-out images restored by every method, compared with true image, measurement and true label."""
        from ..shared.figures import save_panels

        images, test, quick = self.load("train", progress), self.load("test", progress), self.training.steps <= 100
        for part in (images, test):
            if part.label is None:
                raise UsageError(
                    f"{self.data.name} has {part.no_labels}, and a classifier measures the restored images: take a "
                    "set with labels"
                )
        denoiser = trained(self, images, folder, progress).denoiser.eval()
        judge = judge_of(in_gray(images), progress, 40 if quick else 600)
        accuracy = judge.accuracy(in_gray(test))
        count = 6 if quick else self.count
        test = test._replace(k=test.k[:count], label=labels_of(test)[:count])
        methods, truth = self.methods(denoiser, deviation_of(images)), test.k.float() / (test.quantization.levels - 1)
        results: dict[str, dict[str, float]] = {}
        panels: dict[str, Tensor] = {}
        for number, problem in enumerate(problems(test.shape)):
            y = problem.operator(centered(test.quantization, test.k))
            y = y + self.noise * normal_like(y, torch.Generator().manual_seed(number))
            made: dict[str, tuple[Tensor, int]] = {"measurement": (problem.operator.pseudo_inverse(y), 0)}
            for name, make in methods.items():
                sampler = make(problem.operator, y.to(device_of(denoiser)))
                source = Streams(number, torch.arange(len(test.k)))
                with counted(sampler.denoiser) as evaluations_of:
                    x = sampler(shape=test.k.shape, steps=self.sampling_steps, generator=source, progress=progress)
                made[name] = x.cpu(), evaluations_of.calls
            for name, (x, evaluations) in made.items():
                k = self.levels(test.quantization, x)
                results[f"{problem.name}, {name}"] = {
                    "psnr": psnr(k, test.k, test.quantization),
                    "residual": float(
                        problem.operator.residual(y, x).square().sum().div(len(y) * problem.numbers).sqrt()
                    ),
                    "agreement": judge.agreement(in_gray(test._replace(k=k)).k, labels_of(test)),
                    "hue": float(hue_error(k, test.k).mean()),
                    "evaluations": evaluations,
                }
                panels[f"{problem.name}: {name}"] = k[:SHOWN].float() / (test.quantization.levels - 1)
            panels[f"{problem.name}: truth"] = truth[:SHOWN]
        save_panels(writable(folder) / "figure.png", panels, columns=4, across=len(methods) + 2)
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        page = folder / "table.md"
        page.write_text(self._page(test, accuracy, results))
        return page

    def _page(self, test: ImageDataset, accuracy: float, results: dict[str, dict[str, float]]) -> str:
        """Returns the table as Markdown, with an explanation of its columns."""
        head = [
            "problem",
            "method",
            "PSNR, dB",
            "RMSE of A x - y",
            "agreement with the true label",
            "hue error, degrees",
            "evaluations",
        ]
        digits = {"psnr": 1, "residual": 3, "agreement": 2, "hue": 0, "evaluations": 0}
        rows = [
            [*name.split(", "), *(f"{measured[n]:.{d}f}" for n, d in digits.items())]
            for name, measured in results.items()
        ]
        return (
            f"# Linear inverse problems\n\n{len(test.k)} held-out images of {'x'.join(map(str, test.shape))}, one "
            f"unconditional model, {self.sampling_steps} ancestral steps. The images are in "
            f"[{test.quantization.low:g}, {test.quantization.high:g}], and the noise of their measurements has a "
            f"standard deviation of {self.noise:g}, which is about the RMSE of A x - y of a posterior sample. The row "
            f"of the measurement is `A^+ y`. A classifier, with accuracy {accuracy:.2f} on all held-out images, "
            "predicts the label from the mean of the channels. Evaluations are those of the network for one image. In "
            "addition each step of DPS and Pi-GDM takes one vector-Jacobian product of the network, each step of "
            f"moment matching {self.iterations}; that of DPS includes the clamp of x_0 to the range of the data, the "
            f"others do not.\n\n![Linear inverse problems](figure.png)\n\n{table(head, rows)}\n"
        )


def problems(shape: tuple[int, ...]) -> list[Problem]:
    """Returns the problems: right half missing, gray, half the size, and random sums, a quarter as many as pixels."""
    channels, height, width = shape
    size, seen = math.prod(shape), torch.arange(width) < width // 2
    rows = min(size // 4, 1024)
    matrix = torch.randn(rows, size, generator=torch.Generator().manual_seed(0)) / math.sqrt(size)
    return [
        Problem("inpainting", Masked(seen), channels * height * int(seen.sum())),
        Problem("colorization", Gray(torch.full((channels,), 1 / channels)), height * width),
        Problem("super-resolution", Averaged(2), size // 4),
        Problem("random sums", MatrixOperator(matrix, shape), rows),
    ]


def palette(classes: int) -> Tensor:
    """Returns RGB colors of evenly spaced hues, `(classes, 3)`, all of mean 1/2, so that gray images look alike."""
    hue = 2 * math.pi * torch.arange(classes)[:, None] / classes
    return 0.5 + 0.4 * torch.cos(hue - 2 * math.pi * torch.arange(3) / 3)


def tinted(images: ImageDataset) -> ImageDataset:
    """Returns gray images multiplied by the color of their label, and color images unchanged.

    Raises:
        UsageError: for gray images without labels.
    """
    if images.shape[0] != 1:
        return images
    if images.label is None:
        raise UsageError(
            "gray images are tinted by their label, and these have none: take a set with labels, or images in color"
        )
    colors = palette(len(images.names or ()) or int(images.label.max()) + 1)[images.label][:, :, None, None]
    return images._replace(k=torch.round(images.k * colors).to(torch.uint8))


def in_gray(images: ImageDataset) -> ImageDataset:
    """Returns the mean of the channels, rounded, as one channel of quantization levels."""
    return images._replace(k=torch.round(images.k.float().mean(1, keepdim=True)).to(torch.uint8))


def centered(quantization: Quantization, k: Tensor) -> Tensor:
    """Returns quantization levels as real numbers, at the centers of their cells."""
    return quantization.low + quantization.cell * (k.float() + 0.5)


def deviation_of(images: ImageDataset) -> float:
    """Returns the root mean square deviation from the mean image, in the units of the model."""
    x = centered(images.quantization, images.k)
    return float((x - x.mean(0)).square().mean().sqrt())


def psnr(k: Tensor, truth: Tensor, quantization: Quantization) -> float:
    """Returns the peak signal-to-noise ratio over all pixels of all images, dB."""
    unit = (k.float() - truth.float()) / (quantization.levels - 1)
    return -10 * math.log10(max(float(unit.square().mean()), 1e-12))


def hue_error(k: Tensor, truth: Tensor) -> Tensor:
    """Returns the angle between the hues of the mean colors of RGB images, `(N,)`, in degrees from 0 to 180."""
    angles = []
    for of in (k, truth):
        red, green, blue = of.float().mean((2, 3)).unbind(1)
        angles.append(torch.atan2(math.sqrt(3) / 2 * (green - blue), red - (green + blue) / 2))
    apart = torch.rad2deg(angles[0] - angles[1])
    return ((apart + 180) % 360 - 180).abs()


def cifar10() -> InverseProblems:
    """CIFAR-10 in its own colors, with the network and training of Ho et al. (2020)."""
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, variant="ddpm")
    training = Training(steps=800_000, learning_rate=2e-4, warmup=5000, ema=0.9999, watch_every=10_000)
    return InverseProblems(Data("uoft-cs/cifar10", 128, flip=True), network, training, 1000)


def celeba64() -> InverseProblems:
    """A folder of CelebA at 64 x 64, with one folder for each label; the network of Song, Meng, Ermon (2020)."""
    network = Network(128, (1, 2, 2, 2, 4), 2, (4,), 1, dropout=0.1, variant="ddpm")
    training = Training(steps=500_000, learning_rate=2e-4, warmup=5000, ema=0.9999, watch_every=10_000)
    return InverseProblems(Data("celeba", 128, size=(64, 64), flip=True), network, training, 1000)


def digits() -> InverseProblems:
    """8 x 8 digits of 17 quantization levels, tinted; the last noise level is less than half of a cell."""
    return InverseProblems(
        **common_settings.digits(data=Data("digits", batch=64)), time_power=1.5, t_last=0.01, tolerance=1e-3
    )


def mnist() -> InverseProblems:
    """28 x 28 digits of 256 quantization levels, tinted."""
    return InverseProblems(**common_settings.mnist(sampling_steps=250))


def smoke() -> InverseProblems:
    """A test of a few seconds that every part of the recipe runs."""
    return InverseProblems(**common_settings.smoke(data=Data("digits", batch=16)), tolerance=0.1)
