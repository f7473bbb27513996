"""What an experiment is: data, a network, a way to train, to sample and to measure, as one frozen dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..shared.bits import Codelength
from ..shared.data import Batches, ImageSet, image_set
from ..shared.denoiser import Denoiser
from ..shared.describe import described
from ..shared.errors import UsageError
from ..shared.networks import UNet
from ..shared.objective import Objective
from ..shared.progress import Progress, silent
from ..shared.random import Source, uniform
from ..shared.sampler import Sampler
from ..shared.scale import Scale
from ..shared.tensors import like
from ..shared.training import Training


@described
@dataclass(frozen=True)
class Data:
    """Images to train on."""

    name: str = "digits"
    """A bundled set (digits, mnist5k), a folder of images, or a set on the hub."""
    batch: int = 64
    """Images in a batch."""
    size: tuple[int, int] | None = None
    """Height and width to scale and crop to; None where all images have one size."""
    classes: int | None = None
    """Condition on this many class labels; None for a model without labels."""
    flip: bool = False
    """Mirror each image left to right with probability one half."""
    seed: int = 0
    """Of the order of the images."""

    def load(self, split: str = "train", progress: Progress = silent) -> ImageSet:
        """The images of a split."""
        return image_set(self.name, split=split, size=self.size, progress=progress)


@described
@dataclass(frozen=True)
class Network:
    """The U-Net; channels, size and levels come from the data."""

    width: int = 32
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channel multiplier of each resolution."""
    blocks: int = 1
    """Residual blocks for each resolution."""
    attention: tuple[int, ...] = (2,)
    """Down-sampling factors with self-attention."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.0
    """Dropout in residual blocks."""

    def build(self, shape: tuple[int, ...], **further: Any) -> UNet:
        """The network for examples of `shape`; what `UNet` takes beside the size (`classes`, `levels`, `outputs`, `image`) by name."""
        return UNet(shape, self.width, self.multipliers, self.blocks, self.attention, self.heads, self.dropout, **further)


def flipped(form: Callable[[Scale, Tensor, Source], Tensor]) -> Callable[[Scale, Tensor, Source], Tensor]:
    """A form of images that were mirrored left to right with probability one half."""

    def of(scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        mirror = like(uniform((len(k),), generator, device=k.device) < 0.5, k)
        return form(scale, torch.where(mirror, k.flip(-1), k), generator)

    return of


def at_most(name: str, value: int, limit_name: str, limit: int) -> None:
    """Refuses a value above a limit, or below one."""
    if not 1 <= value <= limit:
        raise UsageError(f"{name}={value}: give a whole number from 1 to {limit_name}={limit}")


CodelengthOf = Callable[..., Codelength]


@dataclass(frozen=True)
class Experiment(ABC):
    """One run. Sub-classes add what their paper adds, and say how to build it."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    sampling_steps: int = 100
    """Steps of the sampler."""

    codelength_kind = "upper bound"
    """What the code length is: an upper bound, or exact up to dequantisation."""
    loss_unit = "loss"
    """What the loss curve shows."""

    @abstractmethod
    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        """Levels in the family's own form."""

    def batches(self, images: ImageSet) -> Batches:
        """The images in that form, with their labels if the model is conditional."""
        conditions = () if self.data.classes is None else ("label",)
        form = flipped(self.form) if self.data.flip else self.form
        return images.batches(self.data.batch, form, conditions=conditions, seed=self.data.seed)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """The conditions of samples number `rows`: each class in turn, or none."""
        return {} if self.data.classes is None else {"label": rows % self.data.classes}

    @abstractmethod
    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        """The levels, int64, of a sample in that form."""

    @abstractmethod
    def objective(self, shape: tuple[int, ...], scale: Scale) -> Objective:
        """A fresh denoiser in its objective."""

    @abstractmethod
    def sampler(self, denoiser: Denoiser) -> Sampler:
        """The paper's sampler."""

    def grid(self, denoiser: Denoiser, steps: int) -> int | Tensor:
        """The times at which `steps` steps of the sampler are taken: the schedule's own unless a paper says otherwise."""
        return steps

    def reproduce(self, folder: Path, progress: Progress = silent) -> Path:
        """The paper's figure from this recipe: trains it into `folder` if need be, and writes a picture and a table there.

        Returns:
            The table, as Markdown.
        """
        raise UsageError("this recipe has no figure of its own: `unnoise evaluate` measures its run")

    @abstractmethod
    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        """The paper's code length of levels, as a function of (levels, source of noise, progress, conditions)."""


@dataclass(frozen=True)
class Chain(Experiment):
    """An experiment of the DDPM papers: real-valued images, and the variational bound of a chain as code length."""

    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        return scale.continuous(k, generator)

    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        return scale.quantise(x)

    @abstractmethod
    def bound(self, denoiser: Denoiser, scale: Scale) -> Callable[..., Codelength]:
        """The bound that the paper reports."""

    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        bound = self.bound(denoiser, scale)
        return lambda k, generator, progress, **cond: bound(scale.continuous(k), generator=generator, progress=progress, **cond)
