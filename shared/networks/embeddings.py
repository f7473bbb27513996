"""How times and labels enter a network, and the refusal of what it does not take."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..serialization import serializable
from ..tensors import is_integer, refuse_unless
from ..time_inputs import log_noise_level, thousandths

BUILT_WITH = {"label": "classes"}


def sinusoidal(
    label: Tensor, dim: int, period: float = 10_000.0, *, cosine_first: bool = False, inclusive: bool = True
) -> Tensor:
    r"""Sinusoidal embedding of a time label (Vaswani et al. 2017, section 3.5), in the order of Ho et al. (2020).

    `emb[i] = sin(label w_i)`, `emb[dim/2 + i] = cos(label w_i)`, `w_i = period^(-i / (dim/2 - 1))`.

    Args:
        label: shape `(B,)`, in the units that the network was trained with (usually 0 to 1000).
        dim: even size of the embedding.
        period: the longest wavelength over 2 pi.
        cosine_first: the cosines, then the sines, as Nichol & Dhariwal (2021) have them.
        inclusive: False for `w_i = period^(-i / (dim/2))`, theirs, which stops short of the period.

    Returns:
        float32, shape `(B, dim)`.
    """
    half = dim // 2
    rates = torch.exp(-math.log(period) / max(half - inclusive, 1) * torch.arange(half, device=label.device))
    angle = label.float()[:, None] * rates[None]
    return torch.cat([angle.cos(), angle.sin()] if cosine_first else [angle.sin(), angle.cos()], dim=1)


@serializable("networks.Sinusoidal", formerly="unnoise.shared.networks.embeddings.Sinusoidal")
@dataclass(frozen=True)
class Sinusoidal:
    """How a time label becomes features: as `sinusoidal` does.

    Attributes:
        cosine_first, inclusive: of `sinusoidal`; Ho et al. (2020) by default, `Sinusoidal(True, False)` is Nichol &
            Dhariwal's (2021).
    """

    cosine_first: bool = False
    inclusive: bool = True
    label = staticmethod(thousandths)
    """What they are made for."""

    def build(self, width: int) -> Waves:
        """The layer of `width` features."""
        return Waves(width, self.cosine_first, self.inclusive)


SINES = Sinusoidal()


@serializable("networks.Fourier", formerly="unnoise.shared.networks.embeddings.Fourier")
@dataclass(frozen=True)
class Fourier:
    r"""Random Fourier features of a label u (Tancik et al. 2020; Song et al. 2021, appendix C):
    `[sin(2 pi w u), cos(2 pi w u)]`.

    Attributes:
        scale: standard deviation of the frequencies w, which are drawn once and kept.
    """

    scale: float = 16.0
    label = staticmethod(log_noise_level)
    """What they are made for."""

    def build(self, width: int) -> RandomWaves:
        """The layer of `2 width` features."""
        return RandomWaves(width, self.scale)


class Waves(nn.Module):
    """Sinusoidal features, `(B,)` to `(B, features)`."""

    def __init__(self, features: int, cosine_first: bool, inclusive: bool) -> None:
        super().__init__()
        self.features, self.cosine_first, self.inclusive = features, cosine_first, inclusive

    def forward(self, label: Tensor) -> Tensor:
        return sinusoidal(label, self.features, cosine_first=self.cosine_first, inclusive=self.inclusive)


class FullPrecision(nn.Module, ABC):
    """A module whose buffers stay float32 where it is cast to half precision.

    Angles of hundreds of turns have no digits left there.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullPrecision:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = getattr(self, name)
            if now.is_floating_point() and torch.finfo(now.dtype).bits < 32:
                setattr(self, name, before.to(now.device))
        return self

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What becomes of x."""


class RandomWaves(FullPrecision):
    """Random Fourier features, `(B,)` to `(B, 2 frequencies)`."""

    def __init__(self, frequencies: int, scale: float) -> None:
        super().__init__()
        self.features = 2 * frequencies
        self.register_buffer("frequencies", scale * torch.randn(frequencies))

    def forward(self, label: Tensor) -> Tensor:
        angle = label.float()[:, None] * self.frequencies.float() * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Features of the time label through a two-layer perceptron: `(B,)` to `(B, out)`.

    `further` `(B, features)` joins the features.
    """

    def __init__(self, features: int, out: int, encode: Sinusoidal | Fourier = SINES) -> None:
        super().__init__()
        self.encode = encode.build(features)
        self.features = self.encode.features
        self.mlp = nn.Sequential(nn.Linear(self.features, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, label: Tensor, further: Tensor | float = 0.0) -> Tensor:
        return self.mlp(self.encode(torch.atleast_1d(label)).to(self.mlp[0].weight.dtype) + further)


class LabelEmbedding(nn.Module):
    """A vector for each of `classes` labels and, with `null`, one more, index `classes`, for "no label"."""

    def __init__(self, classes: int, out: int, null: bool = True) -> None:
        super().__init__()
        self.classes, self.null, self.table = classes, null, nn.Embedding(classes + null, out)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        known = f"this network has classes 0 to {self.classes - 1}, and {f'{self.classes} for none' if self.null else 'needs one of them'}"
        if label is None:
            if not self.null:
                raise UsageError(f"no label was given: {known}; give label=..., an int64 tensor ({batch},)")
            return self.table.weight[self.classes].expand(batch, -1)
        if not isinstance(label, Tensor) or not is_integer(label) or label.shape != (batch,):
            what = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise UsageError(f"label={what}: give an int64 tensor ({batch},), one class for each example; {known}")
        refuse_unless((label >= 0) & (label < self.classes + self.null), f"label out of range: {known}")
        return self.table(label.long())


def refuse_others(conditions: tuple[str, ...], **given: Tensor | None) -> None:
    """Raises `UsageError` where a condition is given that is not among those that the network takes."""
    for name, value in given.items():
        if value is not None and name not in conditions:
            argument = BUILT_WITH.get(name, name)
            raise UsageError(
                f"{name}=... was given to a network without {argument}: build it with {argument}=..., or leave the {name} out"
            )


def null_of(nulls: dict[str, Tensor | None], condition: str) -> Tensor:
    """The null of a condition among those that a network has.

    Raises:
        UsageError: for a condition without one, such as an image to enlarge.
    """
    if (null := nulls.get(condition)) is None:
        raise UsageError(
            f"nothing stands for no {condition} in this network, whose every example has one: guide it by a classifier, or drop another"
        )
    return null
