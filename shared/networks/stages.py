"""The stages that the U-Net and the encoder share: how they are built, and how a signal runs through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import UsageError
from .blocks import Downsample, ResidualBlock, SelfAttention


@dataclass(frozen=True)
class Stages:
    """Builds residual blocks, each followed by self-attention at the resolutions that have it.

    Args:
        dims: number of spatial dimensions.
        embedding: size of the time (and condition) embedding.
        attention: down-sampling factors with self-attention.
        heads: attention heads.
        dropout: probability inside residual blocks.
        context: size of the states that attention layers also attend to, or None.
    """

    dims: int
    embedding: int
    attention: Sequence[int]
    heads: int
    dropout: float
    context: int | None = None

    def block(self, channels_in: int, channels_out: int) -> ResidualBlock:
        """One residual block."""
        return ResidualBlock(self.dims, channels_in, channels_out, self.embedding, self.dropout)

    def stage(self, factor: int, channels_in: int, channels_out: int) -> nn.ModuleList:
        """A residual block, and attention where `factor` is among those of `attention`."""
        parts: list[nn.Module] = [self.block(channels_in, channels_out)]
        if factor in self.attention:
            parts.append(SelfAttention(channels_out, self.heads, self.context))
        return nn.ModuleList(parts)

    def down(self, width: int, multipliers: Sequence[int], blocks: int) -> tuple[nn.ModuleList, list[int]]:
        """The way down, and the channels of each signal that `descend` returns."""
        levels, channels = nn.ModuleList(), [width]
        for depth, multiplier in enumerate(multipliers):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(self.stage(2**depth, channels[-1], width * multiplier))
                channels.append(width * multiplier)
            level: dict[str, nn.Module] = {"stages": stages}
            if depth < len(multipliers) - 1:
                level["shrink"] = Downsample(self.dims, channels[-1])
                channels.append(channels[-1])
            levels.append(nn.ModuleDict(level))
        return levels, channels

    def middle(self, channels: int) -> nn.ModuleList:
        """Block, attention, block at the lowest resolution."""
        before = self.block(channels, channels)
        return nn.ModuleList([before, SelfAttention(channels, self.heads, self.context), self.block(channels, channels)])


def run(stage: nn.ModuleList, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
    """Residual blocks take the embedding, attention the context."""
    for part in stage:
        h = part(h, embedding) if isinstance(part, ResidualBlock) else part(h, context)
    return h


def descend(down: nn.ModuleList, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> list[Tensor]:
    """Every signal on the way down, from `h` itself to the lowest one."""
    found = [h]
    for level in down:
        for stage in level["stages"]:
            found.append(run(stage, found[-1], embedding, context))
        if "shrink" in level:
            found.append(level["shrink"](found[-1]))
    return found


def check_sizes(shape: Sequence[int], width: int, multipliers: Sequence[int], blocks: int, heads: int) -> None:
    """Raises `UsageError` for what no network can be built from."""
    if len(shape) not in (2, 3, 4):
        raise UsageError(f"shape {tuple(shape)} must be (channels, *size) with one to three sizes, such as (1, 28, 28)")
    if width < 2 or width % 2 or blocks < 1 or heads < 1 or not multipliers or min(multipliers) < 1:
        raise UsageError(
            f"width={width}, multipliers={tuple(multipliers)}, blocks={blocks}, heads={heads}: "
            "give an even width, and one or more of everything"
        )


def check_signal(x: Tensor, shape: Sequence[int]) -> None:
    """Raises `UsageError` unless `x` has the channels and the number of dimensions of `shape`."""
    if x.ndim != len(shape) + 1 or x.shape[1] != shape[0]:
        raise UsageError(f"the network takes (B, {shape[0]}, ...) with {len(shape) - 1} sizes, not {tuple(x.shape)}")
