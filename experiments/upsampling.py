"""Super-resolution, one stage of a cascade (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021; Ho et al. 2021).

The small image is resized and concatenated to the input of the network. A cascade is a model of small images followed
by this one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..continuous import Ancestral, Clipped, Hybrid, Learned, Tabulated, VariationalBound, learned_range, linear_betas
from ..shared.data import Batches, ImageDataset
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from . import common_settings
from .evaluation import labels_of
from .experiment import CodeLengthOf, at_most
from .images import Chain, Data, Network
from .reproduce import Study, trained


@serializable("experiments.Upsampler", formerly="unnoise.experiments.upsampling.Upsampler")
@dataclass(frozen=True)
class Upsampler(Chain):
    """A DDPM with learned variance and the hybrid loss, conditioned on the image at a fraction of its size."""

    factor: int = 4
    """Factor by which the small image is smaller in height and width, such as 4."""
    steps: int = 1000
    """Number of steps of the diffusion, T, such as 1000."""
    first_beta: float = 1e-4
    """First beta of the linear table at T = 1000, such as 1e-4; for other T it is scaled by 1000 / T."""
    bound_terms: int = 100
    """Number of terms of the bound that are evaluated for each image, stratified over the steps, such as 100."""

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)
        if self.factor < 2 or self.data.classes is not None or self.data.flip:
            raise UsageError(
                f"factor={self.factor}, classes={self.data.classes}, flip={self.data.flip}: give a factor of 2 or "
                "more, classes=None and flip=False"
            )

    def small(self, quantization: Quantization, k: Tensor) -> Tensor:
        """Returns the small images, real-valued: means over squares of `factor` x `factor` pixels."""
        if any(size % self.factor for size in k.shape[2:]):
            raise UsageError(
                f"factor={self.factor}: the size of the images, {'x'.join(map(str, k.shape[2:]))}, cannot be divided "
                "by it: give a divisor of both"
            )
        return F.avg_pool2d(quantization.continuous(k), self.factor)

    def batches(self, images: ImageDataset) -> Batches:
        conditions = {"image": torch.cat([self.small(images.quantization, part) for part in images.k.split(1000)])}
        return Batches(images.k, self.data.batch, images.quantization, self.form, conditions, self.data.seed)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        test = held_out(self.data)
        return {"image": self.small(test.quantization, test.k[rows.cpu() % len(test.k)]).to(rows.device)}

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        network = self.network.build(shape, outputs=2, image=shape[0])
        return Hybrid(
            Learned(network, Tabulated(linear_betas(self.steps, self.first_beta))), quantization, vlb=1 / self.steps
        )

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), learned_range)

    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> VariationalBound:
        return VariationalBound(Clipped(denoiser), quantization, variance=learned_range, terms=self.bound_terms)

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        bound = self.bound(denoiser, quantization)
        return lambda k, generator, progress: bound(
            quantization.continuous(k), generator=generator, progress=progress, image=self.small(quantization, k)
        )

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Held-out images from their small versions, compared with interpolation: error, true label, distance."""
        from ..shared.figures import save_panels

        study, test = Study(self, folder, progress), self.data.load("test", progress)
        denoiser, quantization = trained(self, study.images, folder, progress).denoiser, test.quantization
        count = min(study.samples, len(test.k))
        real, label = test.k[:count], labels_of(test)[:count]
        small = self.small(quantization, real)
        drawn, _ = study.run(self.sampler(denoiser), self.sampling_steps)
        made = {
            "real": real,
            "diffusion": drawn.levels[:count],
            "bilinear": quantization.quantize(
                F.interpolate(small, size=real.shape[2:], mode="bilinear", align_corners=False)
            ),
            "nearest": quantization.quantize(F.interpolate(small, size=real.shape[2:], mode="nearest")),
        }
        rows, results = [], {}
        for name, k in made.items():
            quality, unit = study.judge.quality(k), (k.float() - real.float()) / (quantization.levels - 1)
            psnr = -10 * math.log10(max(float(unit.square().mean()), 1e-12))
            back = float((self.small(quantization, k) - small).abs().mean() / quantization.spacing)
            results[name] = {
                "psnr": psnr,
                "agreement": study.judge.agreement(k, label),
                "frechet": quality.frechet,
                "consistency": back,
            }
            r = results[name]
            rows.append(
                [
                    name,
                    f"{psnr:.1f}" if name != "real" else "",
                    f"{back:.2f}",
                    f"{r['agreement']:.3f}",
                    f"{r['frechet']:.2f}",
                ]
            )
        panels = {"condition": quantization.quantize(F.interpolate(small, size=real.shape[2:], mode="nearest"))} | made
        save_panels(
            folder / "figure.png",
            {n: k[:60].float() / (quantization.levels - 1) for n, k in panels.items() if n != "nearest"},
            across=4,
        )
        head = [
            "images",
            "PSNR, dB",
            "error of the small version, quantization levels",
            "agreement with the true label",
            "Fréchet distance",
        ]
        text = f"Held-out images of {'x'.join(map(str, test.shape[1:]))} from {'x'.join(map(str, small.shape[2:]))}."
        return study.write("Super-resolution", text, head, rows, results)


@functools.lru_cache(maxsize=1)
def held_out(data: Data) -> ImageDataset:
    """Returns the held-out images, which are read only once."""
    return data.load("test")


def imagenet256() -> Upsampler:
    """ImageNet 64 to 256 (Dhariwal & Nichol 2021, table 5): FID 3.94 after a guided base model.

    The published model also has class labels.
    """
    network, data = (
        Network(192, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 4, variant="adm-heads"),
        Data("imagenet", 256, size=(256, 256)),
    )
    return Upsampler(data, network, common_settings.adm(500_000, 1e-4), 250)


def digits() -> Upsampler:
    """8 x 8 digits from 4 x 4."""
    return Upsampler(**common_settings.digits(data=Data("digits", batch=64)), factor=2, steps=100, first_beta=4e-4)


def mnist() -> Upsampler:
    """28 x 28 digits from 7 x 7."""
    return Upsampler(**common_settings.mnist(data=Data("mnist5k", batch=128), sampling_steps=250))


def smoke() -> Upsampler:
    """A test of a few seconds that every part of the recipe runs."""
    return Upsampler(**common_settings.smoke(data=Data("digits", batch=16)), factor=2, steps=100, bound_terms=4)
