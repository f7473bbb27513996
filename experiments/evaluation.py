"""Samples and code lengths, measured alike for every family."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from warnings import warn

import torch
from torch import Tensor

from ..shared.data import Batches, ImageDataset
from ..shared.data.sources import Absent
from ..shared.denoiser import Denoiser
from ..shared.errors import Notice, UsageError, shown
from ..shared.metrics import frechet_distance
from ..shared.metrics.errors import standard_error
from ..shared.networks.classifier import train_classifier
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Streams, whole_seed
from ..shared.sampler import Sampler, counted, device_of
from .experiment import CodeLengthOf, Experiment

SURE, CHUNK = 0.8, 300


@dataclass(frozen=True)
class SampleQuality:
    """How a set of images compares with the training set, by a classifier trained on real ones."""

    frechet: float
    """Fréchet distance of the classifier's features to those of the training set."""
    sure: float
    """Share of images of which the classifier is sure (p > 0.8)."""
    classes: int
    """Classes that occur among the images."""
    count: int
    """Images."""


@dataclass(frozen=True)
class SamplingRun:
    """A set of samples and what it cost."""

    levels: Tensor
    steps: int
    evaluations: int
    seconds: float


def judge_of(images: ImageDataset, progress: Progress = silent, steps: int = 600) -> Judge:
    """The judge of a set, trained once in a process.

    It is a function of the images, their labels and the steps alone.
    """
    content = hashlib.sha256(images.k.contiguous().numpy())
    content.update(images.label.contiguous().numpy())
    key = (content.hexdigest(), tuple(images.k.shape), images.quantization, steps)
    if key not in _JUDGES:
        _JUDGES[key] = Judge(images, progress, steps)
    return _JUDGES[key]


_JUDGES: dict[tuple[Any, ...], Judge] = {}


class Judge:
    """A classifier trained on a set, and the features of that set."""

    def __init__(self, images: ImageDataset, progress: Progress = silent, steps: int = 600) -> None:
        self.quantization, self.classes = images.quantization, int(images.label.max()) + 1
        self.classifier = train_classifier(
            images.k, images.label, self.classes, unit=self.unit, steps=steps, progress=progress
        )
        self.reference = self.features(images.k)

    def unit(self, k: Tensor) -> Tensor:
        """Levels as real numbers in [0, 1]."""
        return k.float() / (self.quantization.levels - 1)

    def features(self, k: Tensor) -> Tensor:
        """The classifier's features, `(N, d)`."""
        return torch.cat([self.classifier.embed(part) for part in self.unit(k).split(500)])

    def accuracy(self, images: ImageDataset) -> float:
        """Share of labels that the classifier gets right."""
        return float((self._probabilities(images.k).argmax(1) == images.label).float().mean())

    def agreement(self, k: Tensor, label: Tensor) -> float:
        """Share of levels `(N, C, H, W)` that the classifier gives the label `(N,)`."""
        return float((self._probabilities(k).argmax(1) == label).float().mean())

    def quality(self, k: Tensor) -> SampleQuality:
        """The quality of levels `(N, C, H, W)`."""
        p = self._probabilities(k)
        sure = float((p.max(1).values > SURE).float().mean())
        return SampleQuality(
            frechet_distance(self.features(k), self.reference), sure, len(p.argmax(1).unique()), len(k)
        )

    def _probabilities(self, k: Tensor) -> Tensor:
        return torch.cat([self.classifier(part) for part in self.unit(k).split(500)]).softmax(1)


