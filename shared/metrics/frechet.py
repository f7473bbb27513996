"""The Fréchet distance between two sets of features, or between their means and covariances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, float64.

    Attributes:
        mean: the mean, `(d,)`.
        factor: a matrix R with the covariance `R^T R`, `(r, d)`.
        count: the number of examples that they were computed from; 0 where it is unknown.
    """

    mean: Tensor
    factor: Tensor
    count: int = 0

    @property
    def covariance(self) -> Tensor:
        """The covariance, `(d, d)`."""
        return self.factor.T @ self.factor

    @staticmethod
    def of(features: Tensor) -> Moments:
        """Returns the mean and the unbiased covariance (divided by N - 1) of features `(N, d)`.

        The factor is that of a QR decomposition of the centered features, so that distances are accurate also for fewer
        examples than features.

        Raises:
            UsageError: for fewer than two examples, and for features that are infinite or NaN.
        """
        if features.ndim != 2 or len(features) < 2:
            raise UsageError(f"features of shape {tuple(features.shape)}: give (N, d) with two rows or more")
        check_finite(features)
        x = features.double()
        mean = x.mean(0)
        return Moments(mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R, len(x))

    @staticmethod
    def of_covariance(mean: Tensor, covariance: Tensor, count: int = 0) -> Moments:
        """Returns the moments of a mean `(d,)` and a covariance `(d, d)`, of which negative eigenvalues become zero.

        Raises:
            UsageError: for other shapes, values that are infinite or NaN, and a covariance that is not symmetric or
                has eigenvalues far below zero.
        """
        mean, covariance = mean.double(), covariance.double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UsageError(
                f"a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(covariance.shape)}: give (d,) "
                "and (d, d)"
            )
        if not bool(torch.isfinite(mean).all() & torch.isfinite(covariance).all()):
            raise UsageError("the mean or the covariance has values that are infinite or NaN: compute them again")
        values, vectors = torch.linalg.eigh(covariance)
        largest = float(covariance.abs().max())
        asymmetry = float((covariance - covariance.T).abs().max())
        if asymmetry > 1e-3 * largest or float(values.min()) < -1e-3 * largest:
            raise UsageError(
                "the covariance is not symmetric with eigenvalues of at least zero: give that of features, computed "
                "in float64"
            )
        noise = float(values.max()) * len(values) * torch.finfo(torch.float64).eps
        values = torch.where(values > noise, values, 0)
        return Moments(mean, (vectors * values.sqrt()).T, count)


def frechet_of_moments(a: Moments, b: Moments) -> float:
    r"""Returns the squared Fréchet distance of two Gaussians of given moments (Heusel et al. 2017, eq. 6).

    `|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`. The trace of the square root is the sum of the singular
    values of `R_a R_b^T`, with the covariances `C = R^T R`.

    Raises:
        UsageError: for features of different sizes d.
    """
    if a.mean.shape != b.mean.shape:
        raise UsageError(
            f"features of sizes {len(a.mean)} and {len(b.mean)}: give the moments of features of one extractor"
        )
    cross = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.factor.square().sum() + b.factor.square().sum() - 2 * cross)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Returns the squared Fréchet distance of Gaussians fitted to two sets of features, `frechet_of_moments`.

    The distance of finite sets is biased upwards: compare only distances of equal numbers of examples.

    Args:
        a, b: features, `(N, d)` and `(M, d)`.

    Raises:
        UsageError: for features that are not finite or of different sizes d, or fewer than two examples.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: give (N, d) and (M, d) with two rows or more"
        )
    return frechet_of_moments(Moments.of(a), Moments.of(b))


def remark_on_bias(samples: int, reference: int, features: int) -> str:
    """Returns a remark where samples or reference examples are fewer than features; 0 reference examples are unknown.

    The Fréchet distance is then mostly bias.
    """
    few = ["samples"] * (samples < features) + ["reference examples"] * (0 < reference < features)
    return f"biased: fewer {' and '.join(few)} than features" if few else ""


def check_finite(features: Tensor) -> None:
    """Raises `UsageError` for features that are infinite or NaN."""
    if not bool(torch.isfinite(features).all()):
        raise UsageError("some features are infinite or NaN: look for such values among the samples")
