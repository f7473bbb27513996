"""Decoded images in files of their own, so that a set is decoded once: in UNNOISE_CACHE, or ~/.cache/unnoise."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Literal
from warnings import warn

import numpy as np
from torch import Tensor

from .. import memory
from ..errors import Notice, UsageError
from ..progress import Progress
from .mapped import VERSION, ImageWriter, MappedRows, mapped_rows
from .pixels import Pixels
from .stacking import Conversions, EncodedImages, Shapes, decoded, read_one, stacked

Memory = Literal["auto", "memory", "mapped"]
"""Whether decoded images are held in memory, or rows are read from a file when they are needed; auto chooses."""
LARGE = 2000
"""Number of images above which decoded images are kept in a file."""


def cache_folder() -> Path | None:
    """Returns the folder of decoded images, or None where UNNOISE_CACHE is `none`.

    It lies in UNNOISE_CACHE, or else in the folder unnoise of XDG_CACHE_HOME or ~/.cache.
    """
    own = os.environ.get("UNNOISE_CACHE")
    if own == "none":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "unnoise"
    return Path(own or home).expanduser() / "images"


def pixels_of(
    pictures: EncodedImages, name: str, size: tuple[int, int] | None, memory_: Memory, progress: Progress
) -> tuple[Tensor | MappedRows, list[str]]:
    """Returns images, uint8 `(N, C, H, W)` with values 0..255, in memory or in a file, and notes on their conversion.

    More than `LARGE` images, and those that `memory_` does not hold, are decoded into a file of the cache, if it is
    not there yet. Its name is a hash of what identifies the encoded images and of `size`. They are read into memory
    from it if they fit into half of the free memory, once for each process of a launcher on the machine.

    Args:
        pictures: the encoded images.
        name: name of the data set, for messages.
        size: (height, width) to which images are resized and cropped; None if all have one size.
        memory_: `memory` or `mapped`; `auto` chooses by the free memory.
        progress: `(items, total, label) -> items`.

    Raises:
        UsageError: as `stacked`; and for `mapped` without a folder for the cache.
    """
    folder, free = cache_folder(), memory.available()
    need = _bytes_of(pictures, size)
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of torchrun on this machine
    fits = memory_ == "memory" or free is None or need * sharing <= free / 2
    if memory_ not in ("auto", "memory", "mapped"):
        raise UsageError(f"memory={memory_}: choose from auto, memory, mapped")
    if memory_ == "mapped" and folder is None:
        raise UsageError("memory=mapped reads from the cache, and UNNOISE_CACHE is none: set it to a folder")
    if folder is None or (len(pictures) <= LARGE and fits and memory_ != "mapped"):
        return stacked(pictures, name, size, progress)
    try:
        found = cached(pictures, name, size, folder, progress)
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror or error})"
        if memory_ == "mapped" or not fits:
            raise UsageError(f"{reason}, and the images of {name} are read from there: set UNNOISE_CACHE") from error
        warn(Notice(f"the images of {name} are decoded at every start: {reason}; set UNNOISE_CACHE"), stacklevel=2)
        return stacked(pictures, name, size, progress)
    notes = list(found.notes)
    if memory_ != "mapped" and fits:
        return found[:], notes
    by = f" for {sharing} processes" if sharing > 1 else ""
    why = "" if free is None or memory_ == "mapped" else f", since {free / 1e9:.1f} GB of memory are free{by}"
    return found, [*notes, f"read from {need / 1e9:.1f} GB on disk when needed{why}"]


def _bytes_of(pictures: EncodedImages, size: tuple[int, int] | None) -> int:
    """Returns the number of bytes of decoded images of the size of the first, 0 if it cannot be read."""
    for _, source in islice(pictures, 1):
        picture = read_one(source, size)
        return len(pictures) * picture.values.size if isinstance(picture, Pixels) else 0
    return 0


def cached(
    pictures: EncodedImages, name: str, size: tuple[int, int] | None, folder: Path, progress: Progress
) -> MappedRows:
    """Returns decoded images in a file of the cache, which is written if it is not there or not whole.

    One process writes it, and others wait for it.

    Raises:
        UsageError: as `stacked`.
        OSError: where the folder cannot be written.
    """
    from filelock import FileLock

    key = json.dumps([VERSION, pictures.identity(), size])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                found = mapped_rows(path)
                if len(found) != len(pictures):
                    raise ValueError(f"it has {len(found):,} of {len(pictures):,} images")
                return found
            except ValueError as error:
                warn(Notice(f"the decoded images {path} are damaged ({error}) and written again"), stacklevel=2)
        _write(pictures, name, size, path, progress)
        return mapped_rows(path)


def _write(pictures: EncodedImages, name: str, size: tuple[int, int] | None, path: Path, progress: Progress) -> None:
    """Decodes images into a file, which appears when it is whole."""
    free, need = shutil.disk_usage(path.parent).free, _bytes_of(pictures, size)
    if need > free:
        raise OSError(28, f"{need / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")
    part = path.with_suffix(f".{os.getpid()}.part")
    changes, found, count, writer = Conversions(), Shapes(), len(pictures), None
    label = f"decoding {name} into {path.parent}"
    try:
        for file, picture in progress(decoded(pictures, size), count, label):
            values = found.checked(pictures, name, file, picture)
            if values is None or found.broken:
                continue
            assert isinstance(picture, Pixels)
            color = values.ndim == 3
            if writer is None:
                writer = ImageWriter(part, (3 if color else 1, *values.shape[:2]))
            elif color and writer.shape[0] == 1:
                writer = _in_color(writer, part)
            image = values.transpose(2, 0, 1) if color else values[None]
            writer.add(np.broadcast_to(image, writer.shape))
            changes.add(picture)
        found.refuse_broken(count, name)
        assert writer is not None, "there are images"
        writer.finish(changes.notes())
        os.replace(part, path)
    finally:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)


def _in_color(gray: ImageWriter, part: Path) -> ImageWriter:
    """Returns a writer of RGB images that begins with the gray images of another."""
    gray.finish([])
    before, old = part.with_suffix(".gray"), None
    os.replace(part, before)
    try:
        old = mapped_rows(before)
        writer = ImageWriter(part, (3, *gray.shape[1:]))
        for start in range(0, len(old), old.block):
            for image in old[start : start + old.block].numpy():
                writer.add(np.broadcast_to(image, writer.shape))
        return writer
    finally:
        before.unlink()
