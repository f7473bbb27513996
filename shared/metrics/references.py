"""References that samples are compared with: features of a set of images, or statistics from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..data.array_files import of_npz
from ..data.batches import Examples
from ..errors import UsageError, shown
from ..progress import Progress, silent
from ..quantization import Quantization
from .features import AT_ONCE, Features, digest_of, in_float32
from .frechet import Moments
from .tensor_cache import cached_tensors

VERSION = 1
"""Version of the files in the cache; one higher where what they contain is computed in another way."""
SPATIAL_SIZE = 2023
"""The number of spatial features of sFID."""


@dataclass(frozen=True)
class Reference:
    """A set of real images on the features of one extractor.

    Attributes:
        name: what the set is, for the protocol, such as `digits, train, 1437 images`.
        digest: first 12 hexadecimal digits of the SHA-256 of its content.
        count: number of images of `features`; 0 where there are none.
        features: features `(N, d)`, or None where mean and covariance alone are known.
        known: mean and covariance of the features where they are known; None to compute them of `features`.
        spatial: mean and covariance of the spatial features of sFID, or None.
    """

    name: str
    digest: str
    count: int
    features: Tensor | None
    known: Moments | None = None
    spatial: Moments | None = None

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the features."""
        if self.known is not None:
            return self.known
        assert self.features is not None, "a reference has features or moments"
        return Moments.of(self.features)


