"""Recipes of categorical diffusion, of quantized images and of text: D3PM, MDLM, SEDD, tauLDR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from ..discrete import (
    Ancestral,
    Categorical,
    CategoricalDenoiser,
    ClassifierFree,
    D3PMLoss,
    NearestNeighbor,
    RateCorrector,
    ReverseModel,
    Transition,
    Uniform,
    cosine,
    direct,
    logistic,
)
from ..discrete.heads import Head
from ..shared.errors import UsageError
from ..shared.gaussian.guidance import ConditionDropout
from ..shared.networks import UNet
from ..shared.objective import Objective, TimeSampling, independent
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from ..shared.values import notation
from .caption_data import refuse_encoder_without_captions
from .catalog import Catalog
from .categorical_builders import with_absolute_paths
from .categorical_parts import CATEGORICAL
from .code_lengths import CodeLengthOf, TokenBound
from .image_data import Images
from .parts import Context, Part, built, part, refuse_untaken
from .recipe import Data, Figure, NoFigure, Recipe


@serializable("experiments.CategoricalLoss")
@dataclass(frozen=True, kw_only=True)
class CategoricalLoss:
    """The loss of a categorical recipe."""

    objective: Part[Objective] = part(D3PMLoss)
    """Objective, such as D3PMLoss(ce=0.001), ContinuousBound or CrossEntropy."""
    times: TimeSampling = independent
    """Distribution of the training times, such as independent or Stratified(power=1)."""
    drop_label: float = 0.0
    """Probability that the class label of a training example is dropped, such as 0.1, for classifier-free guidance."""
    drop_caption: float = 0.0
    """Probability that the caption of a training example is dropped, such as 0.1, for classifier-free guidance."""
    __repr__ = notation

    def built(self, denoiser: CategoricalDenoiser, padding: int | None) -> Objective[CategoricalDenoiser]:
        """Returns the objective of a denoiser; the padding token is left out."""
        context = Context(denoiser=denoiser, times=self.times, padding=padding)
        objective = built(self.objective, context)
        refuse_untaken(self.objective, context, {"times": independent, "padding": None})
        for p, condition in ((self.drop_label, "label"), (self.drop_caption, "tokens")):
            objective = ConditionDropout(objective, p=p, condition=condition) if p else objective
        return objective


class CategoricalRun(Recipe[CategoricalDenoiser]):
    """The base class of runs of categorical denoisers: how they are sampled and measured."""

    catalog: ClassVar[Catalog] = CATEGORICAL
    shorthands: ClassVar[Mapping[str, str]] = {"schedule": "transition.schedule"}
    sampler: Part[Sampler]
    guidance: Part[ClassifierFree] | None
    code_length: TokenBound

    @property
    def kind(self) -> str:
        return self.code_length.kind

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.quantized(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return x

    def sampler_of(self, denoiser: CategoricalDenoiser) -> Sampler:
        context = Context(denoiser=denoiser, condition=self.data.guided_condition)
        guided = denoiser if self.guidance is None else built(self.guidance, context)
        sampler = built(self.sampler, Context(denoiser=guided))
        if isinstance(sampler, RateCorrector):
            raise UsageError(
                f"{self.sampler} is a corrector, which does not move in time: give "
                f"PredictorCorrector(predictor=TauLeaping(), corrector={self.sampler})"
            )
        return sampler

    def grid(self, denoiser: CategoricalDenoiser, steps: int) -> int | Tensor:
        return steps

    def code_length_of(self, denoiser: CategoricalDenoiser, quantization: Quantization) -> CodeLengthOf:
        return self.code_length.of(denoiser, self.data.padding)


@serializable("experiments.CategoricalRecipe")
@dataclass(frozen=True, kw_only=True)
class CategoricalRecipe(CategoricalRun):
    """A model of categorical diffusion: how it is trained, sampled and measured."""

    data: Data = field(default_factory=Images)
    """The data."""
    network: Part[nn.Module] = part(UNet, width=32, multipliers=(1, 2, 2), blocks=1, heads=4)
    """Network; the data determine its shape, vocabulary and classes."""
    transition: Part[Transition] = part(Uniform, schedule=part(cosine, steps=1000))
    """Transition, such as Uniform(schedule=cosine(steps=1000)), Absorbing(schedule=LogLinearNoise), or a .npy file.
    The file has one matrix (K, K), or a table (T, K, K)."""
    reverse: ReverseModel | None = None
    """How p(x_0) gives the distribution of x_s: Product, as published with D3PM, or Marginal, exact.
    None for Product."""
    head: Head = direct
    """What the output of the network stands for, such as direct (logits), residual, carried or logistic."""
    denoiser: Part[CategoricalDenoiser] = part(Categorical)
    """Denoiser around the network: Categorical, or ScoreEntropyDenoiser for log probability ratios."""
    loss: CategoricalLoss = CategoricalLoss()
    """The loss."""
    sampler: Part[Sampler] = part(Ancestral)
    """Sampler, such as Ancestral, TauLeaping or Unmasking."""
    sampling_steps: int = 100
    """Number of steps of the sampler."""
    guidance: Part[ClassifierFree] | None = None
    """Guidance of the sampler, such as ClassifierFree(w=0.5), w = 0 without guidance; None for none.
    It strengthens the class label, or the caption for data with captions and without classes."""
    code_length: TokenBound = TokenBound()
    """Code length, TokenBound(terms=100)."""
    training: Training = field(default_factory=Training)
    """Settings of the training."""
    figure: Figure = NoFigure()
    """Settings of the figure of the paper."""
    __repr__ = notation

    @property
    def loss_unit(self) -> str:
        return "nats/dim"

    @property
    def bytes_per_logit(self) -> int:
        """Approximate memory of a training step, in bytes for each logit; matrices of neighbors are float64."""
        return 150 if NearestNeighbor in self.transition.constructors() else 16

    def self_contained(self) -> Self:
        return replace(super().self_contained(), transition=with_absolute_paths(self.transition))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.real_valued:
            raise UsageError(
                f"{type(self.data).__name__} are real-valued, and a categorical model is of quantization levels or "
                "tokens: take a Gaussian recipe, such as ddpm-digits, or other data"
            )
        if self.data.augment_labels:
            raise UsageError(
                "data.augment is for real-valued images, and a categorical model is of quantization levels: give "
                "--data.augment 0, or take a Gaussian recipe"
            )

    def transition_of(self, quantization: Quantization) -> Transition:
        """Returns the transition between the quantization levels or tokens of the data."""
        return built(self.transition, Context(self.data.later(), categories=quantization.levels))

    def network_of(self, shape: tuple[int, ...], transition: Transition) -> nn.Module:
        """Returns the network for examples of a shape, with the states of the transition as input."""
        levels, states = transition.categories, transition.states
        given: dict[str, Any] = {"classes": self.classes}
        if len(shape) == 1:
            sizes = {"vocabulary": states, "length": shape[0], "outputs": 2 if self.head is logistic else levels}
        else:
            logits = 2 if self.head is logistic else None if states == levels else levels
            refuse_encoder_without_captions(self.network, of_captions := self.data.caption_sizes())
            sizes = {"categories": states, "logits": logits} | of_captions
        context = Context(shape=shape, **sizes, **given)
        network = built(self.network, context)
        if isinstance(self.network, Part):
            refuse_untaken(self.network, context, {"classes": None}, REMEDIES)
        return network

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        transition = self.transition_of(quantization)
        context = Context(
            network=self.network_of(shape, transition), transition=transition, reverse=self.reverse, head=self.head
        )
        denoiser = built(self.denoiser, context)
        refuse_untaken(self.denoiser, context, {"reverse": None, "head": direct})
        self.refuse_unfit(denoiser, quantization)
        return self.loss.built(denoiser, self.data.padding)


REMEDIES = {"classes": "give data.classes=None, or a network with the argument classes"}
"""What to give where a network has no argument for a setting of the recipe."""
