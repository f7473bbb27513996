"""Sample quality and code lengths, measured in the same way for every family."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import Tensor

from unnoise import __version__

from ..shared.data import Batches, ImageDataset
from ..shared.data.image_stream import ImageStream
from ..shared.data.sources import Absent
from ..shared.data.streaming import StreamedBatches
from ..shared.denoiser import Denoiser
from ..shared.distributed import is_main
from ..shared.errors import Notice, UsageError, shown
from ..shared.metrics.errors import standard_error
from ..shared.metrics.features import Features
from ..shared.metrics.judge import judge_of
from ..shared.metrics.measurement import Evaluation, Measurement, Origin, Protocol
from ..shared.metrics.references import content_hash
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Streams
from ..shared.sampler import Sampler, counted, device_of
from .chunks import in_chunks
from .code_lengths import CodeLengthOf
from .image_measures import RealImages, extractors, measure_images, refuse_without, warn_of_bias
from .parts import write

if TYPE_CHECKING:
    from .recipe import Recipe

CHUNK = 300
"""The number of samples that are drawn at a time."""
STREAMED = 50_000
"""The number of training images of a stream that samples are compared with."""


@dataclass(frozen=True)
class SamplingRun:
    """A set of samples and its cost: sampling steps, network evaluations for each sample, and seconds."""

    levels: Tensor
    steps: int
    evaluations: int
    seconds: float


def draw(
    recipe: Recipe,
    sampler: Sampler,
    shape: tuple[int, ...],
    quantization: Quantization,
    count: int,
    steps: int | Tensor | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    conditions: Callable[[Tensor], dict[str, Tensor]] | None = None,
    size: int | None = None,
    shared: bool = False,
    dtype: torch.dtype | None = None,
) -> SamplingRun:
    """Draws `count` samples of one shape, `size` at a time; sample i and its conditions depend on (seed, i) alone.

    Args:
        recipe: the recipe, of which the conditions, the form of samples and the default steps are taken.
        sampler: the sampler.
        shape: shape of one sample.
        quantization: the quantization of the data.
        count: the number of samples.
        steps: the number of steps, or a grid of times; None for the steps of the recipe.
        seed: the seed of the samples.
        progress: how to report progress.
        conditions: returns the conditions of the samples of given numbers; None for those of the recipe.
        size: the number of samples that are drawn at a time; None for 300.
        shared: whether the processes of a run share the work, as `in_chunks`.
        dtype: type of the samples that are returned; None for that of the recipe.
    """
    steps = recipe.sampling_steps if steps is None else steps
    drawn = drawing(recipe, sampler, shape, quantization, steps, seed=seed, progress=progress, conditions=conditions)
    return sampling_run(drawn, count, steps, size, shared=shared, dtype=dtype)


Drawing = Callable[[Tensor], tuple[Tensor, int]]
"""Draws the samples of given numbers, int64 `(n,)`: returns their levels `(n, ...)`, and the network evaluations."""


def drawing(
    recipe: Recipe,
    sampler: Sampler,
    shape: tuple[int, ...],
    quantization: Quantization,
    steps: int | Tensor,
    *,
    seed: int = 0,
    progress: Progress = silent,
    conditions: Callable[[Tensor], dict[str, Tensor]] | None = None,
) -> Drawing:
    """Returns a function that draws the samples of given numbers; for the arguments see `draw`."""
    device = device_of(sampler.denoiser)

    def drawn(rows: Tensor) -> tuple[Tensor, int]:
        source, labels = Streams(seed, rows), (conditions or recipe.conditions)(rows.to(device))
        with counted(sampler.denoiser) as evaluations:
            x = sampler(shape=(len(rows), *shape), steps=steps, generator=source, progress=progress, **labels)
        return recipe.levels(quantization, x), evaluations.calls

    return drawn


def sampling_run(
    drawn: Drawing,
    count: int,
    steps: int | Tensor,
    size: int | None = None,
    *,
    shared: bool = False,
    dtype: torch.dtype | None = None,
) -> SamplingRun:
    """Returns the samples of the numbers 0 to count - 1, and their cost.

    Args:
        drawn: draws the samples of given numbers.
        count: the number of samples.
        steps: the number of steps, or the grid of times.
        size: the number of samples that are drawn at a time; None for 300.
        shared: whether the processes of a run share the work, as `in_chunks`.
        dtype: type of the samples that are returned; None for that in which they are drawn.
    """
    start, calls = time.perf_counter(), 0

    def levels(rows: Tensor) -> Tensor:
        nonlocal calls
        found, calls = drawn(rows)
        return found.to("cpu", dtype or found.dtype)

    found = in_chunks(levels, count, CHUNK if size is None else size, shared=shared)
    number = steps if isinstance(steps, int) else len(steps) - 1
    return SamplingRun(found, number, calls, time.perf_counter() - start)


def bits_per_dim(
    recipe: Recipe,
    denoiser: Denoiser,
    images: ImageDataset,
    *,
    measure: CodeLengthOf | None = None,
    seed: int = 0,
    progress: Progress = silent,
    size: int | None = None,
    shared: bool = False,
) -> tuple[float, float]:
    """Returns the mean code length of images in bits/dim, and its standard error over the images.

    The code length is that of the recipe, or `measure`. For a conditional model the label is coded before the
    image: its `log2(classes)` bits are included, and since `p(x) >= p(x | label) / classes` the sum is an upper bound
    on the code length of the image alone. The noise of image i depends on (seed, i) alone.

    Args:
        recipe: the recipe.
        denoiser: the denoiser.
        images: the images to code.
        measure: the code length; None for that of the recipe.
        seed: the seed of the noise and of the times of a bound.
        progress: how to report progress.
        size: the number of images that are coded at a time; None for 300.
        shared: whether the processes of a run share the work, as `in_chunks`; the result is that of all images on the
            process of rank 0 alone.
    """
    device, measure = device_of(denoiser), measure or recipe.code_length_of(denoiser, images.quantization)

    def bits(rows: Tensor) -> Tensor:
        part = images.rows(rows)
        conditions = {name: value.to(device) for name, value in recipe.data.conditions_of(part).items()}
        code = measure(part.k[:].to(device), Streams(seed, rows), progress, **conditions)
        return code.bits_per_dim(images.dims).cpu()

    of_label = math.log2(recipe.classes or 1) / images.dims
    whole = in_chunks(bits, len(images.k), CHUNK if size is None else size, shared=shared) + of_label
    return float(whole.mean()), standard_error(whole)


def splits(recipe: Recipe, progress: Progress = silent) -> tuple[Any, Any]:
    """Returns the held-out data and the training data of a recipe, of a stream its first images.

    Raises:
        UsageError: if they no longer exist, and as `Recipe.load`.
    """
    try:
        test, train = recipe.load("test", progress), recipe.load("train", progress)
        return test, train.first(STREAMED) if isinstance(train, ImageStream) else train
    except Absent as error:
        raise UsageError(f"{error}; put the data of the run back, or give their new place with --data") from error


def refuse_other_data(
    train: int, batches: Callable[[], Batches | StreamedBatches], trained_on: Mapping[str, Any] | None
) -> dict[str, str]:
    """Refuses training data that are not those of the checkpoint, since held-out examples may have been trained on.

    Args:
        train: the number of training examples now.
        batches: returns their batches, for their checksum.
        trained_on: the checkpoint's record of its batches.

    Returns:
        A warning, by its name in the results, if only the values differ, as another image decoder can cause.

    Raises:
        UsageError: for another number of examples, or other classes.
    """
    recorded = trained_on or {}
    if recorded.get("examples", train) != train:
        raise UsageError(
            f"the data have {train:,} training examples now, and this run was trained on {recorded['examples']:,}: "
            "held-out examples may have been trained on. Give the data as they were in training, or train again"
        )
    if "content" not in recorded or (now := batches().state_dict())["content"] == recorded["content"]:
        return {}
    if now.get("names") != recorded.get("names"):
        names = [shown(", ".join(given.get("names") or ["without names"])) for given in (now, recorded)]
        raise UsageError(
            f"the classes are {names[0]} now, and were {names[1]} in training: give the data as they were in training, "
            "or train again"
        )
    message = "the training examples have other values now than in training: held-out examples may have been trained on"
    warn(Notice(message), stacklevel=2)
    return {"warning": message}


def cost(run: SamplingRun) -> dict[str, Any]:
    """Returns the cost of samples as a dict, for JSON."""
    return {"steps": run.steps, "evaluations": run.evaluations, "seconds": round(run.seconds, 2)}


def evaluate_images(
    recipe: Recipe,
    denoiser: Denoiser,
    *,
    count: int | None,
    steps: int | Tensor,
    seed: int = 0,
    trained_on: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    size: int | None = None,
    samples: int | None = None,
    features: Sequence[str | Features] = ("judge",),
    without: Sequence[str] = (),
    statistics: Path | None = None,
    **of_text: Any,
) -> Evaluation:
    """Measures bits/dim of held-out images, and the quality of samples; see `Recipe.evaluate`.

    The processes of a run share the work, `size` examples at a time (None for 300); the results are those of all
    examples on the process of rank 0, and empty on the others. `without` names what is left out, of
    `image_measures.WITHOUT`.

    Raises:
        UsageError: for fewer than two images, which have no standard error and no Fréchet distance; for training images
            other than those of `trained_on`, a checkpoint's record of its batches; for unknown features; and where
            nothing is left to measure.
    """
    if count is not None and count < 2:
        raise UsageError(
            f"count={count}: a standard error and a Fréchet distance need at least 2 images; give --count 2 or more"
        )
    refuse_without(without, samples)
    refuse_of_text(of_text)
    if {"code-length", "samples"} <= set(without):
        raise UsageError("without code-length and samples nothing is left to measure: leave out one of the two")
    judged, others = False, []
    if is_main():  # before any work is lost
        judged, others = extractors(features, without, statistics, device=device_of(denoiser), progress=progress)
    test, train = splits(recipe, progress)
    if train.shape != test.shape:
        raise UsageError(
            f"the training images are {train.summary}, and the held-out images {test.summary}: give both the same size "
            "and number of channels"
        )
    if len(test.k) < 2:
        raise UsageError(
            f"the test split has {len(test.k)} image: a standard error needs at least 2, so hold out more images"
        )
    warning = refuse_other_data(len(train.k), lambda: recipe.batches(train), trained_on)
    about: dict[str, Any] = {"train": train.summary, "held_out": test.summary} | warning
    whole, test = test, test if count is None else test.subset(count)
    found: list[Measurement] = []
    held_out = whole.subset(min(samples or len(test.k), len(whole.k)))  # as many as samples, where there are so many
    real = RealImages(short_name(recipe.data), train, held_out, statistics)
    if is_main() and "samples" not in without:  # before any work is lost
        warn_of_bias(others, samples or len(test.k))
        real.read_statistics(others, test.shape, progress)
    if "code-length" not in without:
        bits, error = bits_per_dim(recipe, denoiser, test, seed=seed, progress=progress, size=size, shared=True)
        kind = f"{recipe.kind}, given the caption" if recipe.data.caption_sizes() else recipe.kind
        about |= {"standard_error": error, "kind": kind}
        found.append(coded(recipe, real, test, "bits_per_dim", bits, error, kind, seed))
    if "samples" in without:
        return Evaluation(about, found) if is_main() else Evaluation({}, [])
    run = draw(
        recipe,
        recipe.sampler_of(denoiser),
        test.shape,
        test.quantization,
        samples or len(test.k),
        steps,
        seed=seed,
        progress=progress,
        conditions=captions_in_turn(recipe, test),
        size=size,
        shared=True,
        dtype=torch.uint8 if test.quantization.levels <= 256 else None,  # an eighth of the memory
    )
    if not is_main():
        return Evaluation({}, [])
    facts, measured = measure_images(
        run.levels,
        test.quantization,
        real,
        judge_of=judge_of if judged else None,
        features=others,
        without=without,
        label=requested_labels(recipe, test, len(run.levels)),
        origin=origin_of(recipe, run, seed),
        progress=progress,
    )
    return Evaluation(about | facts | cost(run), [*found, *measured])


def requested_labels(recipe: Recipe, test: ImageDataset, count: int) -> Tensor | None:
    """Returns the class labels that samples have to show: those given, or of the captions given; None without any."""
    rows = torch.arange(count)
    if test.label is not None and recipe.data.caption_sizes():
        return test.label[rows % len(test.k)]
    return recipe.conditions(rows).get("label") if test.label is not None else None


def refuse_of_text(options: Mapping[str, Any]) -> None:
    """Raises `UsageError` for options of an evaluation that have no effect without text."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name}={value} has no effect on these data, which are not text: leave it out")


