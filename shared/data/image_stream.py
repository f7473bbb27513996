"""Images in a stream: Parquet, Arrow, CSV, JSON and tar files, and data sets on the Hub, read while a model trains."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, shown
from ..quantization import Quantization
from .class_labels import as_integer
from .columns import Columns, column_of
from .images import ImageDataset
from .pixels import Pixels
from .sources import bundled
from .stacking import read_one
from .streaming import Row
from .table_files import KINDS, TableFiles, table_files
from .tables import folder_of
from .tars import examples_of

if TYPE_CHECKING:
    from datasets import IterableDataset

PEEKED = 64
"""The number of images at the beginning of a stream that show its size, and whether it is in color."""


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes images of a stream, and reads their class labels.

    Attributes:
        name: name of the data set, for messages.
        image: the column of images.
        label: the column of class labels; None for none.
        shape: shape of an image, `(C, H, W)`; gray images among images in color are read as RGB.
        size: (height, width) to which images are resized and cropped; None if all have one size.
        classes: number of classes; None to leave out the labels.
        folder: the folder that paths of images are relative to.
    """

    name: str
    image: str
    label: str | None
    shape: tuple[int, int, int]
    size: tuple[int, int] | None
    classes: int | None
    folder: str = "."

    def __call__(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        k = np.empty((len(rows), *self.shape), np.uint8)
        for out, row in zip(k, rows, strict=True):
            values = self.pixels(row).values
            if values.shape[:2] != self.shape[1:]:
                sizes = ["x".join(map(str, s)) for s in (values.shape[:2], self.shape[1:])]
                raise UsageError(
                    f"an image of {self.name} has the size {sizes[0]}, and the first one {sizes[1]}: give one size for "
                    "all, such as --data.size 64 64"
                )
            if values.ndim == 3 and self.shape[0] == 1:
                raise UsageError(
                    f"an image of {self.name} is in color, and its first {PEEKED} are gray: convert all to one of them"
                )
            out[:] = values.transpose(2, 0, 1) if values.ndim == 3 else values
        if self.classes is None:
            return torch.from_numpy(k), {}
        return torch.from_numpy(k), {"label": torch.tensor([self.class_of(row) for row in rows])}

    def pixels(self, row: Row) -> Pixels:
        """Returns the image of an example.

        Raises:
            UsageError: for one that cannot be read.
        """
        cell = row[self.image]
        inside = cell.get("bytes") if isinstance(cell, dict) else cell if isinstance(cell, bytes) else None
        path = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
        source = inside if inside is not None else Path(self.folder) / path if path else b""
        try:
            found = read_one(source, self.size)
        except OSError as error:
            found = error.strerror or "it cannot be opened"
        if isinstance(found, str):
            raise UsageError(f"an image of {self.name} cannot be read ({found}): repair or remove it")
        return found

    def class_of(self, row: Row) -> int:
        """Returns the class label of an example.

        Raises:
            UsageError: for a label outside of 0 to classes - 1.
        """
        assert self.label is not None
        assert self.classes is not None
        number = as_integer(row[self.label])
        if number is None or not 0 <= number < self.classes:
            raise UsageError(
                f"classes={self.classes}: {self.name} has the label {shown(row[self.label], 40)}, and labels of a "
                f"stream are whole numbers from 0 to {self.classes - 1}"
            )
        return number


@dataclass(frozen=True)
class ImageStream:
    """Images that are read and decoded while a model trains.

    Attributes:
        stream: the encoded images.
        decode: decodes them.
        quantization: the real numbers that quantization levels stand for.
        names: names of the classes, where they have names.
        notes: what was left out.
    """

    stream: IterableDataset
    decode: ImageDecoder
    quantization: Quantization
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, `(C, H, W)`."""
        return self.decode.shape

    label = None
    no_labels = "no labels at hand, since they are streamed"

    @property
    def summary(self) -> str:
        """One line on the data: `a stream of images of 3x64x64 in 40 shards`."""
        shards = self.stream.num_shards
        many = f"a stream of images of {'x'.join(map(str, self.shape))} in {shards:,} shard{'s' * (shards != 1)}"
        single = ["one shard has one order: its images are shuffled within blocks alone"] if shards == 1 else []
        return "; ".join([many, *single, *self.notes])

    def first(self, count: int) -> ImageDataset:
        """Returns the first `count` images, decoded, in memory; fewer where the stream has fewer.

        Raises:
            UsageError: for a stream without images.
        """
        rows, parts = iter(self.stream), []
        while count and (some := list(islice(rows, min(count, PEEKED)))):
            parts.append(self.decode(some))
            count -= len(some)
        more = count == 0 and next(rows, None) is not None
        if not parts:
            raise UsageError(f"{self.decode.name} has no images: give files with some")
        k = torch.cat([k for k, _ in parts])
        labels = [conditions["label"] for _, conditions in parts if "label" in conditions]
        notes = (*self.notes, f"the first {len(k):,} images of the stream") if more else self.notes
        return ImageDataset(k, torch.cat(labels) if labels else None, self.quantization, self.names, notes)


def image_stream(
    name: str,
    *,
    split: str = "train",
    size: tuple[int, int] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    classes: int | None = None,
    columns: Columns = Columns(),  # noqa: B008
) -> ImageStream:
    """Opens a stream of images: table files by the rules of `table_files`, or a data set on the Hub.

    The shape is that of the first images: they are decoded. For the arguments see `image_dataset`.

    Raises:
        UsageError: for bundled images and folders of images, a split without images or labels, and images that cannot
            be read.
    """
    import datasets

    files = None if name in bundled() else table_files(str(Path(name).expanduser()))
    if files is None and (name in bundled() or Path(name).exists()):
        raise UsageError(f"streaming: {name} is not a stream: give {', '.join(KINDS)} files, or a data set on the Hub")
    stream = stream_of(name, split, files, columns)
    known = stream.features or {}
    existing = list(known) or list(next(iter(stream), {}))
    pictures = [c for c, feature in known.items() if isinstance(feature, datasets.Image)]
    image = column_of("image", columns, existing, name) or (pictures[0] if len(pictures) == 1 else None)
    label = column_of("label", columns, existing, name)
    if image is None:
        raise UsageError(
            f"the data set {name} has no images: its columns are {', '.join(existing)}; give the column of images "
            "(--data.image-column)"
        )
    if classes is not None and label is None:
        raise UsageError(f"classes={classes}: {name} has no labels; leave out --data.classes, or give the column")
    if image in pictures:
        stream = stream.cast_column(image, datasets.Image(decode=False))
    named = getattr(known.get(label or ""), "names", None)
    if classes is not None and named and len(named) != classes:
        raise UsageError(f"classes={classes}: {name} has {len(named)} classes: give --data.classes {len(named)}")
    folder = "." if files is None or files.kind == "tar" else str(folder_of(files, name))
    unknown = ImageDecoder(name, image, label, (1, 1, 1), size, classes, folder)
    first = [unknown.pixels(row).values for row in islice(stream, PEEKED)]
    if not first:
        raise UsageError(f"{name} has no images in the split {split}: give files with some")
    channels, (height, width) = 3 if any(v.ndim == 3 for v in first) else 1, first[0].shape[:2]
    decode = ImageDecoder(name, image, label, (channels, height, width), size, classes, folder)
    names = tuple(named) if named and classes is not None else None
    return ImageStream(stream, decode, Quantization(256, low, high), names, () if files is None else files.notes)


def stream_of(name: str, split: str, files: TableFiles | None, columns: Columns) -> IterableDataset:
    """Opens the rows of a split as a stream.

    Raises:
        UsageError: where there is no such data set or split, or it cannot be read.
    """
    import datasets

    try:
        if files is None:
            return datasets.load_dataset(name, split=split, streaming=True)
        paths = [str(path.resolve()) for path in files.of(split, name)]
        if files.kind == "tar":
            return datasets.IterableDataset.from_generator(
                rows_of_tars, gen_kwargs={"files": paths, "image": columns.image}
            )
        escaped = {"train": [glob.escape(path) for path in paths]}
        return datasets.load_dataset(files.kind, data_files=escaped, split="train", streaming=True)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"cannot open {name} as a stream ({shown(error, 200)}): check its name and split") from error


def rows_of_tars(files: list[str], image: str | None) -> Iterator[Row]:
    """Yields the examples of tar files, of which the members are read one after the other."""
    for file in files:
        found = examples_of([Path(file)], image)
        for n, (name, content) in enumerate(found.images):
            yield {"image": {"bytes": content, "path": name}} | {c: values[n] for c, values in found.columns.items()}
