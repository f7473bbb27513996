"""How the image itself accompanies the way down and grows on the way up (Karras et al. 2020, StyleGAN2, section 4.1;
Song et al. 2021, C).

On the way down the image is halved from resolution to resolution beside the signal; on the way up a prediction is
doubled. Each is either a skip, a small convolution from or to the image's channels at every resolution, or residual, a
second stream of the signal's channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..serialization import serializable
from .blocks import added, conv, zeroed
from .resampling import FIR, SMOOTH, HalvedConv

Norm = Callable[[int], nn.Module]


@serializable("networks.InputSkip", formerly="unnoise.shared.networks.progressive.InputSkip")
@dataclass(frozen=True)
class InputSkip:
    """At each lower resolution a 1 x 1 convolution of the halved image is added to the signal.

    "input_skip", 256-pixel NCSN++.
    """

    filter: FIR = SMOOTH

    def layer(self, dims: int, image: int, channels: int, gain: float) -> tuple[nn.Module, int]:
        """The layer `(image, h) -> (image, h)` of one resolution, and the channels that the image has after it."""
        return _InputSkip(self.filter.down(dims), conv(dims, image, channels, kernel=1)), image


@serializable("networks.InputResidual", formerly="unnoise.shared.networks.progressive.InputResidual")
@dataclass(frozen=True)
class InputResidual:
    """A halved 3-wide convolution of the running image is added to the signal and takes its place.

    "residual", 32-pixel NCSN++.
    """

    filter: FIR = SMOOTH

    def layer(self, dims: int, image: int, channels: int, gain: float) -> tuple[nn.Module, int]:
        """The layer `(image, h) -> (image, h)` of one resolution, and the channels that the image has after it."""
        return _InputResidual(HalvedConv(dims, self.filter.taps, conv(dims, image, channels)), gain), channels


@serializable("networks.OutputSkip", formerly="unnoise.shared.networks.progressive.OutputSkip")
@dataclass(frozen=True)
class OutputSkip:
    """Each resolution gives a prediction of its own, added to the doubled one of the resolution below.

    "output_skip", 256-pixel NCSN++.
    """

    filter: FIR = SMOOTH

    def layer(
        self, dims: int, first: bool, last: bool, running: int, channels: int, out: int, gain: float, norm: Norm
    ) -> nn.Module | None:
        """The layer `(running, h, size) -> (running, h)` of one resolution.

        None at the last, whose prediction the network's head is.
        """
        head = nn.Sequential(norm(channels), nn.SiLU(), zeroed(conv(dims, channels, out)))
        return None if last else _OutputSkip(None if first else self.filter.up(dims), head)

    def finish(self, dims: int) -> nn.Module | None:
        """The layer that brings the running prediction to the head's size, to be added to it."""
        return self.filter.up(dims)


@serializable("networks.OutputResidual", formerly="unnoise.shared.networks.progressive.OutputResidual")
@dataclass(frozen=True)
class OutputResidual:
    """A running stream, doubled and convolved, is added to each resolution's signal and takes its place.

    "residual" on the way up.
    """

    filter: FIR = SMOOTH

    def layer(
        self, dims: int, first: bool, last: bool, running: int, channels: int, out: int, gain: float, norm: Norm
    ) -> nn.Module | None:
        """The layer `(running, h, size) -> (running, h)` of one resolution; None where it is the only one."""
        if first and last:
            return None
        if first:
            return _OutputStart(nn.Sequential(norm(channels), nn.SiLU(), conv(dims, channels, channels)))
        return _OutputResidual(self.filter.up(dims), conv(dims, running, channels), gain)

    def finish(self, dims: int) -> nn.Module | None:
        """None: the head reads the signal."""
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
