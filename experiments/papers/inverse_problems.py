"""Inpainting, colorization and super-resolution with an unconditional model (Song et al. 2021, appendix I, and later).

Replacement (Song et al. 2021), DPS (Chung et al. 2023), Pi-GDM (Song et al. 2023) and moment matching (Boys et al.
2023, Rozet et al. 2024) sample images given a measurement `y = A x_0 + noise`, with the same score model on the VP SDE
and the same noise. Gray images are tinted by their class label, in colors of equal mean, so that colorizing a digit
requires recognizing it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...continuous import small
from ...sde import VP
from ...shared.data import ImageDataset
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import Clipped, GaussianDenoiser
from ...shared.gaussian.inverse import (
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
from ...shared.metrics.judge import judge_of, labels_of
from ...shared.objective import Stratified
from ...shared.progress import Progress, silent
from ...shared.quantization import Quantization
from ...shared.random import Streams, normal_like
from ...shared.sampler import Sampler, counted, device_of
from ...shared.serialization import serializable
from ...shared.training import Training
from ...shared.training.averages import Decay
from ...shared.training.folder import writable, write_text
from ..code_lengths import Exact
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import part
from ..recipe import Figure
from ..report import table
from ..reproduce import trained
from . import settings

SHOWN = 12
COLUMNS = {
    "psnr": ("PSNR, dB", 1),
    "residual": ("RMSE of A x - y", 3),
    "agreement": ("agreement with the true label", 2),
    "hue": ("hue error, degrees", 0),
    "evaluations": ("evaluations", 0),
}
"""What is measured of the restored images: its heading and its number of decimals."""


class Problem(NamedTuple):
    """A linear inverse problem: its name, its operator, and how many numbers it measures of one image."""

    name: str
    operator: Operator
    numbers: int


@serializable("experiments.Restoration")
@dataclass(frozen=True)
class Restoration(Figure):
    """Held-out images restored by every method, compared with true image, measurement and true label."""

    noise: float = 0.05
    """Standard deviation of the noise of the measurements, for images in [-1, 1], such as 0.05."""
    zeta: float = 1.0
    """Step size of DPS, such as 1; fewer sampling steps need a larger one."""
    iterations: int = 3
    """Number of conjugate-gradient iterations in moment matching."""
    count: int = 60
    """Number of held-out images to restore."""

    def __post_init__(self) -> None:
        if not self.noise >= 0 or self.count < 1 or not self.zeta > 0 or self.iterations < 1:
            raise UsageError(
                f"noise={self.noise}, count={self.count}, zeta={self.zeta}, iterations={self.iterations}: give a noise "
                "of 0 or more, a zeta above 0, and a count and iterations of 1 or more"
            )

    def methods(
        self, recipe: GaussianRecipe, denoiser: GaussianDenoiser, deviation: float
    ) -> dict[str, Callable[[Operator, Tensor], Sampler]]:
        """Returns the samplers given a measurement, by name; `deviation` is the standard deviation of the data."""
        of, plain, noise = recipe.sampler_of, recipe.sampler_of(denoiser), self.noise
        return {
            "replacement": lambda a, y: Replacement(plain, a, y),
            "DPS": lambda a, y: DPS(plain, a, y, self.zeta),
            "Pi-GDM": lambda a, y: of(PseudoInverse(denoiser, a, y, noise, deviation)),
            "moment matching": lambda a, y: of(MomentMatching(denoiser, a, y, noise, self.iterations)),
        }

    def draw(self, recipe: GaussianRecipe, folder: Path, progress: Progress = silent) -> Path:
        from ...shared.figures import save_panels

        if recipe.classes is not None:
            raise UsageError(f"classes={recipe.classes}: the model is unconditional: give classes=None")
        images, test, quick = (
            recipe.load("train", progress),
            recipe.load("test", progress),
            recipe.training.steps <= 100,
        )
        for split in (images, test):
            labels_of(split)  # which the classifier needs
        denoiser = trained(recipe, images, folder, progress).denoiser.eval()
        judge = judge_of(in_gray(images), progress, 40 if quick else 600)
        accuracy = judge.accuracy(in_gray(test))
        count = 6 if quick else self.count
        test = test._replace(k=test.k[:count], label=labels_of(test)[:count])
        methods, top = self.methods(recipe, denoiser, deviation_of(images)), test.quantization.levels - 1
        results: dict[str, dict[str, float]] = {}
        panels: dict[str, Tensor] = {}
        for number, problem in enumerate(problems(test.shape)):
            y = problem.operator(centered(test.quantization, test.k))
            y = y + self.noise * normal_like(y, torch.Generator().manual_seed(number))
            made: dict[str, tuple[Tensor, int]] = {"measurement": (problem.operator.pseudo_inverse(y), 0)}
            for name, make in methods.items():
                sampler = make(problem.operator, y.to(device_of(denoiser)))
                source, steps = Streams(number, torch.arange(len(test.k))), recipe.sampling_steps
                with counted(sampler.denoiser) as evaluations_of:
                    x = sampler(shape=test.k.shape, steps=steps, generator=source, progress=progress)
                made[name] = x.cpu(), evaluations_of.calls
            for name, (x, evaluations) in made.items():
                k, residual = recipe.levels(test.quantization, x), problem.operator.residual(y, x)
                results[f"{problem.name}, {name}"] = {
                    "psnr": psnr(k, test.k, test.quantization),
                    "residual": float(residual.square().sum().div(len(y) * problem.numbers).sqrt()),
                    "agreement": judge.agreement(in_gray(test._replace(k=k)).k, labels_of(test)),
                    "hue": float(hue_error(k, test.k).mean()),
                    "evaluations": evaluations,
                }
                panels[f"{problem.name}: {name}"] = k[:SHOWN].float() / top
            panels[f"{problem.name}: truth"] = test.k[:SHOWN].float() / top
        save_panels(writable(folder) / "figure.png", panels, columns=4, across=len(methods) + 2)
        write_text(folder / "results.json", json.dumps(results, indent=1))
        head = ["problem", "method", *(heading for heading, _ in COLUMNS.values())]
        rows = [
            [*name.split(", "), *(f"{measured[n]:.{digits}f}" for n, (_, digits) in COLUMNS.items())]
            for name, measured in results.items()
        ]
        text = (
            f"# Linear inverse problems\n\n{len(test.k)} held-out images of {'x'.join(map(str, test.shape))}, one "
            f"unconditional model, {recipe.sampling_steps} ancestral steps. The images are in "
            f"[{test.quantization.low:g}, {test.quantization.high:g}], and the noise of their measurements has a "
            f"standard deviation of {self.noise:g}, which is about the RMSE of A x - y of a posterior sample. The row "
            f"of the measurement is `A^+ y`. A classifier, with accuracy {accuracy:.2f} on all held-out images, "
            "predicts the label from the mean of the channels. Evaluations are those of the network for one image. In "
            "addition each step of DPS and Pi-GDM takes one vector-Jacobian product of the network, each step of "
            f"moment matching {self.iterations}; that of DPS includes the clamp of x_0 to the range of the data, the "
            f"others do not.\n\n![Linear inverse problems](figure.png)\n\n{table(head, rows)}\n"
        )
        return write_text(folder / "table.md", text)


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


def in_gray(images: ImageDataset) -> ImageDataset:
    """Returns the mean of the channels, rounded, as one channel of quantization levels."""
    return images._replace(k=torch.round(images.in_memory.float().mean(1, keepdim=True)).to(torch.uint8))


def centered(quantization: Quantization, k: Tensor) -> Tensor:
    """Returns quantization levels as real numbers, at the centers of their cells."""
    return quantization.low + quantization.cell * (k.float() + 0.5)


def deviation_of(images: ImageDataset) -> float:
    """Returns the root mean square deviation from the mean image, in the units of the model."""
    x = centered(images.quantization, images.in_memory)
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


OWN = GaussianRecipe(
    schedule=VP(),
    loss=GaussianLoss(times=Stratified()),
    variance=small,
    clip=part(Clipped),
    code_length=Exact(),
    dequantize=True,
    figure=Restoration(),
)
"""An unconditional score model of color images on the VP SDE, sampled in ancestral steps."""


def training(steps: int) -> Training:
    """Returns the training of Ho et al. (2020) and Song, Meng, Ermon (2020)."""
    return Training(steps=steps, learning_rate=2e-4, warmup=5000, ema=Decay(0.9999, warmup=False), watch_every=10_000)


def cifar10() -> GaussianRecipe:
    """CIFAR-10 in its own colors, with the network and training of Ho et al. (2020)."""
    return replace(
        OWN,
        data=Images("uoft-cs/cifar10", 128, flip=True),
        network=settings.unet("ddpm_cifar10"),
        training=training(800_000),
        sampling_steps=1000,
    )


def celeba64() -> GaussianRecipe:
    """A folder of CelebA at 64 x 64, with one folder for each label; the network of Song, Meng, Ermon (2020)."""
    return replace(
        cifar10(),
        data=Images("celeba", 128, size=(64, 64), flip=True),
        network=settings.unet("ddim_celeba64"),
        training=training(500_000),
    )


def digits() -> GaussianRecipe:
    """8 x 8 digits of 17 quantization levels, tinted; the last noise level is less than half of a cell."""
    own = settings.digits(data=Images("digits", batch=64, tint=True), code_length=Exact(1e-3))
    return replace(OWN, **own, schedule=VP(t_last=0.01), loss=GaussianLoss(times=Stratified(1.5)))


def mnist() -> GaussianRecipe:
    """28 x 28 digits of 256 quantization levels, tinted."""
    return replace(OWN, **settings.mnist(data=Images("mnist5k", batch=128, tint=True), sampling_steps=250))


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(OWN, **settings.smoke(data=Images("digits", batch=16, tint=True), code_length=Exact(0.1)))
