"""A small image classifier, whose features stand in for Inception features in Fréchet distances of small images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..progress import Progress, silent
from ..random import whole_seed
from ..serialization import serializable
from .blocks import group_norm
from .dropout import Dropout

if TYPE_CHECKING:
    from ..data.batches import Examples

POOLED_SIZE = 32
"""Height and width to which `PooledClassifier` averages larger images."""
CHECK_EVERY = 50
"""The number of training steps after which `train_pooled_classifier` looks at the images that it does not train on."""
MOVES = torch.tensor([0.2, 0.15, 0.25, 0.25])
"""Largest rotation in radians, change of scale, and shifts in half widths of an image, of `moved`."""


@serializable("networks.Classifier", formerly="unnoise.shared.networks.classifier.Classifier")
class Classifier(nn.Module):
    """Image classifier of three convolutions, pooling and two linear layers, for clean images in [0, 1].

    Called with images `(B, C, H, W)`; returns logits `(B, classes)`. It has no time input (see `Encoder` for noisy
    signals).

    Args:
        shape: `(C, H, W)`.
        classes: number of classes.
        width: number of channels of the first convolution.
        features: size of the features before the last layer.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.shape, self.classes, self.width, self.features = tuple(shape), classes, width, features
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((shape[0], width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), group_norm(channels_out), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, features))
        self.head = nn.Sequential(nn.SiLU(), Dropout(0.2), nn.Linear(features, classes))

    def embed(self, x: Tensor) -> Tensor:
        """Returns the features `(B, features)` of `x` `(B, C, H, W)` in [0, 1]."""
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits `(B, classes)` of `x` `(B, C, H, W)` in [0, 1], before their softmax."""
        return self.head(self.embed(x))


@serializable("networks.PooledClassifier")
class PooledClassifier(nn.Module):
    """Image classifier that averages over all positions, for clean images in [0, 1] of 16 x 16 pixels or more.

    Three convolutions with batch normalization and halvings between them, the average over all positions and two linear
    layers; larger images are first averaged to at most 32 x 32 pixels. Called with images `(B, C, H, W)`; returns
    logits `(B, classes)`. Its features depend less on single pixels than those of `Classifier`, so that it memorizes
    less.

    Args:
        shape: `(C, H, W)`.
        classes: number of classes.
        width: number of channels of the first convolution.
        features: size of the features before the last layer.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.shape, self.classes, self.width, self.features = tuple(shape), classes, width, features
        height, width_ = (min(n, POOLED_SIZE) for n in shape[1:])
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((height, width_))] * (max(shape[1:]) > POOLED_SIZE)
        for channels_in, channels_out in ((shape[0], width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.SiLU()]
            layers += [nn.AvgPool2d(2, ceil_mode=True)] * (channels_out < 4 * width)
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, features))
        self.head = nn.Sequential(nn.SiLU(), Dropout(0.2), nn.Linear(features, classes))

    def embed(self, x: Tensor) -> Tensor:
        """Returns the features `(B, features)` of `x` `(B, C, H, W)` in [0, 1]."""
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits `(B, classes)` of `x` `(B, C, H, W)` in [0, 1], before their softmax."""
        return self.head(self.embed(x))


def mirrored(x: Tensor, which: Tensor) -> Tensor:
    """Returns images `(B, C, H, W)` as they are, left to right, upside down, or both, for `which` `(B,)` in 0..3."""
    x = torch.where((which % 2 == 1)[:, None, None, None], x.flip(-1), x)
    return torch.where((which // 2 == 1)[:, None, None, None], x.flip(-2), x)


def train_pooled_classifier(
    x: Examples,
    label: Tensor | None,
    classes: int,
    *,
    unit: Callable[[Tensor], Tensor] = lambda x: x,
    steps: int = 600,
    batch: int = 64,
    seed: int = 0,
    progress: Progress = silent,
) -> PooledClassifier:
    """Returns a classifier of images of 16 x 16 pixels or more that generalizes from few images.

    Images are rotated by up to 0.2 radians, scaled by up to 15% and shifted by up to an eighth of their size. A tenth
    of the images, at most 500, is not trained on: of the weights after each `CHECK_EVERY` steps those with the lowest
    cross-entropy on it are returned. The arguments are those of `train_classifier`, with AdamW's weight decay 0.05, and
    a rate that rises to 4e-3 in the first 15% of the steps, then falls to zero.
    """
    generator = torch.Generator().manual_seed(seed := whole_seed(seed))
    order = torch.randperm(len(x), generator=generator)
    share = min(500, len(x) // 10)
    checked, own = order[:share].sort().values, order[share:]

    def cross_entropy(model: nn.Module) -> float:
        total = 0.0
        for rows in torch.arange(len(checked)).split(100):
            images, wanted = unit(x[checked[rows]]), rows % 4 if label is None else label[checked[rows]]
            images = mirrored(images, wanted) if label is None else images
            total += float(F.cross_entropy(model.eval()(images), wanted, reduction="sum"))
        return total / max(1, len(checked))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PooledClassifier(x.shape[1:], classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
        lowest, best = math.inf, model.state_dict()
        for step in progress(range(1, steps + 1), steps, "training the classifier"):
            rows = own[torch.randint(len(own), (min(batch, len(own)),), generator=generator)]
            wanted = torch.randint(4, (len(rows),), generator=generator) if label is None else label[rows]
            images = mirrored(unit(x[rows]), wanted) if label is None else unit(x[rows])
            logits = model.train()(moved(images, generator))
            loss = F.cross_entropy(logits, wanted, label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % CHECK_EVERY == 0 or step == steps:
                with torch.no_grad():
                    now = cross_entropy(model)
                if now < lowest or not len(checked):
                    lowest, best = now, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return model.eval().requires_grad_(False)


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images `(B, C, H, W)`, each rotated, scaled and shifted at random, with their borders continued."""
    angle, scale, *shift = ((torch.rand(4, len(x), generator=generator) * 2 - 1) * MOVES[:, None]).unbind()
    scale = 1 + scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def train_classifier(
    x: Examples,
    label: Tensor | None,
    classes: int,
    *,
    unit: Callable[[Tensor], Tensor] = lambda x: x,
    steps: int = 600,
    batch: int = 128,
    seed: int = 0,
    progress: Progress = silent,
) -> Classifier:
    """Returns a classifier trained on images that are shifted by up to one pixel; deterministic for a seed.

    The loss is the cross-entropy with label smoothing 0.02. The classifier is returned in evaluation mode, with frozen
    parameters. On another machine the same seed can give slightly different weights.

    Args:
        x: images `(N, C, H, W)`, in memory or in a file, in any form that `unit` maps to [0, 1].
        label: class labels, int64 `(N,)` in 0..classes-1; None to tell the four mirrorings of `mirrored` apart.
        classes: number of classes.
        unit: maps a batch of x to [0, 1], so that a large data set can stay in 8 bits; the identity by default.
        steps, batch: number of steps and batch size of AdamW with a cosine schedule.
        seed: seed of the weights and of the order of the images.
        progress: `(items, total, label) -> items`, such as `bar`; reports nothing by default.
    """
    generator = torch.Generator().manual_seed(seed := whole_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(x.shape[1:], classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in progress(range(steps), steps, "training the classifier"):
            rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator)
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            wanted = torch.randint(4, (len(rows),), generator=generator) if label is None else label[rows]
            images = mirrored(unit(x[rows]), wanted) if label is None else unit(x[rows])
            loss = F.cross_entropy(model(images.roll(shift, dims=(-2, -1))), wanted, label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
