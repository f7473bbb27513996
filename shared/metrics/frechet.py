"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Returns the squared Fréchet distance of Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    `|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`, as in FID, with the means mu and the (unbiased) covariances C
    of the features. The trace of the square root is the sum of the singular
    values of `C_a^(1/2) C_b^(1/2)`, computed from the centered features, so that it is accurate also for fewer examples
    than features. The distance of finite sets is biased upwards: compare only distances of equal numbers of examples.

    Args:
        a, b: features, `(N, d)` and `(M, d)`.

    Raises:
        UsageError: for features that are not finite or of different sizes d, or fewer than two examples.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: give (N, d) and (M, d) with two rows or more"
        )
    if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        raise UsageError("some features are infinite or NaN: look for such values among the samples")
    a, b = a.double(), b.double()
    # C_a = left^T left, C_b = right^T right
    left, right = (torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R for x in (a, b))
    cross = torch.linalg.svdvals(left @ right.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + left.square().sum() + right.square().sum() - 2 * cross)
