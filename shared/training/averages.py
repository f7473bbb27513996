"""Averages of the weights over training: which decay each step uses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ..errors import UsageError, shown
from ..serialization import serializable
from ..values import notation
from .numbers import real
from .parallel import own

WIDEST = 12**-0.5
"""Largest relative standard deviation of a power function: that of the plain mean, whose exponent is 0."""


class Average(ABC):
    """An exponential moving average of the weights: `average <- d average + (1 - d) weights` after each step.

    The average starts as a copy of the initial weights.
    """

    @abstractmethod
    def decay(self, step: int, batch: int) -> float:
        """Returns the coefficient d of the average at a step.

        Args:
            step: the step, from 0, whose weights are added.
            batch: number of examples in the global batch, that of all processes and micro-batches together.
        """


@serializable("training.Decay")
@dataclass(frozen=True)
class Decay(Average):
    """A constant decay, with or without a warm-up: `d = min(rate, (1 + n) / (10 + n))` at step n = 0, 1, ...

    The warm-up is that of TensorFlow and of torch_ema, with which score_sde (Song et al. 2021), SEDD and MDLM train.
    Ho et al. (2020), DDIM, D3PM, NCSNv2, improved and guided diffusion use none: `d = rate` from the first step.

    Attributes:
        rate: the decay after the warm-up, in [0, 1); 0 for the raw weights.
        warmup: whether early steps use the smaller (1 + n) / (10 + n), which forgets the initial weights sooner.
    """

    rate: float
    warmup: bool = True
    __repr__ = notation

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real("rate", self.rate))
        if not 0 <= self.rate < 1:
            raise UsageError(f"rate={self.rate}: give the decay of the averaged weights, in [0, 1), such as 0.9999")
        if not isinstance(self.warmup, bool):
            raise UsageError(f"warmup={shown(self.warmup)}: give True or False")

    def decay(self, step: int, batch: int) -> float:
        """Returns `min(rate, (1 + step) / (10 + step))`, or `rate` without a warm-up."""
        return min(self.rate, (1 + step) / (10 + step)) if self.warmup else self.rate


@serializable("training.HalfLife")
@dataclass(frozen=True)
class HalfLife(Average):
    """A half-life in images (Karras et al. 2022): `d = 0.5^(batch / min(images, rampup * images seen))`.

    Images seen are those before the step, so that d is 0 at the first step.

    Attributes:
        images: number of images after which the weight of a step has halved, such as 500_000.
        rampup: the half-life is at most this share of the images seen so far; None for a constant half-life.
    """

    images: float
    rampup: float | None = 0.05
    __repr__ = notation

    def __post_init__(self) -> None:
        for name in ("images", "rampup"):
            if name == "images" or self.rampup is not None:
                object.__setattr__(self, name, real(name, getattr(self, name)))
        if not 0 < self.images < math.inf:
            raise UsageError(f"images={self.images}: give the half-life in images, a positive number such as 500_000")
        if self.rampup is not None and not 0 < self.rampup < math.inf:
            raise UsageError(f"rampup={self.rampup}: give a share of the images seen, such as 0.05, or None")

    def decay(self, step: int, batch: int) -> float:
        """Returns `0.5^(batch / h)` with the half-life h in images at this step."""
        half_life = self.images if self.rampup is None else min(self.images, self.rampup * step * batch)
        return 0.5 ** (batch / max(half_life, 1e-8))


@serializable("training.PowerFunction")
@dataclass(frozen=True)
class PowerFunction(Average):
    """An average whose weights grow as a power of the step, `t^gamma` (Karras et al. 2024, section 3.1).

    `d = (1 - 1 / t)^(gamma + 1)` at step t = n + 1 = 1, 2, ... (equation 127): the initial weights are forgotten at the
    first step, and the width of the average stays the same share of the training so far. From averages of two widths,
    saved while training, those of other widths are reconstructed afterwards: see `posthoc`.

    Attributes:
        std: width of the average: the standard deviation of its weights over time, relative to the time of training.
    """

    std: float
    __repr__ = notation

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", real("std", self.std))
        if not 0 < self.std <= WIDEST:
            raise UsageError(
                f"std={self.std}: give a relative standard deviation above 0 and at most 0.2886, such as 0.05 or 0.1"
            )

    @cached_property
    def exponent(self) -> float:
        """The exponent gamma, of which `std` is the width."""
        return exponent_of(self.std)

    def decay(self, step: int, batch: int) -> float:
        """Returns `(1 - 1 / (step + 1))^(gamma + 1)`, which is the same for every batch size."""
        return (1 - 1 / (step + 1)) ** (self.exponent + 1)


def exponent_of(std: float) -> float:
    """Returns the exponent gamma of the power function of a relative standard deviation in (0, 12^(-1/2)].

    It is the largest real root of `g^3 + 7 g^2 + (16 - std^-2) g + 12 - std^-2` (Karras et al. 2024, equation 126).
    """
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return max(float(roots.real.max()), 0.0)


def std_of(exponent: float) -> float:
    """Returns the relative standard deviation of a power function (Karras et al. 2024, equation 123).

    `((g + 1) / ((g + 2)^2 (g + 3)))^(1/2)`
    """
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


def averaging(average: nn.Module, module: nn.Module) -> Callable[[float], None]:
    """Returns a function of d that updates averaged weights: `average <- d average + (1 - d) module`.

    Buffers are copied. Parameters are looked up once: both modules keep them while the function is used.
    """
    averaged, weights = ([own(p) for p in part.parameters()] for part in (average, module))

    @torch.no_grad()
    def update(decay: float) -> None:
        torch._foreach_lerp_(averaged, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for a, b in zip(average.buffers(), module.buffers(), strict=True):
            a.copy_(b)

    return update
