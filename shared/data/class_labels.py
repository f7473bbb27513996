"""Class labels: class names in their order, columns of labels as numbers, and messages on both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError

NO_LABELS = "use a model without classes, or put the images into a folder for each class"
SHOWN = 10  # number of classes that a message lists
LARGEST = 2**31


class Labels(NamedTuple):
    """The class labels of a data set.

    Attributes:
        numbers: one label for each example, an integer of 0 or more; None where the data set has no labels that can be
            used.
        names: names of classes 0, 1, ..., where they have names.
        reason: why `numbers` is None, where there is a column or a folder of labels; else "".
        untrained: names of classes that occur in other splits, but not in train.
    """

    numbers: list[int] | None
    names: tuple[str, ...] | None = None
    reason: str = ""
    untrained: tuple[str, ...] = ()


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key in which numbers within names count as numbers: 2 before 10, class2 before class10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p] + [(-1, 0, name)]


def labels_of(values: Sequence[Any], everywhere: Iterable[Any] = ()) -> Labels:
    """Returns a column of labels as numbers.

    Whole numbers are taken as they are. Names are numbered in their natural order.

    Args:
        values: the column.
        everywhere: the same column of the other splits, whose names are numbered together with those in `values`.
    """
    values, known = list(values), [v for v in (*everywhere, *values) if not is_missing(v)]
    if all(is_missing(v) for v in values):
        return Labels(None)
    if gaps := sum(is_missing(v) for v in values):
        return Labels(None, reason=f"{gaps:,} of {len(values):,} are missing")
    numbers = [as_integer(v) for v in known]
    if None not in numbers:
        own = [n for n in map(as_integer, values) if n is not None]
        if below := [n for n in own if n < 0]:
            same = len(set(own)) == 1
            return Labels(
                None,
                reason=f"all are {below[0]}" if same else f"{len(below):,} are below 0, such as {below[0]}",
            )
        return Labels(None, reason=f"{max(own)} is not a class label") if max(own) >= LARGEST else Labels(own)
    odd = [v for v, n in zip(known, numbers, strict=True) if n is None and (not isinstance(v, str) or is_fraction(v))]
    if odd or not all(isinstance(v, str) for v in known):
        return Labels(None, reason=f"{str((odd or known)[0])[:40]} is not a class label")
    names = tuple(sorted({str(v) for v in known}, key=natural_order))
    number = {name: n for n, name in enumerate(names)}
    return Labels([number[v] for v in values], names)


def is_missing(value: Any) -> bool:
    """Returns whether a cell of a table is empty: None, "" or NaN."""
    return value is None or value == "" or value != value


def as_integer(value: Any) -> int | None:
    """Returns a cell as a whole number, or None if it is not one."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([+-]?\d{1,18})(\.0*)?\s*", value)
        return int(found[1]) if found else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None


def is_fraction(text: Any) -> bool:
    """Returns whether a cell is text that is a number with a decimal point, such as "0.5"."""
    return isinstance(text, str) and re.fullmatch(r"\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*", text) is not None


def class_counts(label: Tensor, names: tuple[str, ...] | None = None) -> str:
    """Returns a text with the number of examples of each class: `3 classes: blood 400, test 402, urine 402`.

    Args:
        label: class labels, int64 `(N,)`.
        names: names of the classes; None to write the numbers of those that occur.
    """
    count = torch.bincount(label, minlength=len(names or ()))
    classes = [n for n in range(len(count)) if names or count[n]]
    cells = [f"{names[n] if names else n} {int(count[n]):,}" for n in classes[:SHOWN]]
    rest = [int(count[n]) for n in classes[SHOWN:]]
    each = f"{min(rest):,}" + f" to {max(rest):,}" * (min(rest) != max(rest)) if rest else ""
    more = f", and {len(rest):,} more of {each} each" if rest else ""
    return f"{len(classes):,} class{'es' * (len(classes) != 1)}: {', '.join(cells)}{more}"


def refuse_other_classes(labels: Labels, classes: int, name: str, split: str = "train") -> None:
    """Refuses labels that are missing, have another number of named classes, or do not lie in 0 to classes - 1.

    Args:
        labels: the labels of the split.
        classes: number of classes of the model.
        name, split: the data set and its split, for the message.

    Raises:
        UsageError: with the labels that there are, and the remedy for this split.
    """
    who = f"classes={classes}: {name} ({split})"
    if labels.numbers is None:
        reason = f": {labels.reason}" * bool(labels.reason)
        raise UsageError(f"{who} has no labels{reason}; {NO_LABELS} (--data.classes None)")
    if labels.untrained:
        which = f"{', '.join(labels.untrained[:SHOWN])}{', ...' * (len(labels.untrained) > SHOWN)}"
        raise UsageError(
            f"{who}: the split train has no image of {which}, but another split does: remove those images, or add some "
            "to train"
        )
    low, high = min(labels.numbers), max(labels.numbers)
    again = "give the data as they were in training, or train again"
    if labels.names is not None and len(labels.names) != classes:
        found = class_counts(torch.tensor(labels.numbers), labels.names)
        raise UsageError(
            f"{who} has {found}; {f'give --data.classes {len(labels.names)}' if split == 'train' else again}"
        )
    if high >= classes:
        count = len(set(labels.numbers))
        remedy = f"number them 0 to {count - 1}" if count <= high else ""
        remedy = " and ".join(filter(None, [remedy, f"give --data.classes {count}" if count != classes else ""]))
        if split != "train":
            remedy = f"leave out classes that training does not have, or {again}"
        raise UsageError(
            f"classes={classes}: the labels of {name} ({split}) are {low} to {high}, not 0 to {classes - 1}: {remedy}"
        )
