"""The down half of the U-Net, which says what a noisy signal is of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from .blocks import AttentionPool, PositionalPool, conv, differentiable_twice
from .embeddings import TimeEmbedding
from .unet_stages import UNetStages, check_signal, check_sizes, descend, run
from .unet_variants import PLAIN, UNetVariant


@serializable("networks.Encoder", formerly="unnoise.shared.networks.encoder.Encoder", renamed={"style": "variant"})
class Encoder(nn.Module):
    """Noise-aware classifier, `log p(y | x_t)` up to a constant (Dhariwal & Nichol 2021, section 4): U-Net down and
    middle, pooled.

    `logits = linear(norm(pool(h)))`, with the attention pooling of `AttentionPool`, or the logits straight from
    `PositionalPool`.

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        classes: number of classes.
        width: channels at full resolution.
        multipliers: channel multiplier of each resolution; the sizes halve from one to the next.
        blocks: residual blocks for each resolution.
        attention: down-sampling factors at which every block is followed by self-attention.
        heads: attention heads.
        dropout: probability inside residual blocks.
        variant: how the blocks are made; `ADM` for the released classifiers.
        positional: the pooling of the released classifiers, which learns a vector for each position and so takes
            signals of `shape` alone.

    Raises:
        UsageError: for a shape without 1 to 3 sizes, no classes, or a signal that is not of the shape's channels and
            dimensions.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 10,
        width: int = 32,
        multipliers: Sequence[float] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (2,),
        heads: int = 4,
        dropout: float = 0.0,
        variant: UNetVariant = PLAIN,
        positional: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(shape, width, multipliers, blocks, heads, attention, variant)
        if classes < 1:
            raise UsageError(f"classes={classes}: give the number of classes, one or more")
        self.shape, self.classes, self.width, self.multipliers, self.blocks = (
            tuple(shape),
            classes,
            width,
            tuple(multipliers),
            blocks,
        )
        self.attention, self.heads, self.dropout, self.variant, self.positional = (
            tuple(attention),
            heads,
            dropout,
            variant,
            positional,
        )

        dims, embedding = len(shape) - 1, 4 * width
        stages = UNetStages(dims, embedding, self.attention, heads, dropout, variant=variant)
        self.time = TimeEmbedding(width, embedding, variant.time)
        self.stem = conv(dims, shape[0], stages.stem(width, multipliers))
        self.down, channels = stages.down(shape[0], width, multipliers, blocks)
        self.middle = stages.middle(channels[-1])
        if positional:
            places = math.prod(-(-n // 2 ** (len(multipliers) - 1)) for n in shape[1:])
            self.pool, self.head = (
                PositionalPool(channels[-1], variant.heads(heads, channels[-1]), places, classes, variant.norm),
                nn.Identity(),
            )
        else:
            self.pool = AttentionPool(channels[-1], variant.heads(heads, channels[-1]), variant.norm)
            self.head = nn.Sequential(nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], classes))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes: none."""
        return ()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x`: `(B, C, *size)`; `time`: labels `(B,)`; returns logits `(B, classes)`."""
        check_signal(x, self.shape)
        embedding = self.time(time)
        with differentiable_twice(x, time):
            h = descend(self.down, x, self.stem(x), embedding)[-1]
            return self.head(self.pool(run(self.middle, h, embedding)))
