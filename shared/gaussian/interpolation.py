"""Ways between latents: what deterministic samplers of every family start from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..tensors import like


def slerp(x: Tensor, y: Tensor, share: float | Tensor) -> Tensor:
    r"""`(sin((1 - a) theta) x + sin(a theta) y) / sin theta`, theta the angle of each pair (Song et al. 2020, eq. 67).

    Between two draws of white noise every point then has the norm of such a draw; opposite latents have no way between
    them.

    Args:
        x, y: `(B, ...)`.
        share: a, 0 for x and 1 for y; a number or `(B,)`.
    """
    if x.shape != y.shape:
        raise UsageError(
            f"latents of shapes {tuple(x.shape)} and {tuple(y.shape)}: give as many of one as of the other"
        )
    a = torch.as_tensor(share, dtype=x.dtype, device=x.device)
    cosine = torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).clamp(-1, 1)
    theta = cosine.acos().clamp(min=1e-4)  # below that, the sines are their arguments and the path is a line
    return like(torch.sin((1 - a) * theta) / theta.sin(), x) * x + like(torch.sin(a * theta) / theta.sin(), x) * y
