"""The bidirectional text encoder of D3PM, with the relative positions of T5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from .embeddings import LabelEmbedding, TimeEmbedding, null_of, refuse_others

TIME_FEATURES = 256


def check_text_sizes(heads: int, width: int, dropout: float, **sizes: int | None) -> None:
    """Raises `UsageError` unless all sizes that are given are one or more, the heads divide the width, and dropout is a
    probability.
    """
    sizes = {"width": width, "heads": heads} | sizes
    if any(size is not None and size < 1 for size in sizes.values()) or width % heads or not 0 <= dropout < 1:
        given = ", ".join(f"{name}={size}" for name, size in (sizes | {"dropout": dropout}).items() if size is not None)
        raise UsageError(
            f"{given}: give one or more of everything, heads that divide the width, and a dropout in [0, 1)"
        )


def check_text(x: Tensor, vocabulary: int, length: int) -> None:
    """Raises `UsageError` unless `x` is int64 `(B, L)`, L from 1 to `length`, of tokens in 0..vocabulary-1."""
    if x.ndim != 2 or x.dtype != torch.int64 or not x.shape[1]:
        raise UsageError(f"the network takes int64 tokens of shape (B, L), not {x.dtype} of shape {tuple(x.shape)}")
    if x.shape[1] > length:
        raise UsageError(
            f"{x.shape[1]} tokens were given to a network of length={length}: cut them, or build it with a larger length"
        )
    known, allowed = (
        (x >= 0) & (x < vocabulary),
        f"this network has a vocabulary of {vocabulary}: give tokens in 0..{vocabulary - 1}",
    )
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        for token in x[~known][:1].tolist():
            raise UsageError(f"token {token} is out of range; {allowed}")
    else:  # the value would have to be waited for, or would break the graph
        torch._assert_async(known.all(), f"token out of range; {allowed}")


def bucket_starts(buckets: int, max_distance: int) -> Tensor:
    r"""The least distance of each bucket of one sign, int64 `(buckets / 2,)` (Raffel et al. 2020, T5, section 2.1,
    bidirectional).

    With `m = buckets / 2` and `e = m / 2` (rounded down): bucket `i <= e` starts at i, and bucket `e + i` at the first
    distance d with `(m - e) log(d / e) / log(max_distance / e) >= i`. Compared as powers of integers: no rounding moves
    the edge of a bucket.

    Raises:
        UsageError: for an odd number of buckets, fewer than four, or a max_distance that the exact buckets reach
            already.
    """
    side, exact = buckets // 2, buckets // 4
    if buckets < 4 or buckets % 2 or max_distance <= exact:
        raise UsageError(
            f"buckets={buckets}, max_distance={max_distance}: give an even number, four or more, and a distance above {max(exact, 1)}"
        )
    wide, starts = side - exact, list(range(exact + 1))
    for i in range(1, wide):
        starts.append(
            next(d for d in range(starts[-1], max_distance + 1) if d**wide >= max_distance**i * exact ** (wide - i))
        )
    return torch.tensor(starts)


def relative_buckets(offset: Tensor, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket of a relative position `offset = key - query`, any shape.

    That of its distance, `buckets / 2` later where it is positive.
    """
    starts = bucket_starts(buckets, max_distance).to(offset.device)
    return buckets // 2 * (offset > 0) + torch.bucketize(offset.abs(), starts[1:], right=True)


