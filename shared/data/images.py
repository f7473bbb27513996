"""Images from any source, quantized once; each family takes them in its own form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..memory import refuse_beyond
from ..progress import Progress, silent
from ..quantization import Quantization
from ..random import Source
from .array_files import SelectedRows
from .batches import Batches
from .cache import Memory, pixels_of
from .class_labels import NO_LABELS, Labels, class_counts, refuse_other_classes
from .columns import Captions, Columns
from .folders import list_images
from .held_out import held_out_note, held_out_rows
from .mapped import MappedRows
from .sources import bundled
from .stacking import EncodedImages, Files
from .table_files import table_files
from .tables import images_in_table

LEVELS = {"digits": 17}  # every other data set has 256 quantization levels


class ImageDataset(NamedTuple):
    """Images as quantization levels, uint8 `(N, C, H, W)`, and their class labels, if they have labels.

    Attributes:
        k: the quantization levels, in memory or in a file; `k[rows]` reads some.
        label: class labels, int64 `(N,)`, or None if the labels cannot be used (`no_labels` has the reason).
        quantization: the real numbers that the quantization levels stand for.
        names: names of the classes, where they have names.
        notes: what was left out, or changed in reading.
        captions: a text for each image, or None without captions that can be used (`no_captions` has the reason).
    """

    k: Tensor | MappedRows | SelectedRows
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
        return math.prod(self.shape)

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

    @property
    def in_memory(self) -> Tensor:
        """The quantization levels of all images as one tensor.

        Raises:
            UsageError: for images in a file that need more memory than there is.
        """
        if isinstance(self.k, Tensor):
            return self.k
        whole = f"{len(self.k):,} images of {'x'.join(map(str, self.shape))}"
        refuse_beyond(len(self.k) * self.dims, whole, "take fewer images, or a smaller size")
        return self.k[:]

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
    held_out: float | None = None,
    memory: Memory = "auto",
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
        held_out: share or number of the images of the split train that are held out as the split test, by the rules of
            `held_out_rows`; None for the set's own split test.
        memory: whether images are held in memory, or rows are read from a file when needed; `auto` holds them in memory
            if they fit into half of the free memory.
        progress: `(items, total, label) -> items`, such as `bar`; reports nothing by default.

    Raises:
        UsageError: for a data set without images or such a split, images that cannot be read or need more memory than
            there is, images of several sizes without `size`, or labels outside of 0 to classes - 1.
    """
    if size is not None and min(size) < 1:
        raise UsageError(f"size={size}: give a height and a width of at least 1")
    name = str(Path(name).expanduser()) if str(name).startswith("~") else str(name)
    found = find_images(name, split, classes, columns, held_out)
    k, changes = pixels_of(found.pictures, name, size, memory, progress)
    levels = LEVELS.get(name, 256)
    if levels != 256:
        k = torch.round(k[:].float() * (levels - 1) / 255).to(torch.uint8)
    if found.rows is not None:
        k = k[found.rows] if isinstance(k, Tensor) else SelectedRows(k, found.rows)
    labels, captions = found.labels, found.captions
    label = None if labels.numbers is None else torch.tensor(labels.numbers)
    missing = [] if label is not None else [f"no labels: {labels.reason}" if labels.reason else "no labels"]
    missing += [f"no captions: {captions.reason}"] if captions.reason else []
    notes = (*missing, *changes, *found.notes)
    return ImageDataset(k, label, Quantization(levels, low, high), labels.names, notes, captions.texts)


class Found(NamedTuple):
    """The images of a split, not yet decoded.

    Attributes:
        pictures: the encoded images; where some are held out, those of both splits.
        labels: class labels of the split.
        captions: captions of the split.
        notes: what was left out.
        rows: the numbers of the images of the split among `pictures`; None for all.
    """

    pictures: EncodedImages
    labels: Labels
    captions: Captions
    notes: tuple[str, ...]
    rows: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of images of the split."""
        return len(self.pictures) if self.rows is None else len(self.rows)


def find_images(
    name: str,
    split: str,
    classes: int | None = None,
    columns: Columns = Columns(),  # noqa: B008
    held_out: float | None = None,
) -> Found:
    """Returns the images of a split, not yet decoded, their labels and captions, and notes on what was left out.

    For the arguments see `image_dataset`.

    Raises:
        UsageError: for a split without images, and labels outside of 0 to classes - 1.
    """
    part = split if held_out is not None and split in ("train", "test") else None
    found = _found(name, "train" if part else split, columns)
    if part is not None and held_out is not None:
        rows = held_out_rows(len(found.pictures), held_out, part)
        note = held_out_note(len(found.pictures), held_out, rows, part)
        numbers, texts = found.labels.numbers, found.captions.texts
        found = found._replace(
            rows=rows,
            labels=found.labels._replace(numbers=None if numbers is None else [numbers[row] for row in rows]),
            captions=found.captions._replace(texts=None if texts is None else tuple(texts[row] for row in rows)),
            notes=(*found.notes, note),
        )
    if classes is not None:
        refuse_other_classes(found.labels, classes, name, split)
    return found


def _found(name: str, split: str, columns: Columns) -> Found:
    if name not in bundled() and Path(name).is_dir() and table_files(name) is None:
        listing = list_images(name, split, columns)
        return Found(Files(name, listing.files), listing.labels, listing.captions, listing.notes)
    return Found(*images_in_table(name, split, columns))


def measured_split(
    name: str,
    classes: int | None = None,
    columns: Columns = Columns(),  # noqa: B008
    held_out: float | None = None,
) -> tuple[str, str]:
    """Returns the split that a model is measured on, `test` or else `validation`, and an empty text.

    Usable is a split of two images or more, with labels in 0..classes-1 unless `classes` is None. If neither is usable,
    it returns `test` and one line on why it is not.
    """
    path, reasons = str(Path(name).expanduser()) if name.startswith("~") else name, []
    for split in ("test", "validation"):
        try:
            count = find_images(path, split, classes, columns, held_out).count
        except UsageError as error:
            reasons.append(str(error))
            continue
        if count > 1:
            return split, ""
        reasons.append(
            f"the split {split} of {name} has 1 image, and a standard error needs at least 2: hold more images out"
        )
    return "test", reasons[0]


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
