"""Feature extractors of images, which measures of sample quality compare."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..data.batches import Examples
from ..progress import Progress, silent
from ..quantization import Quantization

AT_ONCE = 100
"""The number of images whose features are computed at a time."""


class Features(ABC):
    """A feature extractor of images. Concrete classes give `name`, `resize`, `digest` and `of`.

    Attributes:
        name: short name, which ends the names of measures on these features, such as `inception`.
        resize: how images are resized, for the protocol.
        size: the number d of features, where it is known without an image, else None.
    """

    name: str
    resize: ClassVar[str] | str
    size: int | None = None

    @property
    @abstractmethod
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the weights."""

    @abstractmethod
    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        """Returns the features, float32 `(N, d)`, of images of quantization levels `(N, C, H, W)`."""

    def logits(self, features: Tensor) -> Tensor | None:
        """Returns the logits of classes `(N, classes)` from features; None for an extractor that has no classes."""
        return None

    def with_spatial(self, k: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor | None]:
        """Returns the features, and the spatial features of sFID `(N, e)`; None for an extractor that has none."""
        return self.of(k, quantization), None

    def of_all(self, k: Examples, quantization: Quantization, progress: Progress = silent) -> Tensor:
        """Returns the features of a set of images, in memory or in a file, `AT_ONCE` at a time."""
        starts = range(0, len(k), AT_ONCE)
        parts = [
            self.of(k[start : start + AT_ONCE], quantization)
            for start in progress(starts, len(starts), f"{self.name} features")
        ]
        return torch.cat(parts)


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of a state dict, whatever the order of its names."""
    content = hashlib.sha256()
    for name in sorted(weights):
        content.update(name.encode())
        content.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()[:12]


def to_bytes(k: Tensor, quantization: Quantization) -> Tensor:
    """Returns quantization levels as uint8 from 0 to 255, rounded to the nearest."""
    return torch.round(k.double() * 255 / (quantization.levels - 1)).clamp(0, 255).to(torch.uint8)


def to_rgb(images: Tensor) -> Tensor:
    """Returns images `(N, C, H, W)` with three channels: gray ones repeated, and of four the first three."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
