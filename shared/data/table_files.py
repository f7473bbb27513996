"""Local files of tables: Parquet, Arrow, CSV, JSON and tar files, their splits and their rows."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError, shown
from .folders import split_of
from .pixels import endings

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".tar": "tar",
}
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


class TableFiles(NamedTuple):
    """The files of a data set.

    Attributes:
        kind: their kind, such as `parquet`.
        splits: the files of each split, sorted.
        notes: files that were left out.
    """

    kind: str
    splits: dict[str, list[Path]]
    notes: tuple[str, ...] = ()

    def of(self, split: str, name: str) -> list[Path]:
        """Returns the files of a split, which may be a slice such as `train[:90%]`.

        Raises:
            UsageError: where there is no such split.
        """
        wanted = split_of(split.split("[")[0]) or split.split("[")[0]
        if wanted not in self.splits:
            has = ", ".join(sorted(self.splits))
            if Path(name).is_file():
                remedy = f"give a folder of files train and {wanted}, or hold out a share (--data.held-out 0.1)"
                raise UsageError(f"{name} is one file, the split {has}, and has no split {split}: {remedy}")
            raise UsageError(
                f"{name} has no split {split}: its splits are {has}, by the names of its files; add a file named "
                f"{wanted}, or hold out a share (--data.held-out 0.1)"
            )
        return self.splits[wanted]


def split_in(parts: Sequence[str]) -> str | None:
    """Returns the split that a path names, as on the Hub: in a folder's name, else in the file's; None without one.

    A name is read as words between `-`, `.`, `_`, spaces and digits: `train-00000-of-00002.parquet` is of `train`.
    """
    for part in parts:
        for word in re.split(r"[-._ 0-9]+", part):
            if (split := split_of(word)) is not None:
                return split
    return None


def table_files(name: str) -> TableFiles | None:
    """Returns the table files that a name stands for: a file, a glob such as `data/*.parquet`, or a folder of them.

    Splits are those that the names of folders and files contain, as on the Hub; without any, all files are `train`.
    Returns None for anything else, such as a folder that has images.

    Raises:
        UsageError: for a glob that no table file matches, or for files of several kinds.
    """
    path = Path(name)
    if path.is_file():
        kind = KINDS.get(path.suffix.lower())
        return None if kind is None else TableFiles(kind, {"train": [path]})
    if path.is_dir():
        found = in_folder(path)
        if found is None:
            return None
        root = path
    elif glob.has_magic(name):
        found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).suffix.lower() in KINDS)
        if not found:
            raise UsageError(f"no file matches {name}: give a pattern that matches {', '.join(KINDS)} files")
        root = Path(re.split(r"[*?[]", name)[0] + "x").parent  # the folder in front of the first wildcard
    else:
        return None
    kinds = {KINDS[p.suffix.lower()]: p for p in found}
    if len(kinds) > 1:
        each = ", ".join(f"{kind} ({p.name})" for kind, p in sorted(kinds.items()))
        raise UsageError(f"{name} has table files of several kinds, {each}: give one kind, such as {name}/*.parquet")
    splits: dict[str, list[Path]] = {}
    others = []
    for file in found:
        relative = file.relative_to(root) if file.is_relative_to(root) else file
        split = split_in(relative.parts)
        splits.setdefault(split, []).append(file) if split else others.append(file)
    if not splits:
        splits, others = {"train": others}, []
    names = ", ".join(file.name for file in others[:3]) + ", ..." * (len(others) > 3)
    left = f"{len(others):,} file{'s' * (len(others) > 1)} without a split in their names left out: {names}"
    return TableFiles(next(iter(kinds)), splits, (left,) if others else ())


def in_folder(root: Path) -> list[Path] | None:
    """Returns the table files below a folder, or None if there are none, or images."""
    found, pictures = [], endings()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            ending = os.path.splitext(file)[1].lower()
            if ending in pictures:
                return None
            if not file.startswith(".") and ending in KINDS and file not in DESCRIPTIONS:
                found.append(Path(folder) / file)
    return found or None


def shards_of(name: str, split: str) -> TableFiles | None:
    """Returns the files of text of a glob, or of a folder in the layout of the Hub: train-00000-of-00002.parquet.

    Returns None for anything else, such as a folder with a file named after the split: `train.parquet`, `train.txt`.
    """
    path = Path(name)
    if path.is_dir():
        parts = [file.relative_to(path).parts for file in in_folder(path) or []]
        exact = any(p.stem == split and p.suffix.lower() in (".txt", *KINDS) for p in path.iterdir())
        if exact or not any(split_in(p) not in (None, Path(p[-1]).stem) for p in parts):
            return None
    files = None if path.is_file() else table_files(name)
    return None if files is None or files.kind == "tar" else files


def rows_of_files(files: TableFiles, name: str, split: str) -> Dataset:
    """Loads the rows of a split of Parquet, Arrow, CSV or JSON files through `datasets`.

    Raises:
        UsageError: for a split that does not exist, or a file that cannot be read.
    """
    import datasets

    paths = files.of(split, name)
    options: dict[str, Any] = {"keep_default_na": False} if files.kind == "csv" else {}  # keep the words NA and None
    part = f"train{split[split.index('[') :]}" if "[" in split else "train"
    for path in paths:
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty: remove it, or write it again")
    already, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        escaped = [glob.escape(str(path.resolve())) for path in paths]
        return datasets.load_dataset(files.kind, data_files={"train": escaped}, split=part, **options)
    except PermissionError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if "corresponds to no data" in str(cause):
            raise UsageError(f"{name} has no rows in the split {split}: give files with some") from error
        which = paths[0] if len(paths) == 1 else f"the {len(paths):,} files of {name}"
        raise UsageError(
            f"{which} cannot be read as {files.kind} ({shown(cause, 200)}): correct or remove it"
        ) from error
    finally:
        datasets.logging.set_verbosity(level)
        if not already:
            datasets.enable_progress_bars()
