"""Folders of images: which files they hold, and the labels that subfolders and `metadata` files give them."""

from __future__ import annotations

import csv
import json
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from .class_labels import Labels, is_missing, labels_of, natural_order
from .columns import Captions, Columns, captions_of, column_of
from .pixels import endings

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NO_LABEL_COLUMN = "the metadata have no column label"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
Parts = tuple[str, ...]


class Listing(NamedTuple):
    """The images of one split of a folder.

    Attributes:
        files: names relative to the folder, in their order.
        labels: labels of the files, in the same order.
        captions: captions of the files, in the same order.
        notes: what was left out, and why.
    """

    files: list[str]
    labels: Labels
    captions: Captions
    notes: tuple[str, ...]


class Contents(NamedTuple):
    """The files in a folder, each as the parts of its relative path, and the number of hidden files.

    Attributes:
        images: image files, by their endings.
        metadata: files metadata.csv, .jsonl or .parquet.
        others: all other files.
        hidden: number of hidden files and folders.
    """

    images: list[Parts]
    metadata: list[Parts]
    others: list[Parts]
    hidden: int


def list_images(folder: str, split: str, columns: Columns = Columns()) -> Listing:  # noqa: B008
    """Lists the images of a split of a folder.

    - A folder that contains nothing but one folder stands for that folder.
    - If all images lie in folders named after splits (train, test, validation or val, in upper or lower case), these
      are the splits; else all images are one split, train.
    - Within a split the label is that in the column `label` of a file metadata.csv, .jsonl or .parquet with file names
      in `file_name`; or the folder that the image lies in, at any depth, if there are several and no image lies beside
      them. The caption is that in the column `caption` or `text` of the metadata. `columns` gives other names.

    Hidden files and files that are not images, by their endings, are left out, and counted in the notes.

    Args:
        folder: path of the folder.
        split: `train`, `test` or `validation`, or a slice such as `train[:90%]`.
        columns: names of the columns of labels and captions in the metadata.

    Raises:
        UsageError: where there are no images, no such split or column, several ways to read the folder, or metadata
            that do not match the files.
    """
    root = Path(folder)
    found = scan(root)
    if not found.images:
        left = "; ".join(left_out(found)) or "it is empty"
        raise UsageError(f"the folder {folder} has no images ({left}): put PNG or JPEG files there")
    base, splits, tops = split_folders(folder, found.images)
    name = split_of(split.split("[")[0])
    if name is None or name not in splits:
        if tops:
            raise UsageError(
                f"the folder {folder} has no split {split}: its splits are {', '.join(sorted(splits))}; add a folder "
                f"{split}"
            )
        raise UsageError(
            f"the folder {folder} has no split {split}, its {len(found.images):,} images are all the split train: move "
            f"those to hold out into a folder {split} in it and all others into a folder train, and train again; or "
            "hold out a share (--data.held-out 0.1)"
        )
    rows = metadata_rows(root, found, columns)
    existing = list(dict.fromkeys(column for row in rows.values() for column in row))
    label, caption = (column_of(kind, columns, existing, f"the metadata of {folder}") for kind in ("label", "caption"))
    labels = labels_in(splits, name, len(base) + bool(tops), rows, label)
    captions = Captions(None)
    if caption is not None:
        captions = captions_of([rows.get(parts, {}).get(caption) for parts in splits[name]])
    part = slice_of(split, name, len(splits[name]))
    foreign = {(*base, top) for top, other in tops.items() if other != name}
    notes = (
        [f"beside the split{'s' * (len(splits) > 2)} {', '.join(sorted(splits.keys() - {name}))}"]
        if len(splits) > 1
        else []
    )
    notes += left_out(found._replace(others=[parts for parts in found.others if parts[: len(base) + 1] not in foreign]))
    unread = {column for column in existing if column not in (label, caption)}
    if unread and not labels.reason.startswith(NO_LABEL_COLUMN):
        notes.append(f"columns of the metadata that are not read: {', '.join(sorted(unread))}")
    numbers = None if labels.numbers is None else labels.numbers[part]
    texts = None if captions.texts is None else captions.texts[part]
    files = ["/".join(parts) for parts in splits[name]][part]
    return Listing(files, labels._replace(numbers=numbers), captions._replace(texts=texts), tuple(notes))


