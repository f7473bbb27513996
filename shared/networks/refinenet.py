"""The RefineNet of score networks (NCSNv2, Song & Ermon 2020), for signals of 1, 2 or 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import at_least_float32
from .blocks import CONVOLUTIONS, LINEAR, Convolution
from .embeddings import null_of
from .unet_stages import check_signal

MEAN_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@serializable("networks.RefineNet", formerly="unnoise.shared.networks.refinenet.RefineNet")
class RefineNet(nn.Module):
    r"""RefineNet: residual stages, then refinement from the last stage back to the first.

    The network of Lin et al. (2017) as in Song & Ermon (2020, appendix B.1). Stage i has two residual blocks of
    `width * multipliers[i]` channels, with ELU and `InstanceNormPlus`. The first stage keeps the size. Each further
    stage either halves it, or keeps it and widens its receptive field by dilated convolutions. On the way back, block i
    fuses the output of stage i with the result of block i + 1: residual convolutions of each, then a convolution of
    each, resized and summed; then follow chained pooling and further residual convolutions, with the channels of stage
    i - 1 (the last block keeps its own).

    The paper's networks are `RefineNet(shape)`, and for larger images (bedrooms and towers, faces of 256 pixels)
    `multipliers=(1, 2, 2, 4, 4), dilations=(1, 1, 1, 2, 4)` and
    `multipliers=(1, 2, 2, 2, 4, 4), dilations=(1, 1, 1, 1, 2, 4)`.

    The network does not read the time and must infer the noise level from its input: the output F is meant as
    `sigma * score`, whose magnitude does not depend on the noise level (technique 3; `scaled_score` of
    `unnoise.shared.gaussian.prediction`).

    Sizes: n becomes ceil(n / 2) where a stage halves it, by the mean over windows of two; the last window of an odd
    size is a single position. No other operation changes a size, and the way back enlarges to the size of each stage by
    linear interpolation that keeps the first and the last position (`align_corners`). Nothing is padded, so that even
    sizes agree with the paper's code.

    Args:
        shape: shape of one example, `(C, *size)` with 1, 2 or 3 sizes, each of any length.
        width: number of channels of the first stage at multiplier 1.
        multipliers: channel multiplier of each stage.
        dilations: dilation of the convolutions of each stage; 1 halves the size, in stages after the first.
        eps: added to the variances in the normalizations.

    Raises:
        UsageError: for a shape without 1 to 3 sizes, stages that do not fit together, stages of fewer than two channels
            (the normalization compares channels), or a signal of another shape.
    """

    outputs = 1

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_stages(shape, width, multipliers, dilations, eps)
        self.shape, self.width, self.eps = tuple(shape), width, eps
        self.multipliers, self.dilations = tuple(multipliers), tuple(dilations)
        dims, widths = len(shape) - 1, [width * m for m in multipliers]
        self.stem = convolution(dims, shape[0], widths[0])
        self.stages, self.refinements = nn.ModuleList(), nn.ModuleList()
        for i, (channels, dilation) in enumerate(zip(widths, dilations, strict=True)):
            before = widths[max(i - 1, 0)]
            first = Residual(dims, before, channels, dilation, eps, halve=i > 0 and dilation == 1, project=i > 0)
            self.stages.append(nn.Sequential(first, Residual(dims, channels, channels, dilation, eps)))
        for i, channels in enumerate(widths[:-1]):
            refined = widths[-1] if i == len(widths) - 2 else channels
            self.refinements.append(
                Refinement(dims, [channels, refined], widths[max(i - 1, 0)], outs=3 if i == 0 else 1)
            )
        self.refinements.append(Refinement(dims, widths[-1:], widths[-1], outs=3 if len(widths) == 1 else 1))
        self.norm, self.head = InstanceNormPlus(widths[0], eps), convolution(dims, widths[0], shape[0])

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that `forward` takes: the empty tuple, since it takes none."""
        return ()

    def null(self, condition: str) -> Tensor:
        """Raises `UsageError`, since the network takes no condition."""
        return null_of({}, condition)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Returns F, of the shape `(B, C, *size)` of `x`; the time input is not read."""
        check_signal(x, self.shape)
        found = [self.stem(x)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        h = self.refinements[-1](found.pop())
        for refinement in reversed(self.refinements[:-1]):
            h = refinement(found.pop(), h)
        return self.head(F.elu(self.norm(h)))


class InstanceNormPlus(nn.Module):
    r"""Instance normalization that keeps the differences between the means of the channels.

    "InstanceNorm++" of Song & Ermon (2019, appendix A), without conditions. With mu_c, s_c^2 the mean and the (biased)
    variance of channel c over its positions, and m, v^2 the mean and the (unbiased) variance of the mu_c over the
    channels: `gamma_c ((x_c - mu_c) / sqrt(s_c^2 + eps) + alpha_c (mu_c - m) / sqrt(v^2 + eps)) + beta_c`,
    with alpha, gamma, beta learned. Called with `(B, C, *size)`; returns the same shape.

    Args:
        channels: number of channels, two or more.
        eps: added to both variances.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.alpha, self.gamma = (nn.Parameter(1 + 0.02 * torch.randn(channels)) for _ in range(2))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2)
        means = at_least_float32(h.mean(2))
        variance, mean = (m.unsqueeze(1) for m in (means.var(1), means.mean(1)))
        between = self.alpha * ((means - mean) / (variance + self.eps).sqrt()).to(h.dtype)
        within = F.layer_norm(h, h.shape[2:], eps=self.eps)  # over the positions of each channel
        return (self.gamma[:, None] * (within + between[..., None]) + self.beta[:, None]).reshape(x.shape)


