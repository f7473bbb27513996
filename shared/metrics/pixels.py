"""The values of pixels as features, for distances of images."""

from __future__ import annotations

from torch import Tensor

from ..quantization import Quantization
from .features import Features


class Pixels(Features):
    """The values of all pixels in [0, 1] as features, by which copies of training images are found."""

    name = "pixels"
    resize = ""

    @property
    def digest(self) -> str:
        """Empty: there are no weights."""
        return ""

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        """Returns the values of images `(N, C, H, W)`, float32 `(N, C H W)`."""
        return k.float().flatten(1) / (quantization.levels - 1)
