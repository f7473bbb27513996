"""Down- and up-sampling by fixed filters.

In all networks of this package a size n becomes ceil(n / 2) on the way down and n again on the way up. Filters extend
an odd size by a copy of its last row before they halve it, and cut the doubled signal to the size that is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from ..values import notation
from .blocks import Convolution

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def even(x: Tensor) -> Tensor:
    """Returns `x` `(B, C, *size)` with each odd size extended by a copy of its last row."""
    odd = [n % 2 for n in reversed(x.shape[2:])]
    return F.pad(x, [p for n in odd for p in (0, n)], mode="replicate") if any(odd) else x


@serializable("networks.FIR", formerly="unnoise.shared.networks.resampling.FIR")
@dataclass(frozen=True)
class FIR:
    """A separable resampling filter k of even length m and sum one (Zhang 2019; Karras et al. 2020, StyleGAN2).

    Down-sampling is `y_i = sum_j k_j x_(2i + j - m/2 + 1)`, with zeros beyond the ends; up-sampling is its transpose
    times 2 for each dimension. `(1, 1)` takes the mean of two values and repeats each one, `(1, 3, 3, 1)` is the filter
    of NCSN++.

    Attributes:
        taps: values of k, up to a factor.

    Raises:
        UsageError: for an odd number of taps, or taps that sum to zero.
    """

    taps: tuple[float, ...] = (1, 3, 3, 1)
    __repr__ = notation

    def __post_init__(self) -> None:
        if len(self.taps) % 2 or not sum(self.taps):
            raise UsageError(
                f"taps={self.taps}: give an even number of taps whose sum is not zero, such as (1, 3, 3, 1)"
            )

    def down(self, dims: int) -> FilteredDownsample:
        """Returns the layer `(x, size=None) -> y` that halves the `dims` sizes of `(B, C, *size)`, rounding up."""
        return FilteredDownsample(dims, self.taps)

    def up(self, dims: int) -> FilteredUpsample:
        """Returns the layer `(x, size) -> y` that doubles the `dims` sizes of x `(B, C, ...)`, then cuts to `size`."""
        return FilteredUpsample(dims, self.taps)


MEAN, SMOOTH = FIR((1, 1)), FIR((1, 3, 3, 1))


class FilterKernel(nn.Module):
    """A constant kernel `(1, 1, m, ..., m)`, the product of the taps in each dimension; not part of the state dict.

    Args:
        dims: number of spatial dimensions.
        taps: m values, which are normalized to sum to one.
        gain: factor of the kernel.
    """

    kernel: Tensor

    def __init__(self, dims: int, taps: tuple[float, ...], gain: float = 1.0) -> None:
        super().__init__()
        k = torch.tensor(taps, dtype=torch.float64)
        axes = [(k / k.sum()).view(*(-1 if d == axis else 1 for d in range(dims))) for axis in range(dims)]
        self.dims, self.pad = dims, len(taps) // 2 - 1
        product = gain * math.prod(axes, start=torch.ones((), dtype=torch.float64))
        self.register_buffer("kernel", product.float()[None, None], persistent=False)

    def for_channels(self, x: Tensor) -> Tensor:
        """Returns the kernel for each channel of `x` `(B, C, ...)`, `(C, 1, m, ..., m)`, in the dtype of `x`."""
        return self.kernel.to(x.dtype).expand(x.shape[1], *self.kernel.shape[1:])


class FilteredDownsample(nn.Module):
    """Filters `(B, C, *size)` and keeps half of each size, rounded up; the argument `size` is ignored.

    Args:
        dims: number of spatial dimensions.
        taps: the filter k, as in `FIR`.
    """

    def __init__(self, dims: int, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.filter = FilterKernel(dims, taps)

    def forward(self, x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        kernel, padding = self.filter.for_channels(x), self.filter.pad
        return CONV[self.filter.dims](even(x), kernel, stride=2, padding=padding, groups=x.shape[1])


class FilteredUpsample(nn.Module):
    """Doubles each size of `(B, C, *size)`, filters, and cuts to a given size, at most twice that of x.

    Args:
        dims: number of spatial dimensions.
        taps: the filter k, as in `FIR`.
    """

    def __init__(self, dims: int, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.filter = FilterKernel(dims, taps, gain=2.0**dims)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        kernel, padding = self.filter.for_channels(x), self.filter.pad
        h = TRANSPOSED[self.filter.dims](x, kernel, stride=2, padding=padding, groups=x.shape[1])
        return h[(..., *(slice(n) for n in size))]


class FilteredStridedConv(nn.Module):
    """A convolution of width 3 and stride 2 of the filtered signal, with one padding for filter and convolution.

    The convolution also reads the filter's values beyond the ends, so that the result is the same as if the
    convolution came first and the filter kept every second of its values. Called with `(B, C, *size)`; returns each
    size halved, rounding up.

    Args:
        dims: number of spatial dimensions.
        taps: the filter k, as in `FIR`.
        convolution: a layer of width 3, of which the weights and the bias are used, not the stride or the padding.
    """

    def __init__(self, dims: int, taps: tuple[float, ...], convolution: Convolution) -> None:
        super().__init__()
        self.filter, self.conv = FilterKernel(dims, taps), convolution

    def forward(self, x: Tensor) -> Tensor:
        kernel, padding = self.filter.for_channels(x), self.filter.pad + 1
        wide = CONV[self.filter.dims](even(x), kernel, padding=padding, groups=x.shape[1])
        return CONV[self.filter.dims](wide, self.conv.weight, self.conv.bias, stride=2)
