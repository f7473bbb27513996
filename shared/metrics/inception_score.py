"""The Inception score of images, by the logits of a classifier."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError

SPLITS = 10
"""The number of parts that the images are split into."""


class InceptionScore(NamedTuple):
    """The mean of the Inception score over splits, and its standard deviation over them (divided by their number)."""

    mean: float
    deviation: float


def inception_score(logits: Tensor, splits: int = SPLITS) -> InceptionScore:
    """Returns mean and deviation over splits of the Inception score `exp E_x KL(p(y | x) | p(y))`.

    Salimans et al. 2016. p(y) is the mean of p(y | x) in the split. Split i has the images from `i N // splits` to
    `(i + 1) N // splits`: all images are used, and their order matters, so shuffle images that are sorted by class.

    Args:
        logits: logits of classes `(N, classes)`; without the biases of the last layer on FID's Inception v3.
        splits: the number of parts.

    Raises:
        UsageError: for fewer images than splits.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise UsageError(f"{count:,} images in {splits} splits: give at least one image for each split")
    log_p = logits.double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * count // splits : (i + 1) * count // splits]
        p = part.exp()
        scores.append((p * (part - p.mean(0).log())).sum(1).mean().exp())
    found = torch.stack(scores)
    return InceptionScore(float(found.mean()), float(found.std(correction=0)))