def scan(root: Path) -> Contents:
    """Returns all files below a folder by kind; it follows links, but not into folders that contain them.

    Raises:
        UsageError: for a folder that cannot be read.
    """
    found, pictures, hidden = Contents([], [], [], 0), endings(), 0

    def walk(path: Path, parts: Parts, above: frozenset[tuple[int, int]]) -> None:
        nonlocal hidden
        at = path.stat()
        if (at.st_dev, at.st_ino) in above:
            return
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            inside = (*parts, entry.name)
            if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
                hidden += 1
            elif entry.is_dir():
                walk(Path(entry.path), inside, above | {(at.st_dev, at.st_ino)})
            elif entry.name in METADATA:
                found.metadata.append(inside)
            else:
                picture = os.path.splitext(entry.name)[1].lower() in pictures and (
                    entry.is_file() or entry.is_symlink()
                )
                (found.images if picture else found.others).append(inside)

    try:
        walk(root, (), frozenset())
    except OSError as error:
        raise UsageError(
            f"the folder {error.filename} cannot be read ({error.strerror}): correct its permissions, or remove it"
        ) from error
    return Contents(sorted(found.images), sorted(found.metadata), sorted(found.others), hidden)


def split_of(name: str) -> str | None:
    """Returns the split, `train`, `validation` or `test`, that a folder's name stands for, or None."""
    return next((split for split, words in SPLITS.items() if name.lower() in words), None)


def split_folders(folder: str, images: Sequence[Parts]) -> tuple[Parts, dict[str, list[Parts]], dict[str, str]]:
    """Returns the innermost folder of all images, the images of each split, and the split of each folder in it.

    The last is empty if all images belong to one split.

    Raises:
        UsageError: where folders of splits lie beside other images or folders, or two of them are the same split.
    """
    base: Parts = ()
    while True:
        depth = len(base)
        tops = {parts[depth] for parts in images if len(parts) > depth + 1}
        direct = [printable(parts) for parts in images if len(parts) == depth + 1]
        if direct or len(tops) > 1 or split_of(min(tops)):
            break
        base = (*base, *tops)
    of_splits = {top: split for top in sorted(tops) if (split := split_of(top))}
    beside = direct + sorted(tops - of_splits.keys())
    if of_splits and not beside:
        if twice := [top for top in of_splits if list(of_splits.values()).count(of_splits[top]) > 1]:
            raise UsageError(
                f"the folders {' and '.join(twice)} of {folder} are both the split {of_splits[twice[0]]}: merge them"
            )
        by_split = {split: [parts for parts in images if parts[depth] == top] for top, split in of_splits.items()}
        return base, by_split, of_splits
    if "train" in of_splits.values() and (direct or len(set(of_splits.values())) > 1):
        raise UsageError(
            f"the folder {folder} has {' and '.join(of_splits)} beside {beside[0]}: if these are splits, move "
            "everything else away, and if they are classes, rename them"
        )
    return base, {"train": list(images)}, {}


def labels_in(
    splits: dict[str, list[Parts]], name: str, depth: int, rows: dict[Parts, dict[str, Any]], label: str | None
) -> Labels:
    """Returns the labels of a split, from the metadata or from the folders below the first `depth`.

    Names are numbered over all splits.

    Args:
        splits: the paths of the images of each split.
        name: the split.
        depth: number of folders in each path before those that can be classes.
        rows: metadata of each image, from `metadata_rows`.
        label: the column of labels in them, or None.
    """
    if label is None:
        labels = labels_of_folders({split: [parts[depth:] for parts in group] for split, group in splits.items()}, name)
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        if labels.numbers is None and not labels.reason and columns:
            return labels._replace(reason=f"{NO_LABEL_COLUMN}, their columns are {', '.join(columns)}")
        return labels
    values = {split: [rows.get(parts, {}).get(label) for parts in group] for split, group in splits.items()}
    gaps = [printable(parts) for parts, value in zip(splits[name], values[name], strict=True) if is_missing(value)]
    if len(gaps) == len(values[name]):
        return Labels(None, reason="the metadata have none")
    labels = labels_of(values[name], [value for group in values.values() for value in group])
    if labels.names and "train" in values:
        labels = labels._replace(untrained=tuple(n for n in labels.names if n not in values["train"]))
    return labels._replace(reason=f"{labels.reason}, such as that of {gaps[0]}") if gaps else labels


