"""A classifier of real images as a measure of samples, and a code length of images to compare with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data import ImageDataset
from ..data.batches import Examples
from ..errors import UsageError
from ..networks.classifier import (
    POOLED_SIZE,
    Classifier,
    PooledClassifier,
    mirrored,
    train_classifier,
    train_pooled_classifier,
)
from ..progress import Progress, silent
from ..quantization import Quantization
from .errors import standard_error
from .features import Features, digest_of, in_float32
from .frechet import frechet_distance
from .tensor_cache import cached_tensors

AT_ONCE = 500
"""The number of images that are classified at a time."""
SURE = 0.8
"""The probability above which a classification counts as sure."""
SMALL = 16
"""Images of fewer pixels in height or width are classified by `Classifier`."""
FAR = 3.0
"""A larger ratio of the distances of held-out and training images means that the distances say nothing."""
FLOOR = 1e-3
"""What is added to the variance of each direction of the features, as a share of the mean variance."""
VERSION = 2
"""Version of the files in the cache; one higher where a judge is trained in another way."""


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


@in_float32()
def judge_of(images: ImageDataset, progress: Progress = silent, steps: int = 600) -> Judge:
    """Returns the judge of a data set, which is trained once and kept in the cache.

    It depends on the images, their labels and the number of training steps alone. The files lie in the folder `judges`
    of UNNOISE_CACHE or ~/.cache/unnoise; none are kept for UNNOISE_CACHE=none, except in the memory of the process.
    """
    content = hashlib.sha256(json.dumps([VERSION, list(images.k.shape), images.quantization.levels, steps]).encode())
    for start in range(0, len(images.k), AT_ONCE):
        content.update(images.k[start : start + AT_ONCE].contiguous().numpy().data)
    if images.label is not None:
        content.update(images.label.contiguous().numpy().data)
    key = content.hexdigest()[:32]
    if key not in _JUDGES:
        _JUDGES[key] = Judge(images, progress, steps, key)
    return _JUDGES[key]


_JUDGES: dict[str, Judge] = {}


def labels_of(images: ImageDataset) -> Tensor:
    """Returns the class labels of images, `(N,)`.

    Raises:
        UsageError: for images without labels.
    """
    if images.label is None:
        raise UsageError(f"these images have {images.no_labels}: take a set with labels")
    return images.label


class Judge(Features):
    """A classifier of real images, and its features of the data set that it was trained on.

    Images of fewer than 16 pixels in height or width are classified by `Classifier`, which is trained on all of them,
    and larger ones by `PooledClassifier`, which is trained to generalize, and whose features are whitened. For a set
    without labels the classes are four mirrorings of each image (none, left to right, upside down, both), and the name
    of the features is `mirrored`.

    Args:
        images: the data set.
        progress: how to report progress.
        steps: number of training steps.
        key: name of the file in the cache; None to keep nothing.
    """

    def __init__(
        self, images: ImageDataset, progress: Progress = silent, steps: int = 600, key: str | None = None
    ) -> None:
        self.name = "judge" if images.label is not None else "mirrored"
        self.quantization, self.shape = images.quantization, tuple(images.shape)
        self.classes = 4 if images.label is None else int(images.label.max()) + 1
        small = min(self.shape[1:]) < SMALL
        larger = max(self.shape[1:]) > POOLED_SIZE
        self.resize = f"averaged to at most {POOLED_SIZE} x {POOLED_SIZE}" if larger else ""

        def trained() -> dict[str, Tensor]:
            train = train_classifier if small else train_pooled_classifier
            self.classifier = train(
                images.k, images.label, self.classes, unit=self.unit, steps=steps, progress=progress
            )
            raw = torch.cat([self.classifier.embed(part) for part in self._parts(images.k)])
            self.whitening = torch.zeros(raw.shape[1]), torch.eye(raw.shape[1]), torch.eye(raw.shape[1])
            if not small:
                self.whitening = whitening_of(raw)
            found = dict(zip(WHITENING, self.whitening, strict=True)) | {"reference": self.whitened(raw)}
            return found | {f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}

        network = (Classifier if small else PooledClassifier)(self.shape, self.classes)
        self.classifier = network.eval().requires_grad_(False)
        needed = ["reference", *WHITENING, *(f"classifier.{name}" for name in network.state_dict())]
        tensors = (
            trained() if key is None else cached_tensors("judges", key, "the judge of these images", needed, trained)
        )
        self.classifier.load_state_dict({name: tensors[f"classifier.{name}"] for name in network.state_dict()})
        mean, whiten, unwhiten = (tensors[name] for name in WHITENING)
        self.reference, self.whitening = tensors["reference"], (mean, whiten, unwhiten)
        self.size = self.reference.shape[1]

    @cached_property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the weights."""
        return digest_of(self.classifier.state_dict() | dict(zip(WHITENING, self.whitening, strict=True)))

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        """Returns the features, float32 `(N, d)`, of images of quantization levels `(N, C, H, W)`.

        Raises:
            UsageError: for images of another shape or quantization than those that the judge was trained on.
        """
        if tuple(k.shape[1:]) != self.shape or quantization != self.quantization:
            own, other = (
                f"{'x'.join(map(str, shape))} with {q.levels} quantization levels"
                for shape, q in ((self.shape, self.quantization), (k.shape[1:], quantization))
            )
            raise UsageError(f"the judge was trained on images of {own}, and these are of {other}: give images alike")
        return self.features(k)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits of the classes `(N, classes)` from features."""
        mean, _, unwhiten = self.whitening
        return self.classifier.head(features @ unwhiten + mean)

    def unit(self, k: Tensor) -> Tensor:
        """Returns quantization levels as real numbers in [0, 1]."""
        return k.float() / (self.quantization.levels - 1)

    def features(self, k: Examples) -> Tensor:
        """Returns the features of images, `(N, d)`."""
        return self.whitened(torch.cat([self.classifier.embed(part) for part in self._parts(k)]))

    def whitened(self, features: Tensor) -> Tensor:
        """Returns the features of the classifier, of `PooledClassifier` with mean 0 and covariance 1 in training."""
        mean, whiten, _ = self.whitening
        return (features - mean) @ whiten

    def accuracy(self, images: ImageDataset) -> float:
        """Returns the share of images whose label the classifier predicts.

        Without labels, the share of images mirrored in the four ways in turn whose mirroring it recognizes.
        """
        if self.name == "judge":
            return self.agreement(images.k, labels_of(images))
        wanted = torch.arange(len(images.k)) % 4
        parts = zip(self._parts(images.k), wanted.split(AT_ONCE), strict=True)
        right = [self.classifier(mirrored(part, which)).argmax(1) == which for part, which in parts]
        return float(torch.cat(right).float().mean())

    def agreement(self, k: Examples, label: Tensor) -> float:
        """Returns the share of images `(N, C, H, W)` that the classifier assigns to the class label `(N,)`."""
        return float((self._probabilities(k).argmax(1) == label).float().mean())

    def quality(self, k: Examples) -> SampleQuality:
        """Measures the quality of images, quantization levels `(N, C, H, W)`.

        Raises:
            UsageError: for a judge of a set without labels, which has no classes.
        """
        if self.name != "judge":
            raise UsageError("the judge of a set without labels has no classes: measure the distance of its features")
        features = self.features(k)
        p = self.logits(features).softmax(1)
        sure = float((p.max(1).values > SURE).float().mean())
        return SampleQuality(frechet_distance(features, self.reference), sure, len(p.argmax(1).unique()), len(k))

    def remarks(self, held_out: ImageDataset) -> tuple[str, str]:
        """Returns why distances, and why classes say nothing about samples, by real held-out images; or empty texts.

        Distances say nothing if that of held-out images is more than `FAR` times that of random training images, of
        equal number, from the other training images; classes if the accuracy on held-out images is below the middle
        between chance and 1.
        """
        real, training = self.distances(held_out.k)
        accuracy = self.accuracy(held_out) if held_out.label is not None and self.name == "judge" else 1.0
        far = f"distance {real:.3g} of held-out images, {training:.3g} of as many training images"
        unsure = f"accuracy {accuracy:.2f} on held-out images"
        nothing = "the judge says nothing here: "
        return (
            f"{nothing}{far}" if real > FAR * training else "",
            f"{nothing}{unsure}" if accuracy < (1 + 1 / self.classes) / 2 else "",
        )

    def distances(self, held_out: Examples) -> tuple[float, float]:
        """Returns the Fréchet distances of held-out images, and of as many random training images.

        The first is that from all training images, the second that from the other training images, averaged over 5
        choices. At most half as many images are taken as there are training images; of less than two, NaN is returned.
        """
        count = min(len(held_out), len(self.reference) // 2)
        if count < 2:
            return math.nan, math.nan
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(self.reference), generator=generator) for _ in range(5)]
        training = [frechet_distance(self.reference[order[:count]], self.reference[order[count:]]) for order in orders]
        spread = torch.arange(count) * len(held_out) // count  # since images are often sorted by class
        return frechet_distance(self.features(held_out[spread]), self.reference), sum(training) / len(training)

    def _probabilities(self, k: Examples) -> Tensor:
        return torch.cat([self.classifier(part) for part in self._parts(k)]).softmax(1)

    def _parts(self, k: Examples) -> Iterator[Tensor]:
        return (self.unit(k[start : start + AT_ONCE]) for start in range(0, len(k), AT_ONCE))


WHITENING = ("mean", "whiten", "unwhiten")
"""The tensors that whiten features, by name."""


def whitening_of(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean `(d,)` of features `(N, d)`, a matrix that whitens them without their mean, and its inverse.

    `FLOOR` is added to the variances, so that directions of almost no variance stay small.
    """
    x = features.double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T) if len(x) > 1 else torch.eye(x.shape[1], dtype=x.dtype))
    deviation = (values.clamp(min=0) + FLOOR * values.mean() + 1e-12).sqrt()
    return x.mean(0).float(), (vectors / deviation).float(), (vectors * deviation).T.contiguous().float()


def marginal_bits_per_dim(train: ImageDataset, test: ImageDataset) -> tuple[float, float]:
    """Returns the bits/dim of the test set, with a standard error, when each pixel is coded independently.

    The probabilities of a pixel are its frequencies in the training set, with one added to every count.
    """
    levels, pixels = train.quantization.levels, train.in_memory.flatten(1).T
    counts = torch.stack([torch.bincount(of_one.long(), minlength=levels) for of_one in pixels]) + 1.0
    p = counts / counts.sum(-1, keepdim=True)
    bits = -p.log2().gather(1, test.in_memory.flatten(1).T.long()).mean(0)
    return float(bits.mean()), standard_error(bits)
