"""The diffusion transformer of SEDD and MDLM: rotary positions, and adaptive layer norms with gates (adaLN-Zero)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from .blocks import zeroed
from .dropout import Dropout
from .embeddings import Float32Buffers, LabelEmbedding, null_of, refuse_others, sinusoidal
from .transformer import TIME_FEATURES, check_text, check_text_sizes, initialize_linear

BASE = 10_000.0


class Rotary(Float32Buffers):
    r"""Rotary position embedding of queries and keys (Su et al. 2021, section 3.2.2).

    The pair `(h[i], h[i + d/2])` at position p is rotated by the angle `p w_i`, `w_i = 10000^(-2 i / d)`, so that
    attention scores depend on the positions through their differences.

    Args:
        length: largest number of positions.
        dim: d, the size of a head, an even number.

    Raises:
        UsageError: for an odd size.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise UsageError(
                f"rotary positions need heads of even size, not {dim}: choose width and heads with even width / heads"
            )
        angle = torch.arange(length).double()[:, None] * BASE ** (-torch.arange(0, dim, 2).double() / dim)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Returns queries or keys `h` `(..., L, d)`, rotated, for positions 0..L-1, `L <= length`."""
        cos, sin = self.cos[: h.shape[-2]], self.sin[: h.shape[-2]]
        a, b = h.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(h.dtype)


class DiTBlock(nn.Module):
    """Transformer block with adaptive layer norms and gates (Peebles & Xie 2023, section 3.2, adaLN-Zero).

    `h + g1 attention(s1 norm(h) + b1)`, then `h + g2 mlp(s2 norm(h) + b2)`. The shifts b, scales s - 1 and gates g are
    linear in the embedding and start at zero, so that a new block is the identity.

    Called with states h `(B, L, width)`, the embedding `(B, embedding)` and the `Rotary` that rotates queries and keys;
    returns `(B, L, width)`.

    Args:
        width: size of a state.
        heads: number of heads, a divisor of the width.
        hidden: hidden units of the perceptron.
        dropout: probability of dropout at the end of each branch (attention and perceptron).
        embedding: size of the embedding of the time (and the class).
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, embedding: int) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.norm1, self.qkv = nn.LayerNorm(width, bias=False), nn.Linear(width, 3 * width, False)
        self.out, self.norm2 = nn.Linear(width, width, False), nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.modulation = zeroed(nn.Linear(embedding, 6 * width))

    def forward(self, h: Tensor, embedding: Tensor, rotary: Rotary) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        parts = self.qkv(torch.addcmul(shift1, self.norm1(h), 1 + scale1)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (B, heads, L, width / heads)
        attended = F.scaled_dot_product_attention(rotary(q), rotary(k), v)
        h = h + gate1 * self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return h + gate2 * self.dropout(self.mlp(torch.addcmul(shift2, self.norm2(h), 1 + scale2)))


@serializable("networks.DiT", formerly="unnoise.shared.networks.dit.DiT")
class DiT(nn.Module):
    """The transformer of SEDD and MDLM (Lou et al. 2024, section 5 and appendix C; Sahoo et al. 2024, section 5).

    Rotary positions; layer norms without bias, with shifts, scales and gates that depend on the time; queries, keys and
    values without bias; and a head that is not tied to the token embedding. The output of a new network is zero.

    Args:
        vocabulary: number of tokens; they are 0..vocabulary-1, a mask token among them.
        length: length of the longest sequence.
        width: size of a state.
        depth: number of blocks.
        heads: number of attention heads; `width / heads` is an even integer.
        hidden: hidden units of the perceptrons, `4 width` by default.
        outputs: logits for each position, as many as the vocabulary by default.
        dropout: probability of dropout at the end of each branch.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index
            `classes`.
        embedding: size of the embedding of the time (and the class).
        timed: False for a network that does not depend on the time, as MDLM's: its time input is always zero.

    Raises:
        UsageError: for sizes that do not fit, tokens that are not int64 `(B, L)` in 0..vocabulary-1 with
            `1 <= L <= length`, or a label for a network without classes.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int | None = None,
        outputs: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        embedding: int = 128,
        timed: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "length": length, "depth": depth, "hidden": hidden, "outputs": outputs}
        check_text_sizes(heads, width, dropout, **sizes, classes=classes, embedding=embedding)
        self.vocabulary, self.length, self.width, self.depth, self.heads = vocabulary, length, width, depth, heads
        self.hidden, self.outputs, self.dropout, self.classes = hidden, outputs, dropout, classes
        self.embedding, self.timed = embedding, timed

        self.embed = nn.Embedding(vocabulary, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = None if classes is None else LabelEmbedding(classes, embedding)
        self.rotary = Rotary(length, width // heads)
        blocks = [DiTBlock(width, heads, hidden or 4 * width, dropout, embedding) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, outputs or vocabulary)
        self.modulation = nn.Linear(embedding, 2 * width)
        initialize_linear(self)
        for layer in (self.head, self.modulation, *(block.modulation for block in blocks)):
            zeroed(layer)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes."""
        return () if self.label is None else ("label",)

    def null(self, condition: str) -> Tensor:
        """Returns the value that stands for "no condition", for one example: `classes` for the label."""
        return null_of({"label": None if self.classes is None else torch.tensor(self.classes)}, condition)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the logits `(B, L, outputs)`, not normalized (for SEDD they are logarithms of probability ratios).

        Args:
            x: int64 tokens `(B, L)`, `L <= length`.
            time: time inputs `(B,)`, usually 0 to 1000.
            label: class labels, int64 `(B,)`, `classes` for "no label", or None.
        """
        check_text(x, self.vocabulary, self.length)
        refuse_others(self.conditions, label=label)
        time = time if self.timed else torch.zeros_like(time)
        embedding = self.time(
            sinusoidal(time, TIME_FEATURES, cosine_first=True, inclusive=False).to(self.embed.weight.dtype)
        )
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        embedding, h = F.silu(embedding), self.embed(x)
        for block in self.blocks:
            h = block(h, embedding, self.rotary)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        return self.head(torch.addcmul(shift, self.norm(h), 1 + scale))
