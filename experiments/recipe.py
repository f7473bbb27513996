"""What a run is: data, network, process, loss, sampler, code length and training, each a part that can be replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor
from typing_extensions import Self, TypeVar

from ..shared.data import Batches
from ..shared.data.streaming import StreamedBatches
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError, shown
from ..shared.metrics.measurement import Evaluation
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.training import Training
from .caption_data import refuse_captions_without_effect
from .catalog import Catalog, kind_of
from .code_lengths import CodeLengthOf
from .parts import Part

D = TypeVar("D", bound=Denoiser, default=Any)
Form = Callable[[Quantization, Tensor, Source], Tensor]
"""`(quantization, levels, source of noise) -> x_0`, data in the form that a model takes."""


class Data(ABC):
    """The data of a recipe and how they are read, shown and measured. Concrete classes are frozen dataclasses.

    Attributes:
        batch: number of examples in a batch.
        classes: number of class labels that the model is conditioned on, or None.
        picture: default file name for samples.
        real_valued: whether the data are real numbers, and not quantization levels or tokens.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    batch: int
    classes: int | None
    picture: ClassVar[str]
    real_valued: ClassVar[bool] = False

    @abstractmethod
    def load(self, split: str = "train", progress: Progress = silent) -> Any:
        """Returns a split of the data, with its `shape` and `quantization`."""

    @abstractmethod
    def batches(self, examples: Any, form: Form, bytes_per_logit: int) -> Batches | StreamedBatches:
        """Returns batches of a split in the form that the model takes, with its conditions.

        `bytes_per_logit` is the approximate memory of a training step on tokens, for each logit.
        """

    @abstractmethod
    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the conditions, by name, of the samples whose numbers are `rows`."""

    @abstractmethod
    def conditions_of(self, examples: Any) -> dict[str, Tensor]:
        """Returns the conditions, by name, of examples."""

    @abstractmethod
    def self_contained(self) -> Self:
        """Returns the same data with absolute paths and the contents of a tokenizer, independent of the folder."""

    @abstractmethod
    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        """Writes samples to a file, and returns the part of them that a terminal can show."""

    @abstractmethod
    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> Evaluation:
        """Measures code length and samples of a model on held-out data; for the options see `Recipe.evaluate`."""

    def refuse_measures(  # noqa: B027 (data of one's own need not have it)
        self, features: Sequence[str], without: Sequence[str], samples: int | None
    ) -> None:
        """Raises for what `evaluate` would not measure or leave out, before a model is trained; here for nothing."""

    @property
    def padding(self) -> int | None:
        """The padding token, which losses and code lengths leave out, or None."""
        return None

    def condition_channels(self, shape: tuple[int, ...]) -> int:
        """Returns the number of channels of a condition image, 0 without one, for examples of a shape."""
        return 0

    @property
    def augment_labels(self) -> int:
        """The number of labels of an augmentation that the network takes as its condition `augment`; 0 for none."""
        return 0

    def caption_sizes(self) -> dict[str, int]:
        """Returns the sizes that an encoder of the captions needs, `vocabulary` and `length`; {} without captions."""
        return {}

    @property
    def guided_condition(self) -> str:
        """The name of the condition that guidance strengthens where it does not name one."""
        return "label"

    def captions(self, rows: Tensor) -> list[str] | None:
        """Returns the captions of the samples whose numbers are `rows`, as text; None for data without captions."""
        return None

    def later(self) -> dict[str, Callable[[], Any]]:
        """Returns what parts can take from the training data, by name, as functions that load it."""
        return {}


class Figure(ABC):
    """The figure of a paper, drawn by `unnoise reproduce`. Concrete classes are frozen dataclasses of settings."""

    @abstractmethod
    def draw(self, recipe: Any, folder: Path, progress: Progress = silent) -> Path:
        """Trains the recipe into `folder` where needed, and writes a picture and a table there.

        Returns:
            The path of the table, a Markdown file.
        """


@serializable("experiments.NoFigure")
@dataclass(frozen=True)
class NoFigure(Figure):
    """No figure."""

    def draw(self, recipe: Any, folder: Path, progress: Progress = silent) -> Path:
        """Raises, for a recipe without a figure."""
        raise UsageError("this recipe has no figure of its own: measure its run with `unnoise evaluate`")


class Recipe(ABC, Generic[D]):
    """A run: its parts and what is built from them. Generic in the denoiser. Concrete classes are frozen dataclasses.

    Attributes:
        data: the data.
        training: the settings of the training.
        sampling_steps: the number of steps of the sampler.
        figure: the figure of the paper.
        catalog: the parts of the family, for the notation of parts.
        shorthands: settings by shorter names, for the command line.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    catalog: ClassVar[Catalog]
    shorthands: ClassVar[Mapping[str, str]] = {}
    data: Data
    training: Training
    sampling_steps: int
    figure: Figure
    sampler: Part[Sampler]
    bytes_per_logit: int = 16

    def __post_init__(self) -> None:
        for f in fields(self):
            refuse_other_value(f.name, getattr(self, f.name), str(f.type), kind_of(f.type, self.catalog.kinds))

    @property
    def classes(self) -> int | None:
        """The number of class labels that the model is conditioned on; None for a model without labels."""
        return self.data.classes

    @property
    def picture(self) -> str:
        """The default file name for samples."""
        return self.data.picture

    @property
    @abstractmethod
    def kind(self) -> str:
        """Whether the code length is an upper bound, or exact up to dequantization."""

    @property
    def loss_unit(self) -> str:
        """The quantity and unit on the axis of the loss curve."""
        return "loss"

    def load(self, split: str = "train", progress: Progress = silent) -> Any:
        """Returns a split of the data, with its `shape` and `quantization`."""
        return self.data.load(split, progress)

    def self_contained(self) -> Self:
        """Returns the recipe with absolute paths and the contents of its tokenizer, independent of the folder."""
        return replace(self, data=self.data.self_contained())

    def with_data(self, name: str) -> Self:
        """Returns the recipe with data of another name, such as a folder that was moved."""
        return replace(self, data=replace(self.data, name=name))

    def batches(self, examples: Any) -> Batches | StreamedBatches:
        """Returns batches of a split in the form that the model takes, with its conditions."""
        return self.data.batches(examples, self.form, self.bytes_per_logit)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the conditions, by name, of the samples whose numbers are `rows`."""
        return self.data.conditions(rows)

    @abstractmethod
    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        """Returns quantization levels in the form that the model takes."""

    @abstractmethod
    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        """Returns the quantization levels, int64, of samples in the form that the model takes."""

    @abstractmethod
    def objective(self, shape: tuple[int, ...], quantization: Quantization) -> Objective[D]:
        """Returns a new, untrained denoiser in its objective."""

    @abstractmethod
    def sampler_of(self, denoiser: D) -> Sampler:
        """Returns the sampler for a denoiser."""

    @abstractmethod
    def grid(self, denoiser: D, steps: int) -> int | Tensor:
        """Returns the times of `steps` sampling steps; their number alone where the process chooses the times."""

    @abstractmethod
    def code_length_of(self, denoiser: D, quantization: Quantization) -> CodeLengthOf:
        """Returns the code length under a denoiser, a function of (levels, source of noise, progress, conditions)."""

    def check(self, objective: Objective[D], shape: tuple[int, ...], quantization: Quantization) -> None:
        """Raises before training for settings that a training step, a sampling step or a measurement would refuse.

        One example is passed through the objective and through one step of the sampler, without an effect on training.

        Raises:
            UsageError: with the setting.
        """
        grid, sampler = self.refuse_unfit(objective.denoiser, quantization)
        training = objective.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            objective.eval()
            source, conditions = torch.Generator().manual_seed(0), self.conditions(torch.arange(1))
            refuse_captions_without_effect(objective.denoiser, conditions)
            k = torch.zeros((1, *shape), dtype=torch.uint8)
            objective(self.form(quantization, k, source), generator=source, **conditions)
            with torch.no_grad():
                start = sampler.start((1, *shape), grid[0], generator=source, **conditions)
                if len(grid) > 3:  # not the one step of an adaptive solver
                    sampler.begin()(start, *sampler.path(grid)[0], generator=source, **conditions)
            objective.train(training)

    def refuse_unfit(self, denoiser: D, quantization: Quantization) -> tuple[Tensor, Sampler]:
        """Returns the times of sampling and the sampler; raises for settings that do not fit the denoiser.

        Raises:
            UsageError: with the setting.
        """
        if self.sampling_steps < 1:
            raise UsageError(f"sampling_steps={self.sampling_steps}: give a whole number of at least 1")
        self.refuse_untrained_guidance()
        sampler = self.sampler_of(denoiser)
        if not isinstance(sampler, Sampler):
            raise UsageError(f"sampler={self.sampler} is not a sampler: give one, such as Ancestral")
        try:
            grid = sampler.times(self.grid(denoiser, self.sampling_steps))
        except UsageError as error:
            raise UsageError(f"sampling_steps={self.sampling_steps}: {error}") from error
        self.code_length_of(denoiser, quantization)
        return grid, sampler

    def refuse_untrained_guidance(self) -> None:
        """Raises for guidance of a network that was not trained without labels or captions too.

        Raises:
            UsageError: for such guidance.
        """
        guidance, loss = getattr(self, "guidance", None), getattr(self, "loss", None)
        if guidance is None or loss is None:
            return
        condition = dict(guidance.arguments).get("condition", self.data.guided_condition)
        word, setting = ("captions", "drop_caption") if condition == "tokens" else ("labels", "drop_label")
        if not getattr(loss, setting):
            raise UsageError(
                f"guidance={guidance} needs a network that was also trained without {word}: train with "
                f"loss.{setting}, such as 0.1"
            )

    def show(
        self,
        path: Path,
        levels: Tensor,
        quantization: Quantization,
        columns: int,
        captions: Sequence[str] | None = None,
    ) -> str:
        """Writes samples to a file, and returns the part of them that a terminal can show.

        Images with `captions`, one for each, are shown with these below them.
        """
        if captions is None:
            return self.data.show(path, levels, quantization, columns)
        from ..shared.figures import save_captioned

        save_captioned(path, levels.float() / (quantization.levels - 1), captions, columns)
        return ""

    def evaluate(
        self,
        denoiser: D,
        *,
        count: int | None,
        steps: int | Tensor,
        seed: int = 0,
        trained_on: Mapping[str, Any] | None = None,
        progress: Progress = silent,
        size: int | None = None,
        **options: Any,
    ) -> Evaluation:
        """Measures code length and samples on held-out examples.

        The processes of a run share the work, and all of them must call it; that of rank 0 returns the results.

        Args:
            denoiser: the denoiser.
            count: the number of held-out examples; None for all.
            steps: the number of sampling steps, or a grid of times.
            seed: the seed of the samples, and of noise and times of the code length.
            trained_on: what the checkpoint recorded about its training batches: where the training data are different
                now, the held-out data may be different too.
            progress: how to report progress.
            size: the number of examples that are computed at a time; None for a number that fits most GPUs.
            options: what the data have besides: `samples`, the number of samples (None for as many as are coded);
                `without`, names of what is left out, such as `code-length` or `samples`; of images `features`, the
                features that compare samples, such as `judge` or `inception`, and `statistics`, a file of reference
                statistics; of text `judge_model` and `zero_shot`.
        """
        found: Mapping[str, Any] = self.data.evaluate(
            self,
            denoiser,
            count=count,
            steps=steps,
            seed=seed,
            trained_on=trained_on,
            progress=progress,
            size=size,
            **options,
        )
        return found if isinstance(found, Evaluation) else Evaluation(found, [])  # data of one's own may return a dict


def refuse_other_value(name: str, value: Any, annotation: str, kind: str) -> None:
    """Raises for a value that a setting of a recipe cannot have.

    Args:
        name: the name of the setting.
        value: its value.
        annotation: the annotation of the field, as text.
        kind: the kind of part that the field holds, or another text.

    Raises:
        UsageError: with what to give.
    """
    if value is None and "None" in annotation:
        return
    takes_part, own = "Part[" in annotation, annotation.partition("Part[")[0].strip(" |")
    if isinstance(value, type):
        raise UsageError(
            f"{name} is the class {value.__name__}: give {'part(' if takes_part else ''}{value.__name__}"
            f"{')' if takes_part else '(...)'}"
        )
    if takes_part and not own and not isinstance(value, Part):
        raise UsageError(f"{name}={shown(value)}: give a part, such as part(NAME, ARGUMENT=VALUE)")
    wanted = {"int": int, "bool": bool, "str": str}.get(annotation)
    if wanted is not None and not isinstance(value, wanted):
        raise UsageError(f"{name}={value!r}: give {'a whole number' if wanted is int else wanted.__name__}")
    settings = annotation in (
        "Data",
        "Training",
        "Figure",
        "GaussianLoss",
        "CategoricalLoss",
        "GaussianCodeLength",
        "TokenBound",
    )
    if settings and not is_dataclass(value):
        raise UsageError(f"{name}={shown(value)}: give {annotation}(...)")
    if kind not in ("", "str") and isinstance(value, str | int | float):
        raise UsageError(f"{name}={value!r}: give the part itself, not its name or a number")
