"""Uniform-noise diffusion language models (Schiff et al. 2024, arXiv 2412.10193).

`Product` reads the network's output as the leave-one-out posterior, the distribution of a token given the others.
"""

from __future__ import annotations

from dataclasses import replace

from ...discrete import Ancestral, ContinuousBound, LogLinearNoise, Product, Uniform
from ...shared.networks import DiT
from ...shared.objective import Stratified
from ...shared.random import categorical
from ..categorical import CategoricalLoss, CategoricalRecipe
from ..parts import part
from ..text_data import Text
from . import sedd, settings

MODEL = CategoricalRecipe(
    transition=part(Uniform, schedule=LogLinearNoise()),
    reverse=Product(),
    loss=CategoricalLoss(objective=part(ContinuousBound), times=Stratified()),
    sampler=part(Ancestral, last=categorical),
)
"""Uniform transitions in continuous time."""


def text8() -> CategoricalRecipe:
    """text8, windows of 256."""
    return replace(
        MODEL,
        data=Text("text8", 512, 256),
        network=sedd.NETWORK,
        training=sedd.training(1_000_000),
        sampling_steps=1000,
    )


def chain() -> CategoricalRecipe:
    """A Markov chain on 27 tokens, whose entropy is known; training takes four minutes on one core."""
    return replace(MODEL, **settings.chain())


def shakespeare() -> CategoricalRecipe:
    """Shakespeare as 27 characters, in windows of 128."""
    return replace(MODEL, **settings.shakespeare(part(DiT, width=128, depth=4, heads=4)))


def smoke() -> CategoricalRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(MODEL, **settings.smoke_text(part(DiT, width=16, depth=1, heads=2)))
