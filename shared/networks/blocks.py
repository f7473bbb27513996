"""Residual blocks, attention and resampling for signals of 1, 2 or 3 spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import like
from ..values import notation
from .dropout import Dropout

M = TypeVar("M", bound=nn.Module)
Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UNFUSED_POSITIONS = 1024
"""Number of positions up to which the scores of all pairs of them are held in memory at once."""
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def conv(dims: int, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> Convolution:
    """Returns a convolution of odd width `kernel` over `dims` spatial dimensions that keeps the size at stride 1.

    It maps `(B, channels_in, *size)` to `(B, channels_out, *size)`; at stride 2 it halves each size, rounding up.
    """
    return CONVOLUTIONS[dims](channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)


def zeroed(module: M) -> M:
    """Returns the module with all its parameters set to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@serializable(
    "networks.GroupNormalization",
    formerly=("unnoise.shared.networks.blocks.Groups", "networks.Groups"),
    renamed={"most": "max_groups", "least": "min_group_size"},
)
@dataclass(frozen=True)
class GroupNormalization:
    """Group normalization whose number of groups follows from the number of channels.

    Called with a number of channels C; returns an `nn.GroupNorm` that has
    `gcd(min(max_groups, max(C // min_group_size, 1)), C)` groups.

    Attributes:
        max_groups: largest number of groups; 32 in every paper.
        min_group_size: channels that a group should have at least; 4 here and in Song et al. (2021), since a group of
            one channel erases that channel's mean; 1 in Ho et al. (2020).
        eps: added to the variance; 1e-6 in Ho et al. (2020) and Song et al. (2021).
    """

    max_groups: int = 32
    min_group_size: int = 4
    eps: float = 1e-5
    __repr__ = notation

    def __call__(self, channels: int) -> nn.GroupNorm:
        """Returns the normalization layer of `channels` channels."""
        groups = math.gcd(min(self.max_groups, max(channels // self.min_group_size, 1)), channels)
        return nn.GroupNorm(groups, channels, self.eps)


group_norm = GroupNormalization()


class ResidualBlock(nn.Module):
    """Residual block: normalization, SiLU and convolution, twice; the embedding enters at the second normalization.

    `h = conv1(resize(silu(norm1(x))))`, then `h <- norm2(h) (1 + scale) + shift` (Dhariwal & Nichol 2021, AdaGN) or
    `h <- norm2(h + shift)` (Ho et al. 2020); the result is `gain (skip(resize(x)) + conv2(dropout(silu(h))))`. Scale
    and shift are linear in silu(embedding); conv2 starts at zero.

    Called with x `(B, channels_in, *size)`, the embedding `(B, embedding)` and, if `resize` needs it, the new size;
    returns `(B, channels_out, *new size)`.

    Args:
        dims: number of spatial dimensions.
        channels_in, channels_out: where they differ, the skip connection is a 1 x 1 convolution.
        embedding: size of the time (and class) embedding, `(B, embedding)`.
        dropout: probability of dropout before the second convolution.
        norm: maps a number of channels to a normalization layer.
        adaptive: whether the embedding scales too (AdaGN), and does not only shift.
        gain: factor in the formula above; 1 / sqrt(2) in Song et al. (2021).
        resize: a layer `(x, size) -> resized` that halves or doubles the sizes, or None.
        project: whether the skip connection is a 1 x 1 convolution where the channels are equal too.
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
        self.dropout = Dropout(dropout)
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
    """Returns the residual sum `gain (x + branch)`."""
    return x + branch if gain == 1 else gain * (x + branch)


class SelfAttention(nn.Module):
    """Residual self-attention over all positions of `(B, C, *size)` and, if given, over the states of a context.

    `gain (x + W softmax(q [k_context, k]^T / sqrt(C / heads)) [v_context, v])`: q, k and v are linear in norm(x), and
    k_context and v_context, which a second linear layer computes from the context, stand before k and v (Nichol et al.
    2021, GLIDE, section 3). W starts at zero.

    Called with x `(B, C, *size)` and the states of the context `(B, length, context)`, or None to attend to the signal
    alone; returns the shape of x.

    Args:
        channels: C, number of channels of the signal.
        heads: number of heads, a divisor of the channels.
        context: size of a state of the context, or None for a layer without context.
        norm: maps a number of channels to a normalization layer.
        gain: factor in the formula above; 1 / sqrt(2) in Song et al. (2021).

    Raises:
        UsageError: where the heads do not divide the channels, or a layer without context is given one.
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
        # Fused attention needs channels last, hence linear layers in place of convolutions of width one.
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = pointwise(self.qkv, h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # each (B, heads, N, C / heads)
        if context is not None:
            if self.context is None:
                raise UsageError(
                    "this attention layer was built without a context and was given one: "
                    "build it with context=..., or leave the context out"
                )
            further = self.context(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            # (2, B, heads, length, C / heads)
            k, v = torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2)
        h = attended(q, k, v).transpose(1, 2).flatten(2)
        return added(x, pointwise(self.out, h).transpose(1, 2).unflatten(2, x.shape[2:]), self.gain)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns `softmax(q k^T / sqrt(d)) v` `(B, heads, N, d)`, by fused attention or, where faster, by two products.

    Shapes: q `(B, heads, N, d)`, k and v `(B, heads, M, d)`; M > N with a context.

    CPUs multiply bfloat16 matrices in half the time of float32 ones, and fused attention makes no use of that.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or q.shape[2] > UNFUSED_POSITIONS:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), dim=-1).to(v.dtype) @ v


def pointwise(convolution: nn.Conv1d, h: Tensor) -> Tensor:
    """Applies a convolution of width one to h `(B, N, C)`, with the channels last, and returns `(B, N, C_out)`."""
    return F.linear(h, convolution.weight.squeeze(-1), convolution.bias)


def differentiable_twice(*inputs: Tensor | None) -> AbstractContextManager[Any]:
    """Returns a context in which attention has second and forward-mode derivatives, if an input is differentiated.

    The inputs are the signal, the time and the conditions of a network, None for absent ones; if none of them is
    differentiated, the context does nothing.

    Fused attention has only first derivatives, which suffice for a training step on data. A gradient with respect to
    the signal or the time is a score, the gradient of an energy or a guidance term, and training, a likelihood or
    another gradient may differentiate it again. Second derivatives with respect to the parameters only are not
    detected: compute them within `sdpa_kernel(SDPBackend.MATH)`.
    """
    given = [v for v in inputs if v is not None]
    backward = torch.is_grad_enabled() and any(v.requires_grad for v in given)
    forward = any(forward_ad.unpack_dual(v).tangent is not None for v in given if v.is_floating_point())
    return sdpa_kernel(SDPBackend.MATH) if backward or forward else nullcontext()


class AttentionPool(nn.Module):
    """Attention pooling of `(B, C, *size)` to one vector `(B, C)`, with the mean of the positions as the query.

    `W softmax(q k^T / sqrt(C / heads)) v` with q from the mean of the normalized positions, k and v from the positions
    (Dhariwal & Nichol 2021, section 4; the pooling of Radford et al. 2021, without its position embedding, so that it
    takes any size). W is a linear layer.

    Args:
        channels: C, number of channels of the signal.
        heads: number of heads, a divisor of the channels.
        norm: maps a number of channels to a normalization layer.

    Raises:
        UsageError: where the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.norm = heads, norm(channels)
        self.query, self.kv = nn.Linear(channels, channels), nn.Conv1d(channels, 2 * channels, 1)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2)  # (B, C, N)
        q = self.query(h.mean(dim=2)).unflatten(1, (self.heads, 1, -1))  # (B, heads, 1, C / heads)
        k, v = self.kv(h).unflatten(1, (2, self.heads, -1)).transpose(-1, -2).unbind(1)
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))


def check_heads(channels: int, heads: int) -> None:
    """Raises `UsageError` unless the number of heads divides the number of channels."""
    if heads < 1 or channels % heads:
        raise UsageError(f"{channels} channels cannot be split over {heads} heads: choose a divisor of {channels}")


class PositionalPool(nn.Module):
    """Attention pooling of `(B, C, *size)` to `(B, out)` with a learned position embedding (Radford et al. 2021, CLIP).

    `W softmax(q_0 k^T / sqrt(C / heads)) v` of the N + 1 rows `[mean(h), h] + p`, h = silu(norm(x)), p learned: the
    mean of the positions, put in front of them, is the query and attends to itself too, as in the classifiers that
    Dhariwal & Nichol (2021) published.

    Args:
        channels: C, number of channels of the signal.
        heads: number of heads, a divisor of the channels.
        positions: N, the only number of positions that it takes.
        out: size of the result, such as the number of classes, whose logits it then returns.
        norm: maps a number of channels to a normalization layer.

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
                f"this classifier pools {self.positions.shape[1] - 1} positions, not {h.shape[2]}: "
                "give signals of the size that it was built for"
            )
        h = torch.cat([h.mean(dim=2, keepdim=True), h], dim=2) + self.positions.to(h.dtype)
        h = h.transpose(1, 2)  # (B, 1 + N, C)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, C / heads)
        return self.out(F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1))


