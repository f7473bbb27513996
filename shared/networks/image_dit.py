"""The diffusion transformer (DiT) of Peebles & Xie (2023), for real-valued signals of 1, 2 or 3 dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..serialization import serializable
from ..tensors import finest
from .blocks import differentiable_twice, zeroed
from .caption_encoder import CaptionEncoder
from .conditioned import Conditioned, check_conditions, check_shape
from .dropout import Dropout
from .embeddings import LabelEmbedding, Sinusoidal, TimeEmbedding, refuse_others
from .transformer import TIME_FEATURES, check_text_sizes
from .unet_stages import check_signal

BASE = 10_000.0
EPS = 1e-6
STD = 0.02
"""Standard deviation of the initial weights of the time and class embeddings, as in the published code."""


def position_embedding(grid: Sequence[int], width: int, device: torch.device | None = None) -> Tensor:
    r"""Returns the fixed sinusoidal embedding of the patches of a grid `(n_1, .., n_d)`, shape `(n_1 .. n_d, width)`.

    Each axis has `2 m` features, `m = floor(width / 2d)`: for the patch at index p along it, counted from 0,
    `sin(p w_i)`, then `cos(p w_i)`, `w_i = 10000^(-i / m)`. The features of the last axis come first, as in the
    published code, and the remaining `width - 2 m d` features are zero. The dtype is float64 where the device has it.
    """
    m, d = width // (2 * len(grid)), len(grid)
    rates = BASE ** (-finest(torch.arange(m, device=device)) / max(m, 1))
    parts = []
    for axis in reversed(range(d)):
        angle = torch.arange(grid[axis], device=device)[:, None] * rates
        along = torch.cat([angle.sin(), angle.cos()], dim=1)  # (n_axis, 2 m)
        parts.append(along[(None,) * axis + (slice(None),) + (None,) * (d - 1 - axis)].expand(*grid, 2 * m))
    return F.pad(torch.cat(parts, dim=-1).flatten(0, -2), (0, width - 2 * m * d))


def patchify(x: Tensor, patch: int) -> Tensor:
    """Returns `x` `(B, C, *size)`, whose sizes are multiples of `patch`, as patches `(B, N, C patch^d)`.

    d is the number of axes in `size`, and N the number of patches. The patches stand row by row, and the values of a
    patch channel by channel.
    """
    cut = x
    for axis in reversed(range(2, x.ndim)):
        cut = cut.unflatten(axis, (-1, patch))  # (B, C, n_1, p, n_2, p, ..)
    grid, inner = range(2, cut.ndim, 2), range(3, cut.ndim, 2)
    return cut.permute(0, *grid, 1, *inner).flatten(x.ndim - 1).flatten(1, -2)


def unpatchify(h: Tensor, patch: int, grid: Sequence[int]) -> Tensor:
    """Returns patches `h` `(B, N, patch^d C)` as a signal `(B, C, *size)`, `size = patch grid`.

    The values of a patch stand position by position, with the channels last; `grid` is the number of patches along each
    of the d axes, and `patch` their size.
    """
    d = len(grid)
    parts = h.unflatten(2, (*[patch] * d, -1)).unflatten(1, tuple(grid))  # (B, n_1, .., n_d, p, .., p, C)
    pairs = [axis for i in range(d) for axis in (1 + i, 1 + d + i)]
    return parts.permute(0, 2 * d + 1, *pairs).reshape(len(h), -1, *(n * patch for n in grid))


class ImageDiTBlock(nn.Module):
    """Transformer block with adaptive layer norms and gates (Peebles & Xie 2023, section 3.2, adaLN-Zero).

    `h + g1 attention(s1 norm(h) + b1)`, then `h + g2 mlp(s2 norm(h) + b2)`. The norms have no parameters; the shifts b,
    scales s - 1 and gates g are linear in the embedding and start at zero, so that a new block is the identity. Keys
    and values of a context, which a second linear layer computes, stand before those of the signal (Nichol et al. 2021,
    GLIDE, section 3).

    Args:
        width: size of a state, and of the embedding.
        heads: number of heads, a divisor of the width.
        hidden: hidden units of the perceptron.
        dropout: probability of dropout at the end of each branch.
        context: size of a state of the context, or None for a block without context.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, context: int | None) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.context = None if context is None else nn.Linear(context, 2 * width)
        glorot(self)
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns the states `(B, N, width)` after the block.

        Args:
            h: states `(B, N, width)`.
            embedding: embedding of the time and the conditions, `(B, width)`.
            context: states of the context `(B, L, context)`, or None.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        h = h + gate1 * self.dropout(self.attention(torch.addcmul(shift1, self.norm(h), 1 + scale1), context))
        return h + gate2 * self.dropout(self.mlp(torch.addcmul(shift2, self.norm(h), 1 + scale2)))

    def attention(self, h: Tensor, context: Tensor | None) -> Tensor:
        """Returns the attention of h `(B, N, width)` to itself and the context `(B, L, context)`, of the shape of h."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, width / heads)
        if self.context is not None:
            further = self.context(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            k, v = torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def glorot(module: nn.Module) -> None:
    """Draws the weights of every linear layer from `U(-a, a)`, `a^2 = 6 / (inputs + outputs)`, in place.

    The biases are set to zero.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


