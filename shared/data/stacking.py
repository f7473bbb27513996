"""Many images as one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..memory import refuse_beyond
from ..progress import Progress
from .folders import printable
from .pixels import Pixels, opened, pixels

if TYPE_CHECKING:
    from datasets import Dataset

AT_ONCE = 64  # rows of a table that are read at a time
ORIENTATION = 0x0112  # a tag of EXIF; values from 5 on exchange height and width


class EncodedImages(Protocol):
    """Encoded images with their names: iterates over `(name, path or bytes)`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]: ...

    def select(self, rows: Sequence[int]) -> EncodedImages:
        """Returns the images whose numbers are `rows`."""
        ...


class Files:
    """Encoded images in files of a folder; `names` are their paths relative to the folder."""

    def __init__(self, folder: str, names: list[str]) -> None:
        self.folder, self.names = Path(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        return ((printable([name]), self.folder / name) for name in self.names)

    def select(self, rows: Sequence[int]) -> Files:
        return Files(str(self.folder), [self.names[row] for row in rows])


class Cells:
    """Encoded images in a column of a table, each `{"bytes": ..., "path": ...}`."""

    def __init__(self, rows: Dataset, column: str, numbers: Sequence[int] | None = None) -> None:
        self.rows, self.column, self.numbers = rows, column, range(len(rows)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        for start in range(0, len(self), AT_ONCE):
            cells = self.rows[start : start + AT_ONCE][self.column]
            for number, cell in zip(self.numbers[start : start + AT_ONCE], cells, strict=True):
                inside = None if cell is None else cell["bytes"]
                yield f"row {number}", Path(cell["path"]) if cell and inside is None and cell["path"] else inside or b""

    def select(self, rows: Sequence[int]) -> Cells:
        return Cells(self.rows.select(rows), self.column, [self.numbers[row] for row in rows])


def stacked(
    pictures: EncodedImages, name: str, size: tuple[int, int] | None, progress: Progress
) -> tuple[Tensor, list[str]]:
    """Returns images as one tensor, uint8 `(N, C, H, W)`, and notes on how they were converted.

    C is 1 if all are gray, else 3. Values are 0..255.

    Args:
        pictures: the encoded images.
        name: name of the data set, for messages.
        size: (height, width) to which images are resized and cropped; None if all have one size.
        progress: `(items, total, label) -> items`.

    Raises:
        UsageError: with the names of files, where some cannot be read or have other shapes; or where the data set does
            not fit into memory.
    """
    count, levels, changes, broken = len(pictures), np.empty((0, 0, 0, 0), np.uint8), Conversions(), []
    for row, (file, source) in enumerate(progress(pictures, count, f"reading {name}")):
        try:
            picture = pixels(source)
        except UsageError as error:
            broken.append(f"{file} ({error})")
            continue
        values = picture.values if size is None else fitted(picture.values, size)
        color = values.ndim == 3
        if not levels.size or color > (levels.shape[1] == 3):
            shape = (count, 3 if color else 1, *values.shape[:2])
            refuse_beyond(
                int(np.prod(shape, dtype=np.float64)),
                f"{count:,} images of {'x'.join(map(str, shape[1:]))}",
                "give a smaller size",
            )
            grown = np.empty(shape, np.uint8)
            if levels.size and levels.shape[2:] == values.shape[:2]:
                grown[:row] = levels[:row]
            levels = grown if not levels.size or levels.shape[2:] == values.shape[:2] else levels
        if values.shape[:2] != levels.shape[2:]:
            raise UsageError(several_shapes(pictures, name, {levels.shape[2:]: changes.first, values.shape[:2]: file}))
        levels[row] = values.transpose(2, 0, 1) if color else values
        changes.add(file, picture)
    if broken:
        more = f" and {len(broken) - 3:,} more" if len(broken) > 3 else ""
        raise UsageError(
            f"{len(broken):,} of {count:,} images of {name} cannot be read: {', '.join(broken[:3])}{more}: repair or "
            "remove them"
        )
    return torch.from_numpy(levels), changes.notes()


def fitted(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns an image, uint8 `(H, W)` or `(H, W, 3)`, resized by box averages and center-cropped to `size`.

    `size` is (height, width); no part of it is left empty.
    """
    from PIL import Image, ImageOps

    height, width = size
    return np.asarray(ImageOps.fit(Image.fromarray(values), (width, height), Image.Resampling.BOX))


def several_shapes(pictures: EncodedImages, name: str, example: dict[tuple[int, ...], str]) -> str:
    """Returns the message for images of several shapes, with the count and an example of each shape.

    `example` has the names of images by shape, (height, width), and is extended by further shapes.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for file, source in pictures:
        try:
            with opened(source) as image:
                turned = image.format != "PNG" and image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) > 4
                shape = image.size if turned else image.size[::-1]
        except Exception:
            continue
        counts[shape] += 1
        example.setdefault(shape, file)
    kinds = [
        f"{'x'.join(map(str, s))} ({counts[s] or 1:,}, such as {example[s]})"
        for s in sorted(example, key=lambda s: (-counts[s], s))
    ]
    more = f" and {len(kinds) - 3:,} more" if len(kinds) > 3 else ""
    shapes = f"{len(kinds):,} different shapes, {', '.join(kinds[:3])}{more}"
    return f"the images of {name} have {shapes}: give size=(height, width)"


class Conversions:
    """Counts how images were converted.

    Attributes:
        first: name of the first image that was read.
    """

    def __init__(self) -> None:
        self.first, self.further = "", 0
        self.counts: Counter[str] = Counter()
        self.held: dict[str, tuple[float, float]] = {}

    def add(self, file: str, picture: Pixels) -> None:
        """Counts one image, called `file`."""
        self.first = self.first or file
        self.counts["color" if picture.values.ndim == 3 else "gray"] += 1
        self.counts["transparent"] += picture.transparent
        self.counts["frames"] += picture.further > 0
        self.further += picture.further
        if picture.kind:
            self.counts[picture.kind] += 1
            low, high = self.held.get(picture.kind, picture.held)
            self.held[picture.kind] = min(low, picture.held[0]), max(high, picture.held[1])

    def notes(self) -> list[str]:
        """Returns a note on each kind of conversion that occurred."""
        n, notes = self.counts, []
        if n["gray"] and n["color"]:
            notes.append(f"{n['gray']:,} gray image{'s' * (n['gray'] > 1)} read as RGB")
        for kind, top in (("16 bits", "65535"), ("floats", "1")):
            if n[kind]:
                low, high = self.held[kind]
                notes.append(f"{n[kind]:,} of {kind} scaled from 0..{top} to 0..255, with values {low:g} to {high:g}")
        if n["transparent"]:
            notes.append(f"{n['transparent']:,} with transparency laid over white")
        if n["frames"]:
            notes.append(
                f"{n['frames']:,} of several frames: the first of each is read, and {self.further:,} further ones are "
                "not"
            )
        return notes
