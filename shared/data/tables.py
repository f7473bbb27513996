"""Images in tables, such as Parquet files: their columns of images, class labels and captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .class_labels import Labels, labels_of
from .columns import Captions, Columns, captions_of, column_of
from .sources import bundled, load
from .stacking import Cells

if TYPE_CHECKING:
    from datasets import Dataset


def images_in_table(
    name: str,
    split: str,
    columns: Columns = Columns(),  # noqa: B008
) -> tuple[Cells, Labels, Captions, tuple[str, ...]]:
    """Returns the encoded images of a bundled data set or one on the Hub, their labels and captions, and notes.

    Raises:
        UsageError: where there is no such data set, split or column, or it has no images.
    """
    import datasets

    rows = load(name, split)
    column = column_of("image", columns, rows.column_names, name)
    if column is None or len(rows) == 0 or not isinstance(rows.features[column], datasets.Image):
        raise UsageError(f"the data set {name} has no images: its columns are {', '.join(rows.column_names)}")
    pictures = Cells(rows.cast_column(column, datasets.Image(decode=False))[column])
    hides = name in bundled() and Path(name).is_dir()
    notes = (f"the local folder {name} is not read; give ./{name} to read it",) if hides else ()
    label = column_of("label", columns, rows.column_names, name)
    caption = column_of("caption", columns, rows.column_names, name)
    captions = Captions(None) if caption is None else captions_of(rows[caption][:])
    return pictures, column_labels(name, split, rows, label), captions, notes


def column_labels(name: str, split: str, rows: Dataset, column: str | None) -> Labels:
    """Returns the labels in a column of the rows of a split of the data set `name`.

    Class names are those of the column's type, or the names in the column in their natural order in the split train.
    """
    if column is None:
        others = [other for other in rows.column_names if "label" in other]
        reason = f"there is no column label, and the columns {', '.join(others)} are not read" if others else ""
        return Labels(None, reason=reason)
    labels = labels_of(rows[column][:])
    if labels.names and split.split("[")[0] != "train":
        labels = labels_of(rows[column][:], known := load(name, "train")[column][:])
        if unknown := set(labels.names or ()) - set(known):
            return Labels(None, reason=f"{min(unknown)} is not a label of the train split")
    names = getattr(rows.features[column], "names", None)
    return labels if names is None or labels.numbers is None else labels._replace(names=tuple(names))
