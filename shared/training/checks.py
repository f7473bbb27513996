"""What a trainer refuses: objectives that cannot be trained, and batches that are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..distributed import refuse_unconnected, world_size
from ..errors import UsageError, shown
from .config import Training


def refuse_untrainable(objective: Any, config: Any) -> None:
    """Refuses what cannot be trained.

    Raises:
        UsageError: with the remedy.
    """
    if not isinstance(config, Training):
        raise UsageError(f"config={shown(config)}: give Training(steps=...)")
    if not hasattr(objective, "denoiser"):
        kind = type(objective).__name__
        raise UsageError(
            f"{kind} is not an objective: give one of a denoiser, such as DenoisingLoss.simple(Learned(network, "
            "schedule))"
        )
    if any(p.is_meta for p in objective.parameters()):
        raise UsageError(
            "the objective lies on the device meta, which holds no weights: allocate them with "
            "to_empty(device=...) and initialize them"
        )
    if not hasattr(objective.denoiser, "corruption"):
        raise UsageError(
            f"{type(objective.denoiser).__name__} is a network, not a denoiser: give Learned(network, schedule)"
        )
    for part in objective.modules():
        if (name := type(part).__name__) in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            raise UsageError(
                f"the network is wrapped in {name}, and the trainer connects the processes itself: give the network, "
                "which is its .module"
            )
    refuse_unconnected()


def refuse_uneven(size: int) -> None:
    """Refuses a batch that cannot be divided evenly among the processes.

    Raises:
        UsageError: with the remedy.
    """
    if size % world_size():
        raise UsageError(
            f"a batch of {size} examples cannot be divided evenly among {world_size()} processes: give a batch that is "
            "a multiple of their number"
        )


def next_batch(stream: Iterator[Any], step: int) -> Mapping[str, Tensor]:
    """Returns the next batch of the stream, for step `step`.

    Raises:
        UsageError: if the stream has ended, or the batch is not a dict with x0.
    """
    batch = next(stream, None)
    if batch is None:
        raise UsageError(
            f"the batches ended at step {step}: give an endless iterable, such as Batches(...), or as many as steps"
        )
    if not isinstance(batch, Mapping) or "x0" not in batch:
        found = (
            f"a dict of {', '.join(sorted(map(str, batch)))}" if isinstance(batch, Mapping) else type(batch).__name__
        )
        such = '({"x0": x, "label": label} for x, label in loader)'
        raise UsageError(
            f'a batch is {found}: give dicts of tensors with "x0" and the conditions by name, such as {such}'
        )
    return batch
