"""Slices of a text such as `train[:90%]`: where they begin and end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

Place = tuple[int, int]
"""A row, and a character within it."""
Span = tuple[str | None, str | None]
"""The two ends of a slice as they are written, such as `(None, "90%")`."""
SHORT = 64  # characters before a cut in which white space is looked for, at least


def in_percent(span: Span) -> bool:
    """Returns whether both ends of a slice are percentages or left out, so that neither counts rows."""
    return all(end is None or end.endswith("%") for end in span)


def places(data: Dataset, column: str, span: Span, name: str, split: str) -> tuple[Place, Place] | tuple[None, None]:
    """Returns where a slice begins and ends: numbers count rows, percentages are shares of the characters.

    Both are None for a slice without ends, which stands for all rows.

    Args:
        data: the rows of the whole split.
        column: the column that holds the text.
        span: the two ends of the slice.
        name, split: the data set and the slice, for the message.

    Raises:
        UsageError: for a slice without text.
    """
    if span == (None, None):
        return None, None
    ends = row_ends(data, column) if any(end is not None and end.endswith("%") for end in span) else None
    found: list[Place] = []
    for end, default in zip(span, ((0, 0), (len(data), 0)), strict=True):
        if end is None:
            found.append(default)
        elif ends is not None and end.endswith("%"):
            share = int(end[:-1]) + 100 * end.startswith("-")
            found.append(cut(data, column, ends, min(max(share, 0), 100)))
        else:
            found.append((min(max(int(end) + len(data) * end.startswith("-"), 0), len(data)), 0))
    start, stop = found
    if start >= stop:
        raise UsageError(f"the split {split} of {name} has no text: take a larger part of it, or give more text")
    return start, stop


def row_ends(data: Dataset, column: str) -> np.ndarray:
    """Returns the number of characters up to the end of each row, `(rows,)`."""
    import pyarrow.compute as pc

    lengths = [
        pc.fill_null(pc.utf8_length(chunk), 0).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]
        for chunk in data.data.column(column).chunks
    ]
    return np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]).astype(np.int64))


def cut(data: Dataset, column: str, ends: np.ndarray, share: int) -> Place:
    """Returns the place before which a share of the characters lies, moved back to where a text may be cut.

    It is the last end of a document, a paragraph or a line within half a percent of the text before, in this order;
    else the last white space there (or within 64 characters); else a place within a word. A larger share never ends
    before a smaller one.

    Args:
        data: the rows.
        column: the column that holds the text.
        ends: number of characters up to the end of each row; see `row_ends`.
        share: the share in percent.
    """
    total = int(ends[-1]) if len(ends) else 0
    target, near = total * share // 100, max(total // 200, 1)
    if share in (0, 100) or not total:
        return (len(data), 0) if share == 100 else (0, 0)
    row = int(np.searchsorted(ends, target, side="right"))  # the row that holds the target
    first = int(np.searchsorted(ends, max(target - max(near, SHORT), 0), side="right"))
    follows = data[first:row]["follow"] if "follow" in data.column_names else [""] * (row - first)
    whole = [end + 1 for end in range(first, row) if not follows[end - first]]  # rows after the end of a document
    if whole and ends[whole[-1] - 1] > target - near:
        return whole[-1], 0
    begin = int(ends[first - 1]) if first else 0
    text = "".join(t or "" for t in data[first : row + 1][column])
    stop = target - begin
    for pattern, within in ((r"\n\s*\n(?=\S)", near), (r"\n(?=\S)", near), (r"\s(?=\S)", max(near, SHORT))):
        found = [m.end() for m in re.compile(pattern).finditer(text, max(stop - within, 0), stop + 1)]
        if within > near and whole:
            found = sorted([*found, int(ends[whole[-1] - 1]) - begin])
        if found:
            stop = found[-1]
            break
    place = begin + stop
    row = int(np.searchsorted(ends, place, side="right"))
    return row, place - (int(ends[row - 1]) if row else 0)
