"""Images as the data of a recipe: how they are read, conditioned on, shown and measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.data import Batches, CaptionTokens, ImageDataset, SubwordTokenizer, image_dataset
from ..shared.data.augmentation import Augmentation
from ..shared.data.cache import Memory
from ..shared.data.columns import Columns
from ..shared.data.image_stream import ImageStream, image_stream
from ..shared.data.images import find_images, measured_split
from ..shared.data.sources import absolute, bundled
from ..shared.data.streaming import StreamedBatches
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.metrics.measurement import Evaluation
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source, uniform
from ..shared.serialization import serializable
from ..shared.tensors import like
from ..shared.values import notation
from .caption_data import (
    VOCABULARY,
    no_captions,
    refuse_settings_of_captions,
    tokenizer_of,
    tokens_of,
    trained_tokenizer,
)
from .evaluation import evaluate_images
from .image_measures import extractors, refuse_without
from .pixel_values import coarser, tinted
from .recipe import Data, Form, Recipe


@serializable("experiments.Data", formerly=("unnoise.experiments.images.Data", "unnoise.experiments.experiment.Data"))
@dataclass(frozen=True)
class Images(Data):
    """The images to train on."""

    name: str = "digits"
    """Name of the images: digits, mnist5k or openmoji32 (bundled), a folder, or a set on the Hub: uoft-cs/cifar10.
    Also a Parquet, Arrow, CSV, JSON or tar file, a folder of such files, or a pattern such as "data/*.parquet"."""
    batch: int = 64
    """Number of images in a batch."""
    size: tuple[int, int] | None = None
    """Height and width in pixels to scale and crop images to, such as 32 32; None if all have one size."""
    classes: int | None = None
    """Number of class labels that the model is conditioned on, such as 10; None trains a model without labels."""
    flip: bool = False
    """Whether each image is mirrored left to right with probability one half."""
    augment: float = 0.0
    """Probability of each transformation of EDM's augmentation, such as 0.12; 0 for none.
    The network is told how an image was transformed, and samples are of images as they are."""
    balanced: bool = False
    """Whether each class appears equally often in training, for sets whose classes have different sizes."""
    seed: int = 0
    """Seed of the order of the images, a whole number."""
    smaller: int | None = None
    """Factor by which a condition image is smaller, such as 4 for super-resolution; None for no condition image."""
    levels: int | None = None
    """Number of quantization levels to which pixel values are rounded, such as 16; None keeps those of the set."""
    tint: bool = False
    """Whether gray images are tinted by their label, in colors of equal mean."""
    caption_length: int | None = None
    """Number of tokens of the captions that the model is conditioned on, such as 24; None trains without captions.
    Shorter captions are padded, longer ones are cut and counted."""
    tokenizer: str | None = None
    """Path of the tokenizer.json of the captions, whose contents the run keeps; None trains one on the captions."""
    vocabulary: int | None = None
    """Number of tokens of the tokenizer that is trained on the captions, 257 or more; None for 1,024."""
    image_column: str | None = None
    """Name of the column of images in a table; None for image or img."""
    label_column: str | None = None
    """Name of the column of class labels; None for label or fine_label, or cls in tar files."""
    caption_column: str | None = None
    """Name of the column of captions; None for caption or text, or txt in tar files."""
    held_out: float | None = None
    """Share of the images that is held out for tests, such as 0.1, or their number, such as 1000.
    None takes the set's own split test, or validation. Which images are held out does not depend on the seed."""
    memory: Memory = "auto"
    """Where decoded images are: in memory, or mapped, which reads each batch from a file of the cache.
    auto holds them in memory if they fit into half of the free memory."""
    streaming: bool = False
    """Whether images are read and decoded while the model trains, in an order of blocks, and never all of them:
    for tables, tar files and sets on the Hub that do not fit a disk."""
    shuffle_block: int = 4096
    """Number of encoded images of a stream that are shuffled at a time; two such blocks are held in memory."""

    picture: ClassVar[str] = "samples.png"
    __repr__ = notation

    def __post_init__(self) -> None:
        if self.smaller is not None and (self.smaller < 2 or self.classes is not None or self.flip):
            raise UsageError(
                f"smaller={self.smaller}, classes={self.classes}, flip={self.flip}: give a factor of 2 or more, "
                "classes=None and flip=False"
            )
        if not 0 <= self.augment <= 1:
            raise UsageError(f"augment={self.augment}: give a probability from 0 to 1, such as 0.12")
        if self.augment and (self.flip or self.smaller is not None):
            raise UsageError(
                f"augment={self.augment}, flip={self.flip}, smaller={self.smaller}: the augmentation mirrors images "
                "itself, and not the condition image: give flip=False and smaller=None"
            )
        if self.streaming:
            refuse_settings_of_whole_sets(self)

    def load(self, split: str = "train", progress: Progress = silent) -> Any:
        """Loads the images of a split, an `ImageDataset`, or opens the stream of the split train, an `ImageStream`.

        The summary of `train` reports when the set has no test images. Of a stream's other splits the first images are
        read.

        Raises:
            UsageError: if the labels do not match `classes`; the message lists the labels that were found.
        """
        refuse_settings_of_captions(self.caption_length, self.tokenizer, self.vocabulary)
        if self.streaming:
            stream = image_stream(self.name, split=split, size=self.size, classes=self.classes, columns=self.columns)
            return stream if split == "train" else stream.first(FIRST)
        own, reason = self.measured_split() if split in ("train", "test") else (split, "")
        images = image_dataset(
            self.name,
            split=own if split == "test" else split,
            size=self.size,
            classes=self.classes,
            columns=self.columns,
            held_out=self.held_out,
            memory=self.memory,
            progress=progress,
        )
        if split == "train" and reason:
            note = f"`unnoise evaluate` will have no images to measure on: {reason}"
            note += "" if self.caption_length is None else "; samples are drawn of the captions of the split train"
            images = images._replace(notes=(*images.notes, note))
        if split == "test" and own != "test":
            images = images._replace(notes=(*images.notes, f"the split {own}, since no split test can be measured on"))
        if self.caption_length is not None:
            images = images._replace(notes=(*images.notes, *self.tokens(images).notes))
        images = images if self.levels is None else coarser(images, self.levels)
        return tinted(images) if self.tint else images

    @property
    def columns(self) -> Columns:
        """The names of the columns of a table of images."""
        return Columns(self.image_column, self.label_column, self.caption_column)

    def measured_split(self) -> tuple[str, str]:
        """Returns the split that a model is measured on, and why there is none; see `measured_split` of the images."""
        return measured_split(self.name, self.classes, self.columns, self.held_out)

    def batches(self, examples: Any, form: Form, bytes_per_logit: int) -> Batches | StreamedBatches:
        """Returns batches of the images, with the labels, captions or small versions that the model is conditioned on.

        Raises:
            UsageError: if some class does not occur.
        """
        if isinstance(examples, ImageStream):
            return StreamedBatches(
                examples.stream,
                examples.decode,
                self.batch,
                examples.quantization,
                examples.shape,
                Flipped(form) if self.flip else form,
                self.shuffle_block,
                self.seed,
                names=examples.names,
                augment=Augmentation(self.augment) if self.augment else None,
            )
        if self.classes is not None and examples.label is not None:
            refuse_absent_classes(examples, self.classes, self.name)
        if self.balanced and examples.label is None:
            raise UsageError(f"balanced=True: {self.name} has {examples.no_labels}: leave out --data.balanced")
        conditions: dict[str, Any] = {**replace(self, smaller=None).conditions_of(examples)}
        if self.smaller is not None:
            conditions["image"] = self.small_images(examples)
        return Batches(
            examples.k,
            self.batch,
            examples.quantization,
            Flipped(form) if self.flip else form,
            conditions,
            self.seed,
            names=examples.names if self.classes is not None else None,
            augment=Augmentation(self.augment) if self.augment else None,
            balanced=examples.label if self.balanced else None,
        )

    @property
    def augment_labels(self) -> int:
        return Augmentation.labels_size if self.augment else 0

    def small_images(self, examples: ImageDataset) -> Tensor | Small:
        """Returns the small versions of images: in memory, or made when they are needed of images in a file."""
        small = Small(self, examples)
        return small[:] if isinstance(examples.k, Tensor) else small

    def small(self, quantization: Quantization, k: Tensor) -> Tensor:
        """Returns the small images, real-valued: means over squares of `smaller` x `smaller` pixels."""
        assert self.smaller is not None
        if any(size % self.smaller for size in k.shape[2:]):
            raise UsageError(
                f"smaller={self.smaller}: the size of the images, {'x'.join(map(str, k.shape[2:]))}, cannot be divided "
                "by it: give a divisor of both"
            )
        return F.avg_pool2d(quantization.continuous(k), self.smaller)

    def condition_channels(self, shape: tuple[int, ...]) -> int:
        return 0 if self.smaller is None else shape[0]

    def caption_sizes(self) -> dict[str, int]:
        if self.caption_length is None:
            return {}
        return {"vocabulary": self.read_tokenizer().size, "length": self.caption_length}

    @property
    def guided_condition(self) -> str:
        return "label" if self.caption_length is None or self.classes is not None else "tokens"

    def read_tokenizer(self) -> SubwordTokenizer:
        """Returns the tokenizer of the captions: that of the file or of the run, or one trained on the split train.

        Raises:
            UsageError: for data without captions.
        """
        if self.tokenizer is not None:
            return tokenizer_of(self.tokenizer)
        found = find_images(self.name, "train", None, self.columns, self.held_out).captions
        if found.texts is None:
            raise UsageError(no_captions(self.name, f"no captions: {found.reason}" if found.reason else "no captions"))
        return trained_tokenizer(found.texts, self.vocabulary or VOCABULARY)

    def tokens(self, examples: ImageDataset) -> CaptionTokens:
        """Returns the captions of images as token ids.

        Raises:
            UsageError: for images without captions.
        """
        assert self.caption_length is not None
        if examples.captions is None:
            raise UsageError(no_captions(self.name, examples.no_captions))
        return tokens_of(examples.captions, self.read_tokenizer(), self.caption_length)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the conditions of samples: each class in turn; or small versions or captions of held-out images."""
        if self.smaller is None and self.caption_length is None:
            return {} if self.classes is None else {"label": rows % self.classes}
        examples = held_out(self)
        chosen = self.conditions_of(examples.rows(rows.cpu() % len(examples.k)))
        return {name: value.to(rows.device) for name, value in chosen.items()}

    def captions(self, rows: Tensor) -> list[str] | None:
        if self.caption_length is None:
            return None
        found = held_out(self).captions
        assert found is not None, "read with its captions"
        return [found[row % len(found)] for row in rows.tolist()]

    def conditions_of(self, examples: ImageDataset) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.smaller is not None:
            found["image"] = Small(self, examples)[:]
        if self.classes is not None:
            if examples.label is None:
                raise UsageError(f"these images have {examples.no_labels}: take a set with labels")
            found["label"] = examples.label
        if self.caption_length is not None:
            found["tokens"] = self.tokens(examples).tokens
        return found

    def self_contained(self) -> Images:
        own = replace(self, name=absolute(self.name, bundled()))
        if self.caption_length is None:
            return own
        return replace(own, tokenizer=self.read_tokenizer().json, vocabulary=None)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        from ..shared.figures import save_grid

        save_grid(path, levels.float() / (quantization.levels - 1), columns=columns)
        return "" if levels.shape[1] in (1, 3) else f"  only the first of {levels.shape[1]} channels is shown\n"

    def evaluate(self, recipe: Recipe, denoiser: Denoiser, **options: Any) -> Evaluation:
        return evaluate_images(recipe, denoiser, **options)

    def refuse_measures(self, features: Sequence[str], without: Sequence[str], samples: int | None) -> None:
        refuse_without(without, samples)
        extractors(features, without)


@functools.lru_cache(maxsize=1)
def held_out(data: Images) -> ImageDataset:
    """Returns the held-out images, which are read only once; of captions without them, the training images."""
    without = data.caption_length is not None and data.measured_split()[1]
    return data.load("train" if without else "test")


FIRST = 10_000
"""The number of images of a stream's split for tests that a model is measured on."""


