"""Recipes of Gaussian diffusion: DDPM and its successors, score SDEs, EDM, flow matching."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ..continuous import Ancestral, LinearBetas
from ..continuous.posterior import ReverseVariance, large
from ..sde import AnnealedLangevin, FixedSteps, Langevin
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import Clipped, DenoiserWrapper, GaussianDenoiser, Learned
from ..shared.gaussian.guidance import ClassifierFree, ConditionDropout
from ..shared.gaussian.loss import DenoisingLoss
from ..shared.gaussian.prediction import Prediction, noise
from ..shared.gaussian.schedule import Schedule
from ..shared.gaussian.weights import OutputError, Weight, snr
from ..shared.networks import UNet
from ..shared.objective import Objective, TimeSampling, independent
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.standardization import Standardization
from ..shared.time_inputs import TimeInput, thousandths
from ..shared.training import Training
from ..shared.values import notation
from .caption_data import refuse_encoder_without_captions
from .catalog import Catalog
from .code_lengths import Bound, CodeLengthOf, GaussianCodeLength
from .gaussian_parts import GAUSSIAN
from .image_data import Images
from .parts import Context, Part, built, parameters_of, part, refuse_untaken, write
from .recipe import Data, Figure, NoFigure, Recipe
from .time_grids import Sections, Spacing, adaptive, even


@serializable("experiments.GaussianLoss")
@dataclass(frozen=True, kw_only=True)
class GaussianLoss:
    """The loss of a Gaussian recipe."""

    objective: Part[Objective[GaussianDenoiser]] = part(DenoisingLoss)
    """Objective, such as DenoisingLoss, Hybrid(vlb=0.001) or MaximumLikelihood."""
    weight: Weight | None = snr
    """Weight of the squared error of x_0, such as snr, the error of the noise, or MinSNR(gamma=5).
    None for the plain squared error of the network's output."""
    times: TimeSampling = independent
    """Distribution of the training times, such as independent or Stratified(power=1.5)."""
    drop_label: float = 0.0
    """Probability that the class label of a training example is dropped, such as 0.1, for classifier-free guidance."""
    drop_caption: float = 0.0
    """Probability that the caption of a training example is dropped, such as 0.1, for classifier-free guidance."""
    __repr__ = notation

    def built(
        self, denoiser: GaussianDenoiser, quantization: Quantization, variance: ReverseVariance
    ) -> Objective[GaussianDenoiser]:
        """Returns the objective of a denoiser."""
        weight = OutputError(getattr(denoiser, "predicts", noise)) if self.weight is None else self.weight
        context = Context(
            denoiser=denoiser, quantization=quantization, weight=weight, times=self.times, variance=variance
        )
        objective = built(self.objective, context)
        own = weight if self.weight is None else snr  # what has no effect unless it was given
        refuse_untaken(self.objective, context, {"weight": own, "times": independent})
        for p, condition in ((self.drop_label, "label"), (self.drop_caption, "tokens")):
            objective = ConditionDropout(objective, p=p, condition=condition) if p else objective
        return objective


