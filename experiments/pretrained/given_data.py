"""The data of models that come without their own: known by their form, and given for evaluation with --data."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Self

from ...shared.data import Batches, CharacterTokenizer, ImageDataset, SubwordTokenizer, TextDataset
from ...shared.data.class_labels import refuse_other_classes
from ...shared.denoiser import Denoiser
from ...shared.errors import UsageError
from ...shared.metrics.measurement import Evaluation
from ...shared.progress import Progress, silent
from ...shared.quantization import Quantization
from ...shared.serialization import serializable
from ..evaluation import evaluate_images
from ..image_data import Images
from ..recipe import Data, Form, Recipe
from ..text_data import Text
from ..text_measures import evaluate_text


class GivenData(Data):
    """Data whose form is known, and which are given for evaluation. Concrete classes are frozen dataclasses.

    Attributes:
        classes: number of class labels of the network; None for a network without labels.
        needs: names of other conditions that the network needs.
    """

    batch: int = 64
    needs: tuple[str, ...]

    @abstractmethod
    def given(self, name: str) -> Self:
        """Returns the same form with data of a name."""

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the class label of each sample, the classes in turn.

        Raises:
            UsageError: for a network that needs other conditions.
        """
        self.refuse_needs()
        return {} if self.classes is None else {"label": rows % self.classes}

    def refuse_needs(self) -> None:
        """Raises `UsageError` for a network that needs other conditions than a class label."""
        if names := ", ".join(self.needs):
            raise UsageError(
                f"this network needs {names} too, which the command line cannot give: call a sampler in Python with "
                f"{names}=..."
            )


