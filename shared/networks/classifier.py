"""A small image classifier, whose features stand in for Inception features in Fréchet distances of small images."""

from __future__ import annotations

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


def train_classifier(
    x: Examples,
    label: Tensor,
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
        label: class labels, int64 `(N,)` in 0..classes-1.
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
            loss = F.cross_entropy(model(unit(x[rows]).roll(shift, dims=(-2, -1))), label[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
