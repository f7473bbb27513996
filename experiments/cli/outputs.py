"""Where samples are written, and how: a picture, a folder of PNGs, an .npz file or a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.quantization import Quantization
from ...shared.training.folder import naming, writable
from ..recipe import Recipe
from ..tensor_data import save_arrays

PICTURES = (".png", ".jpg", ".webp")
FORMATS = {"picture": ".png", "folder": "", "npz": ".npz", "npy": ".npy", "text": ".txt"}
"""The formats of samples, and the ending of each."""
KINDS = {
    ".png": ("images", "picture, folder or npz"),
    ".npz": ("arrays", "npz or npy"),
    ".txt": ("text", "text or npz"),
}
"""What samples are, and their formats, by the ending of a recipe's default file."""


def output_path(path: Path, endings: tuple[str, ...]) -> Path:
    """Returns the path of a new file in a writable folder.

    Raises:
        UsageError: for another ending.
    """
    if path.suffix.lower() not in endings or path.is_dir():
        shown = [ending or "no ending, for a folder" for ending in endings]
        raise UsageError(f"--out {path}: give a name that ends in {' or '.join(shown)}")
    writable(path.parent)
    return path


def path_for(folder: Path, recipe: Recipe, out: Path | None, form: str | None, shape: tuple[int, ...]) -> Path:
    """Returns the path for samples of a run, where nothing lies yet.

    Args:
        folder: the folder of the run, where samples are written by default, numbered from the second on.
        recipe: the recipe of the run.
        out: the path that the user gave, or None.
        form: the format that the user gave, one of `FORMATS`, or None for that of the ending of `out` or of the data.
        shape: shape of one example.

    Raises:
        UsageError: for a path that exists, for an ending that does not fit the data or the format, and for a folder of
            images that PNG files cannot have.
    """
    kind = Path(recipe.picture).suffix
    endings = {".png": (*PICTURES, ".npz", ""), ".npz": (".npz", ".npy")}.get(kind, (".txt", ".npz"))
    if form is not None:
        endings = tuple(e for e in endings if e == FORMATS[form] or (form == "picture" and e in PICTURES))
        if not endings:
            samples, formats = KINDS.get(kind, KINDS[".txt"])
            raise UsageError(f"--format {form}: the samples are {samples}: give {formats}")
    if out is not None:
        if out.exists():
            raise UsageError(f"--out {out} exists already, and nothing is overwritten: give another name")
        path = output_path(out, endings)
        refuse_channels(path, shape)
        return path
    name = Path(recipe.picture).with_suffix(endings[0]).name if form is not None else recipe.picture
    stem, suffix = Path(name).stem, Path(name).suffix
    writable(folder)
    names = (f"{stem}{'' if n == 1 else f'-{n}'}{suffix}" for n in range(1, 1_000_000))
    refuse_channels(Path(name), shape)
    return next(folder / new for new in names if not (folder / new).exists())


def refuse_channels(path: Path, shape: tuple[int, ...]) -> None:
    """Raises `UsageError` for a folder of images that have neither 1, 3 nor 4 channels, as PNG files do."""
    if path.suffix == "" and shape[0] not in (1, 3, 4):
        raise UsageError(f"PNG files have 1, 3 or 4 channels, and these images {shape[0]}: give --format npz")


def write_samples(
    path: Path,
    recipe: Recipe,
    levels: Tensor,
    quantization: Quantization,
    label: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> str:
    """Writes samples to a new file or folder, and returns the part of them that a terminal can show.

    An .npz file has the quantization levels as `arr_0`, uint8 `(N, H, W, C)`, as other projects write them, or tokens
    `(N, L)`, and class labels as `arr_1`; of real-valued data it has the samples as `x`, in their own units, and the
    labels as `label`. A folder has a PNG for each image. Captions are written below the images of a picture, as
    `captions` of an .npz file, and to the metadata.jsonl of a folder.
    """
    with naming(path):
        if recipe.data.real_valued:
            return save_arrays(path, levels, label)
        if path.suffix.lower() == ".npz":
            samples = levels.numpy() if levels.ndim < 4 else eight_bits(levels, quantization)
            further = {} if label is None else {"arr_1": label.cpu().numpy()}
            arrays = {"arr_0": samples} | further | ({} if captions is None else {"captions": np.array(captions)})
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            return ""
        if path.suffix == "":
            return as_folder(path, levels, quantization, captions)
        return recipe.show(path, levels, quantization, max(1, round(len(levels) ** 0.5)), captions)


def as_folder(path: Path, levels: Tensor, quantization: Quantization, captions: Sequence[str] | None) -> str:
    """Writes a PNG for each image, and their captions to metadata.jsonl, as folders of images have them."""
    from PIL import Image

    path.mkdir(parents=True)
    for n, image in enumerate(eight_bits(levels, quantization)):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{n:06}.png")
    if captions is not None:
        lines = [json.dumps({"file_name": f"{n:06}.png", "caption": text}) for n, text in enumerate(captions)]
        (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return ""


def eight_bits(levels: Tensor, quantization: Quantization) -> np.ndarray:
    """Returns images of quantization levels `(N, C, H, W)` as uint8 `(N, H, W, C)`, from 0 to 255."""
    scaled = torch.round(levels.double() * 255 / (quantization.levels - 1))
    return scaled.clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous().numpy()
