"""Discrete diffusion by estimating the ratios of the data distribution (Lou et al. 2024, arXiv 2310.16834).

The network predicts log probability ratios and is trained by score entropy.
"""

from __future__ import annotations

from dataclasses import replace

from ...discrete import Absorbing, ContinuousBound, LogLinearNoise, ScoreEntropyDenoiser
from ...shared.networks import DiT
from ...shared.objective import Stratified
from ...shared.training import Training
from ..categorical import CategoricalLoss, CategoricalRecipe
from ..parts import part
from ..text_data import Text
from . import settings

MODEL = CategoricalRecipe(
    transition=part(Absorbing, schedule=LogLinearNoise()),
    denoiser=part(ScoreEntropyDenoiser),
    loss=CategoricalLoss(objective=part(ContinuousBound), times=Stratified()),
)
"""Absorbing transitions in continuous time."""
NETWORK = part(DiT, width=768, depth=12, heads=12, dropout=0.1)
"""The published network, which MDLM and UDLM use too."""


def training(steps: int) -> Training:
    """Returns the published training, which MDLM and UDLM use too."""
    return Training(steps=steps, learning_rate=3e-4, warmup=2500, clip=1.0, ema=0.9999, watch_every=10_000)


def owt() -> CategoricalRecipe:
    """OpenWebText, GPT-2 tokens (give --data.tokenizer), windows of 1024.

    Perplexity at most 24.10 per token, according to the table of MDLM.
    """
    data = Text("Skylion007/openwebtext", 512, 1024, tokenizer="gpt2.json")
    return replace(MODEL, data=data, network=NETWORK, training=training(1_300_000), sampling_steps=128)


def text8() -> CategoricalRecipe:
    """text8, windows of 256: 1.39 bits/char with absorbing transitions.

    1.47 with uniform ones, --transition "Uniform(schedule=GeometricNoise)".
    """
    return replace(
        MODEL, data=Text("text8", 512, 256), network=NETWORK, training=training(1_000_000), sampling_steps=128
    )


def shakespeare() -> CategoricalRecipe:
    """Shakespeare as 27 characters, in windows of 128."""
    return replace(MODEL, **settings.shakespeare(part(DiT, width=128, depth=4, heads=4)))


def smoke() -> CategoricalRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(MODEL, **settings.smoke_text(part(DiT, width=16, depth=1, heads=2)))
