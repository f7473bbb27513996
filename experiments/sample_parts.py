"""Samples drawn in parts, each of which is on the disk as soon as it is drawn: a run that was stopped goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..shared.data.array_files import first_line, of_safetensors
from ..shared.distributed import barrier, is_main, of_main, rank, share, world_size
from ..shared.errors import Notice, UsageError, shown
from ..shared.metrics.features import to_bytes
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.training.folder import flush, naming, read_object, writable, write_text
from .chunks import each_chunk
from .evaluation import Drawing

PART = re.compile(r"(\d+)-(\d+)\.safetensors")


@dataclass(frozen=True)
class Drawn:
    """How samples were drawn.

    Attributes:
        evaluations: network evaluations for each sample; where they differ between parts, the largest number.
        new: the number of samples that were drawn now, and not before the run was stopped.
        seconds: the time of drawing these.
    """

    evaluations: int
    new: int
    seconds: float


@dataclass(frozen=True)
class Parts:
    """The parts of a set of samples, in a folder `OUT.parts` beside the file or folder of the samples.

    A part is a file `START-STOP.safetensors` of the quantization levels, tokens or real numbers of these samples. For a
    folder of images a part is its PNG files, and a file of that name, without levels, which says that they are there.

    Attributes:
        path: the path of the samples; one without an ending is a folder of PNG files.
        count: the number of samples.
        quantization: quantization of images.
    """

    path: Path
    count: int
    quantization: Any

    @property
    def folder(self) -> Path:
        """The folder of the parts, which becomes the folder of the images where these are the samples."""
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def images(self) -> bool:
        """Whether the samples are a folder of images."""
        return self.path.suffix == ""

    @property
    def state(self) -> Path:
        """The folder of the files of the parts and of their settings."""
        return self.folder / ".drawn" if self.images else self.folder

    @property
    def files(self) -> dict[range, Path]:
        """The files of the parts by the numbers of their samples, in order."""
        found = [(m, file) for file in self.state.glob("*-*.safetensors") if (m := PART.fullmatch(file.name))]
        return {range(int(m[1]), int(m[2])): file for m, file in sorted(found, key=lambda pair: int(pair[0][1]))}

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Returns the settings in which parts that exist differ, `count: 100 there and 200 now`; [] without parts."""
        if not self.files:
            return []
        remedy = f"remove the folder {self.folder}"
        there, now = read_object(self.state / "settings.json", remedy), json.loads(json.dumps(settings))
        names = [n for n in (now | there) if now.get(n) != there.get(n)]
        return [f"{n}: {shown(there.get(n), 40)} there and {shown(now.get(n), 40)} now" for n in names]

    def open(self, settings: Mapping[str, Any]) -> list[range]:
        """Creates the folder where it does not exist, and returns the numbers of the samples that are there.

        Raises:
            UsageError: for parts that were drawn with other settings, with these.
        """
        if found := self.differences(settings):
            raise UsageError(
                f"{self.folder} has samples of other settings ({'; '.join(found[:3])}): give the settings of these to "
                "go on with them, or another --out, or remove the folder"
            )
        writable(self.state)
        write_text(self.state / "settings.json", json.dumps(dict(settings), indent=1))
        return [rows for rows, file in self.files.items() if self.is_whole(rows, file)]

    def is_whole(self, rows: range, file: Path) -> bool:
        """Returns whether the samples of a part are on the disk; damaged parts are removed, and a line says so."""
        try:
            found = of_safetensors(str(file))
            if self.images:
                whole = all(self.picture(n).stat().st_size > 0 for n in rows)
            else:
                whole = found["levels"].shape[0] == len(rows)
            reason = "" if whole and "evaluations" in found else "it is incomplete"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
        if reason:
            warn(Notice(f"{file} is damaged ({reason}): its samples are drawn again"), stacklevel=2)
            file.unlink()
        return not reason

    def picture(self, number: int) -> Path:
        """Returns the path of the PNG file of a sample."""
        return self.folder / f"{number:06}.png"

    def add(self, rows: Tensor, levels: Tensor, evaluations: int) -> None:
        """Writes the samples of neighboring numbers, int64 `(n,)`, as a part.

        Raises:
            UsageError: where they cannot be written.
        """
        start, stop = int(rows[0]), int(rows[-1]) + 1
        values = {"evaluations": torch.tensor([evaluations])}
        with naming(self.folder):
            if self.images:
                self.add_pictures(start, levels)
            else:
                values["levels"] = compact(levels.cpu(), self.quantization).contiguous()
            part = self.state / f".{start:08}-{stop:08}.part"
            try:
                save_file(values, part)
                flush(part)
                os.replace(part, self.state / f"{start:08}-{stop:08}.safetensors")
            finally:
                part.unlink(missing_ok=True)

    def add_pictures(self, start: int, levels: Tensor) -> None:
        """Writes a PNG file for each image, from the number `start` on."""
        from PIL import Image

        for n, image in enumerate(eight_bits(levels.cpu(), self.quantization), start=start):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(self.picture(n))

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the levels of the parts, in the order of their numbers."""
        for file in self.files.values():
            yield of_safetensors(str(file))["levels"][:]

    def first(self) -> Tensor:
        """Returns the levels of the first part."""
        return next(iter(self))

    def evaluations(self) -> int:
        """Returns the largest number of network evaluations of a part."""
        return max(int(of_safetensors(str(file))["evaluations"][:]) for file in self.files.values())

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other command draws samples to the same place.

        Raises:
            UsageError: where another one does, or has finished since.
        """
        from filelock import FileLock, Timeout

        writable(self.state)
        lock = FileLock(self.state / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"another process draws samples to {self.path}: wait for it, or give another --out"
            ) from None
        except (OSError, NotImplementedError):  # a file system without locks
            yield
            return
        try:
            if self.path.exists():
                if not self.files:
                    self.remove()
                raise UsageError(f"{self.path} exists already, and nothing is overwritten: give another --out")
            yield
        finally:
            with suppress(OSError):
                lock.release()


