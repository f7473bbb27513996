"""Runs of models without a recipe: how imported ones, and those trained in Python, are sampled and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Self

from ... import discrete
from ...continuous import DDIM, Clipped, Heun, Hybrid, Learned, OutputError, noise
from ...continuous.grids import noise_ratio
from ...continuous.posterior import ReverseVariance, large, learned_range
from ...discrete import Ancestral, CategoricalDenoiser, ContinuousBound
from ...discrete.transition.interpolating import Interpolating
from ...sde import DenoisingLoss, NoiseLevels, ProbabilityFlow
from ...shared.calling import networks_of, signature_of
from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError
from ...shared.gaussian.denoiser import DenoiserWrapper, GaussianDenoiser
from ...shared.gaussian.guidance import ClassifierFree, ClassifierLoss, NoisyClassifier
from ...shared.gaussian.schedule import Schedule, TableSchedule
from ...shared.gaussian.weights import snr
from ...shared.objective import Objective, Stratified
from ...shared.quantization import Quantization
from ...shared.random import categorical
from ...shared.sampler import Sampler
from ...shared.serialization import earlier, serializable
from ...shared.training import Checkpoint
from ..categorical import CategoricalRun
from ..code_lengths import Bound, CodeLengthOf, Exact, GaussianCodeLength, TokenBound
from ..gaussian import GaussianRun
from ..parts import Part, part
from ..recipe import NoFigure, Recipe
from ..text_data import Text
from ..time_grids import Karras, Spacing, even
from .given_data import GivenData, GivenImages, GivenText

STEPS, SMALL = (18, 40), 32
"""Steps of Heun's method for images of at most 32 x 32 pixels, and for larger ones: 35 and 79 evaluations.

