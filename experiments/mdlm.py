"""Simple and effective masked diffusion language models (Sahoo et al. 2024, arXiv 2406.07524)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..discrete import Absorbing, Categorical, CleanDenoiser, ContinuousBound, LogLinearNoise, Unmasking, carried
from ..shared.objective import Objective, Stratified
from ..shared.quantization import Quantization
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from . import common_settings
from .texts import Text, TextExperiment, TextNetwork


@serializable("experiments.MDLM", formerly="unnoise.experiments.mdlm.MDLM")
@dataclass(frozen=True)
class MDLM(TextExperiment[CleanDenoiser]):
    """Absorbing transitions in continuous time: cross-entropy at masked positions, weighted by the schedule.

    The network has no time input.
    """

    eps: float = 1e-3
    """Probability that a token is still unmasked at t = 1, such as 0.001."""

    loss_unit = "weighted CE, nats/token"

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[Any]:
        transition = Absorbing(quantization.levels, LogLinearNoise(self.eps))
        network = self.network.build(transition.states, shape[0], quantization.levels)
        return ContinuousBound(Categorical(network, transition, head=carried), times=Stratified(), padding=self.padding)

    def sampler(self, denoiser: CleanDenoiser) -> Sampler:
        return Unmasking(denoiser)


def owt() -> MDLM:
    """OpenWebText, GPT-2 tokens (give --text.tokenizer), windows of 1024.

    Perplexity 23.21 per token after 262B tokens.
    """
    training = Training(steps=1_000_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    network = TextNetwork("dit", 768, 12, 12, dropout=0.1, timed=False)
    return MDLM(
        Text("Skylion007/openwebtext", 512, 1024, tokenizer="gpt2.json", layout="ends"), network, training, 1000
    )


def lm1b() -> MDLM:
    """LM1B, lower-case bert-base-uncased tokens (give --text.tokenizer), padded to 128.

    Perplexity 27.04 per token after 33B tokens.
    """
    training = Training(steps=1_000_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    network = TextNetwork("dit", 768, 12, 12, dropout=0.1, timed=False)
    return MDLM(Text("lm1b", 512, 128, tokenizer="bert-base-uncased.json", layout="padded"), network, training, 1000)


def text8() -> MDLM:
    """text8, windows of 256: about 1.40 bits/char."""
    training = Training(steps=1_000_000, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)
    return MDLM(Text("text8", 512, 256), TextNetwork("dit", 768, 12, 12, dropout=0.1, timed=False), training, 1000)


def shakespeare() -> MDLM:
    """Shakespeare as 27 characters, in windows of 128."""
    return MDLM(**common_settings.shakespeare(TextNetwork("dit", timed=False)))


def smoke() -> MDLM:
    """A test of a few seconds that every part of the recipe runs."""
    return MDLM(**common_settings.smoke_text(TextNetwork("dit", 16, 1, 2, timed=False)))
