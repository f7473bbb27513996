"""Encoder of a sequence of tokens, such as a caption, on which a network is conditioned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import refuse_unless


@serializable("networks.CaptionEncoder", formerly="unnoise.shared.networks.tokens.TokenEncoder")
class CaptionEncoder(nn.Module):
    """Pre-norm transformer encoder of a caption (Nichol et al. 2021, GLIDE, section 3), with learned positions.

    Called with tokens `(B, L)`; returns one state for each position, `(B, length, width)`.

    Padding is not masked: it has a learned vector, to which the other positions attend. An empty caption, which is all
    padding, is the null condition of classifier-free guidance.

    Args:
        vocabulary: number of tokens; they are 0..vocabulary-1, and -1 is padding.
        length: number of positions; a shorter sequence is padded, and a longer one refused.
        width: size of a state.
        depth: number of transformer layers.
        heads: number of attention heads, a divisor of the width.

    Raises:
        UsageError: for sizes below one, heads that do not divide the width, and tokens that are not integers in
            -1..vocabulary-1 of shape `(B, L)`, `L <= length`.
    """

    def __init__(self, vocabulary: int, length: int, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        if min(vocabulary, length, width, depth, heads) < 1 or width % heads:
            raise UsageError(
                f"vocabulary={vocabulary}, length={length}, width={width}, depth={depth}, heads={heads}: "
                "each must be 1 or more, and heads must divide width"
            )
        self.vocabulary, self.length, self.width, self.depth, self.heads = vocabulary, length, width, depth, heads
        self.table = nn.Embedding(vocabulary + 1, width)  # the last row is padding
        self.position = nn.Parameter(torch.randn(length, width))
        # Not nn.TransformerEncoder, whose layers would all start from the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the states `(B, length, width)` of `tokens`, integers `(B, L)`, `L <= length`, -1 for padding."""
        if tokens.ndim != 2 or tokens.shape[1] > self.length or tokens.is_floating_point():
            raise UsageError(
                f"tokens must be integers of shape (B, {self.length}) or shorter, not {tokens.dtype} of shape "
                f"{tuple(tokens.shape)}: convert or cut them, or build the CaptionEncoder with a larger length"
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
        """Returns the states of `batch` empty captions, `(batch, length, width)`; one is computed and expanded."""
        return self(torch.empty(1, 0, dtype=torch.int64, device=self.position.device)).expand(batch, -1, -1)

    def pool(self, states: Tensor) -> Tensor:
        """Returns the last of the states `(B, length, width)`, `(B, width)`, which GLIDE adds to the time embedding."""
        return states[:, -1]
