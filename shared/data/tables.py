"""What is wrong with a column or a file that should hold text, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import shown

if TYPE_CHECKING:
    from datasets import Dataset


def no_column(data: Dataset, column: str, name: str) -> str:
    """That there is no such column, with those that there are."""
    there = [c for c in data.column_names if c != "follow"]
    joined = next((sign for sign in (";", "\t", "|") if len(there) == 1 and sign in there[0]), None)
    if joined is not None:
        return f"{name} has no column {column}: its one column is {shown(there[0])!r}; separate the columns by commas instead of {joined!r}"
    if name.lower().endswith(".txt"):
        return f"{name} has no column {column}: its columns are text, for it is a text file"
    return (
        f"{name} has no column {column}: its columns are {', '.join(there)}; give one of them (--text.column, column=)"
    )


def no_text(data: Dataset, column: str, name: str) -> str:
    """What a column holds that is not one of text: other things in some rows, or another type in all."""
    feature = data.features[column]
    wrong, first = 0, ""
    for start in range(0, len(data) if type(feature).__name__ == "Json" else 0, 1000):  # rows of several types
        for row, value in enumerate(data[start : start + 1000][column], start + 1):
            if not isinstance(value, str | None):
                first = first or f"row {row} ({shown(json.dumps(value), 40)})"
                wrong += 1
    if wrong:
        rows = f"{wrong:,} of {len(data):,} rows" if wrong < len(data) else f"all {len(data):,} rows"
        which = "of these the first is" if wrong > 1 else "which is"
        remedy = "mend or drop these rows" if wrong < len(data) else "give another column (--text.column, column=)"
        return f"the column {column} of {name} holds no text in {rows}, {which} {first}: {remedy}"
    kind = getattr(feature, "dtype", None) or type(feature).__name__
    others = ", ".join(data.column_names)
    return f"the column {column} of {name} holds no text but {kind}: its columns are {others}; give one of text (--text.column, column=)"


def broken_line(rows: Iterable[str]) -> str | None:
    """The first line of a JSON file, with a value a line, that is not JSON, with why.

    None where each is, or the file is one array.
    """
    for number, row in enumerate(rows, 1):
        if row.strip():
            try:
                json.loads(row)
            except ValueError as error:
                if number == 1 and row.lstrip()[:1] == "[":
                    return None
                why = error.msg.lower() if isinstance(error, json.JSONDecodeError) else shown(error)
                return f"line {number} is not JSON: {why.removesuffix(' at')}, in {shown(row, 60)!r}"
    return None