def draw(
    experiment: Experiment,
    sampler: Sampler,
    shape: tuple[int, ...],
    quantization: Quantization,
    count: int,
    steps: int | Tensor | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> SamplingRun:
    """`count` samples of one shape, a few hundred at a time; sample i depends on (seed, i) alone, its label too."""
    start, parts, calls, device = time.perf_counter(), [], 0, device_of(sampler.denoiser)
    steps = experiment.sampling_steps if steps is None else steps
    for rows in torch.arange(count).split(CHUNK):
        source, labels = Streams(seed, rows), experiment.conditions(rows.to(device))
        with counted(sampler.denoiser) as evaluations:
            x = sampler(shape=(len(rows), *shape), steps=steps, generator=source, progress=progress, **labels)
        parts.append(experiment.levels(quantization, x).cpu())
        calls = evaluations.calls
    return SamplingRun(
        torch.cat(parts), steps if isinstance(steps, int) else len(steps) - 1, calls, time.perf_counter() - start
    )


def bits_per_dim(
    experiment: Experiment,
    denoiser: Denoiser,
    images: ImageDataset,
    *,
    measure: CodeLengthOf | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[float, float]:
    """Mean code length of images, the experiment's own or `measure`'s, in bits for each dimension, and its standard
    error over the images.

    Where the model is conditional, an image is coded after its label, and the label's `log2(classes)` bits are counted
    too: with `p(x) >= p(x | label) / classes` the sum is an upper bound on the code length of the image alone.
    """
    device = device_of(denoiser)
    generator, measure = (
        torch.Generator(device).manual_seed(whole_seed(seed)),
        measure or experiment.code_length(denoiser, images.quantization),
    )
    bits = []
    for rows in torch.arange(len(images.k)).split(CHUNK):
        labels = {} if experiment.data.classes is None else {"label": images.label[rows].to(device)}
        bits.append(measure(images.k[rows].to(device), generator, progress, **labels).bits_per_dim(images.dims))
    of_label = math.log2(experiment.data.classes or 1) / images.dims
    whole = torch.cat(bits) + of_label
    return float(whole.mean()), standard_error(whole)


def marginal_bits_per_dim(train: ImageDataset, test: ImageDataset) -> tuple[float, float]:
    """Bits/dim of the test set when each pixel is coded by its own frequencies in the training set, one added to every
    count.

    Returns the mean and its standard error over the images.
    """
    levels, pixels = train.quantization.levels, train.k.flatten(1).T
    counts = torch.stack([torch.bincount(of_one.long(), minlength=levels) for of_one in pixels]) + 1.0
    p = counts / counts.sum(-1, keepdim=True)
    bits = -p.log2().gather(1, test.k.flatten(1).T.long()).mean(0)
    return float(bits.mean()), standard_error(bits)


def splits(experiment: Experiment, progress: Progress = silent) -> tuple[Any, Any]:
    """The held-out data of an experiment and those to train on.

    Raises:
        UsageError: where they are not there any more, and as `Experiment.load`.
    """
    try:
        return experiment.load("test", progress), experiment.load("train", progress)
    except Absent as error:
        raise UsageError(f"{error}; put the data of the run back, or say with --data where they lie now") from error


def refuse_other_data(
    train: int, batches: Callable[[], Batches], trained_on: Mapping[str, Any] | None
) -> dict[str, str]:
    """Compares the data to train on, `train` examples, with a checkpoint's, for what was trained on is not held out.

    Returns:
        What is to be said of other values, which another decoder gives too.

    Raises:
        UsageError: for another number of examples, or other classes.
    """
    there = trained_on or {}
    if there.get("examples", train) != train:
        raise UsageError(
            f"the data have {train:,} examples to train on now, and this run was trained on {there['examples']:,}: those held out may "
            "be among these. Give the data as they were in training, or train again"
        )
    if "content" not in there or (here := batches().state_dict())["content"] == there["content"]:
        return {}
    if here.get("names") != there.get("names"):
        names = [shown(", ".join(given.get("names") or ["without names"])) for given in (here, there)]
        raise UsageError(
            f"the classes are {names[0]}, and were {names[1]}: give the data as they were in training, or train again"
        )
    said = "the examples to train on have other values than in training: those held out now may have been among them"
    warn(Notice(said), stacklevel=2)
    return {"warning": said}


def summary(quality: SampleQuality, run: SamplingRun) -> dict[str, Any]:
    """Both as one flat dict, for JSON."""
    return asdict(quality) | {"steps": run.steps, "evaluations": run.evaluations, "seconds": round(run.seconds, 2)}


def evaluate_images(
    experiment: Experiment,
    denoiser: Denoiser,
    *,
    count: int | None,
    steps: int | Tensor,
    seed: int = 0,
    trained_on: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Bits/dim of held-out images and, where there are labels to train a judge with, the quality of as many samples.

    Raises:
        UsageError: for fewer than two images, which have no standard error and no Fréchet distance; or where the images
            to train on are not those of `trained_on`, what a checkpoint says of its batches.
    """
    if count is not None and count < 2:
        raise UsageError(
            f"count={count}: a standard error and a Fréchet distance need at least 2 images; give --count 2 or more"
        )
    test, train = splits(experiment, progress)
    if train.shape != test.shape:
        raise UsageError(
            f"the images to train on are {train.summary}, and those held out {test.summary}: give both one size and color"
        )
    if len(test.k) < 2:
        raise UsageError(
            f"the test split holds {len(test.k)} image: a standard error needs at least 2, so hold more images out"
        )
    said = refuse_other_data(len(train.k), lambda: experiment.batches(train), trained_on)
    data = {"train": train.summary, "held_out": test.summary} | said
    test = test if count is None else test.part(count)
    bits, error = bits_per_dim(experiment, denoiser, test, seed=seed, progress=progress)
    results: dict[str, Any] = data | {
        "bits_per_dim": bits,
        "standard_error": error,
        "kind": experiment.code_length_kind,
    }
    run = draw(
        experiment,
        experiment.sampler(denoiser),
        test.shape,
        test.quantization,
        len(test.k),
        steps,
        seed=seed,
        progress=progress,
    )
    if train.label is not None:
        judge = judge_of(train, progress)
        results |= summary(judge.quality(run.levels), run) | {"frechet_of_held_out": judge.quality(test.k).frechet}
    return results
