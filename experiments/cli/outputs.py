"""Where samples are written: a picture, a folder of PNGs, an .npz file or a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...shared.errors import UsageError
from ...shared.training.folder import writable
from ..recipe import Recipe
from ..sample_files import side_file

PICTURES = (".png", ".jpg", ".webp")
FORMATS = {"picture": ".png", "folder": "", "npz": ".npz", "npy": ".npy", "text": ".txt"}
"""The formats of samples, and the ending of each."""
KINDS = {
    ".png": ("images", "picture, folder or npz"),
    ".npz": ("arrays", "npz or npy"),
    ".txt": ("text", "text or npz"),
}
"""What samples are, and their formats, by the ending of a recipe's default file."""


def output_path(path: Path, endings: tuple[str, ...], option: str = "--out") -> Path:
    """Returns the path of a new file in a writable folder, which an option gives.

    Raises:
        UsageError: for another ending.
    """
    if path.suffix.lower() not in endings or path.is_dir():
        shown = [ending or "no ending, for a folder" for ending in endings]
        raise UsageError(f"{option} {path}: give a name that ends in {' or '.join(shown)}")
    writable(path.parent)
    return path


def path_for(
    folder: Path,
    recipe: Recipe,
    out: Path | None,
    form: str | None,
    shape: tuple[int, ...],
    usable: Callable[[Path], bool] = lambda path: True,
) -> Path:
    """Returns the path for samples of a run, where nothing lies yet.

    Args:
        folder: the folder of the run, where samples are written by default, numbered from the second on.
        recipe: the recipe of the run.
        out: the path that the user gave, or None.
        form: the format that the user gave, one of `FORMATS`, or None for that of the ending of `out` or of the data.
        shape: shape of one example.
        usable: whether samples can be written to a path of the folder of the run where nothing lies.

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
        if existing := next((p for p in written_for(out) if p.exists()), None):
            raise UsageError(f"--out {existing} exists already, and nothing is overwritten: give another name")
        path = output_path(out, endings)
        refuse_channels(path, shape)
        return path
    name = Path(recipe.picture).with_suffix(endings[0]).name if form is not None else recipe.picture
    stem, suffix = Path(name).stem, Path(name).suffix
    writable(folder)
    names = (f"{stem}{'' if n == 1 else f'-{n}'}{suffix}" for n in range(1, 1_000_000))
    refuse_channels(Path(name), shape)
    return next(
        path for path in map(folder.joinpath, names) if not any(p.exists() for p in written_for(path)) and usable(path)
    )


def written_for(path: Path) -> list[Path]:
    """Returns the files that samples are written to: the given one, and the JSON file beside text and .npy files."""
    return [path, side_file(path)] if path.suffix.lower() in (".txt", ".npy") else [path]


def refuse_channels(path: Path, shape: tuple[int, ...]) -> None:
    """Raises `UsageError` for a folder of images that have neither 1, 3 nor 4 channels, as PNG files do."""
    if path.suffix == "" and shape[0] not in (1, 3, 4):
        raise UsageError(f"PNG files have 1, 3 or 4 channels, and these images {shape[0]}: give --format npz")
