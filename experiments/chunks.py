"""Work on numbered examples, so many at a time, shared over the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast
from warnings import warn

import torch
from torch import Tensor

from ..shared.distributed import gather_rows, of_main, own_rows
from ..shared.errors import Notice, UsageError

T = TypeVar("T")


def in_chunks(compute: Callable[[Tensor], Tensor], count: int, size: int, *, shared: bool = False) -> Tensor:
    """Returns `compute(rows)` of the rows 0 to count - 1, `size` rows at a time, concatenated: `(count, ...)`.

    Chunks begin at the same rows on any number of processes, so that a network is called with the same batches. Where a
    chunk does not fit into the memory of a GPU, it and the later ones are halved, and a `Notice` says so.

    Args:
        compute: `(row numbers, int64 (n,)) -> (n, ...)`, which depends on these rows alone.
        count: the number of rows, at least 1.
        size: the number of rows in a chunk.
        shared: whether the processes share the chunks. All of them must call this function then; the process of rank 0
            returns all rows, the others their own. If it is False, every process computes all rows.

    Raises:
        UsageError: where not even one row fits into memory.
    """
    rows = torch.tensor(own_rows(count, size) if shared else range(count), dtype=torch.int64)
    parts = [part for _, part in each_chunk(compute, rows.split(size), size)]
    if not shared:
        return torch.cat(parts)
    form, dtype = of_main((tuple(parts[0].shape[1:]), parts[0].dtype) if parts else None)
    own = torch.cat(parts) if parts else torch.zeros((0, *form), dtype=dtype)
    return gather_rows(own, count, size, to=0)


def each_chunk(compute: Callable[[Tensor], T], chunks: Iterable[Tensor], size: int) -> Iterator[tuple[Tensor, T]]:
    """Yields the row numbers of each chunk, and `compute` of them.

    Where a chunk of `size` rows does not fit into memory, it and the later ones are halved, as in `in_chunks`.
    """
    at_once = size
    for rows in chunks:
        done = 0
        while done < len(rows):
            part, failed, found = rows[done : done + at_once], "", None
            try:
                found = compute(part)
            except torch.cuda.OutOfMemoryError as error:
                failed = str(error) or "out of memory"
            if failed:  # outside of the handler, where the tensors of the failed call are gone
                at_once = halved(len(part), failed)
                continue
            done += len(part)
            yield part, cast(T, found)


def halved(size: int, reason: str) -> int:
    """Returns half of a number of examples that does not fit into memory, and says so.

    Raises:
        UsageError: for a single example.
    """
    if size == 1:
        first = reason.splitlines()[0].split(". ")[0]
        raise UsageError(f"one example does not fit into the memory of the GPU ({first}): take another --device")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warn(
        Notice(
            f"{size} examples do not fit into the memory of the GPU, so {size // 2} are taken at a time; "
            f"--batch {size // 2} does so from the start"
        ),
        stacklevel=3,
    )
    return size // 2
