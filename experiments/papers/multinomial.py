"""Argmax flows and multinomial diffusion (Hoogeboom et al. 2021, arXiv 2102.05379).

The last sampling step draws x_0 and does not take its most probable value.
"""

from __future__ import annotations

from dataclasses import replace

from ...discrete import Ancestral, D3PMLoss, ImportanceSampling, Uniform, cosine
from ...shared.networks import Transformer
from ...shared.random import categorical
from ...shared.training import Training
from ..categorical import CategoricalLoss, CategoricalRecipe
from ..parts import part
from ..text_data import Text
from . import settings

MODEL = CategoricalRecipe(
    transition=part(Uniform, schedule=part(cosine, steps=1000)),
    loss=CategoricalLoss(objective=part(ImportanceSampling, objective=part(D3PMLoss, ce=0.0))),
    sampler=part(Ancestral, last=categorical),
)
"""Uniform transitions on a cosine schedule, with importance sampling of the steps."""


def text8() -> CategoricalRecipe:
    """text8, windows of 256: 1.72 bits/char; in the paper 8 of the 16 heads attend to 128 neighbors only."""
    return replace(
        MODEL,
        data=Text("text8", 32, 256),
        network=part(Transformer, width=512, depth=12, heads=16),
        training=Training(steps=1_000_000, learning_rate=1e-4, warmup=0, ema=0.9999, watch_every=10_000),
        sampling_steps=1000,
    )


def shakespeare() -> CategoricalRecipe:
    """Shakespeare as 27 characters, in windows of 128."""
    return replace(MODEL, **settings.shakespeare())


def smoke() -> CategoricalRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(MODEL, **settings.smoke_text(), transition=part(Uniform, schedule=part(cosine, steps=100)))
