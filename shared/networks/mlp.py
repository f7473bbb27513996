"""A small network for vectors, for synthetic data and tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from .embeddings import LabelEmbedding, TimeEmbedding, null_of, refuse_others


@serializable("networks.MLP", formerly="unnoise.shared.networks.mlp.MLP")
class MLP(nn.Module):
    """Residual multilayer perceptron for vectors `(B, features)`, such as points of synthetic data.

    Each layer computes `h + silu(W norm([h, e]) + b)`, with e the embedding of the time and the class, `(B, width)`.

    Args:
        features: size of a vector.
        width: number of hidden units.
        depth: number of residual layers.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index
            `classes`.
        outputs: output features for each input feature: `(B, outputs * features)`, the first `features` of them the
            prediction.

    Raises:
        UsageError: for features, a width, classes or outputs below one, a negative depth, or a label for a network
            without classes.
    """

    def __init__(
        self, features: int, width: int = 128, depth: int = 3, classes: int | None = None, outputs: int = 1
    ) -> None:
        super().__init__()
        if outputs < 1 or (classes is not None and classes < 1):
            raise UsageError(f"classes={classes}, outputs={outputs}: each must be 1 or more, or classes=None")
        if min(features, width) < 1 or depth < 0:
            raise UsageError(
                f"features={features}, width={width}, depth={depth}: give sizes of 1 or more, depth 0 or more"
            )
        self.features, self.width, self.depth, self.classes, self.outputs = features, width, depth, classes, outputs
        self.time = TimeEmbedding(64, width)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.enter, self.leave = nn.Linear(features, width), nn.Linear(width, outputs * features)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU()) for _ in range(depth)
        )

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes."""
        return () if self.label is None else ("label",)

    def null(self, condition: str) -> Tensor:
        """Returns the value that stands for "no condition", for one example: `classes` for the label."""
        return null_of({"label": None if self.classes is None else torch.tensor(self.classes)}, condition)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the prediction `(B, outputs * features)`.

        Args:
            x: `(B, features)`.
            time: time inputs `(B,)`.
            label: class labels, int64 `(B,)`, `classes` for "no label", or None.
        """
        refuse_others(self.conditions, label=label)
        h, embedding = self.enter(x), self.time(time)
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        for layer in self.layers:
            h = h + layer(torch.cat([h, embedding], dim=1))
        return self.leave(h)
