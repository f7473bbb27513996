"""The U-Net of the diffusion papers, for continuous and categorical signals of 1, 2 or 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..describe import described
from ..errors import UsageError
from .blocks import Downsample, ResidualBlock, SelfAttention, Upsample, conv, group_norm, zeroed
from .embeddings import LabelEmbedding, TimeEmbedding


@described
class UNet(nn.Module):
    """Residual U-Net with self-attention (Ho et al. 2020, appendix B; adaptive norms of Dhariwal & Nichol 2021).

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        width: channels at full resolution.
        multipliers: channel multiplier of each resolution; the sizes halve from one to the next.
        blocks: residual blocks for each resolution on the way down (one more on the way up).
        attention: down-sampling factors at which every block is followed by self-attention: 2 is half the resolution,
            which for 32 x 32 images is the papers' "16".
        heads: attention heads.
        dropout: probability inside residual blocks.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class.
        levels: None for real-valued signals `(B, C, *size)` in and out; a number K for integer signals in 0..K-1, which come
            back as logits `(B, C, *size, K)`.
        outputs: real-valued channels out for each channel in.

    Raises:
        UsageError: for a shape without 1 to 3 sizes, or a signal that is not of the shape's channels and dimensions.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        heads: int = 1,
        dropout: float = 0.0,
        classes: int | None = None,
        levels: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3, 4):
            raise UsageError(f"shape {tuple(shape)} must be (channels, *size) with one to three sizes, such as (1, 28, 28)")
        if width < 2 or width % 2 or blocks < 1 or heads < 1 or not multipliers or min(multipliers) < 1:
            raise UsageError(
                f"width={width}, multipliers={tuple(multipliers)}, blocks={blocks}, heads={heads}: "
                "give an even width, and one or more of everything"
            )
        self.shape, self.width, self.multipliers, self.blocks = tuple(shape), width, tuple(multipliers), blocks
        self.attention, self.heads, self.dropout = tuple(attention), heads, dropout
        self.classes, self.levels, self.outputs = classes, levels, outputs

        dims, channels, embedding = len(shape) - 1, shape[0], 4 * width
        self.time = TimeEmbedding(width, embedding)
        self.label = None if classes is None else LabelEmbedding(classes, embedding)
        self.stem = conv(dims, channels * (levels or 1), width)

        def stage(factor: int, channels_in: int, channels_out: int) -> nn.ModuleList:
            parts: list[nn.Module] = [ResidualBlock(dims, channels_in, channels_out, embedding, dropout)]
            if factor in self.attention:
                parts.append(SelfAttention(channels_out, heads))
            return nn.ModuleList(parts)

        self.down, self.up, skips, current = nn.ModuleList(), nn.ModuleList(), [width], width
        for depth, multiplier in enumerate(multipliers):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(2**depth, current, width * multiplier))
                current = width * multiplier
                skips.append(current)
            last = depth == len(multipliers) - 1
            self.down.append(nn.ModuleDict({"stages": stages} if last else {"stages": stages, "shrink": Downsample(dims, current)}))
            skips += [] if last else [current]
        self.middle = nn.ModuleList(
            [
                ResidualBlock(dims, current, current, embedding, dropout),
                SelfAttention(current, heads),
                ResidualBlock(dims, current, current, embedding, dropout),
            ]
        )
        for depth, multiplier in reversed(list(enumerate(multipliers))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(2**depth, current + skips.pop(), width * multiplier))
                current = width * multiplier
            self.up.append(nn.ModuleDict({"stages": stages} if depth == 0 else {"stages": stages, "grow": Upsample(dims, current)}))
        self.head = nn.Sequential(group_norm(current), nn.SiLU(), zeroed(conv(dims, current, channels * (levels or outputs))))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """`x`: `(B, C, *size)`; `time`: the labels `(B,)`; `label`: class indices `(B,)` or None."""
        self._check(x, label)
        embedding = self.time(time)
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        h = self.stem(self._enter(x))
        skips = [h]
        for level in self.down:
            for stage in level["stages"]:
                h = run(stage, h, embedding)
                skips.append(h)
            if "shrink" in level:
                h = level["shrink"](h)
                skips.append(h)
        h = run(self.middle, h, embedding)
        for level in self.up:
            for stage in level["stages"]:
                h = run(stage, torch.cat([h, skips.pop()], dim=1), embedding)
            if "grow" in level:
                h = level["grow"](h, skips[-1].shape[2:])
        return self._leave(self.head(h), x)

    def _enter(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return x
        one_hot = F.one_hot(x, self.levels).movedim(-1, 2)  # (B, C, K, *size)
        return one_hot.flatten(1, 2).to(self.stem.weight.dtype)

    def _leave(self, h: Tensor, x: Tensor) -> Tensor:
        if self.levels is None:
            return h
        return h.unflatten(1, (x.shape[1], self.levels)).movedim(2, -1)  # (B, C, *size, K)

    def _check(self, x: Tensor, label: Tensor | None) -> None:
        if x.ndim != len(self.shape) + 1 or x.shape[1] != self.shape[0]:
            raise UsageError(f"the network takes (B, {self.shape[0]}, ...) with {len(self.shape) - 1} sizes, not {tuple(x.shape)}")
        if label is not None and self.label is None:
            raise UsageError("a label was given to a network without classes: build it with classes=..., or leave the label out")


def run(stage: nn.ModuleList, h: Tensor, embedding: Tensor) -> Tensor:
    """Residual blocks take the embedding, attention does not."""
    for part in stage:
        h = part(h, embedding) if isinstance(part, ResidualBlock) else part(h)
    return h
