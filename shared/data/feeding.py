"""The rows of one process of each global batch, read ahead by worker processes where that is asked for."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader, Dataset


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


@runtime_checkable
class Streamed(Protocol):
    """Batches that are read in order, such as `StreamedBatches`.

    Attributes:
        batch: number of examples in a global batch.
        position: number of batches that were taken so far.
    """

    batch: int
    position: int

    def tasks(self, rows: range) -> Iterator[Any]:
        """Yields the rows of one process of each batch from the present position on, encoded."""
        ...

    def reader(self) -> Dataset[dict[str, Tensor]]:
        """Returns what turns a task into a batch: a worker process is given it alone."""
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


def feed(
    batches: RandomAccess | Streamed, rows: range, workers: int = 0, pin: bool = False
) -> Generator[dict[str, Tensor], None, None]:
    """Yields rows of each global batch from the present position on, which it advances, without end.

    Args:
        batches: the batches.
        rows: the rows of this process.
        workers: number of processes that read ahead; 0 reads in this process. The batches are the same.
        pin: whether tensors are placed in memory that GPUs read without waiting.
    """
    if isinstance(batches, RandomAccess):
        reader: Dataset[dict[str, Tensor]] = Rows(batches, rows)
        tasks: Iterator[Any] = count(batches.position)
    else:
        reader, tasks = batches.reader(), batches.tasks(rows)
    if workers:
        loader = DataLoader(
            reader,
            batch_size=None,
            sampler=tasks,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            pin_memory=pin,
            multiprocessing_context=workers_context(),
            worker_init_fn=undisturbed,
        )
        read: Iterator[dict[str, Tensor]] = iter(loader)
    else:
        read = (reader[task] for task in tasks)
        if pin:
            read = ({k: v.pin_memory() for k, v in part.items()} for part in read)
    for part in read:
        batches.position += 1
        yield part


def undisturbed(worker: int) -> None:
    """Shields a worker process from the signals that ask for the end of a run, so that the present step is completed.

    Ctrl-C and launchers send them to all processes of a group.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def workers_context() -> Any:
    """Returns how worker processes start: from a server that has imported this package once, where that exists."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__.rpartition(".")[0]])
    return context
