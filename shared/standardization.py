"""Real-valued data and their scale: mean 0 and variance 1 for the model, their own units for everyone else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UsageError
from .serialization import serializable
from .values import notation


@serializable("shared.Standardization")
@dataclass(frozen=True)
class Standardization:
    """The map `z = (x - mean) / std` between real-valued data x and the numbers z that a model is trained on.

    It takes the place that `Quantization` has for quantized data.

    Attributes:
        mean, std: one number for all values, or one for each index of the first axis of an example, such as a channel.

    Raises:
        UsageError: for different numbers of means and standard deviations, or one that is not positive and finite.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    __repr__ = notation

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, int | float) else tuple(value))
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(f"mean={self.mean}, std={self.std}: give as many means as standard deviations")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UsageError(f"mean={self.mean}, std={self.std}: give finite means and positive standard deviations")

    def standardized(self, x: Tensor) -> Tensor:
        """Returns z, float32, for data x `(B, ...)`."""
        return ((x.double() - self._along(self.mean, x)) / self._along(self.std, x)).float()

    def standardized_form(self, x: Tensor, generator: object = None) -> Tensor:
        """Returns `standardized(x)`: the form of real-valued data in batches, which has no noise."""
        return self.standardized(x)

    def restored(self, z: Tensor) -> Tensor:
        """Returns the data x, float32, for z `(B, ...)`, such as samples."""
        return (z.double() * self._along(self.std, z) + self._along(self.mean, z)).float()

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """Returns the sum of log std over the dimensions of an example: `-log p(x) = -log p(z) + log_volume`."""
        return math.prod(shape) * sum(map(math.log, self.std)) / len(self.std)

    def _along(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        numbers = torch.tensor(values, dtype=torch.float64)
        if len(values) > 1:
            if len(values) != x.shape[1]:
                raise UsageError(f"{self} is for {len(values)} channels, and the data have {x.shape[1]}")
            numbers = numbers.reshape(-1, *[1] * (x.ndim - 2))
        return numbers.to(x.device)
