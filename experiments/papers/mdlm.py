"""Simple and effective masked diffusion language models (Sahoo et al. 2024, arXiv 2406.07524).

Cross-entropy at masked positions, weighted by the schedule. The network has no time input.
"""

from __future__ import annotations

from dataclasses import replace

from ...discrete import Absorbing, ContinuousBound, LogLinearNoise, Unmasking, carried
from ...shared.networks import DiT
from ...shared.objective import Stratified
from ..categorical import CategoricalLoss, CategoricalRecipe
from ..parts import part
from ..text_data import Text
from . import sedd, settings

MODEL = CategoricalRecipe(
    transition=part(Absorbing, schedule=LogLinearNoise()),
    head=carried,
    loss=CategoricalLoss(objective=part(ContinuousBound), times=Stratified()),
    sampler=part(Unmasking),
)
"""Absorbing transitions in continuous time."""
PUBLISHED = replace(
    MODEL, network=sedd.NETWORK.changed(timed=False), training=sedd.training(1_000_000), sampling_steps=1000
)
"""The published network and training."""


def owt() -> CategoricalRecipe:
    """OpenWebText, GPT-2 tokens (give --data.tokenizer), windows of 1024.

    Perplexity 23.21 per token after 262B tokens.
    """
    return replace(PUBLISHED, data=Text("Skylion007/openwebtext", 512, 1024, tokenizer="gpt2.json", layout="ends"))


def lm1b() -> CategoricalRecipe:
    """LM1B, lower-case bert-base-uncased tokens (give --data.tokenizer), padded to 128.

    Perplexity 27.04 per token after 33B tokens.
    """
    return replace(PUBLISHED, data=Text("lm1b", 512, 128, tokenizer="bert-base-uncased.json", layout="padded"))


def text8() -> CategoricalRecipe:
    """text8, windows of 256: about 1.40 bits/char."""
    return replace(PUBLISHED, data=Text("text8", 512, 256))


def shakespeare() -> CategoricalRecipe:
    """Shakespeare as 27 characters, in windows of 128."""
    return replace(MODEL, **settings.shakespeare(part(DiT, width=128, depth=4, heads=4, timed=False)))


def smoke() -> CategoricalRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(MODEL, **settings.smoke_text(part(DiT, width=16, depth=1, heads=2, timed=False)))