class Downsample(nn.Module):
    """Halves each spatial size (rounding up) with a convolution of width 3 and stride 2.

    Called with x `(B, channels, *size)` and the embedding, which it ignores; returns `(B, channels, *half)`.

    Args:
        dims: number of spatial dimensions.
        channels: number of input and of output channels.
        same: whether an even size is padded by one zero at its end only, as with "SAME" in the code of Ho et al.
            (2020); otherwise, and for odd sizes, by one zero at each end.
    """

    def __init__(self, dims: int, channels: int, same: bool = False) -> None:
        super().__init__()
        self.same = same
        self.conv = CONVOLUTIONS[dims](channels, channels, 3, stride=2, padding=0 if same else 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(x, [p for n in reversed(x.shape[2:]) for p in (n % 2, 1)]) if self.same else x)


class Upsample(nn.Module):
    """Resizes to a given size, odd or even, by nearest neighbors, then convolves with width 3.

    Called with x `(B, channels, *any)`, the embedding, which it ignores, and the size; returns `(B, channels, *size)`.

    Args:
        dims: number of spatial dimensions.
        channels: number of input and of output channels.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor, embedding: Tensor | None, size: tuple[int, ...]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns `x` `(B, C, *smaller)` at `size`, by (bi-, tri-)linear interpolation between pixel centers.

    A signal that has that size is returned as it is.
    """
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=False)
