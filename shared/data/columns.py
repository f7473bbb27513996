"""The columns of images, class labels and captions of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import UsageError, shown
from .class_labels import is_missing


class Columns(NamedTuple):
    """Names of the columns of a table of images; None takes the first usual name that the table has.

    Attributes:
        image: column of images; usual are `image` and `img`, or the only column whose type is an image.
        label: column of class labels; usual are `label` and `fine_label`, and `cls` in tar files.
        caption: column of captions; usual are `caption` and `text`, and `txt` in tar files.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None


USUAL = {
    "image": ("image", "img"),
    "label": ("label", "fine_label", "cls"),
    "caption": ("caption", "text", "txt"),
}


class Captions(NamedTuple):
    """The captions of a data set.

    Attributes:
        texts: one caption for each example; None where the data set has no captions that can be used.
        reason: why `texts` is None, where there is a column of captions; else "".
    """

    texts: tuple[str, ...] | None
    reason: str = ""


def column_of(kind: str, columns: Columns, existing: Iterable[str], name: str) -> str | None:
    """Returns the name of the column of a kind (`image`, `label` or `caption`), or None without a usual one.

    Args:
        kind: the kind.
        columns: the names that were given.
        existing: names of the columns of the table.
        name: name of the data set, for the message.

    Raises:
        UsageError: for a given name that is not a column; the message lists the columns.
    """
    given, existing = getattr(columns, kind), list(existing)
    if given is None:
        return next((usual for usual in USUAL[kind] if usual in existing), None)
    if given in existing:
        return given
    raise UsageError(
        f"{kind}_column={given}: {name} has the columns {', '.join(existing) or 'none'}: give one of them "
        f"(--data.{kind}-column)"
    )


def captions_of(values: Sequence[Any]) -> Captions:
    """Returns a column of captions: texts, or lists of texts, of which the first is taken."""
    values = [value[0] if isinstance(value, list | tuple) and value else value for value in values]
    gaps = sum(is_missing(value) or value == [] for value in values)
    if gaps == len(values):
        return Captions(None)
    if gaps:
        return Captions(None, f"{gaps:,} of {len(values):,} are missing")
    if other := [value for value in values if not isinstance(value, str)]:
        return Captions(None, f"{shown(other[0], 40)} is not a text")
    return Captions(tuple(values))
