"""The kernel distance between two sets of features (KID)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError

SUBSETS, SUBSET_SIZE = 100, 1000
"""The number of subsets of KID, and the number of examples in one."""
BLOCK_BYTES = 100_000_000
"""Size of the part of a kernel matrix that is computed at a time."""


class KernelDistance(NamedTuple):
    """The mean of the kernel distance over subsets, and its standard deviation over them (divided by their number)."""

    mean: float
    deviation: float


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Returns the unbiased estimate of the squared maximum mean discrepancy of two sets (Binkowski et al. 2018, eq. 4).

    The kernel is `k(x, y) = (x.y / d + 1)^3`; the estimate is the mean of k over different pairs in a, plus that in b,
    minus twice the mean over all pairs of a and b. It can be negative.

    Args:
        a, b: features, `(N, d)` and `(M, d)`.

    Raises:
        UsageError: for features of different sizes d, or fewer than two examples.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: give (N, d) and (M, d) with two rows or more"
        )
    a, b = a.double(), b.double()
    return _within(a) + _within(b) - 2 * _sum(a, b) / (len(a) * len(b))


def kernel_distance_of_subsets(a: Tensor, b: Tensor, rows: Iterable[tuple[Tensor, Tensor]]) -> KernelDistance:
    """Returns mean and standard deviation of `kernel_distance` over subsets.

    Args:
        a, b: features, `(N, d)` and `(M, d)`.
        rows: the rows of a and of b in each subset, int64; see `drawn_subsets`.
    """
    found = torch.tensor([kernel_distance(a[of_a], b[of_b]) for of_a, of_b in rows], dtype=torch.float64)
    return KernelDistance(float(found.mean()), float(found.std(correction=0)))


def drawn_subsets(
    a: int, b: int, generator: torch.Generator, subsets: int = SUBSETS, size: int = SUBSET_SIZE
) -> list[tuple[Tensor, Tensor]]:
    """Returns rows of subsets of two sets of `a` and `b` examples, drawn without replacement in each subset.

    A subset has `size` examples of each set, or as many as the smaller set has.
    """
    size = min(size, a, b)
    return [
        (torch.randperm(a, generator=generator)[:size], torch.randperm(b, generator=generator)[:size])
        for _ in range(subsets)
    ]


def _within(x: Tensor) -> float:
    """Returns the mean of the kernel over different pairs of one set."""
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _sum(x: Tensor, y: Tensor) -> float:
    """Returns the sum of the kernel over all pairs."""
    rows = max(1, BLOCK_BYTES // (8 * len(y)))
    return float(sum((part @ y.T / x.shape[1] + 1).pow(3).sum() for part in x.split(rows)))
