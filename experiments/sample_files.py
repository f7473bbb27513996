"""Samples in files: reads those of this package and of other projects back, for evaluation."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..shared.data import image_dataset
from ..shared.data.array_files import first_line, of_npy
from ..shared.data.batches import Examples
from ..shared.errors import UsageError
from ..shared.metrics.measurement import Origin, chosen
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from .sample_arrays import Array, Kind, Packed, as_samples, examples, is_numeric, members, relevelled

NAMES = ("arr_0", "samples", "images", "x")
"""Names of the array of samples in .npz files, in the order in which they are looked for."""
LABELS = ("arr_1", "label", "labels")
"""Names of the class labels in .npz files."""


@dataclass(frozen=True)
class Samples:
    """Samples that were read from files.

    Attributes:
        path: the file or folder.
        kind: `images`, `tokens`, `texts` or `arrays` of real numbers.
        k: images of quantization levels, uint8 `(N, C, H, W)`, tokens, int64 `(N, L)`, or real numbers `(N, ...)`, in
            memory or in a file, where `k[rows]` reads some; None for texts.
        texts: the texts; empty for other samples.
        quantization: the quantization of images; None for other samples.
        labels: class labels, int64 `(N,)`, or None.
        names: names of the classes, where they have names.
        captions: captions of the images, or None.
        about: what `unnoise sample` wrote on the samples, by name; empty for samples of other projects.
        notes: what was left out, or changed in reading.
    """

    path: Path
    kind: Kind
    k: Examples | None = None
    texts: tuple[str, ...] = ()
    quantization: Quantization | None = None
    labels: Tensor | None = None
    names: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts) if self.k is None else len(self.k)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample; empty for texts."""
        return () if self.k is None else tuple(self.k.shape[1:])

    @property
    def origin(self) -> Origin | None:
        """Where the samples come from; None for samples of other projects."""
        found = self.about.get("origin")
        return Origin(**chosen(Origin, found)) if isinstance(found, dict) else None

    @property
    def summary(self) -> str:
        """One line on the samples: `50,000 images of 3x32x32; 1 other file left out: LICENSE`."""
        of = f" of {'x'.join(map(str, self.shape))}" * bool(self.shape)
        kind = self.kind if len(self) != 1 else self.kind.removesuffix("s")
        return "; ".join([f"{len(self):,} {kind if self.kind != 'tokens' else 'samples'}{of}", *self.notes])

    def in_levels(self, quantization: Quantization) -> Examples:
        """Returns images in another quantization: each level becomes the nearest one.

        Raises:
            UsageError: for samples that are not images.
        """
        if self.k is None or self.quantization is None:
            raise UsageError(f"{self.path} contains {self.kind}: give images")
        return relevelled(self.k, self.quantization.levels, quantization.levels)


def read_samples(path: Path | str, *, size: tuple[int, int] | None = None, progress: Progress = silent) -> Samples:
    """Reads samples: a folder of images, a .npz or .npy file, or a text.

    - A folder has images of any format, read by the rules of `image_dataset`, of one size unless `size` is given.
    - An .npz file has its samples as `arr_0`, `samples`, `images` or `x`, or as its only array of two axes or more:
      images `(N, H, W, C)`, `(N, C, H, W)` or `(N, H, W)`, as uint8 or as real numbers in [0, 1] or [-1, 1]; tokens,
      integers `(N, L)`; or, as `x`, other real numbers. Class labels are `arr_1`, `label` or `labels`. Rows of an
      uncompressed file are read when they are needed.
    - A .npy file has one such array.
    - The samples of a .txt file are separated by an empty line, or, if it has none, each line is a sample.

    Args:
        path: the folder or file.
        size: height and width that the images of a folder are scaled and cropped to.
        progress: `(items, total, label) -> items`, such as `bar`.

    Raises:
        UsageError: for a file that cannot be read, with Python objects, without samples or with values that are NaN or
            infinite, and for real-valued images in another range.
    """
    path = Path(path).expanduser()
    ending = path.suffix.lower()
    if path.is_dir():
        return of_folder(path, size, progress)
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}: give a folder of images, or a .npz, .npy or .txt file")
    if ending == ".txt":
        return of_text(path)
    if ending not in (".npz", ".npy"):
        raise UsageError(f"{path}: samples are read from a folder of images, or a .npz, .npy or .txt file: give one")
    try:
        found: dict[str, Array] = members(path) if ending == ".npz" else {"arr_0": of_npy(str(path))}
        return of_arrays(path, found)
    except (OSError, ValueError, KeyError, TypeError, EOFError, struct.error, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} cannot be read ({first_line(error)}): write the file again") from error


def side_file(path: Path) -> Path:
    """Returns the path of the JSON file on samples: `samples.json` in a folder, `FILE.json` beside a file."""
    return path / "samples.json" if path.suffix == "" or path.is_dir() else path.with_name(f"{path.name}.json")


def about_of(text: str | None, path: Path) -> dict[str, Any]:
    """Returns what was written on samples, from JSON; an empty dict without any.

    Raises:
        UsageError: for a text that is not a JSON object.
    """
    try:
        found = {} if text is None else json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read ({error}): remove it, or draw the samples again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not contain a JSON object: remove it, or draw the samples again")
    return found


