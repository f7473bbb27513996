"""Class labels of the data beside the classes of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..objective import Objective


def checked(objective: Objective, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches, refused where their labels are not classes 0 to K - 1 of the network, for its label K stands for
    none.

    Batches that hold their conditions are looked at once, before the first; others one by one, as long as they lie on
    the CPU.

    Raises:
        UsageError: with the labels and what to do.
    """
    network = getattr(objective.denoiser, "network", None)
    classes = getattr(network, "classes", None)
    if not isinstance(classes, int):
        return iter(batches)
    held = getattr(batches, "conditions", None)
    if isinstance(held, Mapping):
        if "label" not in held and "label" in (getattr(network, "conditions", None) or ()):
            raise UsageError(
                f"the network has {classes} classes, and the batches no labels, so that only its label for none would be trained: give "
                'conditions=("label",), or build it without classes'
            )
        refuse_labels(held.get("label"), classes)
        return iter(batches)
    return each(iter(batches), classes)


def each(stream: Iterator[Any], classes: int) -> Iterator[Any]:
    """Batches, whose labels are looked at on the CPU."""
    for batch in stream:
        if isinstance(batch, Mapping):
            refuse_labels(batch.get("label"), classes)
        yield batch


def refuse_labels(label: Any, classes: int) -> None:
    """Raises `UsageError` for labels that are not classes; those on an accelerator are left to the network."""
    label = torch.as_tensor(label) if isinstance(label, np.ndarray) else label
    if not isinstance(label, Tensor) or label.device.type != "cpu" or label.numel() == 0 or label.is_floating_point():
        return
    low, high = (int(end) for end in torch.aminmax(label))
    if low < 0 or high >= classes:
        none = f", where {classes} stands for none" if high == classes else ""
        more = f", or build the network with classes={high + 1}" if low >= 0 else ""
        raise UsageError(
            f"the labels of the data are {low} to {high}, and the network has classes 0 to {classes - 1}{none}: number them from 0{more}"
        )
