"""Feature extractors of images, which measures of sample quality compare."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import shown
from ..quantization import Quantization
from ..training.precision import PRECISIONS

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

    def resize_of(self, shape: Sequence[int]) -> str:
        """Returns how images of a shape `(C, H, W)` are resized, for the protocol: `resize`, whatever the shape."""
        return self.resize

    def logits(self, features: Tensor) -> Tensor | None:
        """Returns the logits of classes `(N, classes)` from features; None for an extractor that has no classes."""
        return None

    def with_spatial(self, k: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor | None]:
        """Returns the features, and the spatial features of sFID `(N, e)`; None for an extractor that has none."""
        return self.of(k, quantization), None


@contextmanager
def in_float32() -> Iterator[None]:
    """Within the block networks compute in exact float32, also where a model that is measured runs under autocast."""
    with ExitStack() as settings, PRECISIONS["float32"].products():
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        yield


def cannot_be_loaded(name: str, error: Exception) -> str:
    """Returns why a model of the `transformers` library, a folder or a name on the Hub, cannot be loaded, in a line."""
    reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
    what = "cannot be read" if Path(name).is_dir() else "is not a folder here, and cannot be fetched from the Hub"
    return f"{name} {what} ({reason})"


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