def refuse_settings_of_whole_sets(data: Images) -> None:
    """Raises for settings that need all images of a set, and streamed data.

    Raises:
        UsageError: with the setting.
    """
    needs = {"balanced": False, "smaller": None, "levels": None, "tint": False}
    needs |= {"caption_length": None, "held_out": None}
    for name, none in {**needs, "memory": "auto"}.items():
        if (value := getattr(data, name)) != none:
            raise UsageError(
                f"streaming=True, {name}={value}: a stream is not held as a whole: give streaming=False, or leave out "
                f"{name}"
            )


def refuse_absent_classes(images: ImageDataset, classes: int, name: str) -> None:
    """Raises `UsageError` for a data set that has no image of some class, since sampling uses every class."""
    present = set([] if images.label is None else images.label.unique().tolist())
    if absent := [n for n in range(classes) if n not in present]:
        which = ", ".join(str(images.names[n] if images.names else n) for n in absent[:5]) + ", ..." * (len(absent) > 5)
        remedy = (
            f"give --data.classes {len(present)}"
            if absent[0] == len(present)
            else f"number the labels 0 to {len(present) - 1} and give --data.classes {len(present)}"
        )
        remedy = "take another set" if images.names else remedy
        raise UsageError(
            f"classes={classes}: {name} has no image of {which}, and samples are drawn of every class "
            f"({images.class_counts}): {remedy}, or add images of the class"
        )


@dataclass(frozen=True)
class Flipped:
    """A form of images, after each was mirrored left to right with probability one half.

    Attributes:
        form: the form.
    """

    form: Form

    def __call__(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        mirror = like(uniform((len(k),), generator, device=k.device) < 0.5, k)
        return self.form(quantization, torch.where(mirror, k.flip(-1), k), generator)


@dataclass(frozen=True, eq=False)
class Small:
    """The small versions of images as a condition; `small[rows]` makes some, float32 `(n, C, h, w)`.

    Attributes:
        data: the settings.
        images: the images.
    """

    data: Images
    images: ImageDataset

    def __len__(self) -> int:
        return len(self.images.k)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        return torch.cat([self.data.small(self.images.quantization, self.images.k[part]) for part in index.split(1000)])
