"""Progressive input and output of the U-Net (Karras et al. 2020, StyleGAN2, section 4.1; Song et al. 2021, appendix C).

Progressive input: on the way down the network also receives the image itself, halved at each resolution. Progressive
output: on the way up each resolution contributes to a prediction, which is doubled from one to the next. Both exist in
a "skip" form, a small convolution from or to the channels of the image at each resolution, and in a "residual" form, a
second stream with the channels of the signal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..serialization import serializable
from ..values import notation
from .blocks import added, conv, zeroed
from .resampling import FIR, SMOOTH, FilteredStridedConv

Norm = Callable[[int], nn.Module]


@serializable("networks.InputSkip", formerly="unnoise.shared.networks.progressive.InputSkip")
@dataclass(frozen=True)
class InputSkip:
    """Progressive input that adds a 1 x 1 convolution of the halved image to the signal at each lower resolution.

    This is "input_skip" of Song et al. (2021), in NCSN++ for images of 256 pixels.

    Attributes:
        filter: the filter that halves the image.
    """

    filter: FIR = SMOOTH
    __repr__ = notation

    def layer(self, dims: int, image: int, channels: int, gain: float) -> tuple[nn.Module, int]:
        """Returns the layer `(image, h) -> (image, h)` of a resolution, and the channels of the image after it.

        Args:
            dims: number of spatial dimensions.
            image: channels of the image before it, which has twice the sizes of h.
            channels: channels of the signal h.
            gain: not used here; other kinds scale their sum by it.
        """
        return _InputSkip(self.filter.down(dims), conv(dims, image, channels, kernel=1)), image


@serializable("networks.InputResidual", formerly="unnoise.shared.networks.progressive.InputResidual")
@dataclass(frozen=True)
class InputResidual:
    """Progressive input that adds a filtered, strided convolution of the image stream to the signal.

    The sum is the signal and also the image stream of the next resolution. This is "residual" of Song et al. (2021), in
    NCSN++ for images of 32 pixels.

    Attributes:
        filter: the filter of the convolution.
    """

    filter: FIR = SMOOTH
    __repr__ = notation

    def layer(self, dims: int, image: int, channels: int, gain: float) -> tuple[nn.Module, int]:
        """Returns the layer `(image, h) -> (image, h)` of a resolution, and the channels of the image after it.

        Args:
            dims: number of spatial dimensions.
            image: channels of the image before it, which has twice the sizes of h.
            channels: channels of the signal h.
            gain: factor of the sum, `gain (h + convolution)`.
        """
        return _InputResidual(FilteredStridedConv(dims, self.filter.taps, conv(dims, image, channels)), gain), channels


@serializable("networks.OutputSkip", formerly="unnoise.shared.networks.progressive.OutputSkip")
@dataclass(frozen=True)
class OutputSkip:
    """Progressive output that adds a prediction at each resolution to the doubled prediction of the next lower one.

    This is "output_skip" of Song et al. (2021), in NCSN++ for images of 256 pixels.

    Attributes:
        filter: the filter that doubles the prediction.
    """

    filter: FIR = SMOOTH
    __repr__ = notation

    def layer(
        self, dims: int, first: bool, last: bool, running: int, channels: int, out: int, gain: float, norm: Norm
    ) -> nn.Module | None:
        """Returns the layer `(running prediction, h) -> (running prediction, h)` of a resolution.

        It is None at the full resolution, where the network's head makes the prediction.

        Args:
            dims: number of spatial dimensions.
            first: whether it is the lowest resolution, where the way up begins.
            last: whether it is the full resolution.
            running: channels of the running prediction before it.
            channels: channels of the signal h.
            out: channels of the prediction.
            gain: not used here; other kinds scale their sum by it.
            norm: maps a number of channels to a normalization layer.
        """
        head = nn.Sequential(norm(channels), nn.SiLU(), zeroed(conv(dims, channels, out)))
        return None if last else _OutputSkip(None if first else self.filter.up(dims), head)

    def finish(self, dims: int) -> nn.Module | None:
        """Returns the layer `(running prediction, size) -> doubled`; the result is added to the output of the head."""
        return self.filter.up(dims)


@serializable("networks.OutputResidual", formerly="unnoise.shared.networks.progressive.OutputResidual")
@dataclass(frozen=True)
class OutputResidual:
    """Progressive output that adds the doubled and convolved output stream to the signal of each resolution.

    The sum is the signal and also the output stream of the next resolution. This is "residual" of Song et al. (2021) on
    the way up.

    Attributes:
        filter: the filter that doubles the stream.
    """

    filter: FIR = SMOOTH
    __repr__ = notation

    def layer(
        self, dims: int, first: bool, last: bool, running: int, channels: int, out: int, gain: float, norm: Norm
    ) -> nn.Module | None:
        """Returns the layer `(stream, h) -> (stream, h)` of a resolution; None for the only resolution.

        Args:
            dims: number of spatial dimensions.
            first: whether it is the lowest resolution, where the way up begins.
            last: whether it is the full resolution.
            running: channels of the output stream before it.
            channels: channels of the signal h.
            out: channels of the prediction.
            gain: factor of the sum, `gain (h + convolution)`.
            norm: maps a number of channels to a normalization layer.
        """
        if first and last:
            return None
        if first:
            return _OutputStart(nn.Sequential(norm(channels), nn.SiLU(), conv(dims, channels, channels)))
        return _OutputResidual(self.filter.up(dims), conv(dims, running, channels), gain)

    def finish(self, dims: int) -> nn.Module | None:
        """Returns None: the head reads the signal, which contains the stream."""
        return None


class _InputSkip(nn.Module):
    def __init__(self, down: nn.Module, convolution: nn.Module) -> None:
        super().__init__()
        self.down, self.conv = down, convolution

    def forward(self, image: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        image = self.down(image)
        return image, h + self.conv(image)


class _InputResidual(nn.Module):
    def __init__(self, shrink: nn.Module, gain: float) -> None:
        super().__init__()
        self.shrink, self.gain = shrink, gain

    def forward(self, image: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = added(h, self.shrink(image), self.gain)
        return h, h


class _OutputSkip(nn.Module):
    def __init__(self, up: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.up, self.head = up, head

    def forward(self, running: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(h)
        return (out if self.up is None else out + self.up(running, tuple(h.shape[2:]))), h


class _OutputStart(nn.Module):
    def __init__(self, enter: nn.Module) -> None:
        super().__init__()
        self.enter = enter

    def forward(self, running: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.enter(h), h


class _OutputResidual(nn.Module):
    def __init__(self, up: nn.Module, convolution: nn.Module, gain: float) -> None:
        super().__init__()
        self.up, self.conv, self.gain = up, convolution, gain

    def forward(self, running: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = added(h, self.conv(self.up(running, tuple(h.shape[2:]))), self.gain)
        return h, h
