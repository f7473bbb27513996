"""References that samples are compared with: features of a set of images, or statistics from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data.batches import Examples
from ..progress import Progress, silent
from ..quantization import Quantization
from .features import Features


@dataclass(frozen=True)
class Reference:
    """A set of real images on the features of one extractor.

    Attributes:
        name: what the set is, for the protocol, such as `digits, train, 1437 images`.
        digest: first 12 hexadecimal digits of the SHA-256 of its content.
        count: number of images; 0 where it is unknown.
        features: features `(N, d)`, or None where mean and covariance alone are known.
        moments: mean and covariance of the features.
        spatial: those of the spatial features of sFID, or None.
    """

    name: str
    digest: str
    count: int
    features: Tensor | None
    moments: object
    spatial: object | None = None


def content_hash(k: Examples) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of images, whatever their integer type."""
    raise NotImplementedError


def reference_of(
    extractor: Features, k: Examples, quantization: Quantization, name: str, progress: Progress = silent
) -> Reference:
    """Returns the reference of a set of images, of which the features are computed once and kept in the cache.

    The files lie in the folder `references` of UNNOISE_CACHE or ~/.cache/unnoise, named after the content of the set and
    the weights of the extractor; UNNOISE_CACHE=none keeps none.

    Raises:
        UsageError: for fewer than two images.
    """
    raise NotImplementedError


def read_reference(path: Path, extractor: Features, progress: Progress = silent) -> Reference:
    """Returns the reference in an npz file of ADM, EDM or pytorch-fid.

    `mu` and `sigma` are mean and covariance of the features, `mu_s` and `sigma_s` those of the spatial features, and
    `arr_0` are images `(N, H, W, 3)`, uint8, of which the features are computed for KID and for the measures of
    neighbors; without `mu` and `sigma` these are computed from the images too.

    Raises:
        UsageError: for a file that cannot be read, without these arrays, or with arrays of other shapes.
    """
    raise NotImplementedError
