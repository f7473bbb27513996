"""Measures of samples by nearest neighbors: precision, recall, density, coverage, and memorized training examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..progress import Progress, silent

BALLS, DENSITY_BALLS = 3, 5
"""k of precision and recall (Kynkäänniemi et al. 2019), and of density and coverage (Naeem et al. 2020)."""
MEMORIZED_RATIO = 1 / 3
"""Below this ratio of the distances to the nearest and the second nearest training example a sample is memorized."""
BLOCK_BYTES = 100_000_000
"""Size of the part of a matrix of distances that is computed at a time."""


class NeighborMeasures(NamedTuple):
    """Measures of samples by the balls around examples: a ball reaches to the k-th nearest neighbor in its own set.

    Attributes:
        precision: share of samples in the ball of a real example, border included (Kynkäänniemi et al. 2019).
        recall: share of real examples in the ball of a sample, border included.
        density: mean number of balls of real examples around a sample, over k (Naeem et al. 2020, eq. 4), border not
            included; it can exceed one.
        coverage: share of balls of real examples with a sample inside (eq. 5), border not included.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbor_measures(
    samples: Tensor,
    real: Tensor,
    k: int = BALLS,
    density_k: int = DENSITY_BALLS,
    progress: Progress = silent,
) -> NeighborMeasures:
    """Returns precision and recall with k neighbors, density and coverage with `density_k` neighbors.

    Args:
        samples: features of samples, `(N, d)`, N > k.
        real: features of real examples, `(M, d)`, M > k and `density_k`.
        k: the number of neighbors for precision and recall.
        density_k: the number of neighbors for density and coverage.
        progress: how to report progress.

    Raises:
        UsageError: for too few examples, and for features of different sizes.
    """
    of_samples = _squared_radii(samples, (k,), progress)[0]
    of_real, of_dense = _squared_radii(real, (k, density_k), progress)
    precise, dense = 0, 0
    recalled, least = torch.zeros(len(real), dtype=torch.bool), torch.full((len(real),), torch.inf).double()
    for start, squared in _blocks(samples, real, progress, "distances to real examples"):
        precise += int((squared <= of_real).any(1).sum())
        dense += int((squared < of_dense).sum())
        recalled |= (squared <= of_samples[start : start + len(squared), None]).any(0)
        least = torch.minimum(least, squared.amin(0))
    return NeighborMeasures(
        precise / len(samples),
        int(recalled.sum()) / len(real),
        dense / (density_k * len(samples)),
        int((least < of_dense).sum()) / len(real),
    )


def radii(points: Tensor, k: int, progress: Progress = silent) -> Tensor:
    """Returns the distance of each point to its k-th nearest other point, float64 `(N,)`.

    Raises:
        UsageError: for k < 1, or no more than k points.
    """
    return _squared_radii(points, (k,), progress)[0].sqrt()


def _squared_radii(points: Tensor, ks: Sequence[int], progress: Progress) -> Tensor:
    """Returns the squared distance of each point to its k-th nearest other point, for several k, `(len(ks), N)`."""
    if not 1 <= min(ks) <= max(ks) < len(points):
        raise UsageError(
            f"{len(points):,} examples with k={max(ks)}: each example needs {max(ks)} neighbors, so give "
            f"{max(ks) + 1} examples or more"
        )
    parts = []
    for start, squared in _blocks(points, points, progress, "distances to neighbors"):
        rows = torch.arange(len(squared))
        squared[rows, start + rows] = torch.inf  # the point itself
        parts.append(squared.topk(max(ks), 1, largest=False).values[:, [k - 1 for k in ks]])
    return torch.cat(parts).T.contiguous()


def nearest_neighbors(
    samples: Tensor, training: Tensor, k: int = 1, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """Returns the distances to the k nearest training examples, float64 `(N, k)`, and their rows, int64 `(N, k)`.

    Distances are computed from differences, so that that of an equal example is zero.

    Raises:
        UsageError: for k < 1, or fewer than k training examples.
    """
    if not 1 <= k <= len(training):
        raise UsageError(f"k={k} with {len(training):,} training examples: give k from 1 to {len(training)}")
    distances, rows = [], []
    for start, squared in _blocks(samples, training, progress, "nearest training examples"):
        found = squared.topk(k, 1, largest=False).indices
        part = samples[start : start + len(squared)].double()
        apart = torch.stack([(part - training[column].double()).square().sum(1).sqrt() for column in found.T], 1)
        order = apart.sort(1)
        distances.append(order.values)
        rows.append(found.gather(1, order.indices))
    return torch.cat(distances), torch.cat(rows)


def memorized(samples: Tensor, training: Tensor, progress: Progress = silent) -> float:
    """Returns the share of samples that are copies of a training example (Yoon et al. 2023; Gu et al. 2023).

    A sample is memorized where the distance to its nearest training example is at most a third of the distance to the
    second nearest. They take the distance of pixels; features may be given too. Of a training example that
    is in the set twice only exact copies count. Compare the share with that of real held-out examples.

    Raises:
        UsageError: for fewer than two training examples.
    """
    distances, _ = nearest_neighbors(samples, training, 2, progress)
    return float((distances[:, 0] <= MEMORIZED_RATIO * distances[:, 1]).double().mean())


def _blocks(a: Tensor, b: Tensor, progress: Progress, label: str) -> Iterator[tuple[int, Tensor]]:
    """Returns the squared distances of some rows of a to all rows of b, float64, each with the number of the first row.

    Raises:
        UsageError: for no rows, and for features of different sizes.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 1:
        raise UsageError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: give (N, d) and (M, d) with a row or more"
        )
    b = b.double()
    of_b, rows = b.square().sum(1), max(1, BLOCK_BYTES // (8 * len(b)))
    starts = range(0, len(a), rows)
    for start in progress(starts, len(starts), label):
        part = a[start : start + rows].double()
        yield start, (part.square().sum(1, True) + of_b - 2 * part @ b.T).clamp_(min=0)