@serializable("networks.ImageDiT", formerly="unnoise.shared.networks.image_dit.ImageDiT")
class ImageDiT(Conditioned):
    r"""The transformer on patches of Peebles & Xie (2023, section 3, adaLN-Zero), for signals of 1, 2 or 3 dimensions.

    The paper calls it DiT; in this package, and in its checkpoints, `DiT` is the text transformer.

    A signal may have any size at run time: where a size is not a multiple of the patch, zeros are added at the end of
    that axis, up to the next multiple, and the same rows are cut off from the output. The position embedding is that of
    the signal's own grid. The output of a new network is zero. The paper's networks on latents of 4 channels, each with
    `patch=2, outputs=2, classes=1000`: DiT-S `width=384, depth=12, heads=6`, DiT-B 768, 12, 12, DiT-L 1024, 24, 16, and
    DiT-XL 1152, 28, 16; their time input is the 0-based step, `step_index`.

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        patch: size of a patch along each axis.
        width: size of a state.
        depth: number of blocks.
        heads: number of attention heads, a divisor of the width.
        hidden: hidden units of the perceptrons, `4 width` by default.
        dropout: probability of dropout at the end of each branch.
        classes: number of class labels, or None for an unconditional network; label `None` is the null class, index
            `classes`.
        outputs: output channels for each input channel: `(B, outputs C, *size)`, the first C of them the prediction.
        vector: size of a continuous condition vector, which a two-layer perceptron adds to the time embedding, or None;
            vector `None` is the learned `null_vector`.
        image: channels of a condition image, concatenated with those of the signal; a smaller image is interpolated
            linearly to the signal's size. 0 for a network without.
        tokens: encoder of a token sequence, or None; every block attends to its states too, and the last one is added
            to the time embedding; tokens `None` are all padding.
        null_label: False for a network that needs a class label for every example.
        augment: size of a vector of augmentation parameters, added to the features of the time (Karras et al. 2022,
            appendix F.2), or None; augment `None` is zeros.

    Raises:
        UsageError: for sizes that do not fit, a signal or a condition that does not fit, a condition that the network
            was not built with, or a missing image.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        outputs: int = 1,
        vector: int | None = None,
        image: int = 0,
        tokens: CaptionEncoder | None = None,
        null_label: bool = True,
        augment: int | None = None,
    ) -> None:
        super().__init__()
        check_shape(shape)
        check_text_sizes(heads, width, dropout, channels=shape[0], patch=patch, depth=depth, hidden=hidden)
        check_conditions(classes, outputs, vector, image, tokens, augment)
        self.shape, self.patch, self.width, self.depth, self.heads = tuple(shape), patch, width, depth, heads
        self.hidden, self.dropout, self.classes, self.outputs = hidden, dropout, classes, outputs
        self.vector, self.image, self.tokens, self.null_label, self.augment = vector, image, tokens, null_label, augment

        cells = patch ** (len(shape) - 1)
        self.stem = nn.Linear((shape[0] + image) * cells, width)
        glorot(self.stem)
        self.time = TimeEmbedding(TIME_FEATURES, width, Sinusoidal(cosine_first=True, inclusive=False))
        self.label = None if classes is None else LabelEmbedding(classes, width, null_label)
        context = None if tokens is None else tokens.width
        self.blocks = nn.ModuleList(
            ImageDiTBlock(width, heads, hidden or 4 * width, dropout, context) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, cells * shape[0] * outputs))
        self.build_conditions(width, TIME_FEATURES)
        self._initialize_embeddings()

    def _initialize_embeddings(self) -> None:
        for layer in self.time.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=STD)
                nn.init.zeros_(layer.bias)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=STD)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        tokens: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Returns the prediction `(B, outputs C, *size)`.

        Args:
            x: real-valued, `(B, C, *size)`.
            time: time inputs `(B,)`, usually 0 to 1000.
            label: class labels, int64 `(B,)`, `classes` for "no label", or None.
            vector: `(B, vector)` or None.
            image: `(B, image, *size)`, each size at most that of x; required where the network is built with it.
            tokens: integers `(B, L)`, -1 for padding, or None.
            augment: `(B, augment)` or None.
        """
        check_signal(x, self.shape)
        refuse_others(self.conditions, label=label, vector=vector, image=image, tokens=tokens, augment=augment)
        added, context = self.embed_conditions(len(x), vector, tokens)
        embedding = self.time(time, self.embed_augmentations(augment, len(x))) + added
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        embedding, size = F.silu(embedding), x.shape[2:]
        grid = tuple(math.ceil(n / self.patch) for n in size)
        padding = [
            zeros for n, m in zip(reversed(size), reversed(grid), strict=True) for zeros in (0, m * self.patch - n)
        ]
        h = self.stem(patchify(F.pad(self.with_image(x, image), padding), self.patch))
        h = h + position_embedding(grid, self.width, x.device).to(h.dtype)
        with differentiable_twice(x, time, vector, image):
            for block in self.blocks:
                h = block(h, embedding, context)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        h = self.head(torch.addcmul(shift, self.norm(h), 1 + scale))
        return unpatchify(h, self.patch, grid)[(..., *(slice(n) for n in size))]
