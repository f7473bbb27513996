"""Measures of sets of images beside a reference set: by its judge, by features of other networks, by pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from warnings import warn

from torch import Tensor

from ..shared.data import ImageDataset
from ..shared.data.batches import Examples
from ..shared.errors import Notice, UsageError, did_you_mean
from ..shared.metrics.errors import error_of_share
from ..shared.metrics.features import Features, in_float32
from ..shared.metrics.images import MEASURES, OF_NEIGHBORS, image_measures, images_needed, measures_on
from ..shared.metrics.judge import SURE, Judge
from ..shared.metrics.measurement import Measurement, Origin, Protocol
from ..shared.metrics.neighbors import BALLS, DENSITY_BALLS
from ..shared.metrics.pixels import Pixels
from ..shared.metrics.references import Reference, content_hash, read_reference, reference_of
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from .own_files import named_in_file

NAMED = ("judge", "inception", "dinov2", "clip", "pixels")
"""The features that have names."""
OF_JUDGE = ("frechet", "kid", *OF_NEIGHBORS)
"""The measures on features of the judge."""
KEYS = ("frechet", "agreement")
"""The measures whose value of held-out images has a key of its own, NAME_of_held_out."""
WITHOUT = ("code-length", "samples", "judge", "memorization", *MEASURES)
"""What an evaluation of images can leave out."""

JudgeOf = Callable[[ImageDataset, Progress], Judge]
"""Returns the judge of a data set."""


def refuse_without(without: Sequence[str], samples: int | None = None) -> None:
    """Raises `UsageError` for a part that an evaluation of images does not have, or a number of samples below two."""
    for part in without:
        if part not in WITHOUT:
            raise UsageError(
                f"without={part}: {did_you_mean(part, WITHOUT)}of images, choose from {', '.join(WITHOUT)}"
            )
    if samples is not None and samples < 2:
        raise UsageError(
            f"samples={samples}: a Fréchet distance needs at least 2; give 2 or more, or leave them out with "
            "--without samples"
        )
    if samples is not None and "samples" in without:
        raise UsageError(f"samples={samples} has no effect without samples: leave out one of the two")


def extractors(
    features: Sequence[str | Features], without: Sequence[str] = (), statistics: Path | None = None, **options: Any
) -> tuple[bool, list[Features]]:
    """Returns whether samples are judged, and the other feature extractors.

    Args:
        features: names in `NAMED`, `FILE.py:NAME` for a class or function without arguments, or extractors.
        without: what is left out, of `WITHOUT`.
        statistics: a file of reference statistics, which need features other than the judge: Inception where only the
            judge is named.
        options: arguments of the networks, such as `progress`.

    Raises:
        UsageError: for unknown names, and as the networks raise it for weights or libraries that are missing.
    """
    if "samples" in without:
        if statistics is not None:
            raise UsageError(f"statistics={statistics} has no effect without samples: leave out one of the two")
        return False, []
    if statistics is not None and not Path(statistics).is_file():
        raise UsageError(f"statistics={statistics}: there is no such file: give an .npz file with mu and sigma")
    judged = "judge" in features and "judge" not in without
    others = [feature for feature in features if feature != "judge"]
    if statistics is not None and not others:
        warn(Notice(f"the statistics in {statistics} are compared on Inception features (--features)"), stacklevel=2)
        others = ["inception"]
    return judged, [one if isinstance(one, Features) else extractor_named(one, **options) for one in others]


def warn_of_bias(features: Sequence[Features], count: int) -> None:
    """Gives a `Notice` for each extractor that has more features than there are samples, where this is known."""
    for one in features:
        if one.size is not None and count < one.size:
            warn(
                Notice(
                    f"{count:,} samples are fewer than the {one.size:,} features of {one.name}, so that Fréchet "
                    f"distances are biased: --samples {one.size} or more"
                ),
                stacklevel=3,
            )


def extractor_named(name: str, **options: Any) -> Features:
    """Returns the feature extractor of a name."""
    file, colon, own = name.rpartition(":")
    if colon and file:
        found = named_in_file(file, own)
        made = found if isinstance(found, Features) else found() if callable(found) else found
        if not isinstance(made, Features):
            raise UsageError(f"{name} is a {type(made).__name__}: give a class that derives from Features")
        return made
    if name == "pixels":
        return Pixels()
    if name not in NAMED:
        raise UsageError(
            f"features={name}: {did_you_mean(name, NAMED)}choose from {', '.join(NAMED)}, or give FILE.py:NAME"
        )
    from ..shared.metrics.transformers_features import features_named

    return features_named(name, **options)


@dataclass(frozen=True)
class RealImages:
    """The real images that samples are compared with.

    Attributes:
        name: short name of the set, for protocols, such as `digits`.
        train: the training images, or None where statistics alone are known.
        held_out: held-out images, or None.
        statistics: a file of reference statistics, which the features of other networks are compared with.
        references: the references that were computed or read, by extractor.
    """

    name: str
    train: ImageDataset | None
    held_out: ImageDataset | None = None
    statistics: Path | None = None
    references: dict[Features, Reference] = field(default_factory=dict)

    def described(self, images: ImageDataset, split: str) -> str:
        """Returns a description of a split for a protocol, `digits, train, 1,500 images of 1x8x8`."""
        return f"{self.name}, {split}, {len(images.k):,} images of {'x'.join(map(str, images.shape))}"

    def reference(self, features: Features, shape: Sequence[int], progress: Progress) -> Reference:
        """Returns the reference on the features of a network: the statistics of the file, or the training images.

        Raises:
            UsageError: for a file that cannot be read, or has images of another height or width than `shape`.
        """
        if features not in self.references:
            self.references[features] = self._reference(features, shape, progress)
        return self.references[features]

    def _reference(self, features: Features, shape: Sequence[int], progress: Progress) -> Reference:
        if self.statistics is not None and features.name != "pixels":
            return read_reference(self.statistics, features, progress, shape=shape)
        assert self.train is not None, "looked for in measure_images"
        name = self.described(self.train, "train")
        return reference_of(features, self.train.k, self.train.quantization, name, progress)

    def read_statistics(self, features: Sequence[Features], shape: Sequence[int], progress: Progress) -> None:
        """Reads the file of reference statistics, where there is one, before samples are drawn."""
        for one in features if self.statistics is not None else ():
            if one.name != "pixels":
                self.reference(one, shape, progress)


@in_float32()
def measure_images(
    k: Examples,
    quantization: Quantization,
    real: RealImages,
    *,
    judge_of: JudgeOf | None,
    features: Sequence[Features] = (),
    without: Sequence[str] = (),
    label: Tensor | None = None,
    origin: Origin | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Any], list[Measurement]]:
    """Measures images beside real images.

    Args:
        k: the images, quantization levels `(N, C, H, W)`.
        quantization: their quantization.
        real: the real images.
        judge_of: returns the judge of the training images; None for no judge.
        features: other feature extractors.
        without: names in `WITHOUT` that are left out.
        label: class labels that were asked for `(N,)`, by a label or a caption, with which the judge should agree; or
            None.
        origin: where the images come from.
        seed: seed of random subsets.
        progress: how to report progress.

    Returns:
        Facts by name, and the measurements.
    """
    about: dict[str, Any] = {"count": len(k)}
    found: list[Measurement] = []
    held_out = None if real.held_out is None else (real.held_out.k, real.held_out.quantization)
    if judge_of is not None and real.train is not None:
        facts, measured = judged(k, real, judge_of, without, label, seed, progress)
        about, found = about | facts, [*found, *measured]
    if "memorization" not in without and "memorized" not in without and real.train is not None:
        features = [*features, *([] if any(f.name == "pixels" for f in features) else [Pixels()])]
    for extractor in features:
        reference = real.reference(extractor, k.shape[1:], progress)
        which = ["memorized"] if extractor.name == "pixels" else measures_on(extractor, reference)
        which = [name for name in which if name not in without and (name != "memorized" or extractor.name == "pixels")]
        which, left_out = enough(which, len(k), extractor.name, reference)
        about |= left_out
        found += image_measures(
            extractor,
            k,
            quantization,
            reference,
            held_out=held_out,
            which=which,
            seed=seed,
            progress=progress,
        )
    about |= {f"{m.name}_of_held_out": m.held_out for m in found if m.name in KEYS and m.held_out is not None}
    return about, [m if origin is None else m.of(origin) for m in found]


def enough(which: Sequence[str], count: int, name: str, reference: Reference) -> tuple[list[str], dict[str, str]]:
    """Returns the measures that so many images suffice for, and a fact that names the others."""
    real = max(BALLS, DENSITY_BALLS) + 1
    few = [m for m in which if count < images_needed(m) or (m in OF_NEIGHBORS and reference.count < real)]
    least = max((images_needed(m) for m in few), default=0)
    training = f" and {real} training images" * any(m in OF_NEIGHBORS for m in few)
    why = f"{', '.join(few)} need at least {least} images{training}"
    return [m for m in which if m not in few], {f"left_out_{name}": why} if few else {}


def judged(
    k: Examples,
    real: RealImages,
    judge_of: JudgeOf,
    without: Sequence[str],
    label: Tensor | None,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Any], list[Measurement]]:
    """Returns the accuracy of the judge and its measures; a note marks those that cannot tell real images apart."""
    train, test = real.train, real.held_out
    assert train is not None
    judge = judge_of(train, progress)
    reference = Reference(real.described(train, "train"), content_hash(train.k), len(judge.reference), judge.reference)
    which, left_out = enough([name for name in OF_JUDGE if name not in without], len(k), judge.name, reference)
    about: dict[str, Any] = {"judge": judge.name} | left_out
    far = unsure = ""
    if test is not None:
        about["judge_accuracy"] = judge.accuracy(test) if judge.name == "mirrored" or test.label is not None else None
        far, unsure = judge.remarks(test)
    found = image_measures(
        judge,
        k,
        train.quantization,
        reference,
        held_out=None if test is None else (test.k, test.quantization),
        which=which,
        seed=seed,
        progress=progress,
    )
    of_classes = classified(judge, k, test, label)
    if about.get("judge_accuracy") is not None:
        known = f"accuracy of the judge {about['judge_accuracy']:.3f}"
        found = [replace(m, note=noted(m.note, known)) if m.name.startswith("frechet") else m for m in found]
    found, of_classes = marked(found, far), marked(of_classes, far or unsure)
    return about, found[:1] + of_classes + found[1:]


def marked(found: list[Measurement], remark: str) -> list[Measurement]:
    """Returns measurements with a remark that they say nothing, where there is one."""
    return [replace(m, better="", note=noted(remark, m.note)) for m in found] if remark else found


def noted(*notes: str) -> str:
    """Returns remarks as one."""
    return "; ".join(note for note in notes if note)


def classified(judge: Judge, k: Examples, test: ImageDataset | None, label: Tensor | None) -> list[Measurement]:
    """Returns what the judge's classification of images shows; nothing for a judge of a set without labels."""
    if judge.name != "judge":
        return []
    quality = judge.quality(k)
    real = None if test is None else judge.quality(test.subset(min(len(k), len(test.k))).k)
    protocol = Protocol(judge.name, judge.digest, judge.resize, samples=len(k), settings=f"p > {SURE}")
    found = [
        Measurement(
            "sure",
            quality.sure,
            protocol,
            error=error_of_share(quality.sure, len(k)),
            better="closer",
            held_out=None if real is None else real.sure,
        ),
        Measurement(
            "classes",
            quality.classes,
            replace(protocol, settings=f"of {judge.classes} classes"),
            better="closer",
            held_out=None if real is None else real.classes,
        ),
    ]
    if label is not None:
        share = judge.agreement(k, label)
        found.append(
            Measurement(
                "agreement",
                share,
                replace(protocol, settings="class that was asked for"),
                error=error_of_share(share, len(k)),
                better="higher",
                held_out=None if test is None or test.label is None else judge.accuracy(test),
            )
        )
    return found