def content_hash(k: Examples) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of images, whatever their integer type."""
    content = hashlib.sha256(json.dumps(list(k.shape)).encode())
    for start in range(0, len(k), AT_ONCE):
        part = k[start : start + AT_ONCE]
        small = part.numel() == 0 or (int(part.min()) >= 0 and int(part.max()) < 256)
        content.update(part.to(torch.uint8 if small else torch.int64).cpu().contiguous().numpy().data)
    return content.hexdigest()[:12]


def features_of(
    extractor: Features, k: Examples, quantization: Quantization, progress: Progress = silent
) -> tuple[Tensor, Tensor | None]:
    """Returns the features of images `(N, d)` and their spatial features or None, on the CPU, some at a time.

    Raises:
        UsageError: for features that are infinite or NaN.
    """
    starts, features, spatial = range(0, len(k), AT_ONCE), [], []
    for start in progress(starts, len(starts), f"{extractor.name} features"):
        one, other = extractor.with_spatial(k[start : start + AT_ONCE], quantization)
        if not bool(torch.isfinite(one).all()):
            raise UsageError(
                f"some {extractor.name} features of the images from number {start:,} are infinite or NaN: look for "
                "such values among these images and in the weights of the extractor"
            )
        features.append(one.cpu())
        spatial += [] if other is None else [other.cpu()]
    return torch.cat(features), torch.cat(spatial) if spatial else None


@in_float32()
def reference_of(
    extractor: Features, k: Examples, quantization: Quantization, name: str, progress: Progress = silent
) -> Reference:
    """Returns the reference of a set of images, of which the features are computed once and kept in the cache.

    The files lie in the folder `references` of UNNOISE_CACHE or ~/.cache/unnoise, named after the content of the set
    and the weights of the extractor. None are kept for UNNOISE_CACHE=none, and of an extractor without weights.

    Raises:
        UsageError: for fewer than two images.
    """
    if len(k) < 2:
        raise UsageError(f"{name}: a reference needs at least 2 images, and this set has {len(k)}")
    digest = content_hash(k)
    if not extractor.digest:
        features, spatial = features_of(extractor, k, quantization, progress)
        return Reference(name, digest, len(k), features, spatial=None if spatial is None else Moments.of(spatial))
    key = [VERSION, digest, quantization.levels, extractor.name, extractor.resize, extractor.digest]
    tensors = cached_tensors(
        "references",
        hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32],
        f"the features of {name}",
        ("features", "mean", "factor"),
        lambda: _computed(extractor, k, quantization, progress),
    )
    spatial = "spatial_mean" in tensors
    return Reference(
        name,
        digest,
        len(k),
        tensors["features"],
        Moments(tensors["mean"], tensors["factor"], len(k)),
        Moments(tensors["spatial_mean"], tensors["spatial_factor"], len(k)) if spatial else None,
    )


def _computed(extractor: Features, k: Examples, quantization: Quantization, progress: Progress) -> dict[str, Tensor]:
    """Returns features and moments as they stand in a file of the cache."""
    features, spatial = features_of(extractor, k, quantization, progress)
    moments = Moments.of(features)
    found = {"features": features, "mean": moments.mean, "factor": moments.factor}
    if spatial is not None:
        other = Moments.of(spatial)
        found |= {"spatial_mean": other.mean, "spatial_factor": other.factor}
    return found


def read_reference(
    path: Path, extractor: Features, progress: Progress = silent, *, shape: Sequence[int] | None = None
) -> Reference:
    """Returns the reference in an .npz file of ADM, EDM or pytorch-fid.

    `mu` and `sigma` are mean and covariance of the features, `mu_s` and `sigma_s` those of the spatial features, and
    `arr_0` are images `(N, H, W, 3)`, uint8, of which the features are computed for KID and for the measures of
    neighbors; without `mu` and `sigma` these are computed from the images too.

    Args:
        path: the file.
        extractor: the feature extractor that the statistics are of.
        progress: how to report progress.
        shape: shape `(C, H, W)` of the images that are compared with it; None for any.

    Raises:
        UsageError: for a file that cannot be read, without these arrays, with arrays of other shapes, or with images of
            another height or width than `shape`.
    """
    try:
        arrays = of_npz(str(path))
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"{path} cannot be read ({shown(error)}): give the .npz file of ADM, EDM or pytorch-fid, with mu and sigma"
        ) from error
    known = _moments(path, arrays, "mu", "sigma", extractor.size)
    spatial = _moments(path, arrays, "mu_s", "sigma_s", SPATIAL_SIZE)
    images = arrays.get("arr_0")
    if known is None and images is None:
        raise UsageError(
            f"{path} has {', '.join(arrays) or 'no arrays'}: reference statistics are mu and sigma, or images arr_0"
        )
    used = {name: arrays[name] for name in ("mu", "sigma", "mu_s", "sigma_s") if name in arrays}
    if images is None:
        return Reference(path.name, digest_of(used), 0, None, known, spatial)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) < 2:
        raise UsageError(
            f"arr_0 in {path} is {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}: give at "
            "least 2 images (N, H, W, 3) of uint8"
        )
    if shape is not None and tuple(images.shape[1:3]) != tuple(shape[1:]):
        own, other = (" x ".join(map(str, size)) for size in (images.shape[1:3], shape[1:]))
        raise UsageError(
            f"{path} is of images of {own} pixels, and the images that are compared with it have {other}: give the "
            "reference of images of the same size"
        )
    of_images = reference_of(extractor, images.permute(0, 3, 1, 2), Quantization(), path.name, progress)
    return Reference(
        path.name,
        digest_of(used | {"arr_0": images}),
        len(images),
        of_images.features,
        known or of_images.moments,
        spatial or of_images.spatial,
    )


def _moments(path: Path, arrays: dict[str, Tensor], mean: str, covariance: str, size: int | None) -> Moments | None:
    """Returns mean and covariance by their names in a file; None where it has neither."""
    names = [name for name in (mean, covariance) if name in arrays]
    if not names:
        return None
    if len(names) == 1:
        raise UsageError(f"{path} has {names[0]} alone: reference statistics are {mean} and {covariance}")
    of_mean, of_covariance = arrays[mean], arrays[covariance]
    if size is not None and of_mean.shape != (size,):
        raise UsageError(
            f"{mean} in {path} has the shape {tuple(of_mean.shape)}: statistics of features of size {size} are needed"
        )
    try:
        return Moments.of_covariance(of_mean, of_covariance)
    except UsageError as error:
        raise UsageError(f"{mean} and {covariance} in {path}: {error}") from error
