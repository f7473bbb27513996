"""Images from any source, quantized once; each family takes them in its own form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..progress import Progress, silent
from ..quantization import Quantization
from ..random import Source
from .batches import Batches
from .class_labels import NO_LABELS, Labels, class_counts, refuse_other_classes
from .columns import Captions, Columns
from .folders import list_images
from .sources import bundled
from .stacking import EncodedImages, Files, stacked
from .table_files import table_files
from .tables import images_in_table

LEVELS = {"digits": 17}  # every other data set has 256 quantization levels


class ImageDataset(NamedTuple):
    """Images as quantization levels, uint8 `(N, C, H, W)`, and their class labels, if they have labels.

    Attributes:
        k: the quantization levels.
        label: class labels, int64 `(N,)`, or None if the labels cannot be used (`no_labels` has the reason).
        quantization: the real numbers that the quantization levels stand for.
        names: names of the classes, where they have names.
        notes: what was left out, or changed in reading.
        captions: a text for each image, or None without captions that can be used (`no_captions` has the reason).
    """

    k: Tensor
    label: Tensor | None
    quantization: Quantization
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, `(C, H, W)`."""
        return tuple(self.k.shape[1:])

    @property
    def dims(self) -> int:
        """Number of values in one image, C H W."""
        return self.k[0].numel()

    @property
    def summary(self) -> str:
        """One line on the data set: `1,204 images of 1x8x8, 3 classes: blood 400, ...; 2 other files left out: ...`."""
        whole = f"{len(self.k):,} image{'s' * (len(self.k) != 1)} of {'x'.join(map(str, self.shape))}"
        whole += "" if self.captions is None else ", with captions"
        return "; ".join([whole if self.label is None else f"{whole}, {self.class_counts}", *self.notes])

    @property
    def class_counts(self) -> str:
        """A text with the number of images of each class, or on why there are no labels."""
        return self.no_labels if self.label is None else class_counts(self.label, self.names)

    @property
    def no_labels(self) -> str:
        """A note that there are no labels, with the reason."""
        return next((note for note in self.notes if note.startswith("no labels")), "no labels")

    @property
    def no_captions(self) -> str:
        """A note that there are no captions, with the reason."""
        return next((note for note in self.notes if note.startswith("no captions")), "no captions")

    @property
    def labels(self) -> Labels:
        """The labels as a list, the names of the classes, and the reason if labels are missing."""
        reason = self.no_labels.removeprefix("no labels").removeprefix(": ")
        return Labels(None, reason=reason) if self.label is None else Labels(self.label.tolist(), self.names)

    def subset(self, count: int) -> ImageDataset:
        """Returns `count` evenly spaced images, because folders are sorted by class; all images if there are fewer."""
        if count >= len(self.k):
            return self
        rows = torch.arange(count) * len(self.k) // count
        return self.rows(rows)

    def rows(self, rows: Tensor) -> ImageDataset:
        """Returns the images whose numbers are `rows`, int64 `(n,)`, with their labels and captions."""
        return self._replace(
            k=self.k[rows],
            label=None if self.label is None else self.label[rows],
            captions=None if self.captions is None else tuple(self.captions[row] for row in rows.tolist()),
        )

    def batches(
        self,
        batch: int,
        form: Callable[[Quantization, Tensor, Source], Tensor] = Quantization.continuous,
        *,
        conditions: Sequence[str] = (),
        seed: int = 0,
    ) -> Batches:
        """Returns endless batches `{"x0": (batch, C, H, W)}`; `conditions=("label",)` adds the class labels.

        Args:
            batch: number of images in a batch.
            form: how quantization levels become `x0`: by default real numbers, float32; see `Batches`.
            conditions: names of conditions: none, or `label`.
            seed: seed of the order and of the dequantization noise.

        Raises:
            UsageError: for conditions that the data set does not have.
        """
        if conditions and (self.label is None or tuple(conditions) != ("label",)):
            has = "label only" if self.label is not None else f"{self.no_labels}; {NO_LABELS}"
            raise UsageError(f"conditions={tuple(conditions)}: this data set has {has}")
        names = self.names if conditions else None
        return Batches(
            self.k, batch, self.quantization, form, {"label": self.label} if conditions else None, seed, names=names
        )


