"""Images in tables: files, bundled data sets and data sets on the Hub, with their labels and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError
from .class_labels import Labels, labels_of
from .columns import Captions, Columns, captions_of, column_of
from .sources import bundled, load
from .stacking import Cells, EncodedImages, Files
from .table_files import TableFiles, table_files
from .tars import examples_of

if TYPE_CHECKING:
    from datasets import Dataset


class Table(NamedTuple):
    """A split of a table of images.

    Attributes:
        images: the encoded images.
        columns: names of the columns.
        values: returns a column by its name.
        names: returns the names of the classes of a column of labels, or None.
        notes: what was left out.
    """

    images: EncodedImages
    columns: list[str]
    values: Callable[[str], list[Any]]
    names: Callable[[str], tuple[str, ...] | None]
    notes: tuple[str, ...] = ()


def images_in_table(
    name: str,
    split: str,
    columns: Columns = Columns(),  # noqa: B008
) -> tuple[EncodedImages, Labels, Captions, tuple[str, ...]]:
    """Returns the encoded images of a table, their labels and captions, and notes.

    Args:
        name: a bundled data set, table files by the rules of `table_files`, or a data set on the Hub.
        split: the split.
        columns: names of the columns.

    Raises:
        UsageError: where there is no such data set, split or column, or it has no images.
    """
    table = table_of(name, split, columns)
    label, caption = (column_of(kind, columns, table.columns, name) for kind in ("label", "caption"))
    captions = Captions(None) if caption is None else captions_of(table.values(caption))
    hides = name in bundled() and Path(name).exists()
    notes = (f"the local folder {name} is not read; give ./{name} to read it",) if hides else ()
    return table.images, column_labels(name, split, columns, table, label), captions, (*notes, *table.notes)


def table_of(name: str, split: str, columns: Columns) -> Table:
    """Returns a split of a table of images; for the arguments and errors see `images_in_table`."""
    files = None if name in bundled() else table_files(name)
    if files is not None and files.kind == "tar":
        if "[" in split:
            raise UsageError(f"split={split}: tar files have no slices; give {split.split('[')[0]}")
        found = examples_of(files.of(split, name), columns.image)
        return Table(
            found.images, list(found.columns), found.columns.__getitem__, lambda _: None, (*files.notes, *found.notes)
        )
    rows = load(name, split)
    return Table(
        images_in_column(rows, columns, name, files),
        rows.column_names,
        lambda column: list(rows[column]),
        lambda column: getattr(rows.features[column], "names", None),
        () if files is None else files.notes,
    )


def images_in_column(rows: Dataset, columns: Columns, name: str, files: TableFiles | None) -> EncodedImages:
    """Returns the encoded images of a table: an image, its bytes, or in local files its path relative to the file.

    Raises:
        UsageError: where there is no such column, or it does not hold images.
    """
    import datasets

    column = column_of("image", columns, rows.column_names, name)
    pictures = [c for c in rows.column_names if isinstance(rows.features[c], datasets.Image)]
    column = pictures[0] if column is None and len(pictures) == 1 else column
    if column is not None and len(rows) > 0:
        feature = rows.features[column]
        dtype = getattr(feature, "dtype", "")
        structure = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        if isinstance(feature, datasets.Image) or dtype in ("binary", "large_binary") or structure:
            return Cells(rows.cast_column(column, datasets.Image(decode=False)).select_columns([column]), column)
        if dtype in ("string", "large_string") and files is not None:
            return Files(str(folder_of(files, name)), [str(path) for path in rows[column]])
    raise UsageError(
        f"the data set {name} has no images{f' in the column {column}' if column else ''}: its columns are "
        f"{', '.join(rows.column_names)}; give the column of images (--data.image-column)"
    )


def folder_of(files: TableFiles, name: str) -> Path:
    """Returns the folder of the files, which paths of images in them are relative to.

    Raises:
        UsageError: for files in several folders.
    """
    folders = sorted({path.parent for group in files.splits.values() for path in group})
    if len(folders) > 1:
        raise UsageError(
            f"the files of {name} lie in several folders, such as {folders[0]} and {folders[1]}, and their paths of "
            "images are relative to one: put the files into one folder"
        )
    return folders[0]


def column_labels(name: str, split: str, columns: Columns, table: Table, label: str | None) -> Labels:
    """Returns the labels in a column of a split of the data set `name`.

    Class names are those of the column's type, or the names in the column in their natural order in the split train.
    """
    if label is None:
        others = [column for column in table.columns if "label" in column]
        reason = f"there is no column label, and the columns {', '.join(others)} are not read" if others else ""
        return Labels(None, reason=reason)
    values = table.values(label)
    labels = labels_of(values)
    if labels.names and split.split("[")[0] != "train":
        known = column_values(name, "train", columns, label)
        labels = labels_of(values, known)
        if unknown := set(labels.names or ()) - set(known):
            return Labels(None, reason=f"{min(unknown)} is not a label of the train split")
    names = table.names(label)
    return labels if names is None or labels.numbers is None else labels._replace(names=tuple(names))


def column_values(name: str, split: str, columns: Columns, column: str) -> Iterable[Any]:
    """Returns a column of a split."""
    return table_of(name, split, columns).values(column)
