"""The stages that the U-Net and the encoder share: how they are built, and how a signal runs through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .blocks import ResidualBlock, SelfAttention
from .conditioned import check_shape
from .unet_variants import PLAIN, UNetVariant


@dataclass(frozen=True)
class UNetStages:
    """Builds residual blocks, each followed by self-attention at the resolutions that have it.

    Args:
        dims: number of spatial dimensions.
        embedding: size of the time (and condition) embedding.
        attention: down-sampling factors with self-attention.
        heads: attention heads.
        dropout: probability inside residual blocks.
        context: size of the states that attention layers also attend to, or None.
        variant: how blocks are made and joined.
    """

    dims: int
    embedding: int
    attention: Sequence[int]
    heads: int
    dropout: float
    context: int | None = None
    variant: UNetVariant = PLAIN

    def block(self, channels_in: int, channels_out: int, **options: Any) -> ResidualBlock:
        """One residual block."""
        options |= {"norm": self.variant.norm, "adaptive": self.variant.adaptive, "gain": self.variant.gain}
        return ResidualBlock(self.dims, channels_in, channels_out, self.embedding, self.dropout, **options)

    def attend(self, channels: int) -> SelfAttention:
        """One attention layer."""
        heads = self.variant.heads(self.heads, channels)
        return SelfAttention(channels, heads, self.context, norm=self.variant.norm, gain=self.variant.gain)

    def stage(self, factor: int, channels_in: int, channels_out: int, attend: bool = True) -> nn.ModuleList:
        """A residual block, and attention where `factor` is among those of `attention`."""
        parts: list[nn.Module] = [self.block(channels_in, channels_out)]
        if attend and factor in self.attention:
            parts.append(self.attend(channels_out))
        return nn.ModuleList(parts)

    def shrink(self, channels: int) -> nn.Module:
        """What halves the sizes, `(h, embedding) -> h`."""
        return self.variant.resize.shrink(self.block, self.dims, channels)

    def grow(self, channels: int) -> nn.Module:
        """What doubles them, `(h, embedding, size) -> h`."""
        return self.variant.resize.grow(self.block, self.dims, channels)

    def stem(self, width: int, multipliers: Sequence[float]) -> int:
        """Channels of the first convolution."""
        return round(width * multipliers[0]) if self.variant.wide_stem else width

    def down(
        self, image: int, width: int, multipliers: Sequence[float], blocks: int
    ) -> tuple[nn.ModuleList, list[int]]:
        """The way down of `image` channels, and the channels of each signal that `descend` returns."""
        levels, channels, enters = nn.ModuleList(), [self.stem(width, multipliers)], self.variant.enters
        for depth, multiplier in enumerate(multipliers):
            stages, wide = nn.ModuleList(), round(width * multiplier)
            for _ in range(blocks):
                stages.append(self.stage(2**depth, channels[-1], wide))
                channels.append(wide)
            level: dict[str, nn.Module] = {"stages": stages}
            if depth < len(multipliers) - 1:
                level["shrink"] = self.shrink(wide)
                channels.append(wide)
                if enters is not None:
                    level["enter"], image = enters.layer(self.dims, image, wide, self.variant.gain)
            levels.append(nn.ModuleDict(level))
        return levels, channels

    def middle(self, channels: int) -> nn.ModuleList:
        """Block, attention, block at the lowest resolution."""
        before = self.block(channels, channels)
        return nn.ModuleList([before, self.attend(channels), self.block(channels, channels)])

    def up(
        self, skips: list[int], width: int, multipliers: Sequence[float], blocks: int, out: int
    ) -> tuple[nn.ModuleList, int]:
        """The way up to `out` channels, from the lowest resolution to the full one, and the channels that it ends with."""
        levels, current, running = nn.ModuleList(), skips[-1], out
        for depth, multiplier in reversed(list(enumerate(multipliers))):
            stages, wide = nn.ModuleList(), round(width * multiplier)
            for i in range(blocks + 1):
                stages.append(
                    self.stage(
                        2**depth, current + skips.pop(), wide, attend=i == blocks or not self.variant.attend_once
                    )
                )
                current = wide
            level: dict[str, nn.Module] = {"stages": stages}
            if self.variant.leaves is not None:
                first = depth == len(multipliers) - 1
                leave = self.variant.leaves.layer(
                    self.dims, first, depth == 0, running, current, out, self.variant.gain, self.variant.norm
                )
                if leave is not None:
                    level["leave"], running = leave, current
            if depth:
                level["grow"] = self.grow(current)
            levels.append(nn.ModuleDict(level))
        return levels, current


def run(stage: nn.ModuleList, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
    """Residual blocks take the embedding, attention the context."""
    for part in stage:
        h = part(h, embedding) if isinstance(part, ResidualBlock) else part(h, context)
    return h


def descend(
    down: nn.ModuleList, image: Tensor, h: Tensor, embedding: Tensor, context: Tensor | None = None
) -> list[Tensor]:
    """Every signal on the way down, from `h`, the stem's view of the image, to the lowest one."""
    found = [h]
    for level in down:
        for stage in level["stages"]:
            found.append(run(stage, found[-1], embedding, context))
        if "shrink" in level:
            h = level["shrink"](found[-1], embedding)
            if "enter" in level:
                image, h = level["enter"](image, h)
            found.append(h)
    return found


def ascend(
    up: nn.ModuleList, h: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor | None = None
) -> tuple[Tensor | None, Tensor]:
    """The running prediction of the way up, None where there is none, and the signal of full size.

    `h` comes from the middle.
    """
    running = None
    for level in up:
        for stage in level["stages"]:
            h = run(stage, torch.cat([h, skips.pop()], dim=1), embedding, context)
        if "leave" in level:
            running, h = level["leave"](running, h)
        if "grow" in level:
            h = level["grow"](h, embedding, tuple(skips[-1].shape[2:]))
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
    """Raises `UsageError` for what no network can be built from."""
    check_shape(shape)
    if not isinstance(variant, UNetVariant):
        raise UsageError(f"style={variant!r}: give a Style, such as unnoise.shared.networks.style.DDPM")
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
            "give an even width, and one or more of everything"
        )
    factors = [2**n for n in range(max(len(multipliers), 2))]  # 2 is the default, of networks of one resolution too
    if not set(attention) <= set(factors):
        raise UsageError(
            f"attention={tuple(attention)}: these are down-sampling factors, not pixels; {len(multipliers)} resolutions have {factors}, "
            "and attention at 16 pixels of 32 is the factor 2"
        )


def check_signal(x: Tensor, shape: Sequence[int]) -> None:
    """Raises `UsageError` unless `x` has the channels and the number of dimensions of `shape`."""
    if x.ndim != len(shape) + 1 or x.shape[1] != shape[0]:
        raise UsageError(f"the network takes (B, {shape[0]}, ...) with {len(shape) - 1} sizes, not {tuple(x.shape)}")
