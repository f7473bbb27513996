"""How a sequence of tokens, such as a caption, enters a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import refuse_unless


@serializable("networks.CaptionEncoder", formerly="unnoise.shared.networks.tokens.TokenEncoder")
class CaptionEncoder(nn.Module):
    """Pre-norm transformer encoder of a caption (Nichol et al. 2021, GLIDE, section 3).

    Padding is no mask but a learned vector of its own, to which the other positions attend; an empty caption, all
    padding, is the null condition of classifier-free guidance.

    Args:
        vocabulary: number of tokens; they are 0..vocabulary-1, and -1 is padding.
        length: positions; a shorter sequence is padded.
        width: size of a state.
        depth: transformer layers.
        heads: attention heads, a divisor of the width.

    Raises:
        UsageError: for sizes below one, heads that do not divide the width, and tokens that are not `(B, up to length)`
            of integers in -1..vocabulary-1.
    """

    def __init__(self, vocabulary: int, length: int, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        if min(vocabulary, length, width, depth, heads) < 1 or width % heads:
            raise UsageError(
                f"vocabulary={vocabulary}, length={length}, width={width}, depth={depth}, heads={heads}: "
                "give one or more of everything, and heads that divide the width"
            )
        self.vocabulary, self.length, self.width, self.depth, self.heads = vocabulary, length, width, depth, heads
        self.table = nn.Embedding(vocabulary + 1, width)  # the last row is padding
        self.position = nn.Parameter(torch.randn(length, width))
        # Layer by layer: nn.TransformerEncoder would start all of them from one copy.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: integers `(B, L)`, `L <= length`; returns the states `(B, length, width)`."""
        if tokens.ndim != 2 or tokens.shape[1] > self.length or tokens.is_floating_point():
            raise UsageError(
                f"tokens must be integers of shape (B, {self.length}) or shorter, not {tokens.dtype} of shape {tuple(tokens.shape)}: "
                "convert or cut them, or build the TokenEncoder with a larger length"
            )
        refuse_unless(
            (tokens >= -1) & (tokens < self.vocabulary),
            f"tokens must be in 0..{self.vocabulary - 1}, or -1 for padding",
        )
        padded = F.pad(tokens.long(), (0, self.length - tokens.shape[1]), value=-1)
        h = self.table(padded.masked_fill(padded < 0, self.vocabulary)) + self.position
        for layer in self.layers:
            h = layer(h)
        return self.norm(h)

    def null(self, batch: int) -> Tensor:
        """The states of `batch` empty captions, `(batch, length, width)`, at the cost of one."""
        return self(torch.empty(1, 0, dtype=torch.int64, device=self.position.device)).expand(batch, -1, -1)

    def pool(self, states: Tensor) -> Tensor:
        """The state at the last position, `(B, width)`: GLIDE adds it to the time embedding."""
        return states[:, -1]
