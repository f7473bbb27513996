"""Interpolation between latents, the states x_1 that deterministic samplers start from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..tensors import like


def slerp(x: Tensor, y: Tensor, share: float | Tensor) -> Tensor:
    r"""Returns the spherical interpolation `(sin((1 - a) theta) x + sin(a theta) y) / sin theta` of each pair.

    theta is the angle between x and y (Song et al. 2020, eq. 67). Between two samples of white noise, every point has
    the norm of such a sample. The interpolation is not defined between opposite latents.

    Args:
        x, y: the latents, `(B, ...)`.
        share: a, 0 for x and 1 for y; a number or `(B,)`.

    Returns:
        The interpolated latents, `(B, ...)`, to start a deterministic sampler from.

    Raises:
        UsageError: for latents of different shapes.
    """
    if x.shape != y.shape:
        raise UsageError(f"x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}: give latents of the same shape")
    a = torch.as_tensor(share, dtype=x.dtype, device=x.device)
    cosine = torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).clamp(-1, 1)
    theta = cosine.acos().clamp(min=1e-4)  # for smaller angles it is linear interpolation
    return like(torch.sin((1 - a) * theta) / theta.sin(), x) * x + like(torch.sin(a * theta) / theta.sin(), x) * y
