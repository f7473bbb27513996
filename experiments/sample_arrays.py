"""The arrays of .npz files, of which rows are read when they are needed, and samples in the form of this package."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..shared.data.array_files import FileRows, FlatRows
from ..shared.data.batches import Examples
from ..shared.errors import UsageError, shown
from ..shared.memory import refuse_beyond

CHANNELS = (1, 3, 4)
"""The numbers of channels by which the axis of channels is found."""
AT_ONCE = 2**22
"""The number of values that are read at a time to find their range."""
Kind = Literal["images", "tokens", "texts", "arrays"]


@dataclass(frozen=True, eq=False)
class Converted:
    """Examples that are converted when they are read.

    Attributes:
        of: the examples.
        convert: returns some of them converted.
        shape: shape of all converted examples.
    """

    of: Examples
    convert: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        return self.convert(self.of[rows])


def relevelled(k: Examples, levels: int, wanted: int) -> Examples:
    """Returns images of quantization levels 0 to `levels - 1` as the nearest of 0 to `wanted - 1`, uint8."""
    if levels == wanted:
        return k
    if wanted > 256:
        raise UsageError(f"images in files have 256 quantization levels, and {wanted} are wanted: give 256 or fewer")
    scale = (wanted - 1) / (levels - 1)
    return Converted(k, lambda part: torch.round(part.double() * scale).to(torch.uint8), tuple(k.shape))


@dataclass(frozen=True)
class Packed:
    """An array of an .npz file that is read as a whole, because it is compressed or of text.

    Attributes:
        path: the file.
        name: name of the array in the archive.
        shape: its shape.
        type: its NumPy type.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    type: np.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers; raises TypeError for text."""
        return torch.from_numpy(np.empty(0, self.type)).dtype

    def values(self) -> np.ndarray:
        """Reads the array.

        Raises:
            UsageError: where it needs more memory than there is.
        """
        size = math.prod(self.shape) * self.type.itemsize
        refuse_beyond(size, f"{self.name} of {self.path}", "write it with np.savez, which does not compress")
        with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


Array = FileRows | Packed


def members(path: Path) -> dict[str, Array]:
    """Returns the arrays of an .npz file by name; none of their values are read.

    Raises:
        UsageError: for an array of Python objects.
        ValueError: for a file that is not one.
    """
    found: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as whole:
        for info in archive.infolist():
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                header = file.tell()
            name, shape = info.filename.removesuffix(".npy"), tuple(map(int, shape))
            if dtype.hasobject:
                raise UsageError(
                    f"{name} in {path} has Python objects, which are not read: write arrays of numbers, which "
                    "np.load reads with allow_pickle=False"
                )
            whole.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", whole.read(4))) + header
            plain = info.compress_type == zipfile.ZIP_STORED and dtype.kind in "fiu" and dtype.byteorder != ">"
            if plain and not (fortran and len(shape) > 1):
                found[name] = FlatRows(str(path), shape, torch.from_numpy(np.empty(0, dtype)).dtype, start)
            else:
                found[name] = Packed(str(path), info.filename, shape, dtype)
    return found


def examples(array: Array) -> Examples:
    """Returns the rows of an array, read when they are needed, or all of them where it is compressed."""
    if isinstance(array, FileRows):
        return array
    values = array.values()
    return torch.from_numpy(np.ascontiguousarray(values, values.dtype.newbyteorder("=")))


def is_numeric(array: Array) -> bool:
    """Returns whether an array has whole or real numbers."""
    return isinstance(array, FileRows) or array.type.kind in "fiu"


def as_samples(what: str, name: str, array: Array, known: Any) -> tuple[Examples, Kind, str]:
    """Returns samples in the form of this package, what they are, and a note on how they were converted.

    Args:
        what: the array in words, for messages.
        name: its name.
        array: the array.
        known: its kind, where it is known, or None.

    Raises:
        UsageError: for an array that is neither of images, tokens nor real numbers in their range.
    """
    shape, dtype, k = tuple(array.shape), array.dtype, examples(array)
    real, axis = dtype.is_floating_point, channel_axis(shape)
    if known == "images" and len(shape) == 4:
        axis = 3
    if real and (known == "arrays" or name == "x" or axis is None or shape[axis] == 4):
        range_of(k, what)
        return k, "arrays", ""
    if not real and len(shape) == 2:
        return Converted(k, Tensor.long, shape), "tokens", ""
    if not real and len(shape) == 3:
        k, axis = Converted(k, lambda part: part[:, None], (shape[0], 1, *shape[1:])), 1
    if axis is None:
        raise UsageError(
            f"{what} has shape {shape}: give images (N, H, W, C) or (N, C, H, W) of 1, 3 or 4 channels, or tokens "
            "(N, L)"
        )
    if axis == 3:
        k = channels_first(k)
    if dtype == torch.uint8:
        return k, "images", ""
    low, high = range_of(k, what)
    half = 1 / 510 if real else 0  # half a level, which is rounded away
    if not real and 0 <= low <= high <= 255:
        return Converted(k, lambda part: part.to(torch.uint8), tuple(k.shape)), "images", ""
    if not real or low < -1 - 2 * half or high > 1 + half + half * (low < -half):
        ends = (int(low), int(high)) if not real else (round(low, 4), round(high, 4))
        raise UsageError(
            f"the values of {what} lie between {ends[0]} and {ends[1]}: give images as uint8, or real-valued in [0, 1] "
            "or [-1, 1]; other real numbers are named x"
        )
    start, scale = (-1.0, 127.5) if low < -half else (0.0, 255.0)
    note = f"real numbers in [{start:g}, 1] rounded to 256 levels"
    return (
        Converted(
            k,
            lambda part: torch.round((part.double() - start) * scale).clamp(0, 255).to(torch.uint8),
            tuple(k.shape),
        ),
        "images",
        note,
    )


def channels_first(k: Examples) -> Examples:
    """Returns images `(N, H, W, C)` as `(N, C, H, W)`."""
    count, height, width, channels = k.shape
    return Converted(k, lambda part: part.movedim(-1, 1), (count, channels, height, width))


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Returns the axis of the channels in a shape of images, 1 or 3; None for another shape.

    Where both have 1, 3 or 4 entries it is that of square images, or else 3.
    """
    found = [axis for axis in (3, 1) if len(shape) == 4 and shape[axis] in CHANNELS]
    if len(found) == 2 and shape[2] == shape[3] and shape[1] != shape[2]:
        return 1
    return next(iter(found), None)


def range_of(k: Examples, what: str) -> tuple[float, float]:
    """Returns the smallest and the largest value, reading so many rows at a time.

    Raises:
        UsageError: for values that are NaN or infinite, with their number.
    """
    step = max(1, AT_ONCE // max(1, math.prod(k.shape[1:])))
    low, high, broken = math.inf, -math.inf, 0
    for start in range(0, len(k), step):
        part = k[start : start + step].double()
        finite = part[part.isfinite()]
        broken += part.numel() - finite.numel()
        if finite.numel():
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if broken:
        whole = math.prod(k.shape)
        raise UsageError(
            f"{broken:,} of {whole:,} values of {shown(what, 200)} are NaN or infinite: draw these samples again"
        )
    return low, high
