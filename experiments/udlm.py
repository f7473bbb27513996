"""Uniform-noise diffusion language models (Schiff et al. 2024, arXiv 2412.10193)."""

from __future__ import annotations

from dataclasses import dataclass

from ..discrete import Ancestral, Categorical, CategoricalDenoiser, ContinuousBound, LogLinearNoise, Product, Uniform
from ..shared.objective import Objective, Stratified
from ..shared.quantization import Quantization
from ..shared.random import categorical
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .texts import Text, TextExperiment, TextNetwork


@serializable("experiments.UDLM", formerly="unnoise.experiments.udlm.UDLM")
@dataclass(frozen=True)
class UDLM(TextExperiment):
    """Uniform transitions in continuous time.

    `Product` reads the network's output as the leave-one-out posterior, the distribution of a token given the others.
    """

    eps: float = 1e-3
    """Probability that a token is still unchanged at t = 1, such as 0.001."""

    loss_unit = "bound, nats/token"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        transition = Uniform(quantization.levels, LogLinearNoise(self.eps))
        network = self.network.build(transition.states, shape[0], quantization.levels)
        return ContinuousBound(Categorical(network, transition, Product()), times=Stratified(), padding=self.padding)

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        return Ancestral(denoiser, last=categorical)


def text8() -> UDLM:
    """text8, windows of 256."""
    training = Training(steps=1_000_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    return UDLM(Text("text8", 512, 256), TextNetwork("dit", 768, 12, 12, dropout=0.1), training, 1000)


def chain() -> UDLM:
    """A Markov chain on 27 tokens, whose entropy is known; training takes four minutes on one core."""
    return UDLM(**common_settings.chain())


def shakespeare() -> UDLM:
    """Shakespeare as 27 characters, in windows of 128."""
    return UDLM(**common_settings.shakespeare(TextNetwork("dit")))


def smoke() -> UDLM:
    """A test of a few seconds that every part of the recipe runs."""
    return UDLM(**common_settings.smoke_text(TextNetwork("dit", 16, 1, 2)))
