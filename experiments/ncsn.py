"""Noise-conditional score networks (Song & Ermon 2019, arXiv 1907.05600, and 2020, arXiv 2006.09011: NCSNv2).

Denoising score matching at a table of noise levels, and annealed Langevin dynamics from the largest to the smallest.
The presets of the 2020 paper train its RefineNet, all others a U-Net. Sampling starts from Gaussian noise of the
largest noise level; the published code starts from uniform noise on [0, 1], which makes no difference after that level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..sde import (
    AnnealedLangevin,
    CorrectorPredictor,
    DenoisingLoss,
    Learned,
    NoiseLevels,
    NoPredictor,
    ReverseDiffusion,
    best_epsilon,
    geometric_sigmas,
    largest_sigma,
    level_count,
    level_ratio,
    snr_of,
)
from ..shared.data import ImageDataset
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.dequantization import UniformDequantization
from ..shared.gaussian.prediction import scaled_score
from ..shared.networks import RefineNet
from ..shared.networks.adapters import CenteredInput
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.time_inputs import reversed_index
from ..shared.training import Training
from . import common_settings
from .experiment import CodeLengthOf, at_most
from .images import Data, Density, Network
from .reproduce import Study, Sweep, trained

REPEATS = (1, 2, 5, 10)
"""The numbers of Langevin steps at each noise level that `reproduce` compares."""


@serializable("experiments.NCSN", formerly="unnoise.experiments.ncsn.NCSN")
@dataclass(frozen=True)
class NCSN(Density):
    """Denoising score matching at geometric noise levels, for dequantized data in [0, 1]."""

    sampling_steps: int = 19
    """Number of noise levels that the sampler visits, at most --noise-levels."""
    low: float = 0.02
    """Smallest noise level sigma, for data in [0, 1], such as 0.01."""
    high: float = 4.53
    """Largest noise level sigma, for data in [0, 1], such as 50."""
    noise_levels: int = 19
    """Number of noise levels, in geometric progression, such as 232."""
    repeats: int = 5
    """Number of Langevin steps at each noise level, T of the paper."""
    epsilon: float = 9.5e-5
    """Step size e at the smallest noise level, as in the published code: x + e s + sqrt(2 e) z, such as 6.2e-6."""
    denoise: bool = True
    """Whether a last step removes the noise of the smallest noise level from the samples."""
    refinenet: bool = False
    """Whether the network is the RefineNet of NCSNv2, which has no time input.
    It uses only --network.width and --network.multipliers."""

    loss_unit = "sigma² MSE of the score"

    def __post_init__(self) -> None:
        geometric_sigmas(self.low, self.high, self.noise_levels)
        at_most("sampling_steps", self.sampling_steps, "noise_levels", self.noise_levels)
        if not 0 < self.epsilon < 2 * self.low**2:
            raise UsageError(
                f"epsilon={self.epsilon}: give a step size between 0 and {2 * self.low**2:g} = 2 low^2, above which "
                "the chain diverges"
            )

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return unit(quantization).dequantized(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return unit(quantization).cell_of(x)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        schedule = NoiseLevels(geometric_sigmas(self.low, self.high, self.noise_levels))
        if not self.refinenet:
            return DenoisingLoss.score_matching(Learned(self.network.build(shape, classes=self.data.classes), schedule))
        if self.data.classes is not None:
            raise UsageError(
                f"classes={self.data.classes}: the RefineNet has no class labels: give classes=None, or refinenet=False"
            )
        multipliers = self.network.multipliers
        dilations = (*(1,) * (len(multipliers) - 2), 2, 4)[-len(multipliers) :]
        network = CenteredInput(RefineNet(shape, self.network.width, multipliers, dilations))
        return DenoisingLoss.score_matching(Learned(network, schedule, scaled_score, reversed_index, scaled=False))

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return self.annealed(denoiser, self.repeats, self.epsilon, self.denoise)

    def annealed(self, denoiser: GaussianDenoiser, repeats: int, epsilon: float, denoise: bool) -> Sampler:
        """Returns the sampler with settings other than those of the recipe."""
        return CorrectorPredictor(
            NoPredictor(denoiser, denoise), AnnealedLangevin(denoiser, snr_of(epsilon, self.low), repeats)
        )

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        """Returns the code length by the probability flow from the smallest to the largest noise level.

        The prior is the noise of the largest noise level. The papers report no code length. The flow evaluates the
        network between its noise levels too.
        """
        return self.exact_code_length(denoiser, UniformDequantization(unit(quantization)))

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """Fréchet distance by Langevin steps at each noise level, with and without last denoising (2020, table 1)."""
        study = Study(self, folder, progress)
        denoiser = trained(self, study.images, folder, progress).denoiser
        ratio = (self.high / self.low) ** (1 / max(self.sampling_steps - 1, 1))
        runs: list[tuple[str, int, Sampler]] = []
        for denoise, name in ((False, "annealed Langevin"), (True, "annealed Langevin, denoised")):
            for repeats in sorted({*REPEATS, self.repeats}):
                epsilon = self.epsilon if repeats == self.repeats else best_epsilon(ratio, repeats, self.low)
                runs.append((name, repeats, self.annealed(denoiser, repeats, epsilon, denoise)))
        runs.append(("reverse diffusion", 0, ReverseDiffusion(denoiser)))
        sweep = Sweep(study, "sampler", "T, steps at each noise level")
        for name, repeats, sampler in runs:
            sweep.run(name, (name, str(repeats)), sampler, self.sampling_steps)
        text = (
            f"One model, {self.sampling_steps} noise levels from {self.high:g} down to {self.low:g}. The step sizes "
            f"follow the published rule for each T; for T = {self.repeats} epsilon is {self.epsilon:g}."
        )
        return sweep.write(
            "Annealed Langevin dynamics, with and without the last denoising", text, across=len(runs) // 2
        )


def unit(quantization: Quantization) -> Quantization:
    """Returns the quantization with data in [0, 1], as published."""
    return replace(quantization, low=0.0, high=1.0)


def by_the_rules(images: ImageDataset, low: float, repeats: int) -> dict[str, float]:
    """Returns high, noise_levels and epsilon for a data set, by techniques 1, 2 and 4 of the 2020 paper.

    The presets of small data sets contain these numbers.
    """
    high = largest_sigma((images.k.double() + 0.5) / images.quantization.levels)
    count = level_count(low, high, level_ratio(images.dims))
    epsilon = best_epsilon((high / low) ** (1 / (count - 1)), repeats, low)
    return {"high": high, "noise_levels": count, "epsilon": epsilon}


def training(steps: int, rate: float, ema: float) -> Training:
    """Returns the published training: Adam without gradient clipping or warm-up."""
    return Training(steps=steps, learning_rate=rate, warmup=0, clip=math.inf, ema=ema, watch_every=10_000)


def cifar10() -> NCSN:
    """CIFAR-10 (2019, table 1): FID 25.32, IS 8.87, without a last denoising and without averaged weights."""
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1)
    return NCSN(
        Data("uoft-cs/cifar10", 128, flip=True),
        network,
        training(200_000, 1e-3, 0.0),
        10,
        0.01,
        1.0,
        10,
        100,
        2e-5,
        denoise=False,
    )


def cifar10_v2() -> NCSN:
    """CIFAR-10 (2020, table 1): FID 10.87, IS 8.40; 31.75 and 8.73 without the last denoising."""
    network = Network(128, (1, 2, 2, 2))
    return NCSN(
        Data("uoft-cs/cifar10", 128, flip=True),
        network,
        training(300_000, 1e-4, 0.999),
        232,
        0.01,
        50.0,
        232,
        5,
        6.2e-6,
        refinenet=True,
    )


def celeba64_v2() -> NCSN:
    """A folder of CelebA, cropped to 140 x 140 beforehand and scaled to 64 x 64 (2020, table 1): FID 10.23.

    28.86 without the last denoising.
    """
    network = Network(128, (1, 2, 2, 2))
    data = Data("celeba", 128, size=(64, 64), flip=True)
    return NCSN(data, network, training(210_000, 1e-4, 0.999), 500, 0.01, 90.0, 500, 5, 3.3e-6, refinenet=True)


def lsun128_v2() -> NCSN:
    """A folder of LSUN Tower at 128 x 128; the paper reports no FID.

    epsilon follows the published rule, and the number of training steps is from memory.
    """
    network = Network(128, (1, 2, 2, 4, 4))
    data = Data("lsun", 128, size=(128, 128), flip=True)
    return NCSN(data, network, training(150_000, 1e-4, 0.999), 1086, 0.01, 190.0, 1086, 3, 1.8e-6, refinenet=True)


def digits() -> NCSN:
    """8 x 8 digits of 17 quantization levels; the smallest noise level is a third of a cell.

    The other numbers follow the published rules: `by_the_rules(Data("digits").load(), 0.02, 5)`.
    """
    return NCSN(**common_settings.digits(sampling_steps=19), tolerance=1e-3)


def mnist() -> NCSN:
    """28 x 28 digits of 256 quantization levels.

    The numbers follow the published rules: `by_the_rules(Data("mnist5k").load(), 0.01, 5)`.
    """
    return NCSN(
        **common_settings.mnist(sampling_steps=94),
        low=0.01,
        high=15.8,
        noise_levels=94,
        epsilon=1.11e-5,
        tolerance=1e-3,
    )


def smoke() -> NCSN:
    """A test of a few seconds that every part of the recipe runs."""
    return NCSN(**common_settings.smoke(), repeats=2, tolerance=0.1)
