"""The parts that U-Net and encoder share: how they are built, and how a signal passes through them.

A stage is a residual block, followed by self-attention where its resolution has it. A resolution of the way down or up
is a `ModuleDict` of its stages and the layers that resize the signal and connect the progressive input or output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .blocks import ResidualBlock, SelfAttention
from .conditioned import check_shape
from .unet_variants import PLAIN, UNetVariant


@dataclass(frozen=True)
class UNetStages:
    """Builds the way down, the middle and the way up of a U-Net.

    Args:
        dims: number of spatial dimensions.
        embedding: size of the time (and condition) embedding.
        attention: down-sampling factors with self-attention.
        heads: number of attention heads, where `variant.head_width` does not determine it.
        dropout: probability of dropout inside residual blocks.
        context: size of the states that attention layers also attend to, or None.
        variant: how blocks are built and connected.
    """

    dims: int
    embedding: int
    attention: Sequence[int]
    heads: int
    dropout: float
    context: int | None = None
    variant: UNetVariant = PLAIN

    def block(self, channels_in: int, channels_out: int, **options: Any) -> ResidualBlock:
        """Returns a residual block; the options are further arguments of `ResidualBlock`: `resize`, `project`."""
        options |= {"norm": self.variant.norm, "adaptive": self.variant.adaptive, "gain": self.variant.gain}
        return ResidualBlock(self.dims, channels_in, channels_out, self.embedding, self.dropout, **options)

    def attend(self, channels: int) -> SelfAttention:
        """Returns an attention layer for a signal of `channels` channels."""
        heads = self.variant.heads(self.heads, channels)
        return SelfAttention(channels, heads, self.context, norm=self.variant.norm, gain=self.variant.gain)

    def stage(self, factor: int, channels_in: int, channels_out: int, attend: bool = True) -> nn.ModuleList:
        """Returns a residual block, then attention if `attend` and the down-sampling factor is in `attention`."""
        parts: list[nn.Module] = [self.block(channels_in, channels_out)]
        if attend and factor in self.attention:
            parts.append(self.attend(channels_out))
        return nn.ModuleList(parts)

    def shrink(self, channels: int) -> nn.Module:
        """Returns the layer that halves the sizes of `channels` channels, `(h, embedding) -> h`."""
        return self.variant.resize.shrink(self.block, self.dims, channels)

    def grow(self, channels: int) -> nn.Module:
        """Returns the layer that resizes `channels` channels to a doubled size, `(h, embedding, size) -> h`."""
        return self.variant.resize.grow(self.block, self.dims, channels)

    def stem(self, width: int, multipliers: Sequence[float]) -> int:
        """Returns the number of output channels of the first convolution."""
        return round(width * multipliers[0]) if self.variant.wide_stem else width

    def down(
        self, image: int, width: int, multipliers: Sequence[float], blocks: int
    ) -> tuple[nn.ModuleList, list[int]]:
        """Returns the way down of `image` channels, and the channels of each signal that `descend` returns.

        The arguments `width`, `multipliers` and `blocks` are as in `UNet`.
        """
        resolutions, channels = nn.ModuleList(), [self.stem(width, multipliers)]
        for depth, multiplier in enumerate(multipliers):
            stages, wide = nn.ModuleList(), round(width * multiplier)
            for _ in range(blocks):
                stages.append(self.stage(2**depth, channels[-1], wide))
                channels.append(wide)
            layers: dict[str, nn.Module] = {"stages": stages}
            if depth < len(multipliers) - 1:
                layers["shrink"] = self.shrink(wide)
                channels.append(wide)
                if (enter := self.variant.progressive_input) is not None:
                    layers["enter"], image = enter.layer(self.dims, image, wide, self.variant.gain)
            resolutions.append(nn.ModuleDict(layers))
        return resolutions, channels

    def middle(self, channels: int) -> nn.ModuleList:
        """Returns residual block, attention and residual block, for `channels` channels at the lowest resolution."""
        before = self.block(channels, channels)
        return nn.ModuleList([before, self.attend(channels), self.block(channels, channels)])

    def up(
        self, skips: list[int], width: int, multipliers: Sequence[float], blocks: int, out: int
    ) -> tuple[nn.ModuleList, int]:
        """Returns the way up to `out` channels, from the lowest to the full resolution, and its last channels.

        Args:
            skips: channels of each signal of the way down; they are removed from the list.
            width, multipliers, blocks: as in `UNet`.
            out: channels of the prediction.
        """
        resolutions, current, running = nn.ModuleList(), skips[-1], out
        for depth, multiplier in reversed(list(enumerate(multipliers))):
            stages, wide = nn.ModuleList(), round(width * multiplier)
            for i in range(blocks + 1):
                attend = i == blocks or not self.variant.attend_once
                stages.append(self.stage(2**depth, current + skips.pop(), wide, attend))
                current = wide
            layers: dict[str, nn.Module] = {"stages": stages}
            if self.variant.progressive_output is not None:
                first = depth == len(multipliers) - 1
                leave = self.variant.progressive_output.layer(
                    self.dims, first, depth == 0, running, current, out, self.variant.gain, self.variant.norm
                )
                if leave is not None:
                    layers["leave"], running = leave, current
            if depth:
                layers["grow"] = self.grow(current)
            resolutions.append(nn.ModuleDict(layers))
        return resolutions, current


def run(stage: Iterable[nn.Module], h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
    """Returns the output of a stage for `h` `(B, C, *size)`.

    Residual blocks receive the embedding of time and conditions `(B, embedding)`, attention layers the context
    `(B, L, context)` or None.
    """
    for part in stage:
        h = part(h, embedding) if isinstance(part, ResidualBlock) else part(h, context)
    return h


def descend(
    down: nn.ModuleList, image: Tensor, h: Tensor, embedding: Tensor, context: Tensor | None = None
) -> list[Tensor]:
    """Returns every signal of the way down, from `h` to the one of the lowest resolution.

    Args:
        down: the way down.
        image: the network's input, for a progressive input.
        h: the output of the stem, the first convolution.
        embedding: embedding of the time and the conditions, `(B, embedding)`.
        context: states that attention layers attend to, `(B, L, context)`, or None.
    """
    found = [h]
    for resolution in cast("Iterable[nn.ModuleDict]", down):
        for stage in cast("Iterable[nn.ModuleList]", resolution["stages"]):
            found.append(run(stage, found[-1], embedding, context))
        if "shrink" in resolution:
            h = resolution["shrink"](found[-1], embedding)
            if "enter" in resolution:
                image, h = resolution["enter"](image, h)
            found.append(h)
    return found


def ascend(
    up: nn.ModuleList, h: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor | None = None
) -> tuple[Tensor | None, Tensor]:
    """Returns the running prediction of a progressive output, or None, and the signal at full resolution.

    Args:
        up: the way up.
        h: the output of the middle.
        skips: the signals of the way down; they are removed from the list.
        embedding: embedding of the time and the conditions.
        context: states that attention layers attend to, or None.
    """
    running = None
    for resolution in cast("Iterable[nn.ModuleDict]", up):
        for stage in cast("Iterable[nn.ModuleList]", resolution["stages"]):
            h = run(stage, torch.cat([h, skips.pop()], dim=1), embedding, context)
        if "leave" in resolution:
            running, h = resolution["leave"](running, h)
        if "grow" in resolution:
            h = resolution["grow"](h, embedding, tuple(skips[-1].shape[2:]))
    return running, h


def check_sizes(
    shape: Sequence[int],
    width: int,
    multipliers: Sequence[float],
    blocks: int,
    heads: int,
    attention: Sequence[int],
    variant: UNetVariant,
) -> None:
    """Raises `UsageError` for arguments from which no U-Net or encoder can be built."""
    check_shape(shape)
    if not isinstance(variant, UNetVariant):
        raise UsageError(
            f"variant={variant!r}: give a UNetVariant, such as DDPM of unnoise.shared.networks.unet_variants"
        )
    if (
        width < 2
        or width % 2
        or blocks < 1
        or heads < 1
        or not multipliers
        or min(round(width * m) for m in multipliers) < 1
    ):
        raise UsageError(
            f"width={width}, multipliers={tuple(multipliers)}, blocks={blocks}, heads={heads}: "
            "width must be even, and each number and channel count must be 1 or more"
        )
    factors = [2**n for n in range(max(len(multipliers), 2))]  # the default, 2, is allowed with one resolution too
    if not set(attention) <= set(factors):
        raise UsageError(
            f"attention={tuple(attention)}: give down-sampling factors among {factors}, not pixels; attention at 16 "
            "pixels in a network of 32 pixels is the factor 2"
        )


def check_signal(x: Tensor, shape: Sequence[int]) -> None:
    """Raises `UsageError` unless `x` has the channels and the number of dimensions of `shape`."""
    if x.ndim != len(shape) + 1 or x.shape[1] != shape[0]:
        raise UsageError(f"the network takes (B, {shape[0]}, ...) with {len(shape) - 1} sizes, not {tuple(x.shape)}")
