"""Messages on a column or a file that should hold text and does not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import shown

if TYPE_CHECKING:
    from datasets import Dataset


def missing_column(data: Dataset, column: str, name: str) -> str:
    """Returns the error message for a missing column of a data set called `name`, with the columns that it has."""
    columns = [c for c in data.column_names if c != "follow"]
    separator = next((sign for sign in (";", "\t", "|") if len(columns) == 1 and sign in columns[0]), None)
    if separator is not None:
        return (
            f"{name} has no column {column}: its only column is {shown(columns[0])!r}; separate columns by commas "
            f"instead of {separator!r}"
        )
    if name.lower().endswith(".txt"):
        return f"{name} has no column {column}: the only column of a text file is text"
    return (
        f"{name} has no column {column}: its columns are {', '.join(columns)}; give one of them (--data.column, "
        "column=)"
    )


def column_without_text(data: Dataset, column: str, name: str) -> str:
    """Returns the error message for a column that is not text, or has values of other types in some rows."""
    feature = data.features[column]
    wrong, first = 0, ""
    for start in range(0, len(data) if type(feature).__name__ == "Json" else 0, 1000):  # rows of several types
        for row, value in enumerate(data[start : start + 1000][column], start + 1):
            if not isinstance(value, str | None):
                first = first or f"row {row} ({shown(json.dumps(value), 40)})"
                wrong += 1
    if wrong:
        rows = f"{wrong:,} of {len(data):,} rows" if wrong < len(data) else f"all {len(data):,} rows"
        which = "first in" if wrong > 1 else "namely"
        remedy = "correct or remove these rows" if wrong < len(data) else "give another column (--data.column, column=)"
        return f"the column {column} of {name} has no text in {rows}, {which} {first}: {remedy}"
    kind = getattr(feature, "dtype", None) or type(feature).__name__
    return (
        f"the column {column} of {name} has the type {kind}, not text: the columns are {', '.join(data.column_names)}; "
        "give one of text (--data.column, column=)"
    )


def broken_line(rows: Iterable[str]) -> str | None:
    """Returns a message on the first line of a JSON lines file that is not JSON, with the reason.

    Returns None where each line is JSON, or the file is one array.
    """
    for number, row in enumerate(rows, 1):
        if row.strip():
            try:
                json.loads(row)
            except ValueError as error:
                if number == 1 and row.lstrip()[:1] == "[":
                    return None
                reason = error.msg.lower() if isinstance(error, json.JSONDecodeError) else shown(error)
                return f"line {number} is not JSON: {reason.removesuffix(' at')}, in {shown(row, 60)!r}"
    return None
