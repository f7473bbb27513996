"""Measures of sets of images on the features of one extractor, each with its protocol."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.batches import Examples
from ..progress import Progress, silent
from ..quantization import Quantization
from .features import Features
from .measurement import Measurement, Origin
from .references import Reference

MEASURES = (
    "frechet",
    "sfid",
    "kid",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "memorized",
)
"""The measures in the order in which they are reported.

Measurements are named after measure and features: `fid`, `sfid`, `inception_score` on Inception, `frechet` on the judge,
and otherwise `kid_inception`, `precision_judge`, `frechet_dinov2`, `memorized_pixels`.
"""


def measures_on(features: Features, reference: Reference) -> tuple[str, ...]:
    """Returns the names in `MEASURES` that an extractor and a reference allow.

    The Inception score needs class logits and sFID spatial features, which Inception alone has; a reference of mean and
    covariance alone has no KID, precision, recall, density, coverage and memorized share.
    """
    raise NotImplementedError


def image_measures(
    features: Features,
    k: Examples,
    quantization: Quantization,
    reference: Reference,
    *,
    held_out: tuple[Examples, Quantization] | None = None,
    which: Sequence[str] | None = None,
    seed: int = 0,
    origin: Origin = Origin(),  # noqa: B008 (frozen)
    progress: Progress = silent,
) -> list[Measurement]:
    """Measures images of quantization levels `(N, C, H, W)` on features, against a reference.

    Args:
        features: the feature extractor.
        k: the images.
        quantization: their quantization.
        reference: the reference, on features of the same extractor; see `reference_of` and `read_reference`.
        held_out: real held-out images and their quantization, which are measured by the same protocol: a random choice
            of as many as there are samples; all of them, with a note, where they are fewer.
        which: names in `MEASURES`; None for all that `measures_on` returns.
        seed: seed of the subsets of KID and of the choice of held-out images.
        origin: where the images come from.
        progress: how to report progress.

    Raises:
        UsageError: for a name that is not in `MEASURES`, or that features and reference do not allow; for no images, or
            too few for a measure; for features that are infinite or NaN, or of another size than the reference's.
    """
    raise NotImplementedError
