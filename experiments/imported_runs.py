"""Released checkpoints in this package's own format.

Read once with their flags, then sampled, measured and trained on without any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..continuous import (
    DDIM,
    Clipped,
    Heun,
    Hybrid,
    OutputError,
    Tabulated,
    VariationalBound,
    karras,
    large,
    learned_range,
    noise,
)
from ..continuous.grids import noise_ratio
from ..continuous.posterior import ReverseVariance
from ..discrete import Absorbing, Ancestral, ContinuousBound
from ..discrete import Uniform as Resampling
from ..sde import EDM, VE, VP, Adaptive, ChangeOfVariables, DenoisingLoss, NoiseLevels, SubVP
from ..shared.code_length import CodeLength
from ..shared.data import Batches, ImageDataset, TextDataset
from ..shared.data.classes import refuse_other_classes
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.dequantization import UniformDequantization
from ..shared.gaussian.guidance import NoisyClassifier, Recognition
from ..shared.gaussian.weights import snr
from ..shared.objective import Objective, Stratified
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import categorical
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from .evaluation import evaluate_images
from .experiment import CodeLengthOf, Experiment
from .images import Data
from .texts import Text, TextExperiment

STEPS, SMALL = (18, 40), 32
"""Steps of Heun's method for images of up to 32 pixels across and for larger ones.

Karras et al. 2022: 35 and 79 evaluations.
"""
UNTRAINED = (
    "imported weights are no recipe to train afresh: go on from unnoise.experiments.load(RUN).objective, with a Trainer"
)


class Family(ABC):
    """How an imported denoiser of images samples, and what its code length is.

    Attributes:
        kind: of the code length.
    """

    kind: str

    @abstractmethod
    def sampler(self, denoiser: Denoiser, quantization: Quantization) -> Sampler:
        """The sampler."""

    @abstractmethod
    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        """Its times."""

    @abstractmethod
    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        """The code length of levels."""


@serializable("experiments.Chains", formerly="unnoise.experiments.imported.Chains")
@dataclass(frozen=True)
class Chains(Family):
    """Tables of steps: DDIM on clipped estimates, and the variational bound."""

    bound_terms: int = 100
    """Terms of the bound, stratified over the steps."""
    clip: float | None = None
    """Estimates are clipped to -clip to clip; None for the range of the data, infinity for no clipping."""
    variance: ReverseVariance = large
    """Of the bound's reverse steps, for a network that does not say it."""

    kind = "upper bound"

    def sampler(self, denoiser: Denoiser, quantization: Quantization) -> Sampler:
        return DDIM(self.clipped(denoiser, quantization))

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return steps

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        variance = learned_range if denoiser.has_variance_output else self.variance
        bound = VariationalBound(
            self.clipped(denoiser, quantization), quantization, variance=variance, terms=self.bound_terms
        )

        def measure(k: Tensor, generator: Any, progress: Progress, **cond: Any) -> CodeLength:
            return bound(quantization.continuous(k), generator=generator, progress=progress, **cond)

        return measure

    def clipped(self, denoiser: Denoiser, quantization: Quantization) -> Denoiser:
        """The denoiser with its estimates clipped."""
        return Clipped(
            denoiser, *((quantization.low, quantization.high) if self.clip is None else (-self.clip, self.clip))
        )

    @classmethod
    def told(cls, denoiser: Denoiser) -> Chains:
        """As an importer read it: from the attributes `clip` and `variance` of the denoiser, where it has them."""
        return cls(**{name: getattr(denoiser, name) for name in ("clip", "variance") if hasattr(denoiser, name)})


@serializable("experiments.Flows", formerly="unnoise.experiments.imported.Flows")
@dataclass(frozen=True)
class Flows(Family):
    """Noise levels in continuous time, or tables of them.

    Heun's method on Karras et al.'s (2022) levels, and the flow's likelihood.
    """

    tolerance: float = 1e-5
    """rtol and atol of RK45, for the likelihood."""

    kind = "exact up to uniform dequantisation"

    def sampler(self, denoiser: Denoiser, quantization: Quantization) -> Sampler:
        return Heun(denoiser)

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return karras(steps, denoiser.corruption)

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        exact = ChangeOfVariables(
            denoiser, UniformDequantization(quantization), integrator=Adaptive(self.tolerance, self.tolerance)
        )
        return lambda k, generator, progress, **cond: exact(k, generator=generator, progress=progress, **cond)


@serializable("experiments.Classifiers", formerly="unnoise.experiments.imported.Classifiers")
@dataclass(frozen=True)
class Classifiers(Family):
    """Classifiers of noisy images, which guide denoisers and have no samples of their own."""

    kind = "none"

    def sampler(self, denoiser: Denoiser, quantization: Quantization) -> Sampler:
        raise UsageError(
            "this is a classifier of noisy images, which has no samples: guide a denoiser with it, in Python "
            "shared.guidance.ClassifierGuided(denoiser, released.load(RUN))"
        )

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return steps

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        raise UsageError("this is a classifier of noisy images, which has no code length")


