"""The bidirectional text encoder of D3PM, with the relative positions of T5."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from .dropout import Dropout
from .embeddings import LabelEmbedding, TimeEmbedding, null_of, refuse_others

TIME_FEATURES = 256


def check_text_sizes(heads: int, width: int, dropout: float, **sizes: int | None) -> None:
    """Raises `UsageError` unless the given sizes are 1 or more, `heads` divides `width`, and dropout is in [0, 1)."""
    sizes = {"width": width, "heads": heads} | sizes
    if any(size is not None and size < 1 for size in sizes.values()) or width % heads or not 0 <= dropout < 1:
        given = ", ".join(f"{name}={size}" for name, size in (sizes | {"dropout": dropout}).items() if size is not None)
        raise UsageError(
            f"{given}: each size must be 1 or more, heads must divide width, and dropout must be in [0, 1)"
        )


def check_text(x: Tensor, vocabulary: int, length: int) -> None:
    """Raises `UsageError` unless `x` holds int64 tokens in 0..vocabulary-1, `(B, L)` with L from 1 to `length`."""
    if x.ndim != 2 or x.dtype != torch.int64 or not x.shape[1]:
        raise UsageError(f"the network takes int64 tokens of shape (B, L), not {x.dtype} of shape {tuple(x.shape)}")
    if x.shape[1] > length:
        raise UsageError(
            f"{x.shape[1]} tokens were given to a network of length={length}: cut them, or build the network with "
            "a larger length"
        )
    known = (x >= 0) & (x < vocabulary)
    allowed = f"this network has a vocabulary of {vocabulary}: give tokens in 0..{vocabulary - 1}"
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        for token in x[~known][:1].tolist():
            raise UsageError(f"token {token} is out of range; {allowed}")
    else:  # to name the token would mean to wait for the device, or break the compiled graph
        torch._assert_async(known.all(), f"token out of range; {allowed}")  # pyright: ignore[reportPrivateImportUsage]


def bucket_starts(buckets: int, max_distance: int) -> Tensor:
    r"""Returns the smallest distance in each relative-position bucket of one sign, int64 `(buckets / 2,)`.

    These are the bidirectional buckets of T5 (Raffel et al. 2020, section 2.1). With `m = buckets / 2` and `e = m / 2`
    (rounded down), bucket `i <= e` starts at i, and bucket `e + i` at the first distance d with
    `(m - e) log(d / e) / log(max_distance / e) >= i`. The logarithms are compared as powers of integers, so that
    rounding does not move the edge of a bucket.

    Raises:
        UsageError: for an odd number of buckets, fewer than four, or a max_distance of e or less.
    """
    side, exact = buckets // 2, buckets // 4
    if buckets < 4 or buckets % 2 or max_distance <= exact:
        raise UsageError(
            f"buckets={buckets}, max_distance={max_distance}: give an even number of buckets, four or more, "
            f"and a max_distance above {max(exact, 1)}"
        )
    wide, starts = side - exact, list(range(exact + 1))
    for i in range(1, wide):
        starts.append(
            next(d for d in range(starts[-1], max_distance + 1) if d**wide >= max_distance**i * exact ** (wide - i))
        )
    return torch.tensor(starts)


def relative_buckets(offset: Tensor, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Returns the bucket of each relative position `offset = key - query`, of any shape.

    It is the bucket of the distance |offset|, plus `buckets / 2` where the offset is positive.
    """
    starts = bucket_starts(buckets, max_distance).to(offset.device)
    return buckets // 2 * (offset > 0) + torch.bucketize(offset.abs(), starts[1:], right=True)


