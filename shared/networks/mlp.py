"""A small network for vectors: toys and tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..describe import described
from .embeddings import TimeEmbedding


@described
class MLP(nn.Module):
    """Residual perceptron for `(B, features)`.

    Args:
        features: size of a vector.
        width: hidden units.
        depth: residual layers.
    """

    def __init__(self, features: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.features, self.width, self.depth = features, width, depth
        self.time = TimeEmbedding(64, width)
        self.enter, self.leave = nn.Linear(features, width), nn.Linear(width, features)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU()) for _ in range(depth))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x`: `(B, features)`; `time`: labels `(B,)`."""
        h, embedding = self.enter(x), self.time(time)
        for layer in self.layers:
            h = h + layer(torch.cat([h, embedding], dim=1))
        return self.leave(h)
