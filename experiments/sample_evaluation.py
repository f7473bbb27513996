"""Evaluation of samples in files, whatever drew them: images, texts, tokens and arrays beside a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import warn

from unnoise import __version__

from ..shared.data import ImageDataset, image_dataset
from ..shared.errors import Notice, UsageError, did_you_mean, shown
from ..shared.metrics.features import Features
from ..shared.metrics.measurement import Evaluation, Origin
from ..shared.metrics.text_samples import PARTS, evaluate_texts
from ..shared.progress import Progress, silent
from ..shared.training import Training
from . import evaluation
from .image_measures import RealImages, extractors, measure_images, refuse_without
from .sample_files import Samples, read_samples
from .tensor_data import Tensors, compared
from .text_data import Text

KEPT = ("run", "checkpoint", "settings")
"""What `unnoise sample` wrote on samples that results repeat."""


def evaluate_samples(
    path: Path,
    data: str | None,
    *,
    size: int | None = None,
    tokenizer: Path | None = None,
    features: Sequence[str | Features] = ("judge",),
    statistics: Path | None = None,
    without: Sequence[str] = (),
    judge_model: Any = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Evaluation:
    """Measures samples of a folder or file beside a data set.

    Args:
        path: a folder of images, or a .npz, .npy or .txt file; see `read_samples`.
        data: the data set, of which the split train is the reference and the split test the real data beside samples.
        size: height and width to which the images of the data set are scaled and cropped.
        tokenizer: a tokenizer.json, for texts and for token ids of its vocabulary; None for 27 characters.
        features: features by which images are compared.
        statistics: reference statistics of images, instead of the split train, for features other than the judge's.
        without: what is left out; see `image_measures.WITHOUT` and `text_samples.PARTS`.
        judge_model: a causal language model, for texts.
        seed: seed of random subsets.
        device: device of the networks of features.
        progress: how to report progress.

    Raises:
        UsageError: for samples that cannot be read, without anything to compare them with, of another shape than the
            data set, and for options without effect.
    """
    samples = read_samples(path, progress=progress)
    if data is None and (statistics is None or samples.kind != "images"):
        raise UsageError(
            f"{path} has {samples.summary}: give the data set that they are compared with, such as --data digits"
            + ", or --statistics FILE.npz" * (samples.kind == "images")
        )
    of_images = {"features": features if list(features) != ["judge"] else (), "statistics": statistics, "size": size}
    of_text = {"judge-model": judge_model, "tokenizer": tokenizer}
    other = of_text if samples.kind == "images" else of_images if samples.kind != "arrays" else of_text | of_images
    for name, value in other.items():
        if value:
            raise UsageError(f"--{name} has no effect on {samples.kind}: leave it out")
    origin = samples.origin or Origin()
    about = {"samples": samples.summary, "measured_by": f"unnoise {__version__}"} | {
        n: samples.about[n] for n in KEPT if n in samples.about
    }
    if samples.kind == "images":
        options: dict[str, Any] = {"seed": seed, "progress": progress, "origin": origin, "without": without}
        found = of_pictures(samples, data, size, features, statistics, device, **options)
    elif samples.kind == "arrays":
        found = of_numbers(samples, str(data), without, origin, progress)
    else:
        found = of_texts(samples, str(data), tokenizer, without, judge_model, origin, progress)
    return Evaluation(about | found.about, found.measurements)


def of_pictures(
    samples: Samples,
    data: str | None,
    size: int | None,
    features: Sequence[str | Features],
    statistics: Path | None,
    device: str,
    *,
    without: Sequence[str],
    **options: Any,
) -> Evaluation:
    """Measures images; see `evaluate_samples`."""
    refuse_without(without)
    if len(samples) < 2:
        raise UsageError(f"{samples.path} has {samples.summary}: distances need at least 2, so give more samples")
    assert samples.k is not None, "images have levels"
    assert samples.quantization is not None, "images have levels"
    chosen = Training(device=device).chosen_device()
    judged, others = extractors(features, without, statistics, device=chosen, progress=options["progress"])
    if data is None:
        if judged:
            warn(Notice("the judge is left out, because it is trained on a data set, --data"), stacklevel=3)
        name = Path(str(statistics)).name
        about, found = measure_images(
            samples.k,
            samples.quantization,
            RealImages(name, None, None, statistics),
            judge_of=None,
            features=others,
            without=without,
            **options,
        )
        return Evaluation(about, found)
    train, test = splits_of(data, size, options["progress"])
    if train.shape != samples.shape:
        raise UsageError(
            f"the samples in {samples.path} are images of {by(samples.shape)}, and those of {data} are of "
            f"{by(train.shape)}: give a data set of the same size and number of channels, or --size"
        )
    about, found = measure_images(
        samples.in_levels(train.quantization),
        train.quantization,
        RealImages(evaluation.name_of(data), train, test, statistics),
        judge_of=evaluation.judge_of if judged else None,
        features=others,
        without=without,
        label=samples.labels if samples.about and train.label is not None else None,
        **options,
    )
    facts = {"train": train.summary} | ({} if test is None else {"held_out": test.summary})
    return Evaluation(facts | about, found)


def splits_of(data: str, size: int | None, progress: Progress) -> tuple[ImageDataset, ImageDataset | None]:
    """Returns the training images of a data set, and its held-out images; None, with a notice, where it has none."""
    shape: Any = None if size is None else (size, size)
    train = image_dataset(data, size=shape, progress=progress)
    try:
        test = image_dataset(data, split="test", size=shape, progress=progress)
    except UsageError as error:
        warn(Notice(f"no real held-out images stand beside the samples: {shown(error)}"), stacklevel=4)
        return train, None
    if test.shape != train.shape:
        raise UsageError(
            f"the held-out images of {data} are of {by(test.shape)}, and the training images of {by(train.shape)}: "
            "give --size"
        )
    return train, test


def by(shape: Sequence[int]) -> str:
    """Returns a shape as text, `3x32x32`."""
    return "x".join(map(str, shape))


def of_numbers(samples: Samples, data: str, without: Sequence[str], origin: Origin, progress: Progress) -> Evaluation:
    """Measures arrays of real numbers beside those in a file."""
    if without:
        raise UsageError(f"without={without[0]}: arrays are measured by one distance: leave it out")
    assert samples.k is not None, "arrays are numbers"
    recipe_data = Tensors(data)
    train, test = recipe_data.load("train", progress), recipe_data.load("test", progress)
    if samples.shape != train.shape:
        raise UsageError(
            f"the samples in {samples.path} are of shape {by(samples.shape)}, and those of {data} of "
            f"{by(train.shape)}: give a file with examples of the same shape"
        )
    about, distance = compared(samples.k[:], train, test, evaluation.name_of(data))
    return Evaluation({"train": train.summary, "held_out": test.summary} | about, [distance.of(origin)])


def of_texts(
    samples: Samples,
    data: str,
    tokenizer: Path | None,
    without: Sequence[str],
    judge_model: Any,
    origin: Origin,
    progress: Progress,
) -> Evaluation:
    """Measures texts, or token ids, beside a text."""
    for part in without:
        if part not in PARTS:
            raise UsageError(f"without={part}: {did_you_mean(part, PARTS)}of text, choose from {', '.join(PARTS)}")
    text = Text(data)
    if tokenizer is not None:
        text = replace(text, tokenizer=str(tokenizer))
    test, train = text.load("test", progress), text.load("train", progress)
    given: Any = samples.texts
    if samples.kind == "tokens":
        assert samples.k is not None, "tokens are read as numbers"
        given = samples.k[:]
        low, high = int(given.min()), int(given.max())
        if low < 0 or high > test.tokenizer.size:
            raise UsageError(
                f"{samples.path} has the token {low if low < 0 else high}, and the tokenizer of {data} has "
                f"{test.tokenizer.size}: give the tokenizer of the samples with --tokenizer"
            )
    found = evaluate_texts(
        given,
        test,
        origin,
        train=train,
        name=evaluation.name_of(data),
        judge_model=judge_model,
        without=without,
        progress=progress,
    )
    return Evaluation({"train": train.summary, "held_out": test.summary} | found.about, found.measurements)
