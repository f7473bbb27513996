"""Discrete diffusion by estimating the ratios of the data distribution (Lou et al. 2024, arXiv 2310.16834)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..discrete import (
    Absorbing,
    Ancestral,
    CategoricalDenoiser,
    ContinuousBound,
    GeometricNoise,
    LogLinearNoise,
    ScoreEntropyDenoiser,
    Uniform,
)
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
    """Absorbing or uniform transitions; the network predicts log probability ratios and is trained by score entropy."""

    transition: Literal["absorbing", "uniform"] = "absorbing"
    """Transition matrix: absorbing (log-linear schedule), or uniform (geometric schedule from 1e-4 to 20)."""

    loss_unit = "score entropy, nats/token"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        absorbing = self.transition == "absorbing"
        transition = (
            Absorbing(quantization.levels, LogLinearNoise())
            if absorbing
            else Uniform(quantization.levels, GeometricNoise())
        )
        network = self.network.build(transition.states, shape[0], quantization.levels)
        denoiser = ScoreEntropyDenoiser(network, transition)
        return ContinuousBound(denoiser, times=Stratified(), padding=self.padding)

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        return Ancestral(denoiser)


def owt() -> SEDD:
    """OpenWebText, GPT-2 tokens (give --text.tokenizer), windows of 1024.

    Perplexity at most 24.10 per token, according to the table of MDLM.
    """
    training = Training(steps=1_300_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    network = TextNetwork("dit", 768, 12, 12, dropout=0.1)
    return SEDD(Text("Skylion007/openwebtext", 512, 1024, tokenizer="gpt2.json"), network, training, 128)


def text8() -> SEDD:
    """text8, windows of 256: 1.39 bits/char with absorbing transitions, 1.47 with --transition uniform."""
    training = Training(steps=1_000_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    return SEDD(Text("text8", 512, 256), TextNetwork("dit", 768, 12, 12, dropout=0.1), training, 128)


def shakespeare() -> SEDD:
    """Shakespeare as 27 characters, in windows of 128."""
    return SEDD(**common_settings.shakespeare(TextNetwork("dit")))


def smoke() -> SEDD:
    """A test of a few seconds that every part of the recipe runs."""
    return SEDD(**common_settings.smoke_text(TextNetwork("dit", 16, 1, 2)))