def spread(module: nn.Module) -> None:
    """Draws the weights of every linear layer from `N(0, 1 / inputs)`, in place, and sets the biases to zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class RelativeBias(nn.Module):
    """What T5 adds to the attention scores: one learned number for each head and bucket of relative positions.

    It starts at `-2 log(1 + d) + N(0, 1)`, d the least distance of the bucket: near tokens count most, and every head
    has offsets of its own. Steps of a common size are small beside such numbers: from zero, attention takes thousands
    of them to find its neighbours.

    Args:
        length: longest sequence.
        heads: attention heads.
        buckets: of both signs together.
        max_distance: from here on all distances share a bucket.
    """

    def __init__(self, length: int, heads: int, buckets: int, max_distance: int) -> None:
        super().__init__()
        self.length, self.table = length, nn.Embedding(buckets, heads)
        with torch.no_grad():
            self.table.weight -= 2 * bucket_starts(buckets, max_distance).repeat(2)[:, None].log1p()
        self.register_buffer(
            "bucket", relative_buckets(torch.arange(1 - length, length), buckets, max_distance), persistent=False
        )

    def forward(self, length: int) -> Tensor:
        """Scores to add, `(heads, length, length)`: the query's position, then the key's."""
        line = self.table(
            self.bucket[self.length - length : self.length + length - 1]
        ).T  # offsets 1 - length to length - 1
        return line.unfold(1, length, 1).flip(1)  # row i starts at offset -i


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and a GELU perceptron, both residual and without biases.

    Args:
        width: size of a state.
        heads: a divisor of the width.
        hidden: units of the perceptron.
        dropout: probability at the end of each branch.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm1, self.qkv, self.out = (
            nn.RMSNorm(width, 1e-6),
            nn.Linear(width, 3 * width, False),
            nn.Linear(width, width, False),
        )
        self.norm2 = nn.RMSNorm(width, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, False), nn.GELU("tanh"), nn.Linear(hidden, width, False))

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, L, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        h = h + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return h + self.dropout(self.mlp(self.norm2(h)))


@serializable("networks.Transformer", formerly="unnoise.shared.networks.transformer.Transformer")
class Transformer(nn.Module):
    """The encoder of D3PM for text (Austin et al. 2021, section 6 and appendix B.2): bidirectional, with positions by
    T5's bias.

    Scaled pre-RMS-norms, perceptrons, queries, keys and values without bias, one bias by relative position for all
    layers, and a head that is not tied to the embedding. The time is added to the embedded tokens after their dropout.
    The paper looks it up in a learned table of T rows; here it is any real label (`1000 t` by default), so it enters by
    sinusoidal features and a perceptron.

    Args:
        vocabulary: number of tokens; they are 0..vocabulary-1, a mask among them.
        length: of the longest sequence.
        width: size of a state.
        depth: layers.
        heads: attention heads, a divisor of the width.
        hidden: units of the perceptrons, `4 width` by default.
        outputs: logits for each position, the vocabulary by default.
        dropout: probability on the embedding and at the end of each branch.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index
            `classes`.
        buckets: of relative positions, both signs together.
        max_distance: from here on all relative positions share a bucket.

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
        buckets: int = 32,
        max_distance: int = 128,
    ) -> None:
        super().__init__()
        check_text_sizes(
            heads,
            width,
            dropout,
            vocabulary=vocabulary,
            length=length,
            depth=depth,
            hidden=hidden,
            outputs=outputs,
            classes=classes,
        )
        self.vocabulary, self.length, self.width, self.depth, self.heads = vocabulary, length, width, depth, heads
        self.hidden, self.outputs, self.dropout, self.classes = hidden, outputs, dropout, classes
        self.buckets, self.max_distance = buckets, max_distance

        self.embed, self.time = nn.Embedding(vocabulary, width), TimeEmbedding(TIME_FEATURES, width)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.bias = RelativeBias(length, heads, buckets, max_distance)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden or 4 * width, dropout) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width, 1e-6), nn.Linear(width, outputs or vocabulary, False)
        self.drop = nn.Dropout(dropout)
        spread(
            self
        )  # the head too: from zero it learns the frequencies of the tokens alone, and the layers wait for long
        with torch.no_grad():
            for end in (end for layer in self.layers for end in (layer.out.weight, layer.mlp[-1].weight)):
                end *= (2 * depth) ** -0.5  # the branches add up to the size of one

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes."""
        return () if self.label is None else ("label",)

    def null(self, condition: str) -> Tensor:
        """What stands for no condition, for one example: of the label the index `classes`."""
        return null_of({"label": None if self.classes is None else torch.tensor(self.classes)}, condition)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The logits `(B, L, outputs)`.

        Args:
            x: int64 tokens `(B, L)`, `L <= length`.
            time: the labels `(B,)`.
            label: class indices `(B,)`, index `classes` for none, or None.
        """
        check_text(x, self.vocabulary, self.length)
        refuse_others(self.conditions, label=label)
        embedding = self.time(time)
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        h, bias = self.drop(self.embed(x)) + embedding[:, None], self.bias(x.shape[1])
        for layer in self.layers:
            h = layer(h, bias)
        return self.head(self.norm(h))