Source: Karras et al. 2022, table 2.
"""
CHAIN_STEPS, TOKEN_STEPS = 50, 128
"""The largest number of steps of DDIM on a table, and of the ancestral sampler of tokens."""


def untrained() -> UsageError:
    """Returns the error for training such a run from the start."""
    return UsageError(
        "this checkpoint has no recipe for training from the start: continue the training of "
        "unnoise.load(RUN).objective with a Trainer"
    )


@serializable("experiments.Imported")
@dataclass(frozen=True, kw_only=True)
class Imported(GaussianRun):
    """A Gaussian model of images without a recipe: how it is sampled and measured."""

    data: GivenData
    """The form of the data, and the data to evaluate the model on."""
    source: str = ""
    """The file or the name on the Hub that an imported model was read from."""
    sampler: Part[Sampler]
    """Sampler, such as DDIM or Heun."""
    sampling_steps: int
    """Number of steps of the sampler."""
    spacing: Spacing = even
    """Spacing of the sampling steps, such as even or Karras(rho=7)."""
    clip: Part[DenoiserWrapper] | None = None
    """How the sampler limits estimates of x_0, such as Clipped; None for no limit."""
    guidance: Part[ClassifierFree] | None = None
    """Guidance of the sampler, such as ClassifierFree(w=0.5); None for none."""
    variance: ReverseVariance = large
    """Variance of the reverse steps, of ancestral samplers and of the bound."""
    code_length: GaussianCodeLength
    """Code length, Bound(terms=100) or Exact(tolerance=1e-5)."""
    dequantize: bool = False
    """Whether the model was trained on uniformly dequantized data, so that its samples lie in cells."""
    range: tuple[float, float] | None = None
    """Range of the data; None for that of the model."""

    figure = NoFigure()

    def with_data(self, name: str) -> Self:
        return replace(self, data=self.data.given(name))

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[GaussianDenoiser]:
        raise untrained()


earlier("experiments.Imported", "unnoise.experiments.pretrained.earlier_runs")


@serializable("experiments.ImportedTokens")
@dataclass(frozen=True, kw_only=True)
class ImportedTokens(CategoricalRun):
    """A categorical model of tokens, or of the quantization levels of images, without a recipe."""

    data: GivenData
    """The form of the data, and the data to evaluate the model on."""
    source: str = ""
    """The file or the name on the Hub that an imported model was read from."""
    sampler: Part[Sampler]
    """Sampler, such as Ancestral or TauLeaping."""
    sampling_steps: int = TOKEN_STEPS
    """Number of steps of the sampler."""
    guidance: Part[discrete.ClassifierFree] | None = None
    """Guidance of the sampler, such as ClassifierFree(w=0.5); None for none."""
    code_length: TokenBound = TokenBound()
    """Code length, TokenBound(terms=100)."""

    figure = NoFigure()

    def with_data(self, name: str) -> Self:
        return replace(self, data=self.data.given(name))

    def with_tokenizer(self, path: str) -> Self:
        """Returns the run with the tokenizer of its text, a file tokenizer.json.

        Raises:
            UsageError: for a model of images.
        """
        if not isinstance(self.data, GivenText):
            raise UsageError(f"tokenizer {path}: this is a model of images: leave out the tokenizer")
        return replace(self, data=replace(self.data, text=replace(self.data.text, tokenizer=path)))

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[CategoricalDenoiser]:
        raise untrained()


@serializable("experiments.no_samples")
def no_samples(denoiser: Any) -> Sampler:
    """Raises, in place of a sampler, for a classifier of noisy images."""
    raise UsageError(
        "this is a classifier of noisy images, which has no samples: guide a denoiser with it in Python, "
        "shared.gaussian.guidance.ClassifierGuided(denoiser, pretrained.load(RUN))"
    )


@serializable("experiments.NoCodeLength")
@dataclass(frozen=True)
class NoCodeLength(GaussianCodeLength):
    """No code length, for classifiers of noisy images."""

    kind = "none"

    def of(self, denoiser: GaussianDenoiser, quantization: Quantization, variance: ReverseVariance) -> CodeLengthOf:
        raise UsageError("this is a classifier of noisy images, which has no code length: evaluate a denoiser")


@serializable("experiments.learned_or_large")
def learned_or_large(schedule: Schedule, t: Tensor, s: Tensor, v: Tensor | None = None) -> Tensor:
    """Returns `learned_range` of a network with a variance output v, and `large` of one without."""
    return large(schedule, t, s) if v is None else learned_range(schedule, t, s, v)


class Form(NamedTuple):
    """What is known of the data of a model: what importers note on denoisers, and what checkpoints record.

    Attributes:
        quantization: the quantization of the data, or the number of tokens.
        shape: shape of one example.
        names: names of the classes, if there are any.
        tokens: the fingerprint of the tokenizer, if it is known.
    """

    quantization: Quantization
    shape: tuple[int, ...]
    names: Sequence[str] | None = None
    tokens: str | None = None


class Kind(NamedTuple):
    """What models of one kind have in common. The functions take denoisers of that kind.

    Attributes:
        run: `(denoiser, form of its data, source)`, returns its run.
        objective: returns the loss that an imported denoiser is trained with.
        process: returns a description of its process.
        output: returns a description of the output of its network.
        usage: the next commands for a run, with the fields {unnoise}, {run} and {data}.
    """

    run: Callable[[Any, Form, str], Imported | ImportedTokens]
    objective: Callable[[Any], Objective]
    process: Callable[[Any], str]
    output: Callable[[Any], str]
    usage: str = "{unnoise} sample {run}    {unnoise} evaluate {run}{data}"


def imported(denoiser: Denoiser, source: str = "") -> Imported | ImportedTokens:
    """Returns the run of a denoiser from `pretrained.load`."""
    return kind_of(denoiser).run(denoiser, noted(denoiser), source)


def run_of(checkpoint: Checkpoint) -> Recipe:
    """Returns the recipe of a checkpoint; for one of a training in Python, a run made from its denoiser.

    What a checkpoint does not record is assumed: real-valued data are quantization levels without dequantization, each
    sampled value is rounded to the nearest level, and x_0 is clipped to the range of the data on tables of steps. The
    class labels of a network are given in turn. A table is sampled by DDIM and measured by its bound, with the variance
    of the objective if that has one; continuous time is sampled by Heun's method on Karras's noise levels, or along the
    probability flow from zero SNR, and measured by the exact likelihood. Tokens are sampled by the reverse chain.

    Raises:
        UsageError: for a checkpoint that does not record shape and quantization of its data, for examples that are
            neither images nor tokens, and for a denoiser that is neither Gaussian nor categorical.
    """
    if checkpoint.experiment is not None:
        return checkpoint.experiment
    if checkpoint.quantization is None or checkpoint.shape is None:
        raise UsageError(
            "this checkpoint does not record the shape and quantization of its data, which sampling and evaluation "
            'need: train on batches that have both, such as image_dataset("digits").batches(64)'
        )
    denoiser, batches = checkpoint.average.denoiser, checkpoint.description["batches"] or {}
    form = Form(checkpoint.quantization, checkpoint.shape, batches.get("names"), batches.get("tokenizer"))
    run = kind_of(denoiser).run(denoiser, form, "")
    own = [getattr(m, "variance", None) for m in checkpoint.average.modules() if isinstance(m, Objective)]
    variance = next((v for v in own if callable(v)), None)
    return replace(run, variance=variance) if variance and isinstance(run, Imported) else run


def objective(denoiser: Denoiser) -> Objective:
    """Returns the loss that denoisers of this kind are trained with."""
    return kind_of(denoiser).objective(denoiser)


def noted(denoiser: Denoiser) -> Form:
    """Returns the form of the data that an importer noted on a denoiser."""
    return Form(cast(Quantization, denoiser.quantization), tuple(cast("tuple[int, ...]", denoiser.shape)))


def kind_of(denoiser: Denoiser) -> Kind:
    """Returns the kind of a denoiser.

    A Gaussian denoiser on a table of steps is a chain, on noise levels or in continuous time a flow.

    Raises:
        UsageError: for a denoiser that is neither Gaussian nor categorical.
    """
    if isinstance(denoiser, NoisyClassifier):
        return CLASSIFIER
    if isinstance(denoiser, CategoricalDenoiser):
        return TOKENS
    if isinstance(denoiser, GaussianDenoiser):
        schedule = denoiser.corruption
        return CHAIN if isinstance(schedule, TableSchedule) and not isinstance(schedule, NoiseLevels) else FLOW
    raise UsageError(
        f"{type(denoiser).__name__} is neither a Gaussian nor a categorical denoiser: derive its class from "
        "GaussianDenoiser or CategoricalDenoiser"
    )


def chain(denoiser: GaussianDenoiser, form: Form, source: str) -> Imported:
    """Returns the run of a denoiser on a table: DDIM with clipped estimates, and the variational bound.

    The range of clipping and the reverse variance are those that an importer attached as `clip` and `variance`.
    """
    high, schedule = getattr(denoiser, "clip", None), cast(TableSchedule, denoiser.corruption)
    low, high = (form.quantization.low, form.quantization.high) if high is None else (-high, high)
    clip = clipped(low, high)
    return Imported(
        data=images_of(denoiser, form),
        source=source,
        sampler=part(DDIM),
        sampling_steps=min(CHAIN_STEPS, schedule.steps),
        clip=clip,
        variance=learned_range if denoiser.has_variance_output else getattr(denoiser, "variance", large),
        code_length=Bound(clip=clip),
    )


def clipped(low: float, high: float) -> Part[DenoiserWrapper] | None:
    """Returns the wrapper that clips estimates of x_0 to a range; None for an infinite range."""
    return part(Clipped, low=low, high=high) if high < float("inf") else None


def flow(denoiser: GaussianDenoiser, form: Form, source: str) -> Imported:
    """Returns the run of a denoiser at noise levels: Heun's method, and the exact code length.

    The sampler visits the noise levels of Karras et al. (2022). From zero SNR, where they are infinite, it is Heun's
    method in the angle of signal and noise, `ProbabilityFlow`.
    """
    finite = bool(noise_ratio(denoiser.corruption, torch.ones((), dtype=torch.float64)).isfinite())
    return Imported(
        data=images_of(denoiser, form),
        source=source,
        sampler=part(Heun) if finite else part(ProbabilityFlow),
        sampling_steps=STEPS[max(form.shape[1:]) > SMALL],
        spacing=Karras() if finite else even,
        code_length=Exact(1e-5),
    )


def classifier(denoiser: NoisyClassifier, form: Form, source: str) -> Imported:
    """Returns the run of a classifier of noisy images, which has neither samples nor a code length."""
    data = images_of(denoiser, form)
    return Imported(data=data, source=source, sampler=part(no_samples), sampling_steps=1, code_length=NoCodeLength())


def tokens(denoiser: CategoricalDenoiser, form: Form, source: str) -> ImportedTokens:
    """Returns the run of a denoiser of tokens, or of the quantization levels of images: the reverse chain."""
    steps = min(TOKEN_STEPS, denoiser.corruption.steps or TOKEN_STEPS)
    if len(form.shape) != 1:
        data = images_of(denoiser, form)
        return ImportedTokens(data=data, source=source, sampler=part(Ancestral), sampling_steps=steps)
    classes, needs = conditions_of(denoiser, form)
    text = Text("", length=form.shape[0])
    data = GivenText(form.quantization.levels, text, form.tokens, classes, needs)
    return ImportedTokens(data=data, source=source, sampler=part(Ancestral, last=categorical), sampling_steps=steps)


def images_of(denoiser: Denoiser, form: Form) -> GivenImages:
    """Returns the form of images.

    Raises:
        UsageError: for examples that are not images.
    """
    if len(form.shape) != 3:
        raise UsageError(
            f"the examples of this model have shape {form.shape}, and only images (C, H, W) and tokens are shown and "
            "measured: call a sampler in Python"
        )
    return GivenImages(form.shape, form.quantization, *conditions_of(denoiser, form))


def conditions_of(denoiser: Denoiser, form: Form) -> tuple[int | None, tuple[str, ...]]:
    """Returns the number of class labels of a denoiser's network, or None, and the other conditions that it needs.

    The number is the network's attribute `classes`, or that of the recorded names of the classes.
    """
    networks = networks_of(denoiser)
    signatures = [s for s in map(signature_of, networks) if s is not None]
    by_name = {p.name: p for s in signatures for p in [*s.parameters.values()][2:]}
    known = {name: p for name, p in by_name.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [name for name, p in known.items() if p.default is p.empty]
    taken = tuple(known) if denoiser.conditions is None else denoiser.conditions
    classes = None
    if "label" in taken:
        counts = [n for network in networks if isinstance(n := getattr(network, "classes", None), int)]
        classes = counts[0] if counts else len(form.names or ()) or None
    needs = [name for name in taken if name == "image" or name in required]
    return classes, tuple(name for name in needs if name != "label" or classes is None)


def of_table(denoiser: Learned) -> Objective:
    """Returns the hybrid loss for a network with a variance output, else the squared error of its prediction."""
    weight = snr if denoiser.predicts is noise else OutputError(denoiser.predicts)
    return (
        Hybrid(denoiser, noted(denoiser).quantization, weight=weight)
        if denoiser.has_variance_output
        else DenoisingLoss(denoiser, weight=weight)
    )


def of_tokens(denoiser: CategoricalDenoiser) -> Objective:
    """Returns the continuous-time bound."""
    return ContinuousBound(denoiser, times=Stratified())


def of_noise(denoiser: GaussianDenoiser | NoisyClassifier) -> str:
    """Returns a description of the schedule."""
    schedule = denoiser.corruption
    low, high = noise_ratio(schedule, torch.tensor([schedule.t_last, 1.0], dtype=torch.float64)).tolist()
    steps = f" of {schedule_steps} steps" if (schedule_steps := getattr(schedule, "steps", None)) else ""
    return f"{type(schedule).__name__}{steps}, sigma / alpha from {low:.4g} to {high:.4g}"


def of_transition(denoiser: CategoricalDenoiser) -> str:
    """Returns a description of the transition."""
    transition = cast(Interpolating, denoiser.corruption)
    return f"{type(transition).__name__} of {transition.states} states, {transition.noise}"


def named(thing: Any) -> str:
    """Returns the name of a function, or an object as text."""
    return getattr(thing, "__name__", None) or str(thing)


CHAIN = Kind(chain, of_table, of_noise, lambda d: named(d.predicts))
FLOW = Kind(flow, DenoisingLoss, of_noise, lambda d: named(d.predicts))
TOKENS = Kind(tokens, of_tokens, of_transition, lambda d: named(getattr(d, "head", "log ratios")))
CLASSIFIER = Kind(
    classifier,
    ClassifierLoss,
    of_noise,
    lambda d: "log p(label)",
    'in Python, ClassifierGuided(denoiser, pretrained.load("{run}"))',
)
