"""Experiments of imported checkpoints: how they are sampled and measured, and which loss continues their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Self

from ..continuous import (
    BetaTable,
    Hybrid,
    Learned,
    OutputError,
    noise,
)
from ..continuous.grids import noise_ratio
from ..discrete import Absorbing, Ancestral, CategoricalDenoiser, ContinuousBound
from ..discrete import Uniform as UniformTransition
from ..discrete.transition.interpolating import Interpolating
from ..sde import EDM, VE, VP, DenoisingLoss, NoiseLevels, SubVP
from ..shared.data import Batches, ImageDataset, TextDataset
from ..shared.data.class_labels import refuse_other_classes
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.guidance import ClassifierLoss, NoisyClassifier
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
from .imported_families import Chains, Classifiers, Family, Flows
from .texts import Text, TextExperiment

STEPS, SMALL = (18, 40), 32
"""Steps of Heun's method for images of at most 32 x 32 pixels, and for larger ones: 35 and 79 evaluations.

Source: Karras et al. 2022, table 2.
"""
UNTRAINED = (
    "an imported checkpoint has no recipe for training from the start: continue the training of "
    "unnoise.load(RUN).objective with a Trainer"
)


@serializable(
    "experiments.Imported", formerly="unnoise.experiments.imported.Imported", renamed={"scale": "quantization"}
)
@dataclass(frozen=True)
class Imported(Experiment[GaussianDenoiser]):
    """An imported model of images."""

    source: str
    """The file or the name on the Hub that it was read from."""
    family: Family
    """Its sampler and its code length."""
    shape: tuple[int, ...]
    """Shape of one image, (channels, height, width)."""
    quantization: Quantization
    """Number of quantization levels of the images, and their range."""
    sampling_steps: int
    """Steps of the sampler."""
    classes: int | None = None
    """Number of class labels; None for a network without labels."""
    needs: tuple[str, ...] = ()
    """Names of other conditions that the network needs."""
    data: Data | None = None
    """The images to evaluate it on."""

    @property
    def code_length_kind(self) -> str:
        """Whether the code length is an upper bound or exact."""
        return self.family.kind

    def self_contained(self) -> Imported:
        return self if self.data is None else replace(self, data=self.data.self_contained())

    def with_data(self, name: str) -> Imported:
        return replace(self, data=Data(name, size=(self.shape[1], self.shape[2]), classes=self.classes))

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        if self.data is None:
            raise UsageError(
                "an imported checkpoint comes without data: give --data NAME, a bundled set, a folder or a set on the "
                "Hub"
            )
        images = replace(self.data, classes=None).load(split, progress)
        if images.shape != self.shape or images.quantization.levels != self.quantization.levels:
            raise UsageError(
                f"the images of {self.data.name} have shape {images.shape} and {images.quantization.levels} "
                f"quantization levels, and this network needs {self.shape} and {self.quantization.levels}: give --data "
                "with such images"
            )
        if self.classes is not None:
            try:
                refuse_other_classes(images.labels, self.classes, self.data.name, split)
            except UsageError as error:
                raise UsageError(
                    f"this network has {self.classes} classes, numbered as in its training: give --data with images of "
                    f"these classes ({str(error).split(';')[0]})"
                ) from error
        return images._replace(quantization=self.quantization)

    def batches(self, data: ImageDataset) -> Batches:
        return data.batches(Data.batch, Quantization.continuous, conditions=() if self.classes is None else ("label",))

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        if names := ", ".join(self.needs):
            raise UsageError(
                f"this network needs {names} too, which the command line cannot give: call a sampler in Python with "
                f"{names}=..."
            )
        return {} if self.classes is None else {"label": rows % self.classes}

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.quantize(x)

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        raise UsageError(UNTRAINED)

    def sampler(self, denoiser: GaussianDenoiser) -> Sampler:
        return self.family.sampler(denoiser, self.quantization)

    def grid(self, denoiser: GaussianDenoiser, steps: int) -> int | Tensor:
        return self.family.grid(denoiser, steps)

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        return self.family.code_length(denoiser, quantization)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        from ..shared.figures import save_grid

        save_grid(path, levels.float() / (quantization.levels - 1), columns=columns)
        return "" if levels.shape[1] in (1, 3) else f"  only the first of {levels.shape[1]} channels is shown\n"

    def evaluate(self, denoiser: GaussianDenoiser, **options: Any) -> dict[str, Any]:
        return evaluate_images(self, denoiser, **options)


@serializable("experiments.ImportedText", formerly="unnoise.experiments.imported.ImportedText")
@dataclass(frozen=True)
class ImportedText(TextExperiment):
    """An imported model of token sequences. Without a tokenizer its samples are written as token ids."""

    source: str = ""
    """The file or the name on the Hub that it was read from."""
    vocabulary: int = 0
    """Number of tokens, without a mask."""
    network: None = field(default=None, init=False, repr=False)
    training: None = field(default=None, init=False, repr=False)

    def load(self, split: str = "train", progress: Progress = silent) -> TextDataset:
        if not self.text.name or self.text.tokenizer is None:
            raise UsageError(
                "this model has no text or no tokenizer: import it with --tokenizer tokenizer.json, and give the text "
                "with --data NAME"
            )
        data = self.text.load(split)
        self.refuse_other(data.vocabulary)
        return data

    def self_contained(self) -> Self:
        """Returns the experiment with the contents of its tokenizer.

        Raises:
            UsageError: for a tokenizer whose size is not that of the network.
        """
        if self.text.tokenizer is not None:
            self.refuse_other(self.text.read_tokenizer().size)
        return super().self_contained()

    def refuse_other(self, tokens: int) -> None:
        """Raises `UsageError` for a tokenizer whose size is not that of the network."""
        if tokens != self.vocabulary:
            more = (
                ", without a mask token (the model's own mask is its last token)"
                if tokens == self.vocabulary + 1
                else ""
            )
            raise UsageError(
                f"the tokenizer has {tokens} tokens, and the model {self.vocabulary}: give the tokenizer of its "
                f"training{more}"
            )

    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective:
        raise UsageError(UNTRAINED)

    def sampler(self, denoiser: CategoricalDenoiser) -> Sampler:
        return Ancestral(denoiser, categorical)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        if self.text.tokenizer is not None:
            return super().show(path, levels, quantization, columns)
        path.write_text("".join(" ".join(map(str, row)) + "\n" for row in levels.tolist()))
        return "  token ids, one line for each sample; for text, import the model with --tokenizer tokenizer.json\n"


class Kind(NamedTuple):
    """What imported models of one kind have in common. The functions take denoisers of that kind.

    Attributes:
        objective: returns the loss of a denoiser.
        experiment: `(denoiser, source)`, returns its experiment.
        process: returns a description of its process.
        output: returns a description of the output of its network.
        usage: the next commands for a run, with the fields {unnoise}, {run} and {data}.
    """

    objective: Callable[[Any], Objective]
    experiment: Callable[[Any, str], Imported | ImportedText]
    process: Callable[[Any], str]
    output: Callable[[Any], str]
    usage: str = "{unnoise} sample {run}    {unnoise} evaluate {run}{data}"


def imported(denoiser: Denoiser, source: str = "") -> Imported | ImportedText:
    """Returns the experiment of a denoiser from `pretrained.load`."""
    return kind_of(denoiser).experiment(denoiser, source)


def objective(denoiser: Denoiser) -> Objective:
    """Returns the loss that denoisers of this kind are trained with."""
    return kind_of(denoiser).objective(denoiser)


def kind_of(denoiser: Denoiser) -> Kind:
    """Returns the kind of a denoiser, by its own class or by the class of its process, or a base class.

    Raises:
        UsageError: for a denoiser that is of no imported kind.
    """
    classes = (*type(denoiser).__mro__, *type(denoiser.corruption).__mro__)
    kind = next((KINDS[c] for c in classes if c in KINDS), None)
    if kind is None:
        raise UsageError(
            f"{type(denoiser).__name__} on {type(denoiser.corruption).__name__} cannot be imported: give a denoiser "
            "that pretrained.load returns"
        )
    return kind


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


class Noted(NamedTuple):
    """What importers note on a denoiser: the quantization of its data, and the shape of one example."""

    quantization: Quantization
    shape: tuple[int, ...]


def noted(denoiser: Denoiser) -> Noted:
    """Returns the quantization and the shape that an importer noted on a denoiser."""
    return Noted(cast(Quantization, denoiser.quantization), tuple(cast("tuple[int, ...]", denoiser.shape)))


def with_steps(
    family: Callable[[Any], Family], steps: Callable[[Any], int]
) -> Callable[[Learned | NoisyClassifier, str], Imported]:
    """Returns a function that builds the experiment of a denoiser of images, given its family and sampling steps."""

    def build(denoiser: Learned | NoisyClassifier, source: str) -> Imported:
        """Returns the experiment of a denoiser of images."""
        network, taken = denoiser.network, denoiser.conditions or ()
        classes = getattr(network, "classes", None) if "label" in taken else None
        needs = tuple(name for name in taken if name == "image")
        quantization, shape = noted(denoiser)
        return Imported(source, family(denoiser), shape, quantization, steps(denoiser), classes, needs)

    return build


def texts(denoiser: CategoricalDenoiser, source: str) -> ImportedText:
    """Returns the experiment of a denoiser of tokens."""
    quantization, (length,) = noted(denoiser)
    return ImportedText(Text("", length=length), source=source, vocabulary=quantization.levels)


def by_size(denoiser: Denoiser) -> int:
    """Returns the number of steps of Heun's method for the size of the images."""
    return STEPS[max(noted(denoiser).shape[1:]) > SMALL]


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


FLOW = with_steps(lambda d: Flows(), by_size)
KINDS: dict[type, Kind] = {
    NoisyClassifier: Kind(
        ClassifierLoss,
        with_steps(lambda d: Classifiers(), lambda d: 1),
        of_noise,
        lambda d: "log p(label)",
        'in Python, ClassifierGuided(denoiser, pretrained.load("{run}"))',
    ),
    BetaTable: Kind(
        of_table,
        with_steps(Chains.of_denoiser, lambda d: min(50, d.corruption.steps)),
        of_noise,
        lambda d: named(d.predicts),
    ),
    EDM: Kind(DenoisingLoss, FLOW, of_noise, lambda d: named(d.predicts)),
    **{s: Kind(DenoisingLoss, FLOW, of_noise, lambda d: named(d.predicts)) for s in (VP, SubVP, VE, NoiseLevels)},
    **{
        t: Kind(of_tokens, texts, of_transition, lambda d: named(getattr(d, "head", "log ratios")))
        for t in (Absorbing, UniformTransition)
    },
}