def image_dataset(
    name: str,
    *,
    split: str = "train",
    size: tuple[int, int] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    classes: int | None = None,
    columns: Columns = Columns(),  # noqa: B008
    progress: Progress = silent,
) -> ImageDataset:
    """Loads images: gray or RGB, of any size, all of one size unless `size` (height, width) scales and crops them.

    Pixel values become 8 bits by the rules of `pixels`; gray images among RGB images are read as RGB. What was left out
    or changed is counted in `ImageDataset.summary`.

    Args:
        name: a bundled data set (`digits`, `mnist5k`, `openmoji32`); a folder of images, which is read by the rules of
            `list_images`; Parquet, Arrow, CSV, JSON or tar files, by those of `table_files`; or a data set on the Hub.
        split: `train`, `test`, ...
        size: height and width; the shorter side is resized and the center cropped.
        low, high: range of the real numbers that the quantization levels stand for, such as [-1, 1].
        classes: number of classes; labels must lie in 0 to classes - 1, which is checked before pixels are read. None
            for any labels, or none.
        columns: names of the columns of images, labels and captions.
        progress: `(items, total, label) -> items`, such as `bar`; reports nothing by default.

    Raises:
        UsageError: for a data set without images or such a split, images that cannot be read or need more memory than
            there is, images of several sizes without `size`, or labels outside of 0 to classes - 1.
    """
    if size is not None and min(size) < 1:
        raise UsageError(f"size={size}: give a height and a width of at least 1")
    name = str(Path(name).expanduser()) if str(name).startswith("~") else str(name)
    pictures, labels, captions, notes = find_images(name, split, classes, columns)
    k, changes = stacked(pictures, name, size, progress)
    levels = LEVELS.get(name, 256)
    k = k if levels == 256 else torch.round(k.float() * (levels - 1) / 255).to(torch.uint8)
    label = None if labels.numbers is None else torch.tensor(labels.numbers)
    missing = [] if label is not None else [f"no labels: {labels.reason}" if labels.reason else "no labels"]
    missing += [f"no captions: {captions.reason}"] if captions.reason else []
    notes = (*missing, *changes, *notes)
    return ImageDataset(k, label, Quantization(levels, low, high), labels.names, notes, captions.texts)


def find_images(
    name: str,
    split: str,
    classes: int | None,
    columns: Columns = Columns(),  # noqa: B008
) -> tuple[EncodedImages, Labels, Captions, tuple[str, ...]]:
    """Returns the images of a split, not yet decoded, their labels and captions, and notes on what was left out.

    For the arguments see `image_dataset`.

    Raises:
        UsageError: for a split without images, and labels outside of 0 to classes - 1.
    """
    if name not in bundled() and Path(name).is_dir() and table_files(name) is None:
        files, labels, captions, notes = list_images(name, split, columns)
        pictures = Files(name, files)
    else:
        pictures, labels, captions, notes = images_in_table(name, split, columns)
    if classes is not None:
        refuse_other_classes(labels, classes, name, split)
    return pictures, labels, captions, notes


def missing_test_split(name: str, classes: int | None = None, columns: Columns = Columns()) -> str:  # noqa: B008
    """Returns one line on why a data set has no usable split `test`; an empty text where it has one.

    Usable is a split of two images or more, with labels in 0..classes-1 unless `classes` is None.
    """
    try:
        path = str(Path(name).expanduser()) if name.startswith("~") else name
        count = len(find_images(path, "test", classes, columns)[0])
    except UsageError as error:
        return str(error)
    if count > 1:
        return ""
    return f"the split test of {name} has 1 image, and a standard error needs at least 2: hold more images out"


def images(
    name: str,
    *,
    batch: int,
    form: Callable[[Quantization, Tensor, Source], Tensor] = Quantization.continuous,
    split: str = "train",
    size: tuple[int, int] | None = None,
    conditions: Sequence[str] = (),
    seed: int = 0,
) -> Batches:
    """Returns endless batches `{"x0": (batch, C, H, W)}` of a data set of images.

    Arguments and errors are those of `image_dataset` and `ImageDataset.batches`.
    """
    return image_dataset(name, split=split, size=size).batches(batch, form, conditions=conditions, seed=seed)
