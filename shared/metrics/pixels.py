"""The values of pixels as features, for distances of images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..quantization import Quantization
from .features import Features

LARGEST = 32
"""The largest height and width of images whose pixels are compared as they are."""


class Pixels(Features):
    """The values of all pixels in [0, 1] as features, by which copies of training images are found.

    Larger images are averaged to at most 32 x 32 pixels, so that the features of large sets fit into memory.
    """

    name = "pixels"
    resize = ""

    @property
    def digest(self) -> str:
        """Empty: there are no weights."""
        return ""

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        """Returns the values of images `(N, C, H, W)`, float32 `(N, d)`."""
        x = k.float()
        if max(x.shape[2:]) > LARGEST:
            height, width = (min(size, LARGEST) for size in x.shape[2:])
            x = adaptive_avg_pool2d(x, (height, width))
        return x.flatten(1) / (quantization.levels - 1)

    def resize_of(self, shape: Sequence[int]) -> str:
        """Returns how images of a shape `(C, H, W)` are resized; an empty text where they are not."""
        return f"averaged to at most {LARGEST} x {LARGEST}" * (max(shape[1:]) > LARGEST)
