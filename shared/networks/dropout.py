"""Dropout whose masks belong to the examples and not to the order of computation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..random import Streams, kept, outside_graphs, place_words, row_words


class Dropout(nn.Module):
    """Sets each value to zero with probability p in training mode, and divides the others by 1 - p.

    While a `Trainer` trains, the mask of an example is a function of the seed, the step, the number of the example in
    the global batch and the layer: the same on any number of processes, for micro-batches, and when activations are
    recomputed in the backward pass. Otherwise it is drawn from torch's global generator, as by `nn.Dropout`.

    Args:
        p: probability that a value is dropped, in [0, 1).

    Attributes:
        rows: a random word for each example of the present part of a batch, int32 `(B,)`, or None.
        places: a random word for each place in an example, int32.
        layer: the number of this layer among those of a network.
    """

    rows: Tensor | None
    places: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p, self.rows, self.places, self.layer = p, None, torch.empty(0), 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.rows is None or len(self.rows) != len(x):  # the latter: rows are not examples here
            return F.dropout(x, self.p)
        if len(self.places) != x[0].numel() or self.places.device != x.device:
            self.place(x)
        return x * kept(self.rows, self.places, self.p).reshape(x.shape) / (1 - self.p)

    @outside_graphs
    def place(self, x: Tensor) -> None:
        """Computes the words of the places of an example, which are kept for the next batch."""
        self.places = place_words(self.layer, x[0].numel(), x.device)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropouts(module: nn.Module) -> list[Dropout]:
    """Returns the dropout layers of a module, after each has received its number."""
    found = [part for part in module.modules() if isinstance(part, Dropout)]
    for number, part in enumerate(found):
        part.layer, part.places = number, torch.empty(0)
    return found


def give_rows(layers: list[Dropout], source: Streams | None) -> None:
    """Sets the examples that the next forward and backward pass of the layers are for; None for no particular ones."""
    words = [None] * len(layers) if source is None or not layers else row_words(source.keys(), len(layers))
    for layer, rows in zip(layers, words, strict=True):
        layer.rows = rows
