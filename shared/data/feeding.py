"""The rows of one process of each global batch, read ahead by worker processes where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UsageError


@runtime_checkable
class RandomAccess(Protocol):
    """Batches of which any can be read by its number, such as `Batches`.

    Attributes:
        batch: number of examples in a global batch.
        position: number of batches that were taken so far.
    """

    batch: int
    position: int

    def at(self, position: int, rows: range) -> dict[str, Tensor]:
        """Returns rows of the batch number `position`."""
        ...


class Rows(Dataset[dict[str, Tensor]]):
    """The rows of one process of each batch, for a `DataLoader`.

    Args:
        batches: the batches.
        rows: the rows of this process.
    """

    def __init__(self, batches: RandomAccess, rows: range) -> None:
        self.batches, self.rows = batches, rows

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.batches.at(position, self.rows)


def feed(batches: RandomAccess, rows: range, workers: int = 0, pin: bool = False) -> Iterator[dict[str, Tensor]]:
    """Yields rows of each global batch from the present position on, which it advances, without end.

    Args:
        batches: the batches.
        rows: the rows of this process.
        workers: number of processes that read ahead; 0 reads in this process. The batches are the same.
        pin: whether tensors are placed in memory that GPUs read without waiting.
    """
    start = batches.position
    if workers:
        loader = DataLoader(
            Rows(batches, rows),
            batch_size=None,
            sampler=count(start),  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            pin_memory=pin,
            multiprocessing_context="forkserver",
        )
        read: Iterator[dict[str, Tensor]] = iter(loader)
    else:
        read = (batches.at(position, rows) for position in count(start))
        if pin:
            read = ({k: v.pin_memory() for k, v in part.items()} for part in read)
    for part in read:
        batches.position += 1
        yield part


def sliced(batches: Iterable[Any], rows: range, batch: int, step: int) -> Iterator[Any]:
    """Yields rows of batches that are iterated in whole, of which every process reads the same.

    Args:
        batches: dicts of tensors.
        rows: the rows of this process.
        batch: number of examples in a global batch.
        step: number of the first of them, for the message.

    Raises:
        UsageError: for a batch of another number of examples.
    """
    for number, whole in enumerate(batches, step):
        if isinstance(whole, Mapping) and "x0" in whole and len(whole["x0"]) != batch:
            raise UsageError(
                f"the batch of step {number} has {len(whole['x0'])} examples, and earlier ones have {batch}: give "
                "batches of one size, such as DataLoader(..., drop_last=True)"
            )
        yield (
            {name: value[rows.start : rows.stop] for name, value in whole.items()}
            if isinstance(whole, Mapping)
            else whole
        )
