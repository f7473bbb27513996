"""Structured denoising diffusion in discrete state spaces, on text (Austin et al. 2021, arXiv 2107.03006)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...discrete import Absorbing, Marginal, NearestNeighbor, Product, Uniform, reciprocal, residual
from ...shared.errors import UsageError
from ...shared.networks import DiT, Transformer
from ...shared.progress import Progress, silent
from ...shared.serialization import serializable
from ...shared.training import Training
from ..categorical import CategoricalRecipe
from ..categorical_builders import context_neighbors, with_mutual_information
from ..parts import Part, parameters_of, part
from ..recipe import Figure
from ..studies.text_comparison import compare
from ..text_data import Text
from . import mdlm, sedd, settings, udlm
from .d3pm_images import loss, steps_of


@serializable("experiments.TextComparison")
@dataclass(frozen=True)
class TextComparison(Figure):
    """Bits/char of D3PM's transitions, MDLM, SEDD and UDLM after equal training time (as table 1 and later)."""

    seconds_per_model: float | None = None
    """Processor time in seconds for the training of each model, such as 240; None trains for --training.steps."""
    measured: tuple[int, int] = (400, 200)
    """Number of held-out windows that are coded with each model, and of samples that are drawn."""
    neighbors: int = 5
    """Number of neighbors of each token, for the model with nearest neighbors."""

    def __post_init__(self) -> None:
        if self.seconds_per_model is not None and not self.seconds_per_model > 0:
            raise UsageError(
                f"seconds_per_model={self.seconds_per_model}: give a positive number of seconds, or None to train for "
                "--training.steps"
            )
        if min(self.measured) < 1:
            raise UsageError(f"measured={self.measured}: give a positive number of windows, and of samples")

    def draw(self, recipe: CategoricalRecipe, folder: Path, progress: Progress = silent) -> Path:
        if not isinstance(recipe.data, Text) or recipe.data.tokenizer is not None:
            raise UsageError("the comparison has n-gram models of characters as baselines: leave out --data.tokenizer")
        return compare(
            self.models(recipe),
            folder,
            progress,
            seconds=self.seconds_per_model,
            windows=self.measured[0],
            samples=self.measured[1],
        )

    def models(self, recipe: CategoricalRecipe) -> dict[str, CategoricalRecipe]:
        """Returns the models by name, with the data, the training and the size of the network of a recipe."""
        steps = steps_of(recipe, recipe.load().quantization)
        shared = {
            "data": recipe.data,
            "training": recipe.training,
            "sampling_steps": recipe.sampling_steps,
            "code_length": recipe.code_length,
        }
        rotary = Part(DiT, tuple(given for given in recipe.network.arguments if given[0] in parameters_of(DiT)))
        nearest = part(NearestNeighbor, neighbors=part(context_neighbors, count=self.neighbors))
        information = replace(recipe, loss=loss(0.0), reverse=Marginal(), head=residual)
        return {
            "D3PM absorbing": replace(
                recipe, transition=part(Absorbing, schedule=part(reciprocal, steps=steps)), loss=loss(0.01)
            ),
            "D3PM nearest": replace(
                information, transition=part(with_mutual_information, transition=nearest, steps=steps)
            ),
            "D3PM uniform": replace(
                information, transition=part(with_mutual_information, transition=part(Uniform), steps=steps)
            ),
            "MDLM": replace(mdlm.MODEL, network=rotary.changed(timed=False), **shared),
            "SEDD absorbing": replace(sedd.MODEL, network=rotary, **shared),
            "UDLM": replace(udlm.MODEL, network=recipe.network, **shared),
        }


MODEL = CategoricalRecipe(
    transition=part(Absorbing, schedule=part(reciprocal, steps=1000)),
    reverse=Product(),
    loss=loss(0.01),
    figure=TextComparison(),
)
"""Absorbing transitions in 1000 steps.

The paper adds the cross-entropy for absorbing transitions only. Where tokens are not masked, the exact reverse model
`Marginal()` trains faster than the published `Product()`.
"""
PUBLISHED = replace(
    MODEL,
    network=part(Transformer, width=768, depth=12, heads=12, hidden=3072),
    training=Training(steps=1_000_000, learning_rate=5e-4, warmup=10_000, clip=1.0, ema=0.9999, watch_every=10_000),
    sampling_steps=1000,
)
"""The published network and training."""


def text8() -> CategoricalRecipe:
    """text8, absorbing, lambda 0.01: 1.45 bits/char at 1000 steps, 1.47 at 256, 1.56 at 20.

    Uniform 1.61, nearest neighbors 1.59: --transition "with-mutual-information(transition=Uniform)"
    and "with-mutual-information(transition=NearestNeighbor(neighbors=context-neighbors))", without the cross-entropy
    --loss.objective "D3PMLoss(ce=0)".
    """
    return replace(PUBLISHED, data=Text("text8", 512, 256))


def lm1b() -> CategoricalRecipe:
    """LM1B, 8192 tokens (train_tokenizer, saved as lm1b.json), packed in windows of 128.

    Perplexity per word 76.9 at 1000 steps with absorbing transitions, 137.9 with uniform ones.
    """
    return replace(PUBLISHED, data=Text("lm1b", 512, 128, tokenizer="lm1b.json"))


def chain() -> CategoricalRecipe:
    """A Markov chain on 27 tokens, whose entropy is known.

    The comparison takes four minutes on one core for each model.
    """
    return replace(MODEL, **settings.chain(), figure=TextComparison(seconds_per_model=240))


def shakespeare() -> CategoricalRecipe:
    """Shakespeare as 27 characters, in windows of 128; the comparison takes seven minutes of one core a model."""
    figure = TextComparison(seconds_per_model=400, measured=(200, 60))
    return replace(MODEL, **settings.shakespeare(), figure=figure)


def smoke() -> CategoricalRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    return replace(
        MODEL,
        **settings.smoke_text(),
        transition=part(Absorbing, schedule=part(reciprocal, steps=100)),
        figure=TextComparison(measured=(8, 8)),
    )
