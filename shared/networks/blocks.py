"""Residual blocks, attention and resampling for signals of 1, 2 or 3 spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import like

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FEW = 1024
"""Positions up to which all pairs of them are held at once."""
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def conv(dims: int, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over `dims` spatial dimensions that keeps the size at stride 1."""
    return CONVOLUTIONS[dims](channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters at zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@serializable("networks.Groups", formerly="unnoise.shared.networks.blocks.Groups")
@dataclass(frozen=True)
class Groups:
    """Group normalisation of C channels in `gcd(min(most, C // least), C)` groups, and one where that is none.

    Attributes:
        most: 32 everywhere.
        least: 4 here and in Song et al. (2021), since a group of one channel erases that channel's mean; 1 in Ho et al.
            (2020).
        eps: added to the variance; 1e-6 in Ho et al. (2020) and Song et al. (2021).
    """

    most: int = 32
    least: int = 4
    eps: float = 1e-5

    def __call__(self, channels: int) -> nn.GroupNorm:
        """The norm of `channels` channels."""
        return nn.GroupNorm(math.gcd(min(self.most, max(channels // self.least, 1)), channels), channels, self.eps)


group_norm = Groups()


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the embedding enters before or in the second norm.

    `h = conv1(resize(silu(norm1(x))))`, then `norm2(h) (1 + scale) + shift` (Dhariwal & Nichol 2021, AdaGN) or
    `norm2(h + shift)` (Ho et al. 2020), and `skip(resize(x)) + conv2(silu(h))`.

    Args:
        dims: number of spatial dimensions.
        channels_in, channels_out: a 1 x 1 convolution joins the two where they differ.
        embedding: size of the time (and class) embedding, `(B, embedding)`.
        dropout: probability before the second convolution.
        norm: makes the norms.
        adaptive: the embedding gives a scale too.
        gain: factor of the sum; 1 / sqrt(2) in Song et al. (2021).
        resize: a layer `(x, size) -> resized`, or None.
        project: a 1 x 1 convolution joins x to the sum whatever its channels.
    """

    def __init__(
        self,
        dims: int,
        channels_in: int,
        channels_out: int,
        embedding: int,
        dropout: float = 0.0,
        *,
        norm: Callable[[int], nn.Module] = group_norm,
        adaptive: bool = True,
        gain: float = 1.0,
        resize: nn.Module | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.adaptive, self.gain, self.resize = adaptive, gain, resize
        self.norm1, self.conv1 = norm(channels_in), conv(dims, channels_in, channels_out)
        self.modulation = nn.Linear(embedding, (1 + adaptive) * channels_out)
        self.norm2, self.conv2 = norm(channels_out), zeroed(conv(dims, channels_out, channels_out))
        self.dropout = nn.Dropout(dropout)
        self.skip = (
            conv(dims, channels_in, channels_out, kernel=1) if project or channels_in != channels_out else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resize is not None:
            h, x = self.resize(h, size), self.resize(x, size)
        h, modulation = self.conv1(h), self.modulation(F.silu(embedding))
        if self.adaptive:
            scale, shift = (like(m, h) for m in modulation.chunk(2, dim=1))
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + like(modulation, h))
        return added(self.skip(x), self.conv2(self.dropout(F.silu(h))), self.gain)


def added(x: Tensor, branch: Tensor, gain: float) -> Tensor:
    """`gain (x + branch)`."""
    return x + branch if gain == 1 else gain * (x + branch)


class SelfAttention(nn.Module):
    """Residual self-attention over all positions of `(B, C, *size)`, and over the states of a context where there is
    one.

    The context's own projection is joined to the keys and values (Nichol et al. 2021, GLIDE, section 3):
    `x + W softmax(q [k_context, k]^T / sqrt(C / heads)) [v_context, v]`.

    Args:
        channels: of the signal.
        heads: a divisor of the channels.
        context: size of a context's states, `(B, length, context)`, or None.
        norm: makes the norm.
        gain: factor of the sum.

    Raises:
        UsageError: where the heads do not divide the channels, or a context meets a layer without one.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context: int | None = None,
        *,
        norm: Callable[[int], nn.Module] = group_norm,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.gain, self.norm = heads, gain, norm(channels)
        self.qkv, self.out = nn.Conv1d(channels, 3 * channels, 1), zeroed(nn.Conv1d(channels, channels, 1))
        self.context = None if context is None else nn.Linear(context, 2 * channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # Channels last, and linear in place of convolutions one wide: fused attention takes no other layout.
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = (
            pointwise(self.qkv, h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, N, C / heads)
        if context is not None:
            if self.context is None:
                raise UsageError(
                    "a context was given to attention without one: build it with context=..., or leave the context out"
                )
            further = (
                self.context(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            )  # (2, B, heads, length, C / heads)
            k, v = torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2)
        h = attended(q, k, v).transpose(1, 2).flatten(2)
        return added(x, pointwise(self.out, h).transpose(1, 2).unflatten(2, x.shape[2:]), self.gain)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(d)) v` of `(B, heads, N, d)`, fused but where its two products alone take less time.

    Processors multiply half-precision matrices in half the time, which fused attention does not make use of there.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or q.shape[2] > FEW:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1).to(v.dtype) @ v


def pointwise(convolution: nn.Module, h: Tensor) -> Tensor:
    """A one-wide convolution of `(B, N, C)`, whose channels are last."""
    return F.linear(h, convolution.weight.squeeze(-1), convolution.bias)


def differentiable_twice(*inputs: Tensor | None) -> AbstractContextManager[None]:
    """Within it attention has second and forward-mode derivatives, where an input of the network is differentiated at
    all.

    Fused attention has first derivatives alone, which is all that a training step on data takes. A gradient in the
    signal or in the time is a score, an energy's slope or a guidance, which training, a likelihood or another gradient
    may differentiate again. Second derivatives in the parameters alone are not provided for: wrap what needs them in
    `sdpa_kernel(SDPBackend.MATH)`.
    """
    given = [v for v in inputs if v is not None]
    backward = torch.is_grad_enabled() and any(v.requires_grad for v in given)
    forward = any(forward_ad.unpack_dual(v).tangent is not None for v in given if v.is_floating_point())
    return sdpa_kernel(SDPBackend.MATH) if backward or forward else nullcontext()


class AttentionPool(nn.Module):
    """All positions of `(B, C, *size)` in one vector `(B, C)`: their mean, as the query, attends to each of them.

    `W softmax(q k^T / sqrt(C / heads)) v` with q from the mean of the normed positions, k and v from the positions
    (Dhariwal & Nichol 2021, section 4; the pooling of Radford et al. 2021, without its position embedding, so that any
    size will do).

    Args:
        channels: of the signal.
        heads: a divisor of the channels.
        norm: makes the norm.

    Raises:
        UsageError: where the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.norm = heads, norm(channels)
        self.query, self.kv, self.out = (
            nn.Linear(channels, channels),
            nn.Conv1d(channels, 2 * channels, 1),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2)  # (B, C, N)
        q = self.query(h.mean(dim=2)).unflatten(1, (self.heads, 1, -1))  # (B, heads, 1, C / heads)
        k, v = self.kv(h).unflatten(1, (2, self.heads, -1)).transpose(-1, -2).unbind(1)
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))


def check_heads(channels: int, heads: int) -> None:
    """Raises `UsageError` unless the heads divide the channels."""
    if heads < 1 or channels % heads:
        raise UsageError(f"{channels} channels cannot be split over {heads} heads: choose a divisor of {channels}")


class PositionalPool(nn.Module):
    """As `AttentionPool`, but of a fixed number of positions, to each of which a learned vector is added (Radford et
    al. 2021, CLIP).

    `W softmax(q_0 k^T / sqrt(C / heads)) v` of the N + 1 rows `[mean(h), h] + p`, h = silu(norm(x)), p learned: the
    mean of the positions, put in front of them, is the query and attends to itself too, as in Dhariwal & Nichol's
    (2021) released classifiers. `(B, C, *size)` to `(B, out)`.

    Args:
        channels: C, of the signal.
        heads: a divisor of the channels.
        positions: N.
        out: size of the result: the classes.
        norm: makes the norm.

    Raises:
        UsageError: where the heads do not divide the channels, or a signal has another number of positions.
    """

    def __init__(
        self, channels: int, heads: int, positions: int, out: int, norm: Callable[[int], nn.Module] = group_norm
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.norm = heads, norm(channels)
        self.positions = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(x)).flatten(2)  # (B, C, N)
        if h.shape[2] + 1 != self.positions.shape[1]:
            raise UsageError(
                f"this classifier pools {self.positions.shape[1] - 1} positions, not {h.shape[2]}: give it signals of its size"
            )
        h = (torch.cat([h.mean(dim=2, keepdim=True), h], dim=2) + self.positions.to(h.dtype)).transpose(
            1, 2
        )  # (B, 1 + N, C)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, C / heads)
        return self.out(F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1))


class Downsample(nn.Module):
    """Halves each spatial size (rounding up) with a strided convolution.

    Args:
        dims: number of spatial dimensions.
        channels: in and out.
        same: zeros only beyond the end of an even size, "SAME" of Ho et al.'s (2020) code; otherwise, and for odd
            sizes, one at each end.
    """

    def __init__(self, dims: int, channels: int, same: bool = False) -> None:
        super().__init__()
        self.same, self.conv = same, conv(dims, channels, channels, stride=2)
        if same:
            self.conv.padding = (0,) * dims

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(x, [p for n in reversed(x.shape[2:]) for p in (n % 2, 1)]) if self.same else x)


class Upsample(nn.Module):
    """Nearest-neighbour resizing to a given size, then a convolution: any size comes back, odd ones too."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor, embedding: Tensor | None, size: tuple[int, ...]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """`x` `(B, C, *smaller)` at `size` by (bi-, tri-)linear interpolation between pixel centres.

    As it is where it has that size.
    """
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=False)
