"""How sizes halve and double: by filters without weights, or by convolutions.

The padding rule of every network here: a size n becomes ceil(n / 2) on the way down, and on the way up what it was.
Filters extend an odd size by a copy of its last row before they halve it, and cut what they double to the size that is
asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def even(x: Tensor) -> Tensor:
    """`x` `(B, C, *size)` with each odd size extended by a copy of its last row."""
    odd = [n % 2 for n in reversed(x.shape[2:])]
    return F.pad(x, [p for n in odd for p in (0, n)], mode="replicate") if any(odd) else x


@serializable("networks.FIR", formerly="unnoise.shared.networks.resampling.FIR")
@dataclass(frozen=True)
class FIR:
    """A separable filter k of even length m and sum one, with zeros beyond the ends (Zhang 2019; Karras et al. 2020,
    StyleGAN2).

    Halving: `y_i = sum_j k_j x_(2i + j - m/2 + 1)`; doubling is its transpose times 2 for each dimension. `(1, 1)` is
    the mean of two and the repetition of each, `(1, 3, 3, 1)` the filter of NCSN++.

    Attributes:
        taps: k up to its sum.

    Raises:
        UsageError: for an odd number of taps, or taps that sum to zero.
    """

    taps: tuple[float, ...] = (1, 3, 3, 1)

    def __post_init__(self) -> None:
        if len(self.taps) % 2 or not sum(self.taps):
            raise UsageError(
                f"taps={self.taps}: give an even number of taps whose sum is not zero, such as (1, 3, 3, 1)"
            )

    def down(self, dims: int) -> Halved:
        """The layer that halves `dims` sizes."""
        return Halved(dims, self.taps)

    def up(self, dims: int) -> Doubled:
        """The layer that doubles them."""
        return Doubled(dims, self.taps)


MEAN, SMOOTH = FIR((1, 1)), FIR((1, 3, 3, 1))


class Filtered(nn.Module):
    """A constant kernel: the product of the taps in each dimension, `(1, 1, m, ..., m)`. It is in no state dict."""

    def __init__(self, dims: int, taps: tuple[float, ...], gain: float = 1.0) -> None:
        super().__init__()
        k = torch.tensor(taps, dtype=torch.float64)
        axes = [(k / k.sum()).view(*(-1 if d == axis else 1 for d in range(dims))) for axis in range(dims)]
        self.dims, self.pad = dims, len(taps) // 2 - 1
        self.register_buffer("kernel", (gain * math.prod(axes)).float()[None, None], persistent=False)

    def of(self, x: Tensor) -> Tensor:
        """The kernel for each channel of `x`."""
        return self.kernel.to(x.dtype).expand(x.shape[1], *self.kernel.shape[1:])


class Halved(nn.Module):
    """`(B, C, *size)` at half the size, rounded up."""

    def __init__(self, dims: int, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.filter = Filtered(dims, taps)

    def forward(self, x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        return CONV[self.filter.dims](even(x), self.filter.of(x), stride=2, padding=self.filter.pad, groups=x.shape[1])


class Doubled(nn.Module):
    """`(B, C, *size)` at twice the size, cut to a given one."""

    def __init__(self, dims: int, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.filter = Filtered(dims, taps, gain=2.0**dims)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        h = TRANSPOSED[self.filter.dims](x, self.filter.of(x), stride=2, padding=self.filter.pad, groups=x.shape[1])
        return h[(..., *(slice(n) for n in size))]


class HalvedConv(nn.Module):
    """A 3-wide convolution of the filtered signal at every second position: both in one layer, with zeros beyond the
    ends once.

    What the filter gives beyond the ends counts too, as if the convolution came first and the filter kept every second
    of its values.
    """

    def __init__(self, dims: int, taps: tuple[float, ...], convolution: nn.Module) -> None:
        super().__init__()
        self.filter, self.conv = Filtered(dims, taps), convolution

    def forward(self, x: Tensor) -> Tensor:
        wide = CONV[self.filter.dims](even(x), self.filter.of(x), padding=self.filter.pad + 1, groups=x.shape[1])
        return CONV[self.filter.dims](wide, self.conv.weight, self.conv.bias, stride=2)
