"""Measures of sets of images on the features of one extractor, each with its protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.batches import Examples
from ..errors import UsageError, did_you_mean
from ..progress import Progress, silent
from ..quantization import Quantization
from .errors import error_of_share
from .features import Features, in_float32
from .frechet import Moments, frechet_of_moments, remark_on_bias
from .inception_score import SPLITS, inception_score
from .kernel import SUBSET_SIZE, SUBSETS, drawn_subsets, kernel_distance_of_subsets
from .measurement import Measurement, Origin, Protocol
from .neighbors import BALLS, DENSITY_BALLS, memorized, neighbor_measures
from .references import Reference, features_of

BETTER = {
    "frechet": "lower",
    "sfid": "lower",
    "kid": "lower",
    "inception_score": "higher",
    "precision": "higher",
    "recall": "higher",
    "density": "closer",
    "coverage": "higher",
    "memorized": "lower",
}
MEASURES = tuple(BETTER)
"""The measures in the order in which they are reported.

Measurements are named after measure and features: `fid`, `sfid`, `inception_score` on Inception, `frechet` on the
judge, and otherwise `kid_inception`, `precision_judge`, `frechet_dinov2`, `memorized_pixels`.
"""
OF_NEIGHBORS = ("precision", "recall", "density", "coverage")
NAMES = {
    ("frechet", "inception"): "fid",
    ("sfid", "inception"): "sfid",
    ("inception_score", "inception"): "inception_score",
    ("frechet", "judge"): "frechet",
}
SETTINGS = {
    "sfid": "spatial features",
    "inception_score": f"{SPLITS} splits of shuffled images",
    "precision": f"k={BALLS}",
    "recall": f"k={BALLS}",
    "density": f"k={DENSITY_BALLS}",
    "coverage": f"k={DENSITY_BALLS}",
    "memorized": "nearest at most 1/3 of the distance to the second nearest",
}


@dataclass(frozen=True)
class Found:
    """The value of a measure, its standard error where it is known, and a remark."""

    value: float
    error: float | None = None
    note: str = ""


def measures_on(features: Features, reference: Reference) -> tuple[str, ...]:
    """Returns the names in `MEASURES` that an extractor and a reference allow.

    The Inception score needs logits of classes, and sFID spatial features; a reference of mean and covariance alone has
    no KID, precision, recall, density, coverage and memorized share.
    """
    allowed = {"frechet"}
    if reference.spatial is not None:
        allowed.add("sfid")
    if reference.features is not None:
        allowed |= {"kid", "memorized", *OF_NEIGHBORS}
    mean = reference.features[:1] if reference.features is not None else reference.moments.mean[None].float()
    if features.logits(mean) is not None:
        allowed.add("inception_score")
    return tuple(name for name in MEASURES if name in allowed)


@in_float32()
def image_measures(
    features: Features,
    k: Examples,
    quantization: Quantization,
    reference: Reference,
    *,
    held_out: tuple[Examples, Quantization] | None = None,
    which: Sequence[str] | None = None,
    seed: int = 0,
    origin: Origin | None = None,
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
        seed: seed of the subsets of KID, of the splits of the Inception score and of the choice of held-out images.
        origin: where the images come from; None for nothing known.
        progress: how to report progress.

    Raises:
        UsageError: for a name that is not in `MEASURES`, or that features and reference do not allow; for no images, or
            too few for a measure; for features that are infinite or NaN, or of another size than the reference's.
    """
    chosen = _checked(which, measures_on(features, reference), features, reference)
    _refuse_few(len(k), chosen, reference)
    if not chosen:
        return []
    found = _measured(features, k, quantization, reference, chosen, seed, progress)
    real: dict[str, Found] = {}
    note = ""
    if held_out is not None:
        rows, of_real = _rows(len(held_out[0]), len(k), seed), held_out[0]
        possible = [name for name in chosen if len(rows) >= images_needed(name)]
        if possible:
            real = _measured(features, of_real[rows], held_out[1], reference, possible, seed, progress)
        note = f"real data: {len(rows):,} images" if len(rows) < len(k) else ""
    protocol = Protocol(
        features.name,
        features.digest,
        features.resize_of(k.shape[1:]),
        reference.name,
        reference.digest,
        len(k),
    )
    return [
        Measurement(
            NAMES.get((name, features.name), f"{name}_{features.name}"),
            found[name].value,
            _protocol(protocol, name, reference, seed),
            origin or Origin(),
            found[name].error,
            better=BETTER[name],
            held_out=real[name].value if name in real else None,
            note="; ".join(part for part in (found[name].note, note if name in real else "") if part),
        )
        for name in chosen
    ]


def _protocol(protocol: Protocol, name: str, reference: Reference, seed: int) -> Protocol:
    """Returns the protocol of one measure; the Inception score has no reference."""
    drawn = f", seed {seed}" * (seed != 0)
    if name == "inception_score":
        return replace(protocol, reference="", reference_hash="", settings=f"{SETTINGS[name]}{drawn}")
    if name == "kid":
        size = min(SUBSET_SIZE, protocol.samples, reference.count)
        return replace(protocol, settings=f"{SUBSETS} subsets of {size:,}{drawn}")
    return replace(protocol, settings=SETTINGS.get(name, ""))