@serializable(
    "experiments.Imported", formerly="unnoise.experiments.imported.Imported", renamed={"scale": "quantization"}
)
@dataclass(frozen=True)
class Imported(Experiment):
    """An imported network of images."""

    source: str
    """The file or the name on the Hub that it was read from."""
    family: Family
    """How it samples, and what its code length is."""
    shape: tuple[int, ...]
    """Shape of one image."""
    quantization: Quantization
    """Levels and range of the images."""
    sampling_steps: int
    """Steps of the sampler."""
    classes: int | None = None
    """Class labels; None for a network without."""
    needs: tuple[str, ...] = ()
    """Other conditions without which it does not run."""
    data: Data | None = None
    """Images to measure it on."""

    @property
    def code_length_kind(self) -> str:
        """What the code length is."""
        return self.family.kind

    def settled(self) -> Imported:
        return self if self.data is None else replace(self, data=self.data.settled())

    def on(self, name: str) -> Imported:
        return replace(self, data=Data(name, size=self.shape[1:], classes=self.classes))

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        if self.data is None:
            raise UsageError(
                "an imported checkpoint comes without data: give --data NAME, a bundled set, a folder or a set on the hub"
            )
        images = replace(self.data, classes=None).load(split, progress)
        if images.shape != self.shape or images.quantization.levels != self.quantization.levels:
            raise UsageError(
                f"the images of {self.data.name} have shape {images.shape} and {images.quantization.levels} levels, those of this network "
                f"{self.shape} and {self.quantization.levels}: give --data with images of its kind"
            )
        if self.classes is not None:
            try:
                refuse_other_classes(images.labels, self.classes, self.data.name, split)
            except UsageError as error:
                raise UsageError(
                    f"this network has {self.classes} classes, numbered as in its training: give --data with images of these "
                    f"({str(error).split(';')[0]})"
                ) from error
        return images._replace(quantization=self.quantization)

    def batches(self, data: ImageDataset) -> Batches:
        return data.batches(Data.batch, Quantization.continuous, conditions=() if self.classes is None else ("label",))

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        if names := ", ".join(self.needs):
            raise UsageError(
                f"this network makes nothing of noise alone, it needs {names} too: give it to a sampler in Python, {names}=..."
            )
        return {} if self.classes is None else {"label": rows % self.classes}

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.quantize(x)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        raise UsageError(UNTRAINED)

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return self.family.sampler(denoiser, self.quantization)

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        return self.family.grid(denoiser, steps)

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        return self.family.code_length(denoiser, quantization)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        from ..shared.figures import save_grid

        save_grid(path, levels.float() / (quantization.levels - 1), columns=columns)
        return "" if levels.shape[1] in (1, 3) else f"  the first of {levels.shape[1]} channels is shown\n"

    def evaluate(self, denoiser: Denoiser, **options: Any) -> dict[str, Any]:
        return evaluate_images(self, denoiser, **options)


@serializable("experiments.ImportedText", formerly="unnoise.experiments.imported.ImportedText")
@dataclass(frozen=True)
class ImportedText(TextExperiment):
    """An imported model of token sequences. Without a tokenizer its samples are written as token ids."""

    source: str = ""
    """The file or the name on the Hub that it was read from."""
    vocabulary: int = 0
    """Tokens, without a mask."""
    network: None = field(default=None, init=False, repr=False)
    training: None = field(default=None, init=False, repr=False)

    def load(self, split: str = "train", progress: Progress = silent) -> TextDataset:
        if not self.text.name or self.text.tokenizer is None:
            raise UsageError(
                "text for this model needs a name and the tokenizer of its tokens: `unnoise import` takes --tokenizer tokenizer.json, "
                "and --data NAME says which text"
            )
        data = self.text.load(split)
        self.refuse_other(data.vocabulary)
        return data

    def settled(self) -> ImportedText:
        """The same with the tokenizer itself.

        Raises:
            UsageError: for a tokenizer of another size than the network's.
        """
        if self.text.tokenizer is not None:
            self.refuse_other(self.text.alphabet().size)
        return super().settled()

    def refuse_other(self, tokens: int) -> None:
        """Raises `UsageError` for a tokenizer of another size than the network's."""
        if tokens != self.vocabulary:
            more = (
                ", without a mask: that of a model is its last token, and no other is read"
                if tokens == self.vocabulary + 1
                else ""
            )
            raise UsageError(
                f"the tokenizer has {tokens} tokens, and the model {self.vocabulary}: give the one it was trained with{more}"
            )

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        raise UsageError(UNTRAINED)

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(denoiser, categorical)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        if self.text.tokenizer is not None:
            return super().show(path, levels, quantization, columns)
        path.write_text("".join(" ".join(map(str, row)) + "\n" for row in levels.tolist()))
        return "  token ids, a line for each sample, as there is no tokenizer: `unnoise import` takes --tokenizer tokenizer.json\n"


