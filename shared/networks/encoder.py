"""The down-sampling half of the U-Net as a classifier of noisy signals."""

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
    """Noise-aware classifier: logits `log p(y | x_t)` up to a constant (Dhariwal & Nichol 2021, section 4).

    The way down and the middle of the U-Net, then `logits = linear(norm(pool(h)))` with the attention pooling
    `AttentionPool`, or `logits = pool(h)` with `PositionalPool`. Called with x_t `(B, C, *size)` and the time input; it
    takes no conditions.

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        classes: number of classes.
        width: number of channels at full resolution.
        multipliers: channel multiplier of each resolution; the sizes halve from one to the next.
        blocks: residual blocks for each resolution.
        attention: down-sampling factors at which every block is followed by self-attention.
        heads: number of attention heads, where `variant.head_width` does not determine it.
        dropout: probability of dropout inside residual blocks.
        variant: how the blocks are built; `ADM` for the classifiers of that paper.
        positional: whether the pooling is that of these classifiers, which learns a vector for each position
            and therefore takes only signals of `shape`.

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
            raise UsageError(f"classes={classes}: give the number of classes, 1 or more")
        self.shape, self.classes, self.width = tuple(shape), classes, width
        self.multipliers, self.blocks, self.attention = tuple(multipliers), blocks, tuple(attention)
        self.heads, self.dropout, self.variant, self.positional = heads, dropout, variant, positional

        dims, embedding = len(shape) - 1, 4 * width
        stages = UNetStages(dims, embedding, self.attention, heads, dropout, variant=variant)
        self.time = TimeEmbedding(width, embedding, variant.time)
        self.stem = conv(dims, shape[0], stages.stem(width, multipliers))
        self.down, channels = stages.down(shape[0], width, multipliers, blocks)
        self.middle = stages.middle(channels[-1])
        lowest = channels[-1]
        if positional:
            positions = math.prod(-(-n // 2 ** (len(multipliers) - 1)) for n in shape[1:])
            self.pool = PositionalPool(lowest, variant.heads(heads, lowest), positions, classes, variant.norm)
            self.head = nn.Identity()
        else:
            self.pool = AttentionPool(lowest, variant.heads(heads, lowest), variant.norm)
            self.head = nn.Sequential(nn.LayerNorm(lowest), nn.Linear(lowest, classes))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes: none."""
        return ()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Returns the logits `(B, classes)`, not normalized, at `x` `(B, C, *size)` and the time inputs `(B,)`."""
        check_signal(x, self.shape)
        embedding = self.time(time)
        with differentiable_twice(x, time):
            h = descend(self.down, x, self.stem(x), embedding)[-1]
            return self.head(self.pool(run(self.middle, h, embedding)))
