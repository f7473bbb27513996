"""Geometric augmentation of images, with a label that tells the network how each image was transformed."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..random import Source, normal, uniform
from ..serialization import serializable
from ..tensors import like
from ..values import notation

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The low-pass filter of the wavelet sym6 (Daubechies 1992): orthogonal to its shifts by two, with sum sqrt(2)."""
CENTER = sum(n * tap for n, tap in enumerate(SYM6)) / math.sqrt(2)
"""The position in the filter of the sample that it stands for, by its first moment."""


@serializable("data.Augmentation")
@dataclass(frozen=True)
class Augmentation:
    r"""The augmentation of Karras et al. (2022, appendix F.2, table 6): flips, scaling, rotation, translation.

    Called with real-valued images x `(N, C, H, W)` and a source of random numbers; returns the transformed images and
    labels `(N, 9)`. Each transformation has parameters a, which are 0, and then it is the identity, except with
    probability p; the horizontal flip alone is always drawn. The network is trained with the labels as its condition
    `augment`. Labels 0, which stand for images as they are, are the condition in sampling, so that the transformations
    do not appear in samples.

    | transformation | parameters | label |
    | --- | --- | --- |
    | horizontal flip | a_0 = 0 or 1, each with probability 1/2 | a_0 |
    | vertical flip | a_1 = 0 or 1 | a_1 |
    | scaling by `scale^a_2` | a_2 from N(0, 1) | a_2 |
    | rotation by a_3 | a_3 uniform on (-pi, pi) | cos a_3 - 1, sin a_3 |
    | scaling by r along angle a_4, 1 / r across | a_4 as a_3, a_5 from N(0, 1) | a_5 cos a_4, a_5 sin a_4 |
    | translation by shares of width and height | a_6, a_7 from N(0, 1) | a_6, a_7 |

    Here `r = anisotropy^a_5`, and the shares are `translation a_6` and `translation a_7`.
    Flips are exact. The others are one affine map, sampled bilinearly from the image at twice its resolution (see
    `warped`).

    Attributes:
        p: probability of each transformation, 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2.
        scale, anisotropy: factors of scaling for a = 1.
        translation: shift for a = 1, as a share of width and height.

    Raises:
        UsageError: for a probability outside of [0, 1], factors that are not positive, and, when called, for x that is
            not real-valued images.
    """

    p: float = 0.12
    scale: float = 2**0.2
    anisotropy: float = 2**0.2
    translation: float = 0.125
    __repr__ = notation

    labels_size = 9

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UsageError(f"p={self.p}: give a probability from 0 to 1, such as 0.12")
        if not (self.scale > 0 and self.anisotropy > 0):
            raise UsageError(f"scale={self.scale}, anisotropy={self.anisotropy}: give positive factors, such as 1.15")

    def __call__(self, x: Tensor, source: Source = None) -> tuple[Tensor, Tensor]:
        if x.ndim != 4 or not x.is_floating_point():
            raise UsageError(
                f"the augmentation got {x.dtype} of shape {tuple(x.shape)}: give real-valued images (N, C, H, W)"
            )
        a = self.draw(len(x), source, x.device)
        return self.transformed(x, a), self.labels(a)

    def draw(self, count: int, source: Source = None, device: torch.device | str = "cpu") -> Tensor:
        """Returns the parameters a_0 to a_7 of `count` images, float32 `(count, 8)`."""
        u, z = uniform((count, 9), source, device=device), normal((count, 4), source, device=device)
        flips = (u[:, :2] < 0.5).float()
        chosen = (u[:, 2:7] < self.p).float()
        angles = (2 * u[:, 7:] - 1) * math.pi
        vertical, scaling, rotation, anisotropy, translation = chosen.unbind(1)
        return torch.stack(
            [
                flips[:, 0],
                flips[:, 1] * vertical,
                z[:, 0] * scaling,
                angles[:, 0] * rotation,
                angles[:, 1] * anisotropy,
                z[:, 1] * anisotropy,
                z[:, 2] * translation,
                z[:, 3] * translation,
            ],
            1,
        )

    def labels(self, a: Tensor) -> Tensor:
        """Returns the labels `(N, 9)` of parameters a `(N, 8)`."""
        columns = a.unbind(1)
        return torch.stack(
            [
                *columns[:3],
                columns[3].cos() - 1,
                columns[3].sin(),
                columns[5] * columns[4].cos(),
                columns[5] * columns[4].sin(),
                *columns[6:],
            ],
            1,
        )

    def transformed(self, x: Tensor, a: Tensor) -> Tensor:
        """Returns images x `(N, C, H, W)` transformed by their parameters a `(N, 8)`."""
        x = torch.where(like(a[:, 0] > 0, x), x.flip(-1), x)
        x = torch.where(like(a[:, 1] > 0, x), x.flip(-2), x)
        moved = (a[:, 2:] != 0).any(1).nonzero()[:, 0]  # other images stay as they are, bit for bit
        if not len(moved):
            return x
        return x.index_copy(0, moved, warped(x[moved], self.inverse(a[moved], x.shape[2:])))

    def inverse(self, a: Tensor, size: tuple[int, ...]) -> Tensor:
        """Returns the affine maps `(N, 2, 3)` from places in the result to places in the image, flips left out.

        Places (x, y) are in pixels from the center of the image, x to the right, y downwards; the image is first
        scaled, then rotated, scaled at an angle, and translated.
        """
        height, width = size
        scaling = diagonal(self.scale ** -a[:, 2], self.scale ** -a[:, 2])
        squeeze = diagonal(self.anisotropy ** -a[:, 5], self.anisotropy ** a[:, 5])
        anisotropy = rotation(a[:, 4]) @ squeeze @ rotation(-a[:, 4])
        linear = scaling @ rotation(-a[:, 3]) @ anisotropy
        shift = self.translation * torch.stack([a[:, 6] * width, a[:, 7] * height], 1)
        return torch.cat([linear, -linear @ shift[:, :, None]], 2)