@serializable("experiments.GivenImages")
@dataclass(frozen=True)
class GivenImages(GivenData):
    """Images of a known shape and quantization."""

    shape: tuple[int, ...]
    """Shape of one image, (channels, height, width)."""
    quantization: Quantization
    """Number of quantization levels of the images, and their range."""
    classes: int | None = None
    """Number of class labels; None for a network without labels."""
    needs: tuple[str, ...] = ()
    """Names of other conditions that the network needs."""
    images: Images | None = None
    """The images; None as long as they are not given."""

    picture: ClassVar[str] = Images.picture

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name of the images; an empty text as long as they are not given."""
        return "" if self.images is None else self.images.name

    def given(self, name: str) -> GivenImages:
        return replace(self, images=Images(name, size=(self.shape[1], self.shape[2]), classes=self.classes))

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        """Returns a split of the images with the quantization of the model.

        Raises:
            UsageError: if no images are given, or images of another shape, quantization or with other classes.
        """
        if self.images is None:
            raise UsageError(
                "this checkpoint comes without data: give --data NAME, a bundled set, a folder or a set on the Hub"
            )
        images = replace(self.images, classes=None).load(split, progress)
        if images.shape != self.shape or images.quantization.levels != self.quantization.levels:
            raise UsageError(
                f"the images of {self.name} have shape {images.shape} and {images.quantization.levels} "
                f"quantization levels, and this network needs {self.shape} and {self.quantization.levels}: give --data "
                "with such images, or measure samples of it: `unnoise sample RUN --count 1000 --out FOLDER` and "
                f"`unnoise evaluate FOLDER --data {self.name}`"
            )
        if self.classes is not None:
            try:
                refuse_other_classes(images.labels, self.classes, self.name, split)
            except UsageError as error:
                raise UsageError(
                    f"this network has {self.classes} classes, numbered as in its training: give --data with images of "
                    f"these classes ({str(error).split(';')[0]})"
                ) from error
        return images._replace(quantization=self.quantization)

    def batches(self, examples: ImageDataset, form: Form, bytes_per_logit: int) -> Batches:
        names = () if self.classes is None else ("label",)
        return examples.batches(min(self.batch, len(examples.k)), form, conditions=names)

    def conditions_of(self, examples: ImageDataset) -> dict[str, Tensor]:
        self.refuse_needs()
        if self.classes is None:
            return {}
        assert examples.label is not None  # `load` refuses images without labels
        return {"label": examples.label}

    def self_contained(self) -> GivenImages:
        return self if self.images is None else replace(self, images=self.images.self_contained())

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        return Images().show(path, levels, quantization, columns)

    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> Evaluation:
        return evaluate_images(recipe, denoiser, **options)


CHARACTERS = CharacterTokenizer().fingerprint


@serializable("experiments.GivenText")
@dataclass(frozen=True)
class GivenText(GivenData):
    """Text of known tokens. Without a tokenizer, samples are written as token ids."""

    vocabulary: int
    """Number of tokens, without a mask."""
    text: Text = field(default_factory=lambda: Text(""))
    """The text, with an empty name as long as it is not given, and the length of a window."""
    tokens: str | None = None
    """The fingerprint of the tokenizer of training, such as "27 characters"; None if it is unknown."""
    classes: int | None = None
    """Number of class labels; None for a network without labels."""
    needs: tuple[str, ...] = ()
    """Names of other conditions that the network needs."""

    picture: ClassVar[str] = Text.picture

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name of the text; an empty text as long as it is not given."""
        return self.text.name

    @property
    def readable(self) -> bool:
        """Whether tokens can be turned to text and back: a tokenizer is given, or they are 27 characters."""
        return self.text.tokenizer is not None or self.tokens == CHARACTERS

    @property
    def padding(self) -> int | None:
        return self.text.padding

    def read_tokenizer(self) -> CharacterTokenizer | SubwordTokenizer:
        """Returns the tokenizer.

        Raises:
            UsageError: if none is given.
        """
        if not self.readable:
            raise UsageError("this model has no tokenizer: import it with --tokenizer tokenizer.json")
        return self.text.read_tokenizer()

    def given(self, name: str) -> GivenText:
        return replace(self, text=replace(self.text, name=name))

    def load(self, split: str = "train", progress: Progress = silent) -> TextDataset:
        """Returns a split of the text.

        Raises:
            UsageError: if no text or no tokenizer is given, or one of another size than the model's vocabulary.
        """
        if not self.readable and self.tokens is not None:
            raise UsageError(
                f"the checkpoint does not contain the tokenizer of its training ({self.tokens}): evaluate it in "
                'Python, as run_of(checkpoint).with_tokenizer("tokenizer.json").with_data(NAME)'
            )
        if not self.name and self.tokens is not None:
            raise UsageError("this checkpoint comes without data: give --data NAME, a bundled text, a file or a set")
        if not self.name or not self.readable:
            raise UsageError(
                "this model has no text or no tokenizer: import it with --tokenizer tokenizer.json, and give the text "
                "with --data NAME"
            )
        data = self.text.load(split)
        self.refuse_other(data.vocabulary)
        if self.tokens not in (None, data.tokenizer.fingerprint):
            raise UsageError(
                f"the tokenizer has {data.tokenizer.fingerprint}, and that of the training {self.tokens}: give the "
                "tokenizer of the training"
            )
        return data

    def batches(self, examples: TextDataset, form: Form, bytes_per_logit: int) -> Batches:
        return examples.batches(min(self.batch, len(examples.windows)))

    def conditions_of(self, examples: TextDataset) -> dict[str, Tensor]:
        return {}

    def self_contained(self) -> GivenText:
        """Returns the same text with the contents of its tokenizer.

        Raises:
            UsageError: for a tokenizer whose size is not that of the network.
        """
        if self.text.tokenizer is not None:
            self.refuse_other(self.text.read_tokenizer().size)
        return replace(self, text=self.text.self_contained())

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

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        if self.readable:
            return self.text.show(path, levels, quantization, columns)
        path.write_text("".join(" ".join(map(str, row)) + "\n" for row in levels.tolist()))
        remedy = (
            "for text, import the model with --tokenizer tokenizer.json"
            if self.tokens is None
            else f"the checkpoint does not contain their tokenizer ({self.tokens})"
        )
        return f"  token ids, one line for each sample; {remedy}\n"

    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> Evaluation:
        return evaluate_text(recipe, denoiser, self.text, **options)
