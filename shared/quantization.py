"""Quantized data: the number of quantization levels, and the real numbers that stand for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UsageError
from .random import Source, uniform
from .serialization import serializable
from .values import notation


@serializable("shared.Quantization", formerly="unnoise.shared.scale.Scale")
@dataclass(frozen=True)
class Quantization:
    """The map between quantization levels 0..K-1 and real numbers in [low, high].

    `quantized`, `continuous` and `dequantized` have one signature, so that data can be read by any of them: k is a
    tensor of levels of any shape, which the result has too, and `generator` is used by `dequantized` alone.

    Attributes:
        levels: K, the number of levels; 256 for 8-bit images.
        low, high: the ends of the range of the real numbers; [-1, 1] for DDPM, [0, 1] in other papers.

    Raises:
        UsageError: for less than two levels, and unless low < high.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0
    __repr__ = notation

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.low < self.high:
            raise UsageError(f"{self}: give at least two levels, and low < high")

    @property
    def spacing(self) -> float:
        """The distance between neighboring levels if the first is `low` and the last `high`.

        2 / 255 for 8-bit images on [-1, 1].
        """
        return (self.high - self.low) / (self.levels - 1)

    @property
    def cell(self) -> float:
        """The width of a level's cell if K cells tile the range, as dequantization for densities takes it.

        2 / 256 for 8-bit images on [-1, 1].
        """
        return (self.high - self.low) / self.levels

    @property
    def offset_nats(self) -> float:
        """`-log(cell)`, nats per dimension, added to `-log p(x)` of dequantized data to give a code length of levels.

        For 8-bit images on [-1, 1] it is 7 log 2 nats, or 7 bits.
        """
        return -math.log(self.cell)

    def quantized(self, k: Tensor, generator: Source = None) -> Tensor:
        """Returns level k itself, int64."""
        return k.long()

    def continuous(self, k: Tensor, generator: Source = None) -> Tensor:
        """Returns `low + k spacing` for level k, float32: for 8 bits on [-1, 1] it is DDPM's `k / 127.5 - 1`."""
        return self.low + self.spacing * k.float()

    def dequantized(self, k: Tensor, generator: Source = None) -> Tensor:
        """Returns a uniform draw from the cell of level k, float32: `low + (k + u) cell`, u uniform on [0, 1).

        Theis et al. 2016, section 3.1.
        """
        return self.low + self.cell * (k + uniform(k.shape, generator, device=k.device))

    def quantize(self, x: Tensor) -> Tensor:
        """Returns the level k, int64, whose `continuous(k)` is nearest to x; clamped to 0..K-1."""
        return torch.round((x - self.low) / self.spacing).long().clamp(0, self.levels - 1)

    def cell_of(self, x: Tensor) -> Tensor:
        """Returns the level k, int64, whose cell contains x, as for x from `dequantized(k)`; clamped to 0..K-1."""
        return torch.floor((x - self.low) / self.cell).long().clamp(0, self.levels - 1)