def rotation(angle: Tensor) -> Tensor:
    """Returns the matrices `(N, 2, 2)` of rotations by angles `(N,)`."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def diagonal(first: Tensor, second: Tensor) -> Tensor:
    """Returns diagonal matrices `(N, 2, 2)` of their two numbers, each `(N,)`."""
    return torch.diag_embed(torch.stack([first, second], 1))


def warped(x: Tensor, inverse: Tensor) -> Tensor:
    """Returns images under affine maps, with the image reflected at its borders without end.

    The image is sampled at twice its resolution by the filter sym6, there interpolated bilinearly, and reduced by the
    same filter (Karras et al. 2020, StyleGAN2-ADA, appendix B). The identity and shifts by whole pixels are exact up to
    rounding. Each row of the result depends on its own row alone.

    Args:
        x: real-valued images `(N, C, H, W)`.
        inverse: `(N, 2, 3)`, maps places in the result, (x, y, 1) in pixels from the center, to places in x.
    """
    (rows, channels, height, width), home = x.shape, {"dtype": x.dtype, "device": x.device}
    vertical, horizontal = (enlarging(n).to(**home) for n in (height, width))
    many = rows * channels
    image = torch.bmm(vertical.expand(many, -1, -1), x.reshape(many, height, width))
    image = torch.bmm(image, horizontal.T.expand(many, -1, -1))
    image = image.reshape(rows, channels, *image.shape[1:])
    periods = torch.tensor([len(horizontal), len(vertical)], **home)
    closed = F.pad(image, (0, 1, 0, 1), mode="circular")
    y, x_ = ((torch.arange(2 * n + len(SYM6) - 2, **home) - CENTER) / 2 - (n - 1) / 2 for n in (height, width))
    places = torch.stack([x_.expand(len(y), -1), y[:, None].expand(-1, len(x_))], -1).reshape(-1, 2)
    linear, shift = inverse[..., :2].to(x.dtype), inverse[:, None, :, 2].to(x.dtype)
    sources = (places[None, :, None] * linear[:, None]).sum(-1) + shift
    centers = torch.tensor([(width - 1) / 2, (height - 1) / 2], **home)
    index = torch.remainder(2 * (sources + centers) + CENTER, periods)
    grid = (2 * index / periods - 1).reshape(rows, len(y), len(x_), 2)
    sampled = F.grid_sample(closed, grid, padding_mode="border", align_corners=True).flatten(0, 1)
    down, right = (reducing(n).to(**home).expand(many, -1, -1) for n in (height, width))
    return torch.bmm(torch.bmm(down, sampled), right.mT).reshape(x.shape)


@functools.lru_cache(maxsize=16)
def enlarging(size: int) -> Tensor:
    """Returns the matrix that samples `size` pixels, reflected without end, at twice the resolution.

    Its rows are the samples of one period, `2 (2 size - 2)`, or 2 for a single pixel; it has `size` columns.
    """
    period = max(1, 2 * size - 2)
    found = torch.zeros(2 * period, size, dtype=torch.float64)
    for n in range(period):
        for k, tap in enumerate(SYM6):
            found[(2 * n + k) % (2 * period), min(n, period - n)] += math.sqrt(2) * tap
    return found


@functools.lru_cache(maxsize=16)
def reducing(size: int) -> Tensor:
    """Returns the matrix `(size, 2 size + 10)` that reduces samples at twice the resolution to `size` pixels."""
    found = torch.zeros(size, 2 * size + len(SYM6) - 2, dtype=torch.float64)
    for n in range(size):
        found[n, 2 * n : 2 * n + len(SYM6)] = torch.tensor(SYM6, dtype=torch.float64) / math.sqrt(2)
    return found
