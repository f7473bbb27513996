"""Residual blocks, attention and resampling for signals of 1, 2 or 3 spatial dimensions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..tensors import like

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def conv(dims: int, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over `dims` spatial dimensions that keeps the size at stride 1."""
    return CONVOLUTIONS[dims](channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters at zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least four channels: a group of one channel would erase that channel's mean."""
    return nn.GroupNorm(math.gcd(min(32, max(channels // 4, 1)), channels), channels)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the embedding scales and shifts the second norm (Dhariwal & Nichol 2021, AdaGN).

    Args:
        dims: number of spatial dimensions.
        channels_in, channels_out: a 1 x 1 convolution joins the two where they differ.
        embedding: size of the time (and class) embedding, `(B, embedding)`.
        dropout: probability before the second convolution.
    """

    def __init__(self, dims: int, channels_in: int, channels_out: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels_in), conv(dims, channels_in, channels_out)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm2, self.conv2 = group_norm(channels_out), zeroed(conv(dims, channels_out, channels_out))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if channels_in == channels_out else conv(dims, channels_in, channels_out, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = (like(m, h) for m in self.modulation(F.silu(embedding)).chunk(2, dim=1))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """Residual self-attention over all positions of `(B, C, *size)`, and over the states of a context where there is one.

    The context's own projection is joined to the keys and values (Nichol et al. 2021, GLIDE, section 3):
    `x + W softmax(q [k_context, k]^T / sqrt(C / heads)) [v_context, v]`.

    Args:
        channels: of the signal.
        heads: a divisor of the channels.
        context: size of a context's states, `(B, length, context)`, or None.

    Raises:
        UsageError: where the heads do not divide the channels, or a context meets a layer without one.
    """

    def __init__(self, channels: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.norm = heads, group_norm(channels)
        self.qkv, self.out = nn.Conv1d(channels, 3 * channels, 1), zeroed(nn.Conv1d(channels, channels, 1))
        self.context = None if context is None else nn.Linear(context, 2 * channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        batch, channels, *size = x.shape
        h = self.norm(x).flatten(2)  # (B, C, N)
        q, k, v = self.qkv(h).view(batch, 3, self.heads, channels // self.heads, -1).transpose(-1, -2).unbind(1)
        if context is not None:
            if self.context is None:
                raise UsageError("a context was given to attention without one: build it with context=..., or leave the context out")
            further = self.context(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (2, B, heads, length, C / heads)
            k, v = torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(batch, channels, -1)
        return x + self.out(h).view(batch, channels, *size)


class AttentionPool(nn.Module):
    """All positions of `(B, C, *size)` in one vector `(B, C)`: their mean, as the query, attends to each of them.

    `W softmax(q k^T / sqrt(C / heads)) v` with q from the mean of the normed positions, k and v from the positions
    (Dhariwal & Nichol 2021, section 4; the pooling of Radford et al. 2021, without its position embedding, so that any size will do).

    Args:
        channels: of the signal.
        heads: a divisor of the channels.

    Raises:
        UsageError: where the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.norm = heads, group_norm(channels)
        self.query, self.kv, self.out = nn.Linear(channels, channels), nn.Conv1d(channels, 2 * channels, 1), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2)  # (B, C, N)
        q = self.query(h.mean(dim=2)).unflatten(1, (self.heads, 1, -1))  # (B, heads, 1, C / heads)
        k, v = self.kv(h).unflatten(1, (2, self.heads, -1)).transpose(-1, -2).unbind(1)
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))


def check_heads(channels: int, heads: int) -> None:
    """Raises `UsageError` unless the heads divide the channels."""
    if heads < 1 or channels % heads:
        raise UsageError(f"{channels} channels cannot be split over {heads} heads: choose a divisor of {channels}")


class Downsample(nn.Module):
    """Halves each spatial size (rounding up) with a strided convolution."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour resizing to a given size, then a convolution: any size comes back, odd ones too."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """`x` `(B, C, *smaller)` at `size` by (bi-, tri-)linear interpolation between pixel centres; as it is where it has that size."""
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=False)
