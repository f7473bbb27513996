"""Class labels: names in their order, columns of labels as numbers, and words for both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError

NO_LABELS = "use a model without classes, or put the images into a folder for each class"
SHOWN = 10  # classes that are written out
LARGEST = 2**31


class Labels(NamedTuple):
    """Labels of a set.

    Attributes:
        numbers: one for each example; None where there are none that can be used.
        names: of classes 0, 1, ..., where they have names.
        reason: why there are no numbers, where there is a column or a folder of them.
        untrained: names of classes that occur in other splits than train alone.
    """

    numbers: list[int] | None
    names: tuple[str, ...] | None = None
    reason: str = ""
    untrained: tuple[str, ...] = ()


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by: numbers in them count as numbers, so 2 lies before 10, and class2 before class10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p] + [(-1, 0, name)]


def labels_of(values: Sequence[Any], everywhere: Iterable[Any] = ()) -> Labels:
    """A column of labels as numbers.

    Whole numbers are taken as they are; names are numbered in their natural order, of those in `values` and
    `everywhere`, the same column of the other splits.
    """
    values, known = list(values), [v for v in (*everywhere, *values) if not missing(v)]
    if all(missing(v) for v in values):
        return Labels(None)
    if gaps := sum(missing(v) for v in values):
        return Labels(None, reason=f"{gaps:,} of {len(values):,} are missing")
    numbers = [whole(v) for v in known]
    if None not in numbers:
        own = [whole(v) for v in values]
        if below := [n for n in own if n < 0]:
            return Labels(
                None,
                reason=f"all are {below[0]}"
                if len(set(own)) == 1
                else f"{len(below):,} are below 0, such as {below[0]}",
            )
        return Labels(None, reason=f"{max(own)} is not a class label") if max(own) >= LARGEST else Labels(own)
    odd = [v for v, n in zip(known, numbers, strict=True) if n is None and (not isinstance(v, str) or fraction(v))]
    if odd or not all(isinstance(v, str) for v in known):
        return Labels(None, reason=f"{str((odd or known)[0])[:40]} is not a class label")
    names = tuple(sorted({str(v) for v in known}, key=natural))
    number = {name: n for n, name in enumerate(names)}
    return Labels([number[v] for v in values], names)


def missing(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or value == "" or value != value


def whole(value: Any) -> int | None:
    """Returns a cell as a whole number, or None where it is not one."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([+-]?\d{1,18})(\.0*)?\s*", value)
        return int(found[1]) if found else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None


def fraction(text: Any) -> bool:
    """Whether a cell is a number with a fraction."""
    return isinstance(text, str) and re.fullmatch(r"\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*", text) is not None


def counted(label: Tensor, names: tuple[str, ...] | None = None) -> str:
    """How often each class occurs, in words: `3 classes: blood 400, test 402, urine 402`."""
    count = torch.bincount(label, minlength=len(names or ()))
    there = [n for n in range(len(count)) if names or count[n]]
    cells = [f"{names[n] if names else n} {int(count[n]):,}" for n in there[:SHOWN]]
    rest = [int(count[n]) for n in there[SHOWN:]]
    each = f"{min(rest):,}" + f" to {max(rest):,}" * (min(rest) != max(rest)) if rest else ""
    more = f", and {len(rest):,} more of {each} each" if rest else ""
    return f"{len(there):,} class{'es' * (len(there) != 1)}: {', '.join(cells)}{more}"


def refuse_other_classes(labels: Labels, classes: int, name: str, split: str = "train") -> None:
    """Refuses a set without labels, with another number of named classes, or with labels beyond 0 to classes - 1.

    Raises:
        UsageError: with what there is, and what to do in this split.
    """
    who = f"classes={classes}: {name} ({split})"
    if labels.numbers is None:
        reason = f": {labels.reason}" * bool(labels.reason)
        raise UsageError(f"{who} has no labels{reason}; {NO_LABELS} (--data.classes None)")
    if labels.untrained:
        which = f"{', '.join(labels.untrained[:SHOWN])}{', ...' * (len(labels.untrained) > SHOWN)}"
        raise UsageError(
            f"{who}: the split train has no image of {which}, and another split has: remove these there, or add some to train"
        )
    low, high, there = min(labels.numbers), max(labels.numbers), counted(torch.tensor(labels.numbers), labels.names)
    again = "give the data as they were in training, or train again"
    if labels.names is not None and len(labels.names) != classes:
        raise UsageError(
            f"{who} has {there}; {f'give --data.classes {len(labels.names)}' if split == 'train' else again}"
        )
    if high >= classes:
        count = len(set(labels.numbers))
        remedy = f"number them 0 to {count - 1}" if count <= high else ""
        remedy = " and ".join(filter(None, [remedy, f"give --data.classes {count}" if count != classes else ""]))
        if split != "train":
            remedy = f"leave out what training is without, or {again}"
        raise UsageError(
            f"classes={classes}: the labels of {name} ({split}) are {low} to {high}, not 0 to {classes - 1}: {remedy}"
        )
