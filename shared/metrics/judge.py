"""A classifier of real images as a measure of samples, and a code length of images to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import ImageDataset
from ..data.batches import Examples
from ..errors import UsageError
from ..networks.classifier import train_classifier
from ..progress import Progress, silent
from .errors import standard_error
from .frechet import frechet_distance

AT_ONCE = 500
"""The number of images that are classified at a time."""
SURE = 0.8
"""The probability above which a classification counts as sure."""


@dataclass(frozen=True)
class SampleQuality:
    """How a set of images compares with the training set, according to a classifier trained on real images."""

    frechet: float
    """Fréchet distance between the classifier's features of these images and of the training set."""
    sure: float
    """Share of images that the classifier assigns to a class with p > 0.8."""
    classes: int
    """Number of classes that the classifier finds among the images."""
    count: int
    """Number of images."""


def judge_of(images: ImageDataset, progress: Progress = silent, steps: int = 600) -> Judge:
    """Returns the judge of a data set, which is trained once in a process.

    It depends on the images, their labels and the number of training steps alone.
    """
    content = hashlib.sha256()
    for start in range(0, len(images.k), AT_ONCE):
        content.update(images.k[start : start + AT_ONCE].contiguous().numpy().data)
    content.update(labels_of(images).contiguous().numpy().data)
    key = (content.hexdigest(), tuple(images.k.shape), images.quantization, steps)
    if key not in _JUDGES:
        _JUDGES[key] = Judge(images, progress, steps)
    return _JUDGES[key]


_JUDGES: dict[tuple[Any, ...], Judge] = {}


def labels_of(images: ImageDataset) -> Tensor:
    """Returns the class labels of images, `(N,)`.

    Raises:
        UsageError: for images without labels.
    """
    if images.label is None:
        raise UsageError(f"these images have {images.no_labels}: take a set with labels")
    return images.label


class Judge:
    """A classifier of real images, and its features of the data set that it was trained on.

    Args:
        images: the data set, with labels.
        progress: how to report progress.
        steps: number of training steps.
    """

    def __init__(self, images: ImageDataset, progress: Progress = silent, steps: int = 600) -> None:
        label = labels_of(images)
        self.quantization, self.classes = images.quantization, int(label.max()) + 1
        self.classifier = train_classifier(
            images.k, label, self.classes, unit=self.unit, steps=steps, progress=progress
        )
        self.reference = self.features(images.k)

    def unit(self, k: Tensor) -> Tensor:
        """Returns quantization levels as real numbers in [0, 1]."""
        return k.float() / (self.quantization.levels - 1)

    def features(self, k: Examples) -> Tensor:
        """Returns the classifier's features of images, `(N, d)`."""
        return torch.cat([self.classifier.embed(part) for part in self._parts(k)])

    def accuracy(self, images: ImageDataset) -> float:
        """Returns the share of images whose label the classifier predicts."""
        return float((self._probabilities(images.k).argmax(1) == labels_of(images)).float().mean())

    def agreement(self, k: Examples, label: Tensor) -> float:
        """Returns the share of images `(N, C, H, W)` that the classifier assigns to the class label `(N,)`."""
        return float((self._probabilities(k).argmax(1) == label).float().mean())

    def quality(self, k: Examples) -> SampleQuality:
        """Measures the quality of images, quantization levels `(N, C, H, W)`."""
        p = self._probabilities(k)
        sure = float((p.max(1).values > SURE).float().mean())
        return SampleQuality(
            frechet_distance(self.features(k), self.reference), sure, len(p.argmax(1).unique()), len(k)
        )

    def _probabilities(self, k: Examples) -> Tensor:
        return torch.cat([self.classifier(part) for part in self._parts(k)]).softmax(1)

    def _parts(self, k: Examples) -> Iterator[Tensor]:
        return (self.unit(k[start : start + AT_ONCE]) for start in range(0, len(k), AT_ONCE))


def marginal_bits_per_dim(train: ImageDataset, test: ImageDataset) -> tuple[float, float]:
    """Returns the bits/dim of the test set, with a standard error, when each pixel is coded independently.

    The probabilities of a pixel are its frequencies in the training set, with one added to every count.
    """
    levels, pixels = train.quantization.levels, train.in_memory.flatten(1).T
    counts = torch.stack([torch.bincount(of_one.long(), minlength=levels) for of_one in pixels]) + 1.0
    p = counts / counts.sum(-1, keepdim=True)
    bits = -p.log2().gather(1, test.in_memory.flatten(1).T.long()).mean(0)
    return float(bits.mean()), standard_error(bits)