class Residual(nn.Module):
    """Residual block: normalization, ELU and convolution, twice, and a skip connection.

    `skip(x) + conv2(elu(norm2(conv1(elu(norm1(x))))))`, then with `halve` the mean over windows of two.
    Maps `(B, channels_in, *size)` to `(B, channels_out, *size or half)`.

    Args:
        dims: number of spatial dimensions.
        channels_in, channels_out: the second convolution changes the number of channels, the first keeps it.
        dilation: dilation of all convolutions of width 3.
        eps: added to the variances in the normalizations.
        halve: whether the sum is halved in each size, rounding up; the skip convolution then has width 1.
        project: whether the skip connection has a convolution, as in the first block of each stage after the first.
    """

    def __init__(
        self,
        dims: int,
        channels_in: int,
        channels_out: int,
        dilation: int,
        eps: float,
        *,
        halve: bool = False,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.pool = MEAN_POOLS[dims] if halve else None
        self.norm1 = InstanceNormPlus(channels_in, eps)
        self.conv1 = convolution(dims, channels_in, channels_in, dilation)
        self.norm2 = InstanceNormPlus(channels_in, eps)
        self.conv2 = convolution(dims, channels_in, channels_out, dilation)
        kernel = 1 if halve else 3
        self.skip = convolution(dims, channels_in, channels_out, dilation, kernel=kernel) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x)))
        h = self.skip(x) + self.conv2(F.elu(self.norm2(h)))
        return h if self.pool is None else self.pool(h, 2, ceil_mode=True)


class ResidualConvUnit(nn.Module):
    """Residual convolution unit `x + conv2(elu(conv1(elu(x))))`, without biases (Lin et al. 2017, section 3.2)."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (convolution(dims, channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class Fusion(nn.Module):
    """Multi-resolution fusion: the sum of a convolution of each input, resized to the first (Lin et al. 2017).

    Called with one signal `(B, c, *its size)` for each c of `channels_in`; returns `(B, channels_out, *first size)`.
    """

    def __init__(self, dims: int, channels_in: Sequence[int], channels_out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convolution(dims, c, channels_out) for c in channels_in)

    def forward(self, *inputs: Tensor) -> Tensor:
        size = inputs[0].shape[2:]
        return cast("Tensor", sum(resized(conv(x), size) for conv, x in zip(self.convs, inputs, strict=True)))


class ChainedPooling(nn.Module):
    """Chained pooling (Lin et al. 2017): `h_0 + h_1 + h_2`, `h_0 = elu(x)`, `h_k = conv(pool(h_{k-1}))`.

    The pooling is the maximum over windows of 5 positions in each dimension, with stride 1; each h_k has its own
    convolution. The shape is that of x.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.pool = MAX_POOLS[dims]
        self.convs = nn.ModuleList(convolution(dims, channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        path = total = F.elu(x)
        for conv in self.convs:
            path = conv(self.pool(path, 5, stride=1, padding=2))
            total = total + path
        return total


class Refinement(nn.Module):
    """RefineNet block: two residual units for each signal, fusion, chained pooling, and `outs` more residual units.

    Called with the signals, of which the first has the largest size.

    Args:
        dims: number of spatial dimensions.
        channels_in: number of channels of each signal; a single signal is not fused and has `channels_out`.
        channels_out: number of channels of the result, which has the size of the first signal.
        outs: number of residual units at the end.
    """

    def __init__(self, dims: int, channels_in: Sequence[int], channels_out: int, outs: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(nn.Sequential(*(ResidualConvUnit(dims, c) for _ in range(2))) for c in channels_in)
        self.fuse = Fusion(dims, channels_in, channels_out) if len(channels_in) > 1 else nn.Identity()
        self.pool = ChainedPooling(dims, channels_out)
        self.out = nn.Sequential(*(ResidualConvUnit(dims, channels_out) for _ in range(outs)))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.out(self.pool(self.fuse(*(adapt(x) for adapt, x in zip(self.adapt, inputs, strict=True)))))


def convolution(
    dims: int, channels_in: int, channels_out: int, dilation: int = 1, *, kernel: int = 3, bias: bool = True
) -> Convolution:
    """Returns a convolution over `dims` spatial dimensions that keeps the size at every dilation."""
    padding = dilation * (kernel // 2)
    return CONVOLUTIONS[dims](channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=bias)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns `x` `(B, C, *other)` at `size`, by linear interpolation that keeps the first and the last position.

    A signal that has that size is returned as it is.
    """
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=True)


def check_stages(
    shape: Sequence[int], width: int, multipliers: Sequence[int], dilations: Sequence[int], eps: float
) -> None:
    """Raises `UsageError` for arguments from which no RefineNet can be built."""
    if len(shape) not in (2, 3, 4):
        raise UsageError(f"shape {tuple(shape)} must be (channels, *size) with one to three sizes, such as (3, 32, 32)")
    if not multipliers or len(multipliers) != len(dilations):
        raise UsageError(
            f"multipliers={tuple(multipliers)}, dilations={tuple(dilations)}: give one of each for each stage"
        )
    if min(multipliers) < 1 or min(dilations) < 1 or width * min(multipliers) < 2:
        raise UsageError(
            f"width={width}, multipliers={tuple(multipliers)}, dilations={tuple(dilations)}: give each stage two or "
            "more channels, since its normalization compares channels, and a dilation of 1 or more"
        )
    if not eps > 0:
        raise UsageError(f"eps={eps}: give a small positive number, such as 1e-5")
