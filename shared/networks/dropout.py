"""Dropout whose masks belong to the examples and not to the order of computation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..random import Streams, kept


class Dropout(nn.Module):
    """Sets each value to zero with probability p in training mode, and divides the others by 1 - p.

    While a `Trainer` trains, the mask of an example is a function of the seed, the step, the number of the example in
    the global batch and the layer: the same on any number of processes, for micro-batches, and when activations are
    recomputed in the backward pass. Otherwise it is drawn from torch's global generator, as by `nn.Dropout`.

    Args:
        p: probability that a value is dropped, in [0, 1).

    Attributes:
        keys: a hash for each example of the present part of a batch, int64 `(B,)`, or None.
        layer: the number of this layer among those of a network.
    """

    keys: Tensor | None

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p, self.keys, self.layer = p, None, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.keys is None or len(self.keys) != len(x):  # the latter: rows are not examples here
            return F.dropout(x, self.p)
        return x * kept(self.keys, self.layer, x.shape, self.p) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropouts(module: nn.Module) -> list[Dropout]:
    """Returns the dropout layers of a module, after each has received its number."""
    found = [part for part in module.modules() if isinstance(part, Dropout)]
    for number, part in enumerate(found):
        part.layer = number
    return found


def give_keys(layers: list[Dropout], source: Streams | None) -> None:
    """Sets the examples that the next forward and backward pass of the layers are for; None for no particular ones."""
    keys = None if source is None else source.keys()
    for layer in layers:
        layer.keys = keys
