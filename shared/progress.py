"""Progress reports by a callback: `progress(items, total, label)` returns the items and may draw a bar meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from .distributed import is_main

T = TypeVar("T")


class Progress(Protocol):
    """Called with an iterable of `total` items (None if unknown) and a label; returns an iterable of the same items.

    It may report progress whenever an item is taken. `label` names the work, such as "sampling".
    """

    def __call__(self, items: Iterable[T], total: int | None, label: str) -> Iterable[T]: ...


def silent(items: Iterable[T], total: int | None, label: str) -> Iterable[T]:
    """Returns the items and reports nothing; the default of the library."""
    return items


def bar(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    """Returns the items and draws a tqdm bar with the remaining time, in a terminal or a notebook.

    Of several processes that of rank 0 draws it.
    """
    from tqdm.auto import tqdm

    if not is_main():
        return iter(items)

    return iter(tqdm(items, total=total, desc=label, dynamic_ncols=True, mininterval=0.5, delay=0.5))


def beside_bar(text: str) -> None:
    """Prints a line above the bar of `bar`, which stays whole."""
    from tqdm.auto import tqdm

    tqdm.write(text)