def _checked(
    which: Sequence[str] | None, allowed: Sequence[str], features: Features, reference: Reference
) -> tuple[str, ...]:
    """Returns the chosen measures in the order of `MEASURES`."""
    if which is None:
        return tuple(allowed)
    for name in which:
        if name not in MEASURES:
            meant = did_you_mean(name, MEASURES)
            raise UsageError(f"{name} is not a measure of images: {meant}choose from {', '.join(MEASURES)}")
        if name not in allowed:
            raise UsageError(
                f"{name} cannot be measured on {features.name} features against {reference.name}: choose from "
                f"{', '.join(allowed)}"
            )
    return tuple(name for name in MEASURES if name in which)


def images_needed(name: str) -> int:
    """Returns the least number of images for a measure; `image_measures` refuses fewer."""
    return {"inception_score": SPLITS, "memorized": 1}.get(name, BALLS + 1 if name in OF_NEIGHBORS else 2)


def _refuse_few(count: int, chosen: Sequence[str], reference: Reference) -> None:
    """Refuses sets that are too small, before features are computed."""
    if count == 0:
        raise UsageError("there are no images to measure: draw samples, or give a folder or file that has some")
    for name in chosen:
        if count < (least := images_needed(name)):
            have = f"there {'is' if count == 1 else 'are'} {count}"
            raise UsageError(f"{name} needs at least {least} images, and {have}: draw more")
        if name in OF_NEIGHBORS and reference.count <= max(BALLS, DENSITY_BALLS):
            raise UsageError(
                f"{name} needs at least {max(BALLS, DENSITY_BALLS) + 1} reference images, and {reference.name} has "
                f"{reference.count}: give a larger reference"
            )


def _rows(held_out: int, samples: int, seed: int) -> Tensor:
    """Returns the rows of the held-out images that are measured, in order."""
    drawn = torch.randperm(held_out, generator=torch.Generator().manual_seed(seed))
    return drawn[:samples].sort().values


def _measured(
    features: Features,
    k: Examples,
    quantization: Quantization,
    reference: Reference,
    chosen: Sequence[str],
    seed: int,
    progress: Progress,
) -> dict[str, Found]:
    """Returns the chosen measures of images, by name."""
    x, spatial = features_of(features, k, quantization, progress)
    expected = len(reference.moments.mean) if reference.features is None else reference.features.shape[1]
    if x.shape[1] != expected:
        raise UsageError(
            f"{reference.name} has features of size {expected}, and {features.name} has {x.shape[1]}: give a reference "
            "of the same extractor, and images of the same size"
        )
    found: dict[str, Found] = {}
    if "frechet" in chosen:
        found["frechet"] = _frechet(x, reference.moments)
    if "sfid" in chosen:
        assert spatial is not None, "measures_on looked for them"
        assert reference.spatial is not None, "measures_on looked for them"
        found["sfid"] = _frechet(spatial, reference.spatial)
    if "inception_score" in chosen:
        logits = features.logits(x)
        assert logits is not None, "measures_on looked for them"
        # Images of folders and data sets are often sorted by class, and a split has to have all classes.
        score = inception_score(logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))])
        found["inception_score"] = Found(
            score.mean, score.deviation / math.sqrt(SPLITS - 1), f"standard deviation over splits {score.deviation:.3g}"
        )
    if reference.features is not None:
        found |= _of_features(x, reference.features, chosen, seed, progress)
    return found


def _frechet(x: Tensor, reference: Moments) -> Found:
    """Returns the Fréchet distance, with a note where a set is smaller than the number of its features."""
    note = remark_on_bias(len(x), reference.count, x.shape[1])
    return Found(frechet_of_moments(Moments.of(x), reference), note=note)


def _of_features(x: Tensor, real: Tensor, chosen: Sequence[str], seed: int, progress: Progress) -> dict[str, Found]:
    """Returns the measures that need the features of the reference."""
    found: dict[str, Found] = {}
    if "kid" in chosen:
        generator = torch.Generator().manual_seed(seed)
        kid = kernel_distance_of_subsets(x, real, drawn_subsets(len(x), len(real), generator))
        found["kid"] = Found(kid.mean, note=f"standard deviation over subsets {kid.deviation:.3g}")
    if any(name in chosen for name in OF_NEIGHBORS):
        measured = neighbor_measures(x, real, progress=progress)
        found |= {name: Found(getattr(measured, name)) for name in OF_NEIGHBORS}
        found["precision"] = Found(measured.precision, error_of_share(measured.precision, len(x)))
    if "memorized" in chosen:
        share = memorized(x, real, progress)
        found["memorized"] = Found(share, error_of_share(share, len(x)))
    return found
