"""The down half of the U-Net, which says what a noisy signal is of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..describe import described
from ..errors import UsageError
from .blocks import AttentionPool, conv
from .embeddings import TimeEmbedding
from .stages import Stages, check_signal, check_sizes, descend, run


@described
class Encoder(nn.Module):
    """Noise-aware classifier, `log p(y | x_t)` up to a constant (Dhariwal & Nichol 2021, section 4): U-Net down and middle, pooled.

    `logits = linear(norm(pool(h)))`, with the attention pooling of `AttentionPool`.

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        classes: number of classes.
        width: channels at full resolution.
        multipliers: channel multiplier of each resolution; the sizes halve from one to the next.
        blocks: residual blocks for each resolution.
        attention: down-sampling factors at which every block is followed by self-attention.
        heads: attention heads.
        dropout: probability inside residual blocks.

    Raises:
        UsageError: for a shape without 1 to 3 sizes, no classes, or a signal that is not of the shape's channels and dimensions.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 10,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (2,),
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(shape, width, multipliers, blocks, heads)
        if classes < 1:
            raise UsageError(f"classes={classes}: give the number of classes, one or more")
        self.shape, self.classes, self.width, self.multipliers, self.blocks = tuple(shape), classes, width, tuple(multipliers), blocks
        self.attention, self.heads, self.dropout = tuple(attention), heads, dropout

        dims, embedding = len(shape) - 1, 4 * width
        stages = Stages(dims, embedding, self.attention, heads, dropout)
        self.time = TimeEmbedding(width, embedding)
        self.stem = conv(dims, shape[0], width)
        self.down, channels = stages.down(width, multipliers, blocks)
        self.middle = stages.middle(channels[-1])
        self.pool = AttentionPool(channels[-1], heads)
        self.head = nn.Sequential(nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], classes))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes: none."""
        return ()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x`: `(B, C, *size)`; `time`: labels `(B,)`; returns logits `(B, classes)`."""
        check_signal(x, self.shape)
        embedding = self.time(time)
        h = descend(self.down, self.stem(x), embedding)[-1]
        return self.head(self.pool(run(self.middle, h, embedding)))
