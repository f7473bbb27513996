"""Progress as one small callback.

`progress(iterable, total, label)` gives the items back, and may draw a bar meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable of `total` items, None where no one knows how many."""

    def __call__(self, items: Iterable[T], total: int | None, label: str) -> Iterable[T]: ...


def silent(items: Iterable[T], total: int | None, label: str) -> Iterable[T]:
    """The items, without a word: the library's default."""
    return items


def bar(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    """A tqdm bar with the time that is left, on the terminal or in a notebook."""
    from tqdm.auto import tqdm

    return iter(tqdm(items, total=total, desc=label, dynamic_ncols=True, mininterval=0.5, delay=0.5))
