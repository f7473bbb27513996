"""Many images as one tensor."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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

AT_ONCE = 64  # rows of a table that are read, and images that are decoded, at a time
SEVERAL = 4000  # number of images above which processes decode them
MOST_WORKERS = 16
ORIENTATION = 0x0112  # a tag of EXIF; values from 5 on exchange height and width


class EncodedImages(Protocol):
    """Encoded images with their names: iterates over `(name, path or bytes)`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]: ...

    def identity(self) -> Any:
        """Returns what changes with the encoded images, for the name of a cache: numbers and texts, nested."""
        ...


class Files:
    """Encoded images in files of a folder; `names` are their paths relative to the folder."""

    def __init__(self, folder: str, names: list[str]) -> None:
        self.folder, self.names = Path(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        return ((printable([name]), self.folder / name) for name in self.names)

    def identity(self) -> Any:
        """Returns the path, size and time of change of each file."""
        folder = str(self.folder.resolve())
        return [folder, [(name, *stamp(os.path.join(folder, name))) for name in self.names]]


def stamp(path: str) -> tuple[int, int]:
    """Returns the size and the time of change of a file; (0, 0) if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


class Cells:
    """Encoded images in a column of a table, each `{"bytes": ..., "path": ...}`."""

    def __init__(self, rows: Dataset, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, Path | bytes]]:
        for start in range(0, len(self), AT_ONCE):
            cells = self.rows[start : start + AT_ONCE][self.column]
            for number, cell in enumerate(cells, start):
                inside = None if cell is None else cell["bytes"]
                yield f"row {number}", Path(cell["path"]) if cell and inside is None and cell["path"] else inside or b""

    def identity(self) -> Any:
        """Returns the fingerprint that `datasets` gives the rows."""
        return [self.rows._fingerprint, len(self.rows), self.column]


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
    count, levels, changes, found = len(pictures), np.empty((0, 0, 0, 0), np.uint8), Conversions(), Shapes()
    for row, (file, picture) in enumerate(progress(decoded(pictures, size), count, f"reading {name}")):
        if (values := found.checked(pictures, name, file, picture)) is None:
            continue
        color = values.ndim == 3
        if not levels.size or color > (levels.shape[1] == 3):
            shape = (count, 3 if color else 1, *values.shape[:2])
            refuse_beyond(
                int(np.prod(shape, dtype=np.float64)),
                f"{count:,} images of {'x'.join(map(str, shape[1:]))}",
                "give a smaller size",
            )
            grown = np.empty(shape, np.uint8)
            grown[:row] = levels[:row] if levels.size else 0
            levels = grown
        levels[row] = values.transpose(2, 0, 1) if color else values
        assert isinstance(picture, Pixels)
        changes.add(picture)
    found.refuse_broken(count, name)
    return torch.from_numpy(levels), changes.notes()


class Shapes:
    """Checks that images can be read and have one size."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.size: tuple[int, ...] = ()
        self.first = ""

    def checked(self, pictures: EncodedImages, name: str, file: str, picture: Pixels | str) -> np.ndarray | None:
        """Returns the pixels of an image, `(H, W)` or `(H, W, 3)`; None for one that cannot be read.

        Raises:
            UsageError: for an image of another size than the first.
        """
        if isinstance(picture, str):
            self.broken.append(f"{file} ({picture})")
            return None
        size = picture.values.shape[:2]
        if self.size not in ((), size):
            raise UsageError(several_shapes(pictures, name, {self.size: self.first, size: file}))
        self.size, self.first = size, self.first or file
        return picture.values

    def refuse_broken(self, count: int, name: str) -> None:
        """Raises `UsageError` for images that cannot be read, of `count` images in all."""
        if not self.broken:
            return
        more = f" and {len(self.broken) - 3:,} more" if len(self.broken) > 3 else ""
        raise UsageError(
            f"{len(self.broken):,} of {count:,} images of {name} cannot be read: {', '.join(self.broken[:3])}{more}: "
            "repair or remove them"
        )


def read_one(source: Path | bytes, size: tuple[int, int] | None) -> Pixels | str:
    """Returns an image, resized and cropped to `size`, or the reason why it cannot be read."""
    try:
        picture = pixels(source)
    except UsageError as error:
        return str(error)
    return picture if size is None else picture._replace(values=fitted(picture.values, size))


def read_some(sources: list[Path | bytes], size: tuple[int, int] | None) -> list[Pixels | str]:
    """Returns several images; see `read_one`."""
    return [read_one(source, size) for source in sources]


def decoded(pictures: EncodedImages, size: tuple[int, int] | None) -> Iterator[tuple[str, Pixels | str]]:
    """Yields the name of each image and its pixels, or the reason why it cannot be read, in order.

    More than `SEVERAL` images are decoded by worker processes, one for each core, where processes can be forked.
    """
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS) if hasattr(os, "sched_getaffinity") else 1
    if workers < 2 or len(pictures) <= SEVERAL:
        for file, source in pictures:
            yield file, read_one(source, size)
        return
    names: deque[list[str]] = deque()
    waiting: deque[Future[list[Pixels | str]]] = deque()
    context, several = multiprocessing.get_context("fork"), iter(pictures)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        while True:
            part = list(islice(several, AT_ONCE)) if len(waiting) < 4 * workers else []
            if part:
                names.append([file for file, _ in part])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # forks of a process with threads: they decode
                    waiting.append(pool.submit(read_some, [source for _, source in part], size))
                continue
            if not waiting:
                return
            yield from zip(names.popleft(), waiting.popleft().result(), strict=True)


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
    """Counts how images were converted."""

    def __init__(self) -> None:
        self.further = 0
        self.counts: Counter[str] = Counter()
        self.held: dict[str, tuple[float, float]] = {}

    def add(self, picture: Pixels) -> None:
        """Counts one image."""
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
