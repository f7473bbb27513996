"""A continuous time framework for discrete denoising models (Campbell et al. 2022, arXiv 2205.14987).

The network is that of DDPM, as in `d3pm_images`; that of the paper also scales its residual sums by 1 / sqrt(2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..discrete import (
    Categorical,
    CategoricalDenoiser,
    ContinuousBound,
    GaussianTarget,
    Marginal,
    RateCorrector,
    TauLeaping,
    direct,
    logistic,
)
from ..shared.objective import Objective, Stratified
from ..shared.quantization import Quantization
from ..shared.sampler import PredictorCorrector, Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .images import Data, Network, Quantized

HEADS = {"logistic": logistic, "direct": direct}


@serializable("experiments.TauLDR", formerly="unnoise.experiments.tauldr.TauLDR")
@dataclass(frozen=True)
class TauLDR(Quantized):
    """Local jumps in continuous time, sampled by tau-leaping with corrector steps."""

    reach: float = 6.0
    """Typical length of a jump, in quantization levels, such as 6."""
    width: float = 512.0
    """Width of the Gaussian distribution that sampling starts from, in quantization levels, such as 512."""
    ce: float = 0.001
    """Weight of the cross-entropy, which is added to the bound, such as 0.001."""
    head: Literal["logistic", "direct"] = "logistic"
    """Output of the network: mean and scale of a logistic distribution, or logits of the levels (direct)."""
    correctors: int = 0
    """Number of corrector steps after each step below t = 0.1; the better result of the paper has 10."""

    loss_unit = "CTMC bound + lambda CE, nats/dim"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        transition = GaussianTarget(quantization.levels, reach=self.reach, width=self.width)
        logits = 2 if self.head == "logistic" else None
        network = self.network.build(shape, categories=quantization.levels, classes=self.data.classes, logits=logits)
        denoiser = Categorical(network, transition, Marginal(), head=HEADS[self.head])
        return ContinuousBound(denoiser, self.ce, times=Stratified())

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        leaps = TauLeaping(denoiser)
        return PredictorCorrector(leaps, RateCorrector(denoiser, repeats=self.correctors)) if self.correctors else leaps


def cifar10() -> TauLDR:
    """CIFAR-10: IS 8.74, FID 8.10, 3.59 bits/dim at 500 steps of tau-leaping.

    IS 9.49, FID 3.74 with 10 corrector steps (--correctors 10).
    """
    training = Training(steps=2_000_000, learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.9999, watch_every=10_000)
    network = Network(128, (1, 2, 2, 2), 2, (2,), 1, dropout=0.1, variant="ddpm")
    return TauLDR(Data("uoft-cs/cifar10", 128, flip=True), network, training, 500)


def digits() -> TauLDR:
    """8 x 8 digits of 17 quantization levels."""
    return TauLDR(**common_settings.digits(sampling_steps=100), reach=2.0, width=34.0)


def smoke() -> TauLDR:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(TauLDR(**common_settings.smoke(), reach=2.0, width=34.0), bound_terms=4)
