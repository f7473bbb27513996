"""Writes samples to their file or folder, part by part, so that memory holds one part and not all samples."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..shared.training.folder import flush, naming
from .pretrained.given_data import GivenText
from .recipe import Recipe
from .sample_files import side_file
from .sample_parts import Parts, eight_bits
from .text_data import Text


class Streamed(NamedTuple):
    """An array that is written part by part.

    Attributes:
        shape: shape of the whole array.
        dtype: its type.
        parts: its rows, in order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Iterable[np.ndarray]

    def write(self, file: IO[bytes]) -> None:
        """Writes the array as a .npy file."""
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, self.dtype)) | {"shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in self.parts:
            file.write(np.ascontiguousarray(part, self.dtype).data.cast("B"))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray | Streamed]) -> None:
    """Writes arrays to an uncompressed .npz file, of which rows can be read without the others."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            whole = array if isinstance(array, Streamed) else Streamed(array.shape, array.dtype, (array,))
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                whole.write(file)


def write_samples(
    parts: Parts,
    recipe: Recipe,
    about: Mapping[str, Any],
    label: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> str:
    """Writes samples to a new file or folder, removes their parts, and returns what of them a terminal can show.

    An .npz file has the quantization levels as `arr_0`, uint8 `(N, H, W, C)`, as other projects write them, or tokens
    `(N, L)`, and class labels as `arr_1`; of real-valued data it has the samples as `x`, in their own units, and the
    labels as `label`. A folder has a PNG for each image. Captions are written below the images of a picture, as
    `captions` of an .npz file, and to the metadata.jsonl of a folder, with the labels.

    `about` is written as `origin` of an .npz file, a JSON text, to the samples.json of a folder, and to FILE.json
    beside a .txt or .npy file.

    Raises:
        UsageError: where they cannot be written; the parts are kept.
    """
    path, ending = parts.path, parts.path.suffix.lower()
    with naming(path):
        if parts.images:
            write_about(parts.folder / "samples.json", {"kind": "images", **about})
            write_metadata(parts.folder, parts.count, label, captions)
            os.replace(parts.folder, path)
            shutil.rmtree(path / parts.state.name, ignore_errors=True)
            return ""
        whole, first = parts.folder / path.name, parts.first()
        printed, kind = "", "arrays" if recipe.data.real_valued else "images" if first.ndim == 4 else "tokens"
        if recipe.data.real_valued:
            printed = moments(parts)
        if ending == ".npz":
            further = further_arrays({"kind": kind, **about}, label, captions, real_valued=recipe.data.real_valued)
            name = "x" if recipe.data.real_valued else "arr_0"
            write_npz(whole, {name: as_array(parts, first), **further})
        elif ending == ".npy":
            with whole.open("wb") as file:
                as_array(parts, first).write(file)
            write_about(side_file(whole), {"kind": kind, **about})
        elif type(recipe.data).show in (Text.show, GivenText.show):
            printed = recipe.show(whole, first[:3], parts.quantization, 1)
            of_text = write_texts(whole, parts, recipe.data)
            write_about(side_file(whole), {**of_text, **about})
        else:
            every = torch.cat([part.long() if part.dtype == torch.uint8 else part for part in parts])
            printed = recipe.show(whole, every, parts.quantization, max(1, round(parts.count**0.5)), captions)
        flush(whole)
        if (
            beside := side_file(whole)
        ).exists():  # a stop before this line leaves nothing that the command would refuse
            os.replace(beside, side_file(path))
        os.replace(whole, path)
    parts.remove()
    return printed


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Writes what was used to draw samples, as JSON."""
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def write_metadata(folder: Path, count: int, label: Tensor | None, captions: Sequence[str] | None) -> None:
    """Writes labels and captions of the images of a folder to metadata.jsonl, as folders of images have them."""
    if label is None and captions is None:
        return
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for n in range(count):
            of_label = {} if label is None else {"label": int(label[n])}
            of_caption = {} if captions is None else {"caption": captions[n]}
            file.write(json.dumps({"file_name": f"{n:06}.png"} | of_label | of_caption) + "\n")


def further_arrays(
    about: Mapping[str, Any], label: Tensor | None, captions: Sequence[str] | None, *, real_valued: bool
) -> dict[str, np.ndarray]:
    """Returns the arrays beside the samples: labels, captions and `origin`, what was used to draw them."""
    found = {} if label is None else {"label" if real_valued else "arr_1": label.cpu().numpy()}
    found |= {} if captions is None else {"captions": np.array(captions)}
    return found | {"origin": np.array(json.dumps(about))}


def as_array(parts: Parts, first: Tensor) -> Streamed:
    """Returns the samples as an array in the form of files; images as uint8 `(N, H, W, C)`."""

    def form(levels: Tensor) -> np.ndarray:
        image = levels.ndim == 4 and not levels.is_floating_point()
        return eight_bits(levels, parts.quantization) if image else levels.numpy()

    example = form(first[:1])
    return Streamed((parts.count, *example.shape[1:]), example.dtype, map(form, parts))


def moments(parts: Parts) -> str:
    """Returns a line with the mean and the standard deviation of all values."""
    sums = [(part.numel(), float(part.double().sum())) for part in parts]
    count, mean = sum(n for n, _ in sums), sum(total for _, total in sums) / sum(n for n, _ in sums)
    squares = sum(float((part.double() - mean).square().sum()) for part in parts)
    deviation = (squares / (count - 1)) ** 0.5 if count > 1 else float("nan")
    return f"  mean {mean:.4g}, standard deviation {deviation:.4g} of all values\n"


def write_texts(path: Path, parts: Parts, data: Any) -> dict[str, Any]:
    """Writes texts, separated by an empty line, or token ids, a line for each sample, and returns how they are read.

    Where a text has empty lines itself, this includes the number of characters of each, as `lengths`.
    """
    readable = getattr(data, "readable", True)
    lengths: list[int] = []
    clear = True
    decode: Callable[[Tensor], list[str]] = (
        (lambda rows: data.read_tokenizer().decode(rows, data.padding)) if readable else ids_of
    )
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for n, text in enumerate(texts_of(parts, decode)):
            file.write((("\n\n" if readable else "\n") if n else "") + text)
            lengths.append(len(text))
            clear = clear and "\n\n" not in text and not text.startswith("\n") and not text.endswith("\n")
        file.write("\n")
    return {"kind": "texts" if readable else "tokens"} | ({} if clear else {"lengths": lengths})


def texts_of(parts: Parts, decode: Callable[[Tensor], list[str]]) -> Iterator[str]:
    """Yields the text of each sample."""
    for rows in parts:
        yield from decode(rows)


def ids_of(rows: Tensor) -> list[str]:
    """Returns the token ids of each row as text."""
    return [" ".join(map(str, row)) for row in rows.tolist()]
