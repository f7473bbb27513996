"""How times and labels enter a network, and the refusal of what it does not take."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..tensors import refuse_unless

BUILT_WITH = {"label": "classes"}


def sinusoidal(label: Tensor, dim: int, period: float = 10_000.0) -> Tensor:
    r"""Sinusoidal embedding of a time label (Vaswani et al. 2017, section 3.5), in the order of Ho et al. (2020).

    `emb[i] = sin(label w_i)`, `emb[dim/2 + i] = cos(label w_i)`, `w_i = period^(-i / (dim/2 - 1))`.

    Args:
        label: shape `(B,)`, in the units that the network was trained with (usually 0 to 1000).
        dim: even size of the embedding.
        period: the longest wavelength over 2 pi.

    Returns:
        float32, shape `(B, dim)`.
    """
    half = dim // 2
    rates = torch.exp(-math.log(period) / max(half - 1, 1) * torch.arange(half, device=label.device))
    angle = label.float()[:, None] * rates[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoidal features through a two-layer perceptron: `(B,)` to `(B, out)`."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, label: Tensor) -> Tensor:
        return self.mlp(sinusoidal(label, self.features).to(self.mlp[0].weight.dtype))


class LabelEmbedding(nn.Module):
    """A vector for each of `classes` labels and one more, index `classes`, for "no label"."""

    def __init__(self, classes: int, out: int) -> None:
        super().__init__()
        self.classes, self.table = classes, nn.Embedding(classes + 1, out)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        if label is None:
            return self.table.weight[self.classes].expand(batch, -1)
        known = f"this network has classes 0 to {self.classes - 1}, and {self.classes} for none"
        if not isinstance(label, Tensor) or label.dtype != torch.int64 or label.shape != (batch,):
            what = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise UsageError(f"label={what}: give an int64 tensor ({batch},), one class for each example; {known}")
        refuse_unless((label >= 0) & (label <= self.classes), f"label out of range: {known}")
        return self.table(label)


def refuse_others(conditions: tuple[str, ...], **given: Tensor | None) -> None:
    """Raises `UsageError` where a condition is given that is not among those that the network takes."""
    for name, value in given.items():
        if value is not None and name not in conditions:
            argument = BUILT_WITH.get(name, name)
            raise UsageError(f"{name}=... was given to a network without {argument}: build it with {argument}=..., or leave the {name} out")


def null_of(nulls: dict[str, Tensor | None], condition: str) -> Tensor:
    """The null of a condition among those that a network has.

    Raises:
        UsageError: for a condition without one, such as an image to enlarge.
    """
    if (null := nulls.get(condition)) is None:
        raise UsageError(f"nothing stands for no {condition} in this network: drop another condition")
    return null