def origin_of(recipe: Recipe, run: SamplingRun, seed: int) -> Origin:
    """Returns the origin of samples, without the weights and the precision."""
    own = write(getattr(recipe, "sampler", ""))
    return Origin(own, run.steps, run.evaluations, seed=seed, version=__version__)


def coded(
    recipe: Recipe, real: RealImages, test: ImageDataset, name: str, bits: float, error: float, kind: str, seed: int
) -> Measurement:
    """Returns a code length in bits/dim with its protocol."""
    how = write(getattr(recipe, "code_length", ""))
    of_label = "with the bits of the class label" * (recipe.classes is not None)
    protocol = Protocol(
        reference=real.described(test, "held out"),
        reference_hash=content_hash(test.k),
        samples=len(test.k),
        settings=of_label,
        coded=True,
    )
    origin, note = Origin(seed=seed, version=__version__), ", ".join(part for part in (kind, how) if part)
    return Measurement(name, bits, protocol, origin, error, "bits/dim", "lower", note=note)


def short_name(data: Any) -> str:
    """Returns the name of the data of a recipe for a protocol."""
    return name_of(getattr(data, "name", "") or getattr(getattr(data, "images", None), "name", "the data"))


def name_of(name: str) -> str:
    """Returns the name of a data set for a protocol, of a file or folder the last part of its path."""
    return Path(name).name if Path(name).exists() else str(name)


def captions_in_turn(recipe: Recipe, images: ImageDataset) -> Callable[[Tensor], dict[str, Tensor]] | None:
    """Returns the conditions of samples drawn from the captions of these images; None for a model without captions.

    Sample i has the conditions of image i, and where there are more samples than images, those are taken in turn.
    """
    if not recipe.data.caption_sizes():
        return None
    every = recipe.data.conditions_of(images)
    count = len(images.k)
    return lambda rows: {name: v[rows.to(v.device) % count].to(rows.device) for name, v in every.items()}