def labels_of_folders(splits: dict[str, list[Parts]], name: str) -> Labels:
    """Returns the labels of the images of the split `name`: the first folder in each path is the class.

    Folders that all images have in common are skipped; the paths in `splits` are those of all splits.
    """
    every = [parts for group in splits.values() for parts in group]
    while all(len(parts) > 1 for parts in every) and len({parts[0] for parts in every}) == 1:
        splits = {split: [parts[1:] for parts in group] for split, group in splits.items()}
        every = [parts[1:] for parts in every]
    names = tuple(sorted({parts[0] for parts in every if len(parts) > 1}, key=natural_order))
    beside = [printable(parts) for parts in splits[name] if len(parts) == 1]
    if len(names) < 2:
        return Labels(None)
    if beside:
        where = f"the folders {', '.join(printable([folder]) for folder in names[:3])}{', ...' * (len(names) > 3)}"
        return Labels(
            None, reason=f"{len(beside):,} of {len(splits[name]):,} images lie outside of {where}, such as {beside[0]}"
        )
    number = {folder: n for n, folder in enumerate(names)}
    trained = {parts[0] for parts in splits.get("train", every)}
    return Labels(
        [number[parts[0]] for parts in splits[name]],
        tuple(printable([folder]) for folder in names),
        untrained=tuple(printable([folder]) for folder in names if folder not in trained),
    )


def slice_of(split: str, name: str, count: int) -> slice:
    """Returns the rows that a slice such as `train[:90%]` stands for, of `count` rows.

    Raises:
        UsageError: for a slice that cannot be read or is empty.
    """
    if "[" not in split:
        return slice(None)
    import datasets

    try:
        (part,) = datasets.ReadInstruction.from_spec(name + split[split.index("[") :]).to_absolute({name: count})
    except (ValueError, AssertionError) as error:
        raise UsageError(f"split={split}: give a slice such as {name}[:90%] or {name}[100:200]") from error
    if part.from_ >= part.to:
        raise UsageError(f"split={split} is empty, of {count:,} images: give a slice such as {name}[:90%]")
    return slice(part.from_, part.to)


def metadata_rows(root: Path, found: Contents, names: Columns) -> dict[Parts, dict[str, Any]]:
    """Returns the metadata of each image: the cells of its row in the nearest file in a folder above it.

    Raises:
        UsageError: for metadata that cannot be read or do not match the images.
    """
    images, rows = set(found.images), {}
    for at in sorted(found.metadata, key=len):
        here: dict[Parts, dict[str, Any]] = {}
        file, table = f"{printable(at)} of {root}", read_table(root.joinpath(*at))
        columns = list(dict.fromkeys(column for row in table for column in row))
        if table and "file_name" not in columns:
            comma = "separate them by commas, and " * (len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"))
            raise UsageError(
                f"{file} has no column file_name, its columns are {', '.join(columns) or 'none'}: {comma}rename the "
                "column with the names of the images to file_name"
            )
        for n, row in enumerate(table, start=1):
            if is_missing(image := row.pop("file_name", None)):
                raise UsageError(f"{file} has no file_name in row {n:,}: give the name of an image in each row")
            parts = tuple(posixpath.normpath(posixpath.join(*at[:-1], str(image))).split("/"))
            label = names.label or "label"
            if here.setdefault(parts, row).get(label) != row.get(label):
                raise UsageError(f"{file} gives {image} two labels: remove one of its rows")
        if absent := [parts for parts in here if parts not in images]:
            raise UsageError(
                f"{file} names {len(absent):,} of {len(here):,} images that do not exist, such as "
                f"{printable(absent[0])}: correct file_name, which is relative to the folder of the metadata"
            )
        if twice := [other for other in found.metadata if other[:-1] == at[:-1] and other != at]:
            raise UsageError(
                f"{printable(at)} and {printable(twice[0])} of {root} describe one folder: remove one of them"
            )
        rows |= here
    return rows


def read_table(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a CSV, JSON lines or Parquet file, each as a dict by column.

    Raises:
        UsageError: where it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return [{k: v for k, v in row.items() if k} for row in csv.DictReader(file, skipinitialspace=True)]
            rows = [json.loads(line) for line in file if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not a JSON object")
        return rows
    except (OSError, ValueError, csv.Error) as error:  # ValueError: errors of Parquet and of encodings, too
        raise UsageError(f"{path} cannot be read ({str(error).splitlines()[0]}): correct or remove it") from error


def left_out(found: Contents) -> list[str]:
    """Returns notes on files that are not read: other than images, and hidden ones; an empty list if all are read."""
    notes, others = [], [printable(parts) for parts in found.others]
    if others:
        examples = f"{', '.join(others[:3])}{', ...' * (len(others) > 3)}"
        notes.append(f"{len(others):,} other file{'s' * (len(others) > 1)} left out: {examples}")
    if found.hidden:
        notes.append(f"{found.hidden:,} hidden file{'s' * (found.hidden > 1)} left out")
    return notes


def printable(parts: Sequence[str]) -> str:
    """Returns a path as text that can be printed, whatever bytes it consists of."""
    return "/".join(parts).encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\n", " ")
