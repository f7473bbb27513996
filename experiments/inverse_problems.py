"""Inpainting, colourisation and super-resolution with one unconditional model (Song et al. 2021, appendix I; and the
methods since).

Replacement (Song et al. 2021), DPS (Chung et al. 2023), Pi-GDM (Song et al. 2023) and moment matching (Boys et al.
2023, Rozet et al. 2024) draw what a measurement `y = A x_0 + noise` leaves open, from the same score model and the same
noise. Grey images are tinted by their label, in colours of the same mean: to colour a digit is to recognise it.
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
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import Clipped, GaussianDenoiser
from ..shared.gaussian.inverse import (
    DPS,
    Averaged,
    Dense,
    Gray,
    Masked,
    MomentMatching,
    Operator,
    PseudoInverse,
    Replacement,
)
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Streams, normal_like
from ..shared.sampler import Sampler, counted, device_of
from ..shared.serialization import serializable
from ..shared.training import Training
from ..shared.training.folder import writable
from . import common_settings
from .evaluation import judge_of
from .images import Data, Density, Network
from .report import table
from .reproduce import trained

SHOWN = 12


class Problem(NamedTuple):
    """A measurement and how many numbers it gives of one image."""

    name: str
    operator: Operator
    numbers: int


@serializable("experiments.InverseProblems", formerly="unnoise.experiments.inverse_problems.InverseProblems")
@dataclass(frozen=True)
class InverseProblems(Density):
    """An unconditional score model of colour images on the VP SDE, and what it makes of their measurements."""

    noise: float = 0.05
    """Standard deviation of the measurements' noise; the images lie in [-1, 1]."""
    zeta: float = 1.0
    """Step size of DPS; the best one grows as the steps become fewer."""
    iterations: int = 3
    """Of conjugate gradients, in moment matching."""
    count: int = 60
    """Held-out images to restore."""
    t_last: float = 1e-3
    """Last noisy time of the sampler, whose last step denoises."""
    time_power: float = 1.0
    """Training times are u^time_power: 1 for the papers' uniform times, more to visit small noise more."""

    loss_unit = "sigma² MSE of the score"

    def __post_init__(self) -> None:
        if self.data.classes is not None or not self.noise >= 0 or self.count < 1:
            raise UsageError(
                f"classes={self.data.classes}, noise={self.noise}, count={self.count}: the model is unconditional, the noise a standard "
                "deviation from 0, and one image or more is restored"
            )
        if not self.zeta > 0 or self.iterations < 1:
            raise UsageError(
                f"zeta={self.zeta}, iterations={self.iterations}: give a step size above 0, and one iteration or more"
            )

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        """A split in colour: grey images are tinted."""
        return tinted(self.data.load(split, progress))

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        return DenoisingLoss.score_matching(
            Learned(self.network.build(shape), VP(t_last=self.t_last)), times=Stratified(self.time_power)
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), small)

    def methods(self, denoiser: GaussianDenoiser, deviation: float) -> dict[str, Callable[[Operator, Tensor], Sampler]]:
        """Samplers of a measurement, by their names; `deviation` is that of the data."""
        plain, noise = self.sampler(denoiser), self.noise
        return {
            "replacement": lambda a, y: Replacement(plain, a, y),
            "DPS": lambda a, y: DPS(plain, a, y, self.zeta),
            "Pi-GDM": lambda a, y: self.sampler(PseudoInverse(denoiser, a, y, noise, deviation)),
            "moment matching": lambda a, y: self.sampler(MomentMatching(denoiser, a, y, noise, self.iterations)),
        }

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Held-out images restored by every method, and how close they are to the truth, the measurement and the digit
        that was there.
        """
        from ..shared.figures import save_panels

        images, test, quick = self.load("train", progress), self.load("test", progress), self.training.steps <= 100
        for part in (images, test):
            if part.label is None:
                raise UsageError(
                    f"{self.data.name} has {part.unlabelled}, and restored images are judged by them: take a set with labels"
                )
        denoiser = trained(self, images, folder, progress).denoiser.eval()
        judge = judge_of(in_gray(images), progress, 40 if quick else 600)
        accuracy = judge.accuracy(in_gray(test))
        test = test._replace(k=test.k[: 6 if quick else self.count], label=test.label[: 6 if quick else self.count])
        methods, truth = self.methods(denoiser, deviation_of(images)), test.k.float() / (test.quantization.levels - 1)
        results: dict[str, dict[str, float]] = {}
        panels: dict[str, Tensor] = {}
        for number, problem in enumerate(problems(test.shape)):
            y = problem.operator(centered(test.quantization, test.k))
            y = y + self.noise * normal_like(y, torch.Generator().manual_seed(number))
            made = {"measurement": (problem.operator.pseudo_inverse(y), 0)}
            for name, make in methods.items():
                sampler = make(problem.operator, y.to(device_of(denoiser)))
                source = Streams(number, torch.arange(len(test.k)))
                with counted(sampler.denoiser) as count:
                    x = sampler(shape=test.k.shape, steps=self.sampling_steps, generator=source, progress=progress)
                made[name] = x.cpu(), count.calls
            for name, (x, evaluations) in made.items():
                k = self.levels(test.quantization, x)
                results[f"{problem.name}, {name}"] = {
                    "psnr": psnr(k, test.k, test.quantization),
                    "residual": float(
                        problem.operator.residual(y, x).square().sum().div(len(y) * problem.numbers).sqrt()
                    ),
                    "agreement": judge.agreement(in_gray(test._replace(k=k)).k, test.label),
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
        """The table as Markdown, with what its columns are."""
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
            f"# Linear inverse problems\n\n{len(test.k)} held-out images of {'x'.join(map(str, test.shape))}, one unconditional model, "
            f"{self.sampling_steps} ancestral steps. The images lie in [{test.quantization.low:g}, {test.quantization.high:g}], and the noise of their "
            f"measurements has a standard deviation of {self.noise:g}: a sample of the posterior has an RMSE of about that. The row of the "
            f"measurement is `A^+ y`. The label is read from the mean of the channels, by a classifier that is right on {accuracy:.2f} of "
            "all held-out images. Evaluations are the network's for one image; beside them DPS and Pi-GDM pull one vector back through it "
            f"at each step, moment matching {self.iterations}; DPS through the clamp of x_0 to the range of the data, others without it."
            f"\n\n![Linear inverse problems](figure.png)\n\n{table(head, rows)}\n"
        )


def problems(shape: tuple[int, ...]) -> list[Problem]:
    """Right half missing, grey, half the size, and a quarter as many numbers as the image has, each a random sum of
    all.
    """
    channels, height, width = shape
    size, seen = math.prod(shape), torch.arange(width) < width // 2
    rows = min(size // 4, 1024)
    matrix = torch.randn(rows, size, generator=torch.Generator().manual_seed(0)) / math.sqrt(size)
    return [
        Problem("inpainting", Masked(seen), channels * height * int(seen.sum())),
        Problem("colourisation", Gray(torch.full((channels,), 1 / channels)), height * width),
        Problem("super-resolution", Averaged(2), size // 4),
        Problem("random sums", Dense(matrix, shape), rows),
    ]


def palette(classes: int) -> Tensor:
    """`(classes, 3)` colours of evenly spaced hues, all of mean 1/2: grey does not tell them."""
    hue = 2 * math.pi * torch.arange(classes)[:, None] / classes
    return 0.5 + 0.4 * torch.cos(hue - 2 * math.pi * torch.arange(3) / 3)


def tinted(images: ImageDataset) -> ImageDataset:
    """Grey images times the colour of their label; others as they are.

    Raises:
        UsageError: for grey images without labels.
    """
    if images.shape[0] != 1:
        return images
    if images.label is None:
        raise UsageError(
            "grey images are tinted by their label, and these have none: take a set with labels, or images in colour"
        )
    colors = palette(len(images.names or ()) or int(images.label.max()) + 1)[images.label][:, :, None, None]
    return images._replace(k=torch.round(images.k * colors).to(torch.uint8))


def in_gray(images: ImageDataset) -> ImageDataset:
    """The mean of the channels, as levels of one."""
    return images._replace(k=torch.round(images.k.float().mean(1, keepdim=True)).to(torch.uint8))


def centered(quantization: Quantization, k: Tensor) -> Tensor:
    """Levels at the centres of the cells over which training spreads them."""
    return quantization.low + quantization.cell * (k.float() + 0.5)


def deviation_of(images: ImageDataset) -> float:
    """Root mean square of what differs from the mean image, in the units of the model."""
    x = centered(images.quantization, images.k)
    return float((x - x.mean(0)).square().mean().sqrt())


def psnr(k: Tensor, truth: Tensor, quantization: Quantization) -> float:
    """Peak signal-to-noise ratio of all pixels together, dB."""
    unit = (k.float() - truth.float()) / (quantization.levels - 1)
    return -10 * math.log10(max(float(unit.square().mean()), 1e-12))


def hue_error(k: Tensor, truth: Tensor) -> Tensor:
    """Angle between the hues of the mean colours of RGB images, `(N,)`, degrees from 0 to 180."""
    angles = []
    for of in (k, truth):
        red, green, blue = of.float().mean((2, 3)).unbind(1)
        angles.append(torch.atan2(math.sqrt(3) / 2 * (green - blue), red - (green + blue) / 2))
    apart = torch.rad2deg(angles[0] - angles[1])
    return ((apart + 180) % 360 - 180).abs()


def cifar10() -> InverseProblems:
    """CIFAR-10 in its own colours, with the network and training of Ho et al. (2020)."""
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, style="ddpm")
    training = Training(steps=800_000, learning_rate=2e-4, warmup=5000, ema=0.9999, watch_every=10_000)
    return InverseProblems(Data("uoft-cs/cifar10", 128, flip=True), network, training, 1000)


def celeba64() -> InverseProblems:
    """A folder of CelebA at 64 x 64, in it one folder for each label; the network is that of Song, Meng, Ermon.

    2020.
    """
    network = Network(128, (1, 2, 2, 2, 4), 2, (4,), 1, dropout=0.1, style="ddpm")
    training = Training(steps=500_000, learning_rate=2e-4, warmup=5000, ema=0.9999, watch_every=10_000)
    return InverseProblems(Data("celeba", 128, size=(64, 64), flip=True), network, training, 1000)


def digits() -> InverseProblems:
    """8 x 8 digits of 17 levels, tinted; the last noise is less than half of a cell."""
    return InverseProblems(
        **common_settings.digits() | {"data": Data("digits", batch=64)}, time_power=1.5, t_last=0.01, tolerance=1e-3
    )


def mnist() -> InverseProblems:
    """28 x 28 digits of 256 levels, tinted."""
    return InverseProblems(**common_settings.mnist() | {"sampling_steps": 250})


def smoke() -> InverseProblems:
    """Seconds, to see that the whole path runs."""
    return InverseProblems(**common_settings.smoke() | {"data": Data("digits", batch=16)}, tolerance=0.1)
