"""Experiments on images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..discrete import VariationalBound
from ..sde import Adaptive, ChangeOfVariables
from ..shared.bits import Codelength
from ..shared.data import Batches, ImageSet, image_set
from ..shared.data.images import untested
from ..shared.data.sources import absolute, bundled
from ..shared.denoiser import Denoiser
from ..shared.dequantisation import Dequantiser, Uniform
from ..shared.describe import described, formerly
from ..shared.errors import UsageError
from ..shared.labels import Label
from ..shared.networks import UNet
from ..shared.networks import style as styles
from ..shared.progress import Progress, silent
from ..shared.random import Source, uniform
from ..shared.scale import Scale
from ..shared.tensors import like
from ..shared.training import Training
from .evaluation import evaluate_images
from .experiment import CodelengthOf, Experiment


@formerly("unnoise.experiments.experiment.Data")
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

    def settled(self) -> Data:
        """The same with the absolute path of a folder."""
        return replace(self, name=absolute(self.name, bundled()))

    def load(self, split: str = "train", progress: Progress = silent) -> ImageSet:
        """Loads the images of a split. The summary of `train` says so where the set has no test images.

        Raises:
            UsageError: with what there is, where their labels are not those that `classes` says.
        """
        images = image_set(self.name, split=split, size=self.size, classes=self.classes, progress=progress)
        if split != "train" or not (said := untested(self.name, self.classes)):
            return images
        return images._replace(notes=(*images.notes, f"`unnoise evaluate` will have no images to measure on: {said}"))


def refuse_absent_classes(images: ImageSet, classes: int, name: str) -> None:
    """Refuses to train on a set without images of some class, which sampling would ask for."""
    there = set(images.label.unique().tolist())
    if absent := [n for n in range(classes) if n not in there]:
        which = ", ".join(str(images.names[n] if images.names else n) for n in absent[:5]) + ", ..." * (len(absent) > 5)
        remedy = (
            f"give --data.classes {len(there)}"
            if absent[0] == len(there)
            else f"number the labels 0 to {len(there) - 1} and give --data.classes {len(there)}"
        )
        remedy = "take another set" if images.names else remedy
        raise UsageError(
            f"classes={classes}: {name} has no image of {which}, which samples would be asked of ({images.counted}): {remedy}, or add some"
        )


@formerly("unnoise.experiments.experiment.Network")
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
    style: Literal[
        "plain", "ddpm", "improved", "improved-added", "adm", "adm-heads", "ddpmpp", "ncsnpp", "ncsnpp-skip", "edm-ddpmpp", "edm-adm"
    ] = "plain"
    """How blocks are made and joined: this package's own way, or a paper's."""
    null_label: bool = True
    """A label for none beside the classes, which classifier-free guidance needs; False for a model whose every example has a class."""

    def build(self, shape: tuple[int, ...], **further: Any) -> UNet:
        """The network for examples of `shape`; what `UNet` takes beside the size (`classes`, `levels`, `outputs`, `image`) by name."""
        size = (shape, self.width, self.multipliers, self.blocks, self.attention, self.heads, self.dropout)
        return UNet(*size, style=STYLES[self.style], null_label=self.null_label, **further)

    @property
    def label(self) -> Label:
        """What it is fed for a time: 1000 t, or log sigma where that enters by Fourier features, which are made for its range."""
        return STYLES[self.style].time.label


STYLES = {
    "plain": styles.PLAIN,
    "ddpm": styles.DDPM,
    "improved": styles.IMPROVED,
    "improved-added": replace(styles.IMPROVED, adaptive=False),
    "adm": styles.ADM,
    "adm-heads": replace(styles.ADM, head_width=None),
    "ddpmpp": styles.DDPMPP,
    "ncsnpp": styles.NCSNPP,
    "ncsnpp-skip": styles.NCSNPP_SKIP,
    "edm-ddpmpp": replace(styles.DDPMPP, early_label=True),
    "edm-adm": styles.EDM_ADM,
}


def flipped(form: Callable[[Scale, Tensor, Source], Tensor]) -> Callable[[Scale, Tensor, Source], Tensor]:
    """A form of images that were mirrored left to right with probability one half."""

    def of(scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        mirror = like(uniform((len(k),), generator, device=k.device) < 0.5, k)
        return form(scale, torch.where(mirror, k.flip(-1), k), generator)

    return of


@dataclass(frozen=True)
class ImageExperiment(Experiment):
    """A run on images. Sub-classes add what their paper adds, and say how to build it."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    sampling_steps: int = 100
    """Steps of the sampler."""

    @abstractmethod
    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        """Levels in the family's own form."""

    def batches(self, images: ImageSet) -> Batches:
        """The images in that form, with their labels if the model is conditional.

        Raises:
            UsageError: where some class does not occur.
        """
        conditions = () if self.data.classes is None else ("label",)
        if conditions and images.label is not None:
            refuse_absent_classes(images, self.data.classes, self.data.name)
        form = flipped(self.form) if self.data.flip else self.form
        return images.batches(self.data.batch, form, conditions=conditions, seed=self.data.seed)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """The conditions of samples number `rows`: each class in turn, or none."""
        return {} if self.data.classes is None else {"label": rows % self.data.classes}

    def settled(self) -> ImageExperiment:
        return replace(self, data=self.data.settled())

    def on(self, name: str) -> ImageExperiment:
        return replace(self, data=replace(self.data, name=name))

    def load(self, split: str = "train", progress: Progress = silent) -> ImageSet:
        return self.data.load(split, progress)

    def show(self, path: Path, levels: Tensor, scale: Scale, columns: int) -> str:
        from ..shared.figures import save_grid

        save_grid(path, levels.float() / (scale.levels - 1), columns=columns)
        return ""

    def evaluate(self, denoiser: Denoiser, **options: Any) -> dict[str, Any]:
        return evaluate_images(self, denoiser, **options)


@dataclass(frozen=True)
class Chain(ImageExperiment):
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


@dataclass(frozen=True)
class Quantised(ImageExperiment):
    """An experiment of the categorical papers: images as levels, and the variational bound on them as code length."""

    bound_terms: int = 100
    """Times at which the bound is evaluated for each image, stratified."""

    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        return scale.quantised(k, generator)

    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        return x

    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        bound = VariationalBound(denoiser, terms=self.bound_terms)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)


@dataclass(frozen=True)
class Density(ImageExperiment):
    """An experiment of the score SDEs: images spread over the cells of their levels, and a density's exact code length."""

    tolerance: float = field(default=1e-5, kw_only=True)
    """rtol and atol of RK45, for the likelihood and as a sampler."""

    codelength_kind = "exact up to uniform dequantisation"

    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        return scale.dequantised(k, generator)

    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        return scale.cell_of(x)

    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        return self.coded(denoiser, Uniform(scale))

    def coded(self, denoiser: Denoiser, dequantiser: Dequantiser) -> CodelengthOf:
        """The code length of levels that a dequantiser has spread."""
        exact = ChangeOfVariables(denoiser, dequantiser, integrator=Adaptive(self.tolerance, self.tolerance))
        return lambda k, generator, progress, **cond: exact(k, generator=generator, progress=progress, **cond)
