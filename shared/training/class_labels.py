"""Checks that the class labels of the data are classes of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..objective import Objective


def with_checked_labels(
    objective: Objective, batches: Iterable[dict[str, Tensor]], stream: Iterator[Any]
) -> Iterator[Any]:
    """Returns the stream of the batches, and refuses class labels other than 0 to K - 1; label K means "no class".

    K is the number of classes of the objective's network; for a network without classes nothing is checked.

    Labels of batches that hold all their conditions are checked at once, before the first batch; those of other batches
    one by one, where they lie on the CPU.

    Raises:
        UsageError: with the labels and the remedy.
    """
    network = getattr(objective.denoiser, "network", None)
    classes = getattr(network, "classes", None)
    if not isinstance(classes, int):
        return stream
    held = getattr(batches, "conditions", None)
    if isinstance(held, Mapping):
        if "label" not in held and "label" in (getattr(network, "conditions", None) or ()):
            raise UsageError(
                f"the network has {classes} classes, and the batches have no class labels, so only its input for no "
                'class would be trained: give conditions=("label",), or build it without classes'
            )
        refuse_labels(held.get("label"), classes)
        return stream
    return check_each(stream, classes)


def check_each(stream: Iterator[Any], classes: int) -> Iterator[Any]:
    """Yields batches, after a check that the class labels of each are in 0 to classes - 1."""
    for batch in stream:
        if isinstance(batch, Mapping):
            refuse_labels(batch.get("label"), classes)
        yield batch


def refuse_labels(label: Any, classes: int) -> None:
    """Refuses labels outside of 0 to classes - 1; the network checks labels on an accelerator itself.

    Floating-point values, None and an empty tensor are not checked.

    Raises:
        UsageError: with the labels and the remedy.
    """
    label = torch.as_tensor(label) if isinstance(label, np.ndarray) else label
    if not isinstance(label, Tensor) or label.device.type != "cpu" or label.numel() == 0 or label.is_floating_point():
        return
    low, high = (int(end) for end in torch.aminmax(label))
    if low < 0 or high >= classes:
        none = f" ({classes} means no class)" if high == classes else ""
        more = f", or build the network with classes={high + 1}" if low >= 0 else ""
        raise UsageError(
            f"the labels of the data are {low} to {high}, and the network has classes 0 to {classes - 1}{none}: number "
            f"them from 0{more}"
        )
