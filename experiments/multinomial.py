"""Argmax flows and multinomial diffusion (Hoogeboom et al. 2021, arXiv 2102.05379)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..discrete import Ancestral, Categorical, CategoricalDenoiser, D3PMLoss, ImportanceSampling, Uniform, cosine
from ..shared.objective import Objective
from ..shared.quantization import Quantization
from ..shared.random import categorical
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .experiment import at_most
from .texts import Text, TextExperiment, TextNetwork


@serializable("experiments.Multinomial", formerly="unnoise.experiments.multinomial.Multinomial")
@dataclass(frozen=True)
class Multinomial(TextExperiment):
    """Uniform transitions on a cosine schedule, with importance sampling of the steps.

    The last sampling step draws x_0 and does not take its most probable value.
    """

    steps: int = 1000
    """Number of steps of the diffusion, T, such as 1000."""

    loss_unit = "L_n, nats/token"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[Any]:
        network = self.network.build(quantization.levels, shape[0], quantization.levels)
        return ImportanceSampling(
            D3PMLoss(Categorical(network, Uniform(quantization.levels, cosine(self.steps))), 0.0, padding=self.padding)
        )

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        return Ancestral(denoiser, last=categorical)


def text8() -> Multinomial:
    """text8, windows of 256: 1.72 bits/char; in the paper 8 of the 16 heads attend to 128 neighbors only."""
    training = Training(steps=1_000_000, learning_rate=1e-4, warmup=0, ema=0.9999, watch_every=10_000)
    return Multinomial(Text("text8", 32, 256), TextNetwork("t5", 512, 12, 16), training, 1000)


def shakespeare() -> Multinomial:
    """Shakespeare as 27 characters, in windows of 128."""
    return Multinomial(**common_settings.shakespeare())


def smoke() -> Multinomial:
    """A test of a few seconds that every part of the recipe runs."""
    return Multinomial(**common_settings.smoke_text(), steps=100)
