"""Argmax flows and multinomial diffusion (Hoogeboom et al. 2021, arXiv 2102.05379)."""

from __future__ import annotations

from dataclasses import dataclass

from ..discrete import Ancestral, Categorical, D3PMLoss, ImportanceSampling, Uniform, cosine
from ..shared.denoiser import Denoiser
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
    """Uniform resampling on a cosine table, steps drawn by what they cost; the last step is drawn, not the argmax."""

    steps: int = 1000
    """T."""

    loss_unit = "L_n, nats/token"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        network = self.network.build(quantization.levels, shape[0], quantization.levels)
        return ImportanceSampling(
            D3PMLoss(Categorical(network, Uniform(quantization.levels, cosine(self.steps))), 0.0, padding=self.padding)
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(denoiser, last=categorical)


def text8() -> Multinomial:
    """text8, windows of 256: 1.72 bits/char; the paper's network has 8 of its 16 heads look at 128 neighbours only."""
    training = Training(steps=1_000_000, learning_rate=1e-4, warmup=0, ema=0.9999, watch_every=10_000)
    return Multinomial(Text("text8", 32, 256), TextNetwork("t5", 512, 12, 16), training, 1000)


def shakespeare() -> Multinomial:
    """27 symbols of Shakespeare, 128 at a time."""
    return Multinomial(**common_settings.shakespeare())


def smoke() -> Multinomial:
    """Seconds, to see that the whole path runs."""
    return Multinomial(**common_settings.smoke_text(), steps=100)
