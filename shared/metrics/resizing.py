"""The bilinear resize of TensorFlow 1, which the features of FID are computed after."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def tensorflow_bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Resizes images `(N, C, H, W)` bilinearly as TensorFlow 1 with `align_corners=False`, float32.

    Output pixel i is read at `i * H / height`, without a shift by half a pixel and without smoothing where the image
    shrinks: `a + (b - a) d` of the pixels a below and b above this coordinate, d its fraction, along x first and then
    along y. The scale `H / height` is rounded to float32 before the product; at the end b is the last pixel.
    """
    x = images.float()
    for axis, size in ((3, width), (2, height)):
        low, high, d = _neighbors(x.shape[axis], size, x.device)
        a, b = x.index_select(axis, low), x.index_select(axis, high)
        x = a + (b - a) * (d if axis == 3 else d[:, None])
    return x


def _neighbors(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns for each output pixel the pixels below and above its coordinate, and the fraction between them."""
    scale = np.float32(before) / np.float32(after)
    at = torch.from_numpy(np.arange(after, dtype=np.float32) * scale).to(device)
    low = at.floor()
    return low.long(), (low.long() + 1).clamp(max=before - 1), at - low
