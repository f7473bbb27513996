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
from ..shared.code_length import CodeLength
from ..shared.data import Batches, ImageDataset, image_dataset
from ..shared.data.images import untested
from ..shared.data.sources import absolute, bundled
from ..shared.denoiser import Denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.dequantization import Dequantizer, UniformDequantization
from ..shared.networks import UNet
from ..shared.networks import unet_variants as styles
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source, uniform
from ..shared.serialization import serializable
from ..shared.tensors import like
from ..shared.time_inputs import TimeInput
from ..shared.training import Training
from .evaluation import evaluate_images
from .experiment import CodeLengthOf, Experiment


@serializable("experiments.Data", formerly=("unnoise.experiments.images.Data", "unnoise.experiments.experiment.Data"))
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

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        """Loads the images of a split. The summary of `train` says so where the set has no test images.

        Raises:
            UsageError: with what there is, where their labels are not those that `classes` says.
        """
        images = image_dataset(self.name, split=split, size=self.size, classes=self.classes, progress=progress)
        if split != "train" or not (said := untested(self.name, self.classes)):
            return images
        return images._replace(notes=(*images.notes, f"`unnoise evaluate` will have no images to measure on: {said}"))


def refuse_absent_classes(images: ImageDataset, classes: int, name: str) -> None:
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


@serializable(
    "experiments.Network", formerly=("unnoise.experiments.images.Network", "unnoise.experiments.experiment.Network")
)
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
        "plain",
        "ddpm",
        "improved",
        "improved-added",
        "adm",
        "adm-heads",
        "ddpmpp",
        "ncsnpp",
        "ncsnpp-skip",
        "edm-ddpmpp",
        "edm-adm",
    ] = "plain"
    """How blocks are made and joined: this package's own way, or a paper's."""
    null_label: bool = True
    """A label for none beside the classes, which classifier-free guidance needs.

    False for a model whose every example has a class.
    """

    def build(self, shape: tuple[int, ...], **further: Any) -> UNet:
        """The network for examples of `shape`.

        What `UNet` takes beside the size (`classes`, `categories`, `outputs`, `image`) by name.
        """
        size = (shape, self.width, self.multipliers, self.blocks, self.attention, self.heads, self.dropout)
        return UNet(*size, variant=STYLES[self.style], null_label=self.null_label, **further)

    @property
    def label(self) -> TimeInput:
        """What it is fed for a time.

        1000 t, or log sigma where that enters by Fourier features, which are made for its range.
        """
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


def flipped(form: Callable[[Quantization, Tensor, Source], Tensor]) -> Callable[[Quantization, Tensor, Source], Tensor]:
    """A form of images that were mirrored left to right with probability one half."""

    def of(quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        mirror = like(uniform((len(k),), generator, device=k.device) < 0.5, k)
        return form(quantization, torch.where(mirror, k.flip(-1), k), generator)

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
    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        """Levels in the family's own form."""

    def batches(self, images: ImageDataset) -> Batches:
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

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        return self.data.load(split, progress)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        from ..shared.figures import save_grid

        save_grid(path, levels.float() / (quantization.levels - 1), columns=columns)
        return ""

    def evaluate(self, denoiser: Denoiser, **options: Any) -> dict[str, Any]:
        return evaluate_images(self, denoiser, **options)


@dataclass(frozen=True)
class Chain(ImageExperiment):
    """An experiment of the DDPM papers: real-valued images, and the variational bound of a chain as code length."""

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.continuous(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.quantize(x)

    @abstractmethod
    def bound(self, denoiser: Denoiser, quantization: Quantization) -> Callable[..., CodeLength]:
        """The bound that the paper reports."""

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        bound = self.bound(denoiser, quantization)
        return lambda k, generator, progress, **cond: bound(
            quantization.continuous(k), generator=generator, progress=progress, **cond
        )


@dataclass(frozen=True)
class Quantized(ImageExperiment):
    """An experiment of the categorical papers: images as levels, and the variational bound on them as code length."""

    bound_terms: int = 100
    """Times at which the bound is evaluated for each image, stratified."""

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.quantized(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return x

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        bound = VariationalBound(denoiser, terms=self.bound_terms)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)


@dataclass(frozen=True)
class Density(ImageExperiment):
    """An experiment of the score SDEs.

    Images spread over the cells of their levels, and a density's exact code length.
    """

    tolerance: float = field(default=1e-5, kw_only=True)
    """rtol and atol of RK45, for the likelihood and as a sampler."""

    code_length_kind = "exact up to uniform dequantisation"

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.dequantized(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.cell_of(x)

    def code_length(self, denoiser: Denoiser, quantization: Quantization) -> CodeLengthOf:
        return self.coded(denoiser, UniformDequantization(quantization))

    def coded(self, denoiser: Denoiser, dequantizer: Dequantizer) -> CodeLengthOf:
        """The code length of levels that a dequantiser has spread."""
        exact = ChangeOfVariables(denoiser, dequantizer, integrator=Adaptive(self.tolerance, self.tolerance))
        return lambda k, generator, progress, **cond: exact(k, generator=generator, progress=progress, **cond)
