"""MAUVE: how close two sets of texts are, by the frequencies of clusters of their features (Pillutla et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError


class Mauve(NamedTuple):
    """The comparison of two sets of features.

    Attributes:
        area: area under the divergence curve, from 0 to 1; 1 for equal frequencies of the clusters.
        curve: points `(exp(-c KL(q || r)), exp(-c KL(p || r)))` of the mixtures r, float64 `(points + 2, 2)`.
        clusters: number of clusters.
    """

    area: float
    curve: Tensor
    clusters: int


def mauve(
    samples: Tensor,
    reference: Tensor,
    *,
    clusters: int | None = None,
    scale: float = 5.0,
    points: int = 25,
    variance: float = 0.9,
    restarts: int = 5,
    seed: int = 0,
) -> Mauve:
    """Returns MAUVE of features of samples against features of real texts.

    Features are scaled to length one, projected to their first principal components and clustered by k-means, both sets
    together; p and q are the frequencies of the clusters in the two sets. The area is that of `divergence_curve`. It
    depends on the features, on the number of samples and on that of clusters: compare at equal settings only. In
    a finite sample two equal distributions stay below 1.

    Args:
        samples: features of samples, `(N, d)`, such as hidden states of a language model, or counts of n-grams.
        reference: features of real texts, `(M, d)`.
        clusters: number of clusters; None for a tenth of the smaller set, at least 2.
        scale: c, by which divergences are multiplied.
        points: number of mixtures on the curve, equally spaced.
        variance: share of the variance that the principal components keep.
        restarts: number of times that k-means begins anew; the best is taken.
        seed: seed of k-means.

    Raises:
        UsageError: for fewer than two samples, features of different sizes, or values that are not finite.
    """
    for name, x in (("samples", samples), ("reference", reference)):
        if x.ndim != 2 or len(x) < 2 or x.shape[1:] != samples.shape[1:]:
            raise UsageError(
                f"{name} of shape {tuple(x.shape)}: give features (N, d) of 2 texts or more, both of one size d"
            )
        if not torch.isfinite(x).all():
            raise UsageError(f"{name} contain NaN or infinity: leave these texts out")
    number = max(2, round(min(len(samples), len(reference)) / 10)) if clusters is None else clusters
    if not 1 <= number <= len(samples) + len(reference):
        raise UsageError(f"clusters={number}: give a number from 1 to {len(samples) + len(reference)}")
    features = components(torch.cat([samples, reference]).double().cpu(), variance)
    generator = torch.Generator().manual_seed(seed)
    labels = min((k_means(features, number, generator) for _ in range(restarts)), key=lambda found: found[1])[0]
    p = torch.bincount(labels[: len(samples)], minlength=number).double() / len(samples)
    q = torch.bincount(labels[len(samples) :], minlength=number).double() / len(reference)
    curve = divergence_curve(p, q, scale, points)
    return Mauve(area_under(curve), curve, number)


def divergence_curve(p: Tensor, q: Tensor, scale: float = 5.0, points: int = 25) -> Tensor:
    """Returns `(exp(-c KL(q || r)), exp(-c KL(p || r)))` for mixtures `r = w p + (1 - w) q`, float64 `(points + 2, 2)`.

    w is equally spaced from 1e-6 to 1 - 1e-6; the curve begins in (1, 0) and ends in (0, 1). Disjoint p and q give the
    curve `((1 - w)^c, w^c)`, whose area is `Gamma(c + 1)^2 / Gamma(2 c + 1)`, 1/252 for c = 5.
    """
    w = torch.linspace(1e-6, 1 - 1e-6, points, dtype=torch.float64)[:, None]
    r = w * p + (1 - w) * q
    inner = torch.stack([torch.xlogy(x, x).sum() - torch.xlogy(x, r).sum(1) for x in (q, p)], 1)
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    return torch.cat([ends[:1], torch.exp(-scale * inner.clamp(min=0)), ends[1:]])


def area_under(curve: Tensor) -> float:
    """Returns the area under a curve `(points, 2)` by trapezoids."""
    x, y = curve.T
    return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() / 2)


def components(features: Tensor, variance: float) -> Tensor:
    """Returns features `(N, d)`, scaled to length one, in their first principal components.

    As many components as keep the share `variance` of the variance, at least one.
    """
    scaled = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    centered = scaled - scaled.mean(0)
    left, singular, _ = torch.linalg.svd(centered, full_matrices=False)
    kept = torch.cumsum(singular**2, 0) / (singular**2).sum().clamp(min=1e-300)
    number = min(int((kept < variance).sum()) + 1, len(singular))
    return left[:, :number] * singular[:number]


def k_means(x: Tensor, clusters: int, generator: torch.Generator, steps: int = 100) -> tuple[Tensor, float]:
    """Returns the clusters of points `(N, d)`, int64 `(N,)`, and the sum of squared distances to their means.

    Lloyd's algorithm from centers drawn by k-means++ (Arthur and Vassilvitskii 2007), until no point changes its
    cluster or `steps` are done. An empty cluster keeps its center.
    """
    centers = x[torch.randint(len(x), (1,), generator=generator)]
    nearest = ((x - centers) ** 2).sum(1)
    while len(centers) < clusters:
        weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        chosen = x[torch.multinomial(weights, 1, generator=generator)]
        centers, nearest = torch.cat([centers, chosen]), torch.minimum(nearest, ((x - chosen) ** 2).sum(1))
    labels = torch.cdist(x, centers).argmin(1)
    for _ in range(steps):
        sizes = torch.bincount(labels, minlength=clusters)[:, None]
        sums = torch.zeros_like(centers).index_add_(0, labels, x)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
        now = torch.cdist(x, centers).argmin(1)
        if torch.equal(now, labels):
            break
        labels = now
    return labels, float(((x - centers[labels]) ** 2).sum())
