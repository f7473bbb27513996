"""Discrete diffusion by estimating the ratios of the data distribution (Lou et al. 2024, arXiv 2310.16834)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..discrete import (
    Absorbing,
    Ancestral,
    ContinuousBound,
    GeometricNoise,
    LogLinearNoise,
    ScoreEntropyDenoiser,
    Uniform,
)
from ..shared.denoiser import Denoiser
from ..shared.objective import Objective, Stratified
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .texts import Text, TextExperiment, TextNetwork


@serializable("experiments.SEDD", formerly="unnoise.experiments.sedd.SEDD")
@dataclass(frozen=True)
class SEDD(TextExperiment):
    """The network gives log ratios and is trained by score entropy."""

    transition: Literal["absorbing", "uniform"] = "absorbing"
    """How text is destroyed: absorbing with the log-linear schedule, uniform with the geometric one from 1e-4 to 20."""

    loss_unit = "score entropy, nats/token"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        absorbing = self.transition == "absorbing"
        transition = (
            Absorbing(quantization.levels, LogLinearNoise())
            if absorbing
            else Uniform(quantization.levels, GeometricNoise())
        )
        network = self.network.build(transition.states, shape[0], quantization.levels)
        denoiser = ScoreEntropyDenoiser(network, transition)
        return ContinuousBound(denoiser, times=Stratified(), padding=self.padding)

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(denoiser)


def owt() -> SEDD:
    """OpenWebText, GPT-2 pieces (give --text.tokenizer), packed to 1024.

    At most 24.10 perplexity a token (of MDLM's table).
    """
    training = Training(steps=1_300_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    network = TextNetwork("dit", 768, 12, 12, dropout=0.1)
    return SEDD(Text("Skylion007/openwebtext", 512, 1024, tokenizer="gpt2.json"), network, training, 128)


def text8() -> SEDD:
    """text8, windows of 256: 1.39 bits/char by absorption, 1.47 by uniform resampling (--transition uniform)."""
    training = Training(steps=1_000_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    return SEDD(Text("text8", 512, 256), TextNetwork("dit", 768, 12, 12, dropout=0.1), training, 128)


def shakespeare() -> SEDD:
    """27 symbols of Shakespeare, 128 at a time."""
    return SEDD(**common_settings.shakespeare(TextNetwork("dit")))


def smoke() -> SEDD:
    """Seconds, to see that the whole path runs."""
    return SEDD(**common_settings.smoke_text(TextNetwork("dit", 16, 1, 2)))