class Kind(NamedTuple):
    """What goes with a process.

    Attributes:
        objective: the loss of a denoiser.
        experiment: `(denoiser, source)` to its experiment.
        process: a denoiser's process, in words.
        output: what its network gives, in words.
        usage: what to do with a run, with {unnoise}, {run} and {data} left open.
    """

    objective: Callable[[Denoiser], Objective]
    experiment: Callable[[Denoiser, str], Imported | ImportedText]
    process: Callable[[Denoiser], str]
    output: Callable[[Denoiser], str]
    usage: str = "{unnoise} sample {run}    {unnoise} evaluate {run}{data}"


def imported(denoiser: Denoiser, source: str = "") -> Imported | ImportedText:
    """The experiment of a denoiser that `released.load` gives."""
    return kind_of(denoiser).experiment(denoiser, source)


def objective(denoiser: Denoiser) -> Objective:
    """The loss that denoisers of this kind are trained with; weights that nobody trains on are the same in any."""
    return kind_of(denoiser).objective(denoiser)


def kind_of(denoiser: Denoiser) -> Kind:
    """What goes with a denoiser: by its own class, or that of its process."""
    kind = KINDS.get(type(denoiser)) or KINDS.get(type(denoiser.corruption))
    if kind is None:
        raise UsageError(
            f"{type(denoiser).__name__} on {type(denoiser.corruption).__name__} is of no kind that is imported"
        )
    return kind


def of_table(denoiser: Denoiser) -> Objective:
    """The hybrid loss where the network says its variance, or the simple one.

    The squared error of what the network predicts.
    """
    weight = snr if denoiser.predicts is noise else OutputError(denoiser.predicts)
    return (
        Hybrid(denoiser, denoiser.quantization, weight=weight)
        if denoiser.has_variance_output
        else DenoisingLoss(denoiser, weight=weight)
    )


def of_symbols(denoiser: Denoiser) -> Objective:
    """The continuous-time bound."""
    return ContinuousBound(denoiser, times=Stratified())


def with_steps(
    family: Callable[[Denoiser], Family], steps: Callable[[Denoiser], int]
) -> Callable[[Denoiser, str], Imported]:
    """What builds the experiment of a denoiser: how its family samples and is coded, and the sampler's steps for it."""

    def build(denoiser: Denoiser, source: str) -> Imported:
        """The experiment of a network of images."""
        network, taken = denoiser.network, denoiser.conditions or ()
        classes = getattr(network, "classes", None) if "label" in taken else None
        needs = tuple(name for name in taken if name == "image")
        return Imported(
            source, family(denoiser), tuple(denoiser.shape), denoiser.quantization, steps(denoiser), classes, needs
        )

    return build


def texts(denoiser: Denoiser, source: str) -> ImportedText:
    """The experiment of a network of tokens."""
    (length,) = denoiser.shape
    return ImportedText(Text("", length=length), source=source, vocabulary=denoiser.quantization.levels)


def by_size(denoiser: Denoiser) -> int:
    """Steps of Heun's method."""
    return STEPS[max(denoiser.shape[1:]) > SMALL]


def of_noise(denoiser: Denoiser) -> str:
    """A schedule in words."""
    schedule = denoiser.corruption
    low, high = noise_ratio(schedule, torch.tensor([schedule.t_last, 1.0], dtype=torch.float64)).tolist()
    steps = f" of {schedule.steps} steps" if hasattr(schedule, "steps") else ""
    return f"{type(schedule).__name__}{steps}, sigma / alpha from {low:.4g} to {high:.4g}"


def of_events(denoiser: Denoiser) -> str:
    """A transition in words."""
    return f"{type(denoiser.corruption).__name__} of {denoiser.corruption.states} states, {denoiser.corruption.noise}"


def named(thing: Any) -> str:
    """A function's or an object's name."""
    return getattr(thing, "__name__", None) or str(thing)


FLOW = with_steps(lambda d: Flows(), by_size)
KINDS: dict[type, Kind] = {
    NoisyClassifier: Kind(
        Recognition,
        with_steps(lambda d: Classifiers(), lambda d: 1),
        of_noise,
        lambda d: "log p(label)",
        'in Python, ClassifierGuided(denoiser, released.load("{run}"))',
    ),
    Tabulated: Kind(
        of_table, with_steps(Chains.told, lambda d: min(50, d.corruption.steps)), of_noise, lambda d: named(d.predicts)
    ),
    EDM: Kind(DenoisingLoss, FLOW, of_noise, lambda d: named(d.predicts)),
    **{s: Kind(DenoisingLoss, FLOW, of_noise, lambda d: named(d.predicts)) for s in (VP, SubVP, VE, NoiseLevels)},
    **{
        t: Kind(of_symbols, texts, of_events, lambda d: named(getattr(d, "head", "log ratios")))
        for t in (Absorbing, Resampling)
    },
}