def beside(path: Path) -> dict[str, Any]:
    """Returns what was written on samples, in the file beside them; an empty dict without one."""
    file = side_file(path)
    return about_of(file.read_text(encoding="utf-8") if file.is_file() else None, file)


def levels_in(about: Mapping[str, Any]) -> Quantization:
    """Returns the quantization of images in files: that of the samples, if it has fewer than 256 levels."""
    given = about.get("quantization")
    own = Quantization(**chosen(Quantization, given)) if isinstance(given, dict) else Quantization()
    return replace(own, levels=min(own.levels, 256))


def of_folder(path: Path, size: tuple[int, int] | None, progress: Progress) -> Samples:
    """Returns the images of a folder."""
    about = beside(path)
    images = image_dataset(str(path.resolve()), size=size, progress=progress)
    own = levels_in(about)
    notes = tuple(
        n for n in images.notes if n != f"1 other file left out: {side_file(path).name}" and not n.startswith("no ")
    )
    return Samples(
        path,
        "images",
        relevelled(images.k, 256, own.levels),
        quantization=own,
        labels=images.label,
        names=images.names,
        captions=images.captions,
        about=about,
        notes=notes,
    )


def of_text(path: Path) -> Samples:
    """Returns the samples of a text file: texts, or the token ids of `unnoise sample` without a tokenizer."""
    about = beside(path)
    try:
        whole = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): write it as UTF-8") from error
    if not whole.strip():
        raise UsageError(f"{path} has 0 samples: write texts, separated by an empty line")
    if about.get("kind") == "tokens":
        try:
            rows = torch.tensor([[int(word) for word in line.split()] for line in whole.splitlines()])
        except ValueError as error:
            raise UsageError(f"{path} does not have rows of token ids ({error}): draw the samples again") from error
        return Samples(path, "tokens", rows, about=about)
    notes: tuple[str, ...] = ()
    whole = whole.removesuffix("\n") if about else whole.replace("\r\n", "\n").strip()
    if isinstance(lengths := about.get("lengths"), list):
        texts, start = [], 0
        for length in lengths:
            texts.append(whole[start : start + length])
            start += length + 2
        if start != len(whole) + 2:
            raise UsageError(f"{path} is not the text that {side_file(path)} describes: remove that file")
    elif about:
        texts = whole.split("\n\n")
    elif len(found := re.split(r"\n(?:[ \t]*\n)+", whole)) > 1:
        texts = found
    else:
        texts = [line for line in whole.split("\n") if line.strip()]
        notes = ("each line is a sample, because no empty line separates them",) if len(texts) > 1 else ()
    return Samples(path, "texts", texts=tuple(texts), about=about, notes=notes)


def of_arrays(path: Path, found: dict[str, Array]) -> Samples:
    """Returns the samples among the arrays of a file.

    Raises:
        UsageError: as `read_samples`.
    """
    words = {n: a.values() for n, a in found.items() if isinstance(a, Packed) and a.type.kind == "U"}
    numbers = {n: a for n, a in found.items() if n not in words and is_numeric(a)}
    about = about_of(str(words["origin"]), path) if "origin" in words else beside(path)
    listing = ", ".join(f"{n} {a.shape}" for n, a in found.items()) or "no arrays"
    if {"mu", "sigma"} <= numbers.keys() and not numbers.keys() & set(NAMES):
        raise UsageError(f"{path} has statistics of a set ({listing}), and no samples: give it with --statistics")
    several = [n for n, a in numbers.items() if len(a.shape) > 1]
    name = next((n for n in NAMES if n in numbers), several[0] if len(several) == 1 else None)
    if name is None:
        raise UsageError(f"{path} has no array of samples, it has {listing}: name it arr_0, samples or images")
    array = numbers[name]
    if 0 in array.shape or len(array.shape) < 2:
        zero = bool(array.shape) and array.shape[0] == 0
        has = "has 0 samples" if zero else f"has shape {array.shape}"
        raise UsageError(f"{name} in {path} {has}: write samples as (N, ...), images as (N, H, W, C)")
    of_classes = next((n for n in LABELS if n in numbers and n != name), None)
    label = None if of_classes is None else torch.as_tensor(examples(numbers[of_classes])[:])
    if label is not None and (label.shape != array.shape[:1] or label.is_floating_point()):
        raise UsageError(
            f"{of_classes} in {path} has shape {tuple(label.shape)}: give a class label, a whole number, for each of "
            f"the {array.shape[0]:,} samples of {name}"
        )
    texts = words.get("captions")
    k, kind, note = as_samples(f"{name} in {path}", name, array, about.get("kind"))
    own = levels_in(about) if kind == "images" else None
    return Samples(
        path,
        kind,
        k if own is None else relevelled(k, 256, own.levels),
        quantization=own,
        labels=None if label is None else label.long(),
        captions=None if texts is None else tuple(map(str, texts.tolist())),
        about=about,
        notes=(note,) if note else (),
    )
