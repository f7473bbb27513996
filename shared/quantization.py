"""The scale of quantised data: how many levels, and where they lie when they are written as real numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UsageError
from .random import Source, uniform
from .serialization import serializable


@serializable("shared.Quantization", formerly="unnoise.shared.scale.Scale")
@dataclass(frozen=True)
class Quantization:
    """Levels 0..K-1 as real numbers in [low, high].

    Attributes:
        levels: K; 256 for 8-bit images.
        low, high: the range of the real form; [-1, 1] for DDPM, [0, 1] where a paper says so.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.low < self.high:
            raise UsageError(f"a scale needs two levels or more and low < high, not {self}")

    @property
    def spacing(self) -> float:
        """Distance of neighbouring levels when the first lies on `low` and the last on `high` (2 / 255 for 8-bit DDPM)."""
        return (self.high - self.low) / (self.levels - 1)

    @property
    def cell(self) -> float:
        """Width of a level's cell when K cells tile the range (2 / 256 for 8 bits): the one for densities."""
        return (self.high - self.low) / self.levels

    @property
    def offset_nats(self) -> float:
        """What a code length in nats per dimension gains from a density to its levels, `-log(cell)`.

        7 bits for 8 bits on [-1, 1].
        """
        return -math.log(self.cell)

    def quantized(self, k: Tensor, generator: Source = None) -> Tensor:
        """Level k itself, int64."""
        return k.long()

    def continuous(self, k: Tensor, generator: Source = None) -> Tensor:
        """Level k at `low + k spacing`, float32: DDPM's `x / 127.5 - 1`."""
        return self.low + self.spacing * k.float()

    def dequantized(self, k: Tensor, generator: Source = None) -> Tensor:
        """Level k spread uniformly over its cell, float32: `low + (k + u) cell` (Theis et al. 2016, section 3.1)."""
        return self.low + self.cell * (k + uniform(k.shape, generator, device=k.device))

    def quantize(self, x: Tensor) -> Tensor:
        """The level nearest to a real number of the `continuous` form, int64; the ends take what lies beyond."""
        return torch.round((x - self.low) / self.spacing).long().clamp(0, self.levels - 1)

    def cell_of(self, x: Tensor) -> Tensor:
        """The level whose cell holds a real number of the `dequantised` form, int64; the ends take what lies beyond."""
        return torch.floor((x - self.low) / self.cell).long().clamp(0, self.levels - 1)