class GaussianRun(Recipe[GaussianDenoiser]):
    """The base class of runs of Gaussian denoisers: how they are sampled and measured."""

    catalog: ClassVar[Catalog] = GAUSSIAN
    sampler: Part[Sampler]
    spacing: Spacing
    clip: Part[DenoiserWrapper] | None
    guidance: Part[ClassifierFree] | None
    variance: ReverseVariance
    code_length: GaussianCodeLength
    dequantize: bool
    range: tuple[float, float] | None

    @property
    def kind(self) -> str:
        return self.code_length.kind

    def in_range(self, quantization: Quantization) -> Quantization:
        """Returns the quantization of the data with the range of the recipe; real-valued data have no range."""
        if self.range is None or isinstance(quantization, Standardization):
            return quantization
        return replace(quantization, low=self.range[0], high=self.range[1])

    def form(self, quantization: Quantization | Standardization, k: Tensor, generator: Source = None) -> Tensor:
        if isinstance(quantization, Standardization):
            return quantization.standardized(k)
        own = self.in_range(quantization)
        return own.dequantized(k, generator) if self.dequantize else own.continuous(k, generator)

    def levels(self, quantization: Quantization | Standardization, x: Tensor) -> Tensor:
        if isinstance(quantization, Standardization):
            return quantization.restored(x)
        own = self.in_range(quantization)
        return own.cell_of(x) if self.dequantize else own.quantize(x)

    def sampler_of(self, denoiser: GaussianDenoiser) -> Sampler[GaussianDenoiser, Schedule]:
        for wrapper in (self.guidance, self.clip):
            context = Context(denoiser=denoiser, condition=self.data.guided_condition)
            denoiser = denoiser if wrapper is None else built(wrapper, context)
        context = Context(denoiser=denoiser, variance=self.variance, sampling_steps=self.sampling_steps)
        sampler = built(self.sampler, context)
        if isinstance(sampler, Langevin | AnnealedLangevin):
            raise UsageError(
                f"{self.sampler} is a corrector, which does not move in time: give "
                f"PredictorCorrector(predictor=ReverseDiffusion(), corrector={self.sampler})"
            )
        return sampler

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return self.spacing(steps, denoiser.corruption)

    def refuse_unfit(self, denoiser: GaussianDenoiser, quantization: Quantization) -> tuple[Tensor, Sampler]:
        if isinstance(self.spacing, Sections) and sum(self.spacing.counts) != self.sampling_steps:
            raise UsageError(
                f"spacing={self.spacing}: its numbers do not add up to sampling_steps={self.sampling_steps}: change "
                "one of them"
            )
        if self.dequantize and isinstance(self.code_length, Bound):
            raise UsageError(
                f"code_length={self.code_length} is for data that are not dequantized, and dequantize=True: give "
                "code_length=Exact(), or dequantize=False"
            )
        if isinstance(quantization, Standardization):
            self.refuse_range()
            return super().refuse_unfit(denoiser, quantization)
        low, high = (own := self.in_range(quantization)).low, own.high
        for clip in (self.clip, getattr(self.code_length, "clip", None)):
            if clip is not None and clip.build is Clipped and (clip["low"], clip["high"]) != (low, high):
                raise UsageError(
                    f"the data are in [{low:g}, {high:g}], and estimates are limited by {clip}: give "
                    f"Clipped(low={low}, high={high})"
                )
        grid, sampler = super().refuse_unfit(denoiser, quantization)
        integrator = getattr(sampler, "integrator", None)
        if self.spacing is adaptive and (integrator is None or isinstance(integrator, FixedSteps)):
            raise UsageError(
                f"spacing=adaptive is for ProbabilityFlow with an adaptive solver, such as "
                f"ProbabilityFlow(integrator=Adaptive()), and the sampler is {self.sampler}: give spacing=even"
            )
        return grid, sampler

    def refuse_range(self) -> None:
        """Raises for settings that real-valued data, which are neither quantized nor in a range, cannot have.

        Raises:
            UsageError: with the setting.
        """
        for name, none, remedy in (
            ("clip", None, "--clip None"),
            ("range", None, "--range None"),
            ("dequantize", False, "--no-dequantize"),
        ):
            if (value := getattr(self, name)) != none:
                raise UsageError(
                    f"{name}={value} is for quantized data, and {type(self.data).__name__} are real-valued and have no "
                    f"range: give {name}={none} ({remedy})"
                )

    def code_length_of(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        return self.code_length.of(denoiser, self.in_range(quantization), self.variance)


@serializable("experiments.GaussianRecipe")
@dataclass(frozen=True, kw_only=True)
class GaussianRecipe(GaussianRun):
    """A model of Gaussian diffusion: how it is trained, sampled and measured."""

    data: Data = field(default_factory=Images)
    """The data."""
    network: Part[nn.Module] = part(UNet, width=32, multipliers=(1, 2, 2), blocks=1, heads=4)
    """Network; the data determine its shape and classes."""
    schedule: Schedule | Part[Schedule] = LinearBetas()
    """Noise schedule, such as LinearBetas(steps=1000), Cosine or VP."""
    predicts: Prediction = noise
    """What the output of the network stands for, such as noise, velocity or clean."""
    time_input: TimeInput[Schedule] | None = None
    """Number that the network is fed for a time, such as thousandths; None for that of the network's time features."""
    denoiser: Part[GaussianDenoiser] = part(Learned)
    """Denoiser around the network."""
    loss: GaussianLoss = GaussianLoss()
    """The loss."""
    variance: ReverseVariance = large
    """Variance of the reverse steps, of the sampler and of the bound, such as large, small or learned_range."""
    sampler: Part[Sampler] = part(Ancestral)
    """Sampler, such as Ancestral, DDIM(eta=0.5) or ProbabilityFlow."""
    sampling_steps: int = 100
    """Number of steps of the sampler."""
    spacing: Spacing = even
    """Spacing of the sampling steps, such as even, quadratic, Karras(rho=7), or adaptive for adaptive solvers."""
    clip: Part[DenoiserWrapper] | None = None
    """How the sampler limits estimates of x_0, such as Clipped or Thresholded(p=0.995); None for no limit."""
    guidance: Part[ClassifierFree] | None = None
    """Guidance of the sampler, such as ClassifierFree(w=0.5), w = 0 without guidance; None for none.
    It strengthens the class label, or the caption for data with captions and without classes."""
    code_length: GaussianCodeLength = Bound()
    """Code length, Bound(terms=100) or Exact(tolerance=1e-5)."""
    dequantize: bool = False
    """Whether training data are dequantized uniformly, which the exact code length needs."""
    range: tuple[float, float] | None = None
    """Range of the data, such as 0 1; None for that of the data set, -1 to 1."""
    training: Training = field(default_factory=Training)
    """Settings of the training."""
    figure: Figure = NoFigure()
    """Settings of the figure of the paper."""
    __repr__ = notation

    @property
    def loss_unit(self) -> str:
        plain = self.loss.objective == part(DenoisingLoss) and self.loss.weight is snr
        return "MSE of the noise" if plain else "loss"

    def network_of(self, shape: tuple[int, ...]) -> nn.Module:
        """Returns the network for examples of a shape."""
        given: dict[str, Any] = {"classes": self.classes}
        if needs_output(self.variance):
            given["outputs"] = 2
        if image := self.data.condition_channels(shape):
            given["image"] = image
        if labels := self.data.augment_labels:
            given["augment"] = labels
        sizes: dict[str, Any] = {**self.data.caption_sizes()}
        if len(shape) == 1:
            sizes["features"] = shape[0]
        refuse_encoder_without_captions(self.network, sizes)
        context = Context(shape=shape, **given, **sizes)
        network = built(self.network, context)
        if isinstance(self.network, Part):
            refuse_untaken(self.network, context, {"classes": None} | dict.fromkeys(given), REMEDIES)
        return network

    def denoiser_of(self, network: nn.Module) -> GaussianDenoiser:
        """Returns the denoiser around a network."""
        time_input = natural_time_input(network) if self.time_input is None else self.time_input
        context = Context(
            network=network,
            schedule=built(self.schedule, Context()),
            predicts=self.predicts,
            time_input=time_input,
            sigma_data=getattr(self.predicts, "sigma_data", None),
        )
        denoiser = built(self.denoiser, context)
        refuse_untaken(self.denoiser, context, {"predicts": noise})
        return denoiser

    def refuse_unfit(self, denoiser: GaussianDenoiser, quantization: Quantization) -> tuple[Tensor, Sampler]:
        parts = [*self.sampler.constructors(), *self.loss.objective.constructors()]
        takes = isinstance(self.code_length, Bound) or any("variance" in parameters_of(build) for build in parts)
        if self.variance is not large and not takes:
            raise UsageError(
                f"variance={write(self.variance)} has no effect on {self.sampler}, {self.loss.objective} and "
                f"{self.code_length}: leave it out"
            )
        return super().refuse_unfit(denoiser, quantization)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        denoiser = self.denoiser_of(self.network_of(shape))
        self.refuse_unfit(denoiser, quantization)
        return self.loss.built(denoiser, self.in_range(quantization), self.variance)


REMEDIES = {
    "classes": "give data.classes=None, or a network with the argument classes",
    "outputs": "give variance=large or small, or a network with the argument outputs",
    "image": "give a network with the argument image",
    "augment": "give data.augment=0, or a network with the argument augment",
}
"""What to give where a network has no argument for a setting of the recipe."""


def needs_output(variance: ReverseVariance) -> bool:
    """Returns whether a reverse variance needs a variance output: its argument v has no default."""
    v = inspect.signature(variance).parameters.get("v")
    return v is not None and v.default is inspect.Parameter.empty


def natural_time_input(network: nn.Module) -> TimeInput[Schedule]:
    """Returns the time input that suits the time features of a network; `thousandths` where it has none."""
    features = getattr(getattr(network, "variant", None), "time", None)
    return getattr(features, "time_input", thousandths)
