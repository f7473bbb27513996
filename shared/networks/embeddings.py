"""Embeddings of times and class labels, and errors for conditions that a network does not take."""

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
from ..values import notation

BUILT_WITH = {"label": "classes"}


def sinusoidal(
    time: Tensor, dim: int, period: float = 10_000.0, *, cosine_first: bool = False, inclusive: bool = True
) -> Tensor:
    r"""Sinusoidal embedding of a time input u (Vaswani et al. 2017, section 3.5), in the order of Ho et al. (2020).

    `emb[i] = sin(u w_i)`, `emb[dim/2 + i] = cos(u w_i)`, `w_i = period^(-i / (dim/2 - 1))`.

    Args:
        time: time inputs `(B,)`, in the units that the network was trained with (usually 0 to 1000).
        dim: size of the embedding, an even number.
        period: the longest wavelength divided by 2 pi.
        cosine_first: whether the cosines come before the sines, as in Nichol & Dhariwal (2021).
        inclusive: False for the frequencies `w_i = period^(-i / (dim/2))` of Nichol & Dhariwal (2021), which end
            before `1 / period`.

    Returns:
        float32, shape `(B, dim)`.
    """
    half = dim // 2
    rates = torch.exp(-math.log(period) / max(half - inclusive, 1) * torch.arange(half, device=time.device))
    angle = time.float()[:, None] * rates[None]
    return torch.cat([angle.cos(), angle.sin()] if cosine_first else [angle.sin(), angle.cos()], dim=1)


@serializable("networks.Sinusoidal", formerly="unnoise.shared.networks.embeddings.Sinusoidal")
@dataclass(frozen=True)
class Sinusoidal:
    """Sinusoidal features of the time input, as the function `sinusoidal` computes them; `build` makes the layer.

    Attributes:
        cosine_first, inclusive: as in `sinusoidal`; the defaults are those of Ho et al. (2020), and
            `Sinusoidal(True, False)` are those of Nichol & Dhariwal (2021).
    """

    cosine_first: bool = False
    inclusive: bool = True
    time_input = staticmethod(thousandths)
    """The time input that these features suit."""
    __repr__ = notation

    def build(self, width: int) -> SinusoidalFeatures:
        """Returns the layer that maps time inputs `(B,)` to `(B, width)`."""
        return SinusoidalFeatures(width, self.cosine_first, self.inclusive)


SINES = Sinusoidal()


@serializable("networks.Fourier", formerly="unnoise.shared.networks.embeddings.Fourier")
@dataclass(frozen=True)
class Fourier:
    r"""Random Fourier features of the time input u (Tancik et al. 2020; Song et al. 2021, appendix C).

    `[sin(2 pi w u), cos(2 pi w u)]`, a sine and a cosine for each frequency w; `build` makes the layer.

    Attributes:
        scale: standard deviation of the frequencies w, which are drawn once and saved with the weights.
    """

    scale: float = 16.0
    time_input = staticmethod(log_noise_level)
    """The time input that these features suit."""
    __repr__ = notation

    def build(self, width: int) -> FourierFeatures:
        """Returns the layer that maps time inputs `(B,)` to `(B, 2 width)`, of `width` random frequencies."""
        return FourierFeatures(width, self.scale)


class SinusoidalFeatures(nn.Module):
    """Sinusoidal features of time inputs, `(B,)` to `(B, features)`; the arguments are those of `sinusoidal`."""

    def __init__(self, features: int, cosine_first: bool, inclusive: bool) -> None:
        super().__init__()
        self.features, self.cosine_first, self.inclusive = features, cosine_first, inclusive

    def forward(self, time: Tensor) -> Tensor:
        return sinusoidal(time, self.features, cosine_first=self.cosine_first, inclusive=self.inclusive)


class Float32Buffers(nn.Module, ABC):
    """A module whose buffers stay float32 when it is cast to half precision.

    In half precision an angle of hundreds of turns has no accurate digit.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = getattr(self, name)
            if now.is_floating_point() and torch.finfo(now.dtype).bits < 32:
                setattr(self, name, before.to(now.device))
        return self

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Returns the module's output for x."""


class FourierFeatures(Float32Buffers):
    """Random Fourier features of time inputs, `(B,)` to `(B, 2 frequencies)`.

    Args:
        frequencies: number of frequencies.
        scale: standard deviation of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, frequencies: int, scale: float) -> None:
        super().__init__()
        self.features = 2 * frequencies
        self.register_buffer("frequencies", scale * torch.randn(frequencies))

    def forward(self, time: Tensor) -> Tensor:
        angle = time.float()[:, None] * self.frequencies.float() * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Time embedding: features of the time input through a two-layer perceptron, `(B,)` to `(B, out)`.

    Called with time inputs and, in `further`, `(B, features)` or a number that is added to the features.

    Args:
        features: size of the features; `Fourier` has twice as many.
        out: size of the embedding.
        encode: the kind of features.
    """

    def __init__(self, features: int, out: int, encode: Sinusoidal | Fourier = SINES) -> None:
        super().__init__()
        self.encode = encode.build(features)
        self.features = self.encode.features
        self.mlp = nn.Sequential(nn.Linear(self.features, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, time: Tensor, further: Tensor | float = 0.0) -> Tensor:
        return self.mlp(self.encode(torch.atleast_1d(time)).to(self.mlp[0].weight.dtype) + further)


class LabelEmbedding(nn.Module):
    """A learned vector for each of `classes` class labels and, with `null`, one for "no label", at index `classes`.

    Called with labels, integers `(B,)`, or None for no label, and B; returns `(B, out)`.

    Raises:
        UsageError: when it is called, for labels out of range or of another shape, and for None without `null`.
    """

    def __init__(self, classes: int, out: int, null: bool = True) -> None:
        super().__init__()
        self.classes, self.null, self.table = classes, null, nn.Embedding(classes + null, out)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        known = f"this network needs a class from 0 to {self.classes - 1}"
        if self.null:
            known = f"this network has classes 0 to {self.classes - 1}, and {self.classes} for no label"
        if label is None:
            if not self.null:
                raise UsageError(f"no label was given: {known}; give label=..., an int64 tensor ({batch},)")
            return self.table.weight[self.classes].expand(batch, -1)
        if not isinstance(label, Tensor) or not is_integer(label) or label.shape != (batch,):
            what = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
            raise UsageError(f"label={what}: give an int64 tensor ({batch},), a class for each example; {known}")
        refuse_unless((label >= 0) & (label < self.classes + self.null), f"label out of range: {known}")
        return self.table(label.long())


def refuse_others(conditions: tuple[str, ...], **given: Tensor | None) -> None:
    """Raises `UsageError` for a condition that is given, not None, and whose name is not among `conditions`."""
    for name, value in given.items():
        if value is not None and name not in conditions:
            argument = BUILT_WITH.get(name, name)
            raise UsageError(
                f"{name}=... was given to a network without {argument}: build it with {argument}=..., "
                f"or leave the {name} out"
            )


def null_of(nulls: dict[str, Tensor | None], condition: str) -> Tensor:
    """Returns the value that stands for "no condition", from `nulls`, which has it (or None) by the condition's name.

    Raises:
        UsageError: for a condition without such a value, such as an image to enlarge.
    """
    if (null := nulls.get(condition)) is None:
        raise UsageError(
            f"this network has no value for an absent {condition}: guide it with a classifier, or by another condition"
        )
    return null
