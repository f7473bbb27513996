"""Ablations of the parts of a DDPM and of a D3PM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...continuous import (
    CosineBetas,
    LinearBetas,
    MinSNR,
    clean,
    noise,
    snr,
    velocity,
)
from ...discrete import (
    Absorbing,
    Marginal,
    Product,
    Uniform,
    cosine,
    linear,
    residual,
)
from ...shared.data import sparse_chain
from ..ablation import Ablation, Setup
from ..categorical import CategoricalRecipe
from ..code_lengths import Bound, TokenBound
from ..gaussian import GaussianRecipe
from ..papers import d3pm_images, d3pm_text, ddpm
from ..parts import Part, part
from .ablation_settings import STEPS, digits, text


def weight(value: Any) -> Callable[[Setup], Setup]:
    """Returns a change of the weight of the loss."""

    def change(setup: Setup) -> Setup:
        recipe = setup.recipe
        assert isinstance(recipe, GaussianRecipe)
        return replace(setup, recipe=replace(recipe, loss=replace(recipe.loss, weight=value)))

    return change


def ddpm_parts() -> Ablation:
    """Prediction x loss weight x schedule of a DDPM on digits."""
    base = replace(
        ddpm.OWN, **digits(300, code_length=Bound(terms=25), sampling_steps=25), schedule=LinearBetas(STEPS, 4e-4)
    )
    return Ablation(
        Setup(base, count=150, samples=300),
        {
            "predicts": {
                "noise": {"predicts": noise},
                "clean": {"predicts": clean},
                "velocity": {"predicts": velocity},
            },
            "weight": {"SNR": weight(snr), "own": weight(None), "min-SNR": weight(MinSNR(5.0))},
            "schedule": {
                "linear": {"schedule": LinearBetas(STEPS, 4e-4)},
                "cosine": {"schedule": CosineBetas(STEPS)},
            },
        },
        title="DDPM: prediction, loss weight and schedule",
        question=(
            "What the network predicts (noise, clean image or velocity), the weight of the squared error of x_0 (SNR, "
            "which is the simple loss of the noise; own, the plain error of the network's output; min-SNR with gamma "
            "5) and the noise schedule of a DDPM are varied together, on 8 x 8 digits."
        ),
        shows=(
            "Code length and sample quality ask for different losses. The SNR weight with the linear schedule, which "
            "spend most on low noise, have the shortest code lengths, and there predicting noise or velocity is the "
            "same within the errors. The cosine schedule and min-SNR, which spend it on high noise, are worse in "
            "bits/dim in every row, and have the smaller distances. Predicting the clean image with its own plain "
            "error gives code lengths up to 21 bits/dim, since errors at low noise hardly count in its loss; with "
            "min-SNR the same prediction has the smallest distance of all (4.7). For noise, the own weight is the SNR "
            "weight. Not shown: long trainings, in which the predictions come closer; losses of different weights in "
            "the picture of the training cannot be compared."
        ),
    )


def transition_of(build: Any, schedule: Part[Any]) -> Part[Any]:
    """Returns a transition on a schedule."""
    return part(build, schedule=schedule)


def on_schedule(make: Callable[[int], Part[Any]]) -> Callable[[Setup], Setup]:
    """Returns a change of the schedule of a transition, which keeps its kind."""

    def change(setup: Setup) -> Setup:
        recipe = setup.recipe
        assert isinstance(recipe, CategoricalRecipe)
        return replace(setup, recipe=replace(recipe, transition=recipe.transition.changed(schedule=make(STEPS))))

    return change


SCHEDULES: dict[str, Any] = {
    "cosine": on_schedule(lambda steps: part(cosine, steps=steps)),
    "linear": on_schedule(lambda steps: part(linear, steps=steps, start=0.1 / steps, stop=20 / steps)),
}


def cross_entropy(weight: float) -> dict[str, Any]:
    """Returns the levels of the weight lambda of the cross-entropy."""
    return {"0": {"loss": d3pm_images.loss(0.0)}, f"{weight:g}": {"loss": d3pm_images.loss(weight)}}


def d3pm_parts() -> Ablation:
    """Transition x reverse model x lambda of a D3PM on digits."""
    transitions = {
        "uniform": {"transition": d3pm_images.uniform(STEPS)},
        "absorbing": {"transition": d3pm_images.absorbing(STEPS)},
        "Gaussian": {"transition": d3pm_images.gaussian(STEPS)},
    }
    settings = digits(200, code_length=TokenBound(terms=25), sampling_steps=25)
    base = replace(d3pm_images.MODEL, **settings, head=residual)
    reverse = {"product": {"reverse": Product()}, "marginal": {"reverse": Marginal()}}
    return Ablation(
        Setup(base, count=150, samples=300),
        {"transition": transitions, "reverse": reverse, "lambda": cross_entropy(0.02)},
        title="D3PM on digits: transition, reverse model and cross-entropy",
        question=(
            "The transition matrices, the reverse model (product, as published, or marginal, exact) and the weight "
            "lambda of the cross-entropy in the hybrid loss of a D3PM in 100 steps are varied together, on 8 x 8 "
            "digits of 17 quantization levels. The schedules are those of the paper: cosine for uniform transitions, "
            "reciprocal for absorbing ones, linear for discretized Gaussian ones."
        ),
        shows=(
            "After a short training of 200 steps absorbing transitions have the shortest code lengths of digits, and "
            "uniform ones the longest. The exact reverse model (marginal) costs uniform and Gaussian transitions about "
            "two bits/dim, since the network itself then has to say what x_t tells of x_0; for absorbing transitions, "
            "where a pixel is known or not, both reverse models are alike. The samples say otherwise: Gaussian "
            "transitions with the exact reverse model have the smallest distance. The cross-entropy makes no "
            "difference that three seeds can tell. Not shown: the order after a long training; in the paper's table, "
            "of CIFAR-10, Gaussian transitions have the shortest code lengths, and absorbing ones follow."
        ),
    )


def d3pm_text_parts() -> Ablation:
    """Transition x lambda x schedule of a D3PM on a Markov chain of known entropy."""
    base = replace(d3pm_text.chain(), **text(300), reverse=Marginal())
    kinds = {"uniform": Uniform, "absorbing": Absorbing}
    transitions = {n: {"transition": part(build, schedule=part(cosine, steps=STEPS))} for n, build in kinds.items()}
    return Ablation(
        Setup(base, count=200, samples=100),
        {"transition": transitions, "lambda": cross_entropy(0.01), "schedule": SCHEDULES},
        measures=("bits_per_token", "generative_perplexity_per_token_5_gram", "sample_entropy_bits"),
        title="D3PM on text of known entropy: transition, cross-entropy and schedule",
        question=(
            "Transition, weight lambda of the cross-entropy and schedule of a D3PM in 100 steps with the exact reverse "
            "model, on windows of 64 tokens of a Markov chain on 27 tokens. A window has "
            f"{chain_entropy():.3f} bits/token, below which no model can be."
        ),
        shows=(
            "Absorbing transitions are nearer to the entropy than uniform ones in every row (2.02 beside 2.31 "
            "bits/token), the cosine schedule is better than the linear one, and a cross-entropy of weight 0.01 helps "
            "a little, uniform transitions more than absorbing ones. By the perplexity of samples under an n-gram "
            "model three seeds tell nothing apart: its deviation between seeds is a third of its mean. Not shown: "
            "trained models; 0.2 bits/token above the entropy are those of 300 steps."
        ),
    )


def chain_entropy() -> float:
    """Returns the entropy of windows of the Markov chain, in bits for each token."""
    return sparse_chain().entropy(64) / 64