def initialize_linear(module: nn.Module) -> None:
    """Draws the weights of every linear layer from `N(0, 1 / inputs)`, in place, and sets the biases to zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class RelativeBias(nn.Module):
    """T5's bias of the attention scores: a learned number for each head and bucket of relative positions.

    It starts at `-2 log(1 + d) + N(0, 1)`, d the smallest distance in the bucket: near tokens have the largest weights,
    and each head prefers other offsets. Started at zero, these numbers would need thousands of optimizer steps before
    attention found the neighboring tokens.

    Args:
        length: length of the longest sequence.
        heads: number of attention heads.
        buckets: number of buckets, of both signs together.
        max_distance: distances from here on share a bucket.
    """

    bucket: Tensor

    def __init__(self, length: int, heads: int, buckets: int, max_distance: int) -> None:
        super().__init__()
        self.length, self.table = length, nn.Embedding(buckets, heads)
        with torch.no_grad():
            self.table.weight -= 2 * bucket_starts(buckets, max_distance).repeat(2)[:, None].log1p()
        self.register_buffer(
            "bucket", relative_buckets(torch.arange(1 - length, length), buckets, max_distance), persistent=False
        )

    def forward(self, length: int) -> Tensor:
        """Returns the bias `(heads, length, length)`, by the position of the query, then that of the key."""
        bucket = self.bucket[self.length - length : self.length + length - 1]  # of offsets 1 - length to length - 1
        line = self.table(bucket).T
        return line.unfold(1, length, 1).flip(1)  # row i starts at offset -i


class EncoderLayer(nn.Module):
    """Self-attention and a perceptron of two layers with a GELU, both residual, each after an RMS norm (pre-norm).

    The linear layers have no bias terms. Called with states h `(B, L, width)` and the bias of the attention scores
    `(heads, L, L)`, the same for all examples; returns `(B, L, width)`. There is no padding mask: every position
    attends to all.

    Args:
        width: size of a state.
        heads: number of heads, a divisor of the width.
        hidden: hidden units of the perceptron.
        dropout: probability of dropout at the end of each branch.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.norm1, self.qkv = nn.RMSNorm(width, 1e-6), nn.Linear(width, 3 * width, False)
        self.out, self.norm2 = nn.Linear(width, width, False), nn.RMSNorm(width, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, False), nn.GELU("tanh"), nn.Linear(hidden, width, False))

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (B, heads, L, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        h = h + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return h + self.dropout(self.mlp(self.norm2(h)))


@serializable("networks.Transformer", formerly="unnoise.shared.networks.transformer.Transformer")
class Transformer(nn.Module):
    """The bidirectional text encoder of D3PM (Austin et al. 2021, section 6 and appendix B.2), with T5's position bias.

    RMS norms with a scale before each branch; perceptrons, queries, keys and values without bias; one bias by relative
    position for all layers; and a head that is not tied to the token embedding. The time embedding is added to the
    embedded tokens after their dropout. The paper looks it up in a learned table of T rows; here the time input is any
    real number (`1000 t` by default), so it is embedded by sinusoidal features and a perceptron.

    Args:
        vocabulary: number of tokens; they are 0..vocabulary-1, a mask token among them.
        length: length of the longest sequence.
        width: size of a state.
        depth: number of layers.
        heads: number of attention heads, a divisor of the width.
        hidden: hidden units of the perceptrons, `4 width` by default.
        outputs: logits for each position, as many as the vocabulary by default.
        dropout: probability of dropout on the embedding and at the end of each branch.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index
            `classes`.
        buckets: number of buckets of relative positions, of both signs together.
        max_distance: relative positions from here on share a bucket.

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
        sizes = {"vocabulary": vocabulary, "length": length, "depth": depth, "hidden": hidden, "outputs": outputs}
        check_text_sizes(heads, width, dropout, **sizes, classes=classes)
        self.vocabulary, self.length, self.width, self.depth, self.heads = vocabulary, length, width, depth, heads
        self.hidden, self.outputs, self.dropout, self.classes = hidden, outputs, dropout, classes
        self.buckets, self.max_distance = buckets, max_distance

        self.embed, self.time = nn.Embedding(vocabulary, width), TimeEmbedding(TIME_FEATURES, width)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.bias = RelativeBias(length, heads, buckets, max_distance)
        layers = [EncoderLayer(width, heads, hidden or 4 * width, dropout) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.RMSNorm(width, 1e-6), nn.Linear(width, outputs or vocabulary, False)
        self.drop = Dropout(dropout)
        # The head is not zeroed: from zero it learns the token frequencies first, and the layers learn little for long.
        initialize_linear(self)
        with torch.no_grad():
            for layer in layers:
                for last in (layer.out, cast("nn.Linear", layer.mlp[-1])):
                    last.weight.mul_((2 * depth) ** -0.5)  # so that the sum of all branches has the variance of one

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes."""
        return () if self.label is None else ("label",)

    def null(self, condition: str) -> Tensor:
        """Returns the value that stands for "no condition", for one example: `classes` for the label."""
        return null_of({"label": None if self.classes is None else torch.tensor(self.classes)}, condition)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the logits `(B, L, outputs)`, not normalized.

        Args:
            x: int64 tokens `(B, L)`, `L <= length`.
            time: time inputs `(B,)`, usually 0 to 1000.
            label: class labels, int64 `(B,)`, `classes` for "no label", or None.
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