def compact(levels: Tensor, quantization: Any) -> Tensor:
    """Returns images of at most 256 quantization levels as uint8, and other samples unchanged."""
    small = levels.ndim == 4 and isinstance(quantization, Quantization) and quantization.levels <= 256
    return levels.to(torch.uint8) if small and not levels.is_floating_point() else levels


def eight_bits(levels: Tensor, quantization: Quantization) -> np.ndarray:
    """Returns images of quantization levels `(N, C, H, W)` as uint8 `(N, H, W, C)`, from 0 to 255."""
    plain = levels.dtype == torch.uint8 and quantization.levels == 256
    return (levels if plain else to_bytes(levels, quantization)).movedim(1, -1).contiguous().numpy()


def missing(there: list[range], count: int, size: int) -> list[range]:
    """Returns the numbers below `count` that are not in `there`, in runs that do not cross a multiple of `size`."""
    drawn = np.zeros(count + 1, bool)
    drawn[count] = True
    for rows in there:
        drawn[rows.start : rows.stop] = True
    found: list[range] = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        edges = np.flatnonzero(np.diff(np.concatenate([[True], drawn[start:stop], [True]]).astype(np.int8))) + start
        found += [range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return found


def draw_parts(
    parts: Parts,
    settings: Mapping[str, Any],
    drawing: Callable[[Progress], Drawing],
    size: int,
    finish: Callable[[Drawn], None],
    progress: Progress = silent,
) -> None:
    """Draws the samples that are not on the disk yet, writes each part at once, and calls `finish` when all are there.

    The processes of a run share the chunks of samples, which begin at multiples of `size`. Where samples were drawn
    before, a line says how many. Progress is reported over the samples, or, of a single chunk, over the steps.

    Args:
        parts: the parts.
        settings: all settings that the samples depend on, by name, for JSON.
        drawing: returns the function that draws samples of given numbers and reports progress by its argument.
        size: the number of samples that are drawn at a time.
        finish: writes the samples; it is called by the process of rank 0.
        progress: how to report progress.

    Raises:
        UsageError: for parts of other settings, another process that draws the same, or a disk that is full.
    """
    with parts.locked() if is_main() else nullcontext():
        there = opened(parts, settings)
        before = sum(map(len, there))
        if before and is_main():
            warn(Notice(f"continuing: {before:,} of {parts.count:,} samples are there"), stacklevel=2)
        chunks = missing(there, parts.count, size)
        own = [chunks[n] for n in share(len(chunks), rank(), world_size())]
        drawn, start = drawing(progress if len(own) == 1 else silent), time.perf_counter()

        def samples() -> Iterator[int]:
            rows = (torch.tensor(chunk, dtype=torch.int64) for chunk in own)
            for numbers, (levels, evaluations) in each_chunk(drawn, rows, size):
                parts.add(numbers, levels, evaluations)
                yield from numbers.tolist()

        try:
            report = silent if len(own) == 1 else progress
            for _ in report(samples(), sum(map(len, own)), "samples"):
                pass
            barrier()
        except BaseException:
            left_behind(parts)
            raise
        if is_main():
            seconds = time.perf_counter() - start
            refuse_absent(parts)
            finish(Drawn(parts.evaluations(), parts.count - before, seconds))


def opened(parts: Parts, settings: Mapping[str, Any]) -> list[range]:
    """Returns the numbers of the samples that are there, on every process; see `Parts.open`."""
    found: list[range] | UsageError = []
    if is_main():
        try:
            found = parts.open(settings)
        except UsageError as error:
            found = error
    found = of_main(found)
    if isinstance(found, UsageError):
        raise found
    return found


def left_behind(parts: Parts) -> None:
    """Says how a command that stops is continued; without any sample the folder is removed."""
    if not is_main():
        return
    if drawn := sum(map(len, parts.files)):
        warn(
            Notice(f"{drawn:,} of {parts.count:,} samples are in {parts.folder}: the same command draws the others"),
            stacklevel=3,
        )
    else:
        parts.remove()


def refuse_absent(parts: Parts) -> None:
    """Raises `UsageError` where not all samples are on the disk, as where nodes do not see one folder."""
    if absent := sum(map(len, missing(list(parts.files), parts.count, parts.count))):
        raise UsageError(
            f"{absent:,} of {parts.count:,} samples are not in {parts.folder}: on several nodes give an --out in a "
            "folder that all of them see"
        )
