"""The processes of a run that torchrun starts, one for each device; a run in one process is the case of one rank."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UsageError
from .launcher import launched

GROUPS: list[Any] = []
"""The process groups of this process, until it ends.

Without it the last reference can be that of DistributedDataParallel, in the frames of an error. It frees the group with
Python's lock held and waits for the group's threads, which can be waiting for that lock.
"""


def started() -> bool:
    """Returns whether the process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if started() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if started() else 1


def is_main() -> bool:
    """Returns whether this is the process of rank 0, which writes and prints."""
    return rank() == 0


def restarted() -> bool:
    """Returns whether torchrun has started the processes anew, after one of them had failed.

    On several nodes only the torchrun of the node with that process counts it, so every process calls this together.
    """
    return any(gather_objects(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")))


def launcher() -> str | None:
    """Returns what identifies the torchrun that has started this process and restarts it; None without torchrun.

    It is its --rdzv-id; without one, that of its process on this machine.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    own = name if name not in (None, "", "none") else f"{socket.gethostname()} {os.getppid()}"
    return None if name is None else hashlib.sha256(own.encode()).hexdigest()[:16]


@contextmanager
def processes(device: str = "auto") -> Iterator[None]:
    """Within the block the processes that torchrun started are connected; for a single process nothing happens.

    Each takes the GPU of its local rank. Communication is by NCCL and gloo on GPUs, by gloo on CPUs.

    Args:
        device: the setting of that name: `cpu` keeps to CPUs on a machine with GPUs.

    Raises:
        UsageError: where this build of torch has no distributed package.
    """
    if launched() == 1 or started():
        yield
        return
    if not dist.is_available():
        raise UsageError("this build of torch has no distributed package: start one process, without torchrun")
    gpus = device != "cpu" and torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, number, size = fresh_store()
        dist.init_process_group(backend, store=store, rank=number, world_size=size)
    else:
        dist.init_process_group(backend)
    GROUPS.append(dist.group.WORLD)
    try:
        yield
    finally:
        dist.destroy_process_group()


def fresh_store() -> tuple[Any, int, int]:
    """Returns the store of torchrun under a prefix of this start, the rank, and the number of processes.

    torchrun keeps the store when it starts the processes anew, with the addresses of the dead ones, to which the new
    ones would try to connect. So the process of rank 0 gives each of the others, which asks by a name of its own, a
    prefix that no earlier start had, until all have it. The number of restarts does not serve as the prefix, because
    on several nodes each counts its own.

    Raises:
        TimeoutError: where the processes do not find each other in the time of the store.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    found: tuple[Any, int, int] = next(iter(rendezvous("env://")))
    store, number, size = found
    name, prefix = uuid4().hex, uuid4().hex
    if number:
        store.set(f"start/of/{number}", name)
        prefix = store.get(f"start/prefix/{name}").decode()
        store.set(f"start/{prefix}/{number}", "")
        return PrefixStore(prefix, store), number, size
    waiting, until = set(range(1, size)), time.monotonic() + store.timeout.total_seconds()
    while waiting and time.monotonic() < until:
        for other in [r for r in waiting if store.check([f"start/of/{r}"])]:
            store.set(f"start/prefix/{store.get(f'start/of/{other}').decode()}", prefix)
        waiting = {r for r in waiting if not store.check([f"start/{prefix}/{r}"])}
        time.sleep(0.01)
    if waiting:
        raise TimeoutError(f"the processes of the ranks {sorted(waiting)} do not answer")
    return PrefixStore(prefix, store), number, size


def share(count: int, part: int, parts: int) -> range:
    """Returns the numbers 0 to count - 1 that belong to one of several parts: contiguous, their sizes differ by 1.

    The first parts are the first to have any.
    """
    return range(-(-count * part // parts), -(-count * (part + 1) // parts))


def own_rows(count: int, unit: int = 1) -> range:
    """Returns the rows of this process among `count`, whole chunks of `unit` rows, of which the last may be shorter."""
    return rows_of(count, unit, rank())


def rows_of(count: int, unit: int, of: int) -> range:
    """Returns the rows of the process of a rank, as `own_rows`."""
    chunks = share(-(-count // unit), of, world_size())
    return range(min(chunks.start * unit, count), min(chunks.stop * unit, count))


def gather_rows(own: Tensor, count: int, unit: int = 1, *, to: int | None = None) -> Tensor:
    """Returns the rows of all processes in their order, `(count, ...)`.

    Args:
        own: the rows `own_rows(count, unit)`.
        count: the number of rows in all.
        unit: the rows are shared in chunks of this many.
        to: the rank of the process that receives them, while the others get their own rows back; None for all.
    """
    if world_size() == 1:
        return own
    sizes = [len(rows_of(count, unit, r)) for r in range(world_size())]
    padded = own.new_zeros((max(sizes), *own.shape[1:]))
    padded[: len(own)] = own
    receives = to is None or rank() == to
    parts = [torch.empty_like(padded) for _ in sizes] if receives else None
    if to is None:
        dist.all_gather(parts, padded)
    else:
        dist.gather(padded, parts, dst=to)
    return own if parts is None else torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_objects(value: Any) -> list[Any]:
    """Returns the values of all processes in their order; they are Python objects, on trusted machines only."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def of_main(value: Any) -> Any:
    """Returns the value of the process of rank 0, on every process."""
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def take_from_main(tensors: Iterable[Tensor]) -> None:
    """Gives tensors the values that they have in the process of rank 0, in place."""
    for tensor in tensors if world_size() > 1 else ():
        value = tensor.detach().contiguous()
        dist.broadcast(value, src=0)
        tensor.detach().copy_(value)


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()


def add_over_processes(value: Tensor) -> Tensor:
    """Adds a tensor over all processes, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def refuse_unconnected() -> None:
    """Refuses to run as one of several processes of a launcher that are not connected.

    Raises:
        UsageError: with the remedy.
    """
    if launched() > 1 and not started():
        raise UsageError(
            f"this is one of {launched()} processes (WORLD_SIZE) that are not connected, and each would train and "
            "write the same run: train within `unnoise.shared.distributed.processes()`, or start one process"
        )
