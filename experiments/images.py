"""Experiments on images: their data, their U-Net, and the forms of the data in the three families."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from ..discrete import CategoricalDenoiser, VariationalBound
from ..sde import Adaptive, ChangeOfVariables
from ..shared.code_length import CodeLength
from ..shared.data import Batches, ImageDataset
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.dequantization import Dequantizer, UniformDequantization
from ..shared.gaussian.schedule import Schedule
from ..shared.networks import UNet, unet_variants
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source, uniform
from ..shared.serialization import serializable
from ..shared.tensors import like
from ..shared.time_inputs import TimeInput
from ..shared.training import Training
from .evaluation import evaluate_images
from .experiment import CodeLengthOf, D, Experiment
from .image_data import Images as Data


def refuse_absent_classes(images: ImageDataset, classes: int, name: str) -> None:
    """Raises `UsageError` for a data set that has no image of some class, since sampling uses every class."""
    present = set([] if images.label is None else images.label.unique().tolist())
    if absent := [n for n in range(classes) if n not in present]:
        which = ", ".join(str(images.names[n] if images.names else n) for n in absent[:5]) + ", ..." * (len(absent) > 5)
        remedy = (
            f"give --data.classes {len(present)}"
            if absent[0] == len(present)
            else f"number the labels 0 to {len(present) - 1} and give --data.classes {len(present)}"
        )
        remedy = "take another set" if images.names else remedy
        raise UsageError(
            f"classes={classes}: {name} has no image of {which}, and samples are drawn of every class "
            f"({images.class_counts}): {remedy}, or add images of the class"
        )


@serializable(
    "experiments.Network",
    formerly=("unnoise.experiments.images.Network", "unnoise.experiments.experiment.Network"),
    renamed={"style": "variant"},
)
@dataclass(frozen=True)
class Network:
    """The U-Net; the data determine its image size, channels and quantization levels."""

    width: int = 32
    """Number of channels at full resolution, an even number such as 64."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Factor by which the number of channels grows at each resolution, from full to lowest, such as 1 2 2."""
    blocks: int = 1
    """Number of residual blocks at each resolution."""
    attention: tuple[int, ...] = (2,)
    """Downsampling factors at which self-attention is used, such as 2 4 for half and quarter resolution."""
    heads: int = 4
    """Number of attention heads."""
    dropout: float = 0.0
    """Dropout probability in the residual blocks, from 0 to 1."""
    variant: Literal[
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
    """Architecture of the blocks: `plain` is this package's own, the others follow the published code of a paper."""
    null_label: bool = True
    """Whether the network has a null label beside its classes, which classifier-free guidance needs."""

    def build(self, shape: tuple[int, ...], **further: Any) -> UNet:
        """Returns the network for examples of `shape`.

        `further` holds arguments of `UNet` beside the size, by name: `classes`, `categories`, `outputs`, `image`.
        """
        size = (shape, self.width, self.multipliers, self.blocks, self.attention, self.heads, self.dropout)
        return UNet(*size, variant=VARIANTS[self.variant], null_label=self.null_label, **further)

    @property
    def time_input(self) -> TimeInput[Schedule]:
        """The time input of the network: 1000 t, or log sigma where random Fourier features embed it."""
        return VARIANTS[self.variant].time.time_input


VARIANTS = {
    "plain": unet_variants.PLAIN,
    "ddpm": unet_variants.DDPM,
    "improved": unet_variants.IMPROVED,
    "improved-added": replace(unet_variants.IMPROVED, adaptive=False),
    "adm": unet_variants.ADM,
    "adm-heads": replace(unet_variants.ADM, head_width=None),
    "ddpmpp": unet_variants.DDPMPP,
    "ncsnpp": unet_variants.NCSNPP,
    "ncsnpp-skip": unet_variants.NCSNPP_SKIP,
    "edm-ddpmpp": replace(unet_variants.DDPMPP, early_label=True),
    "edm-adm": unet_variants.EDM_ADM,
}


def flipped(form: Callable[[Quantization, Tensor, Source], Tensor]) -> Callable[[Quantization, Tensor, Source], Tensor]:
    """Returns a form of images, after each was mirrored left to right with probability one half."""

    def of(quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        mirror = like(uniform((len(k),), generator, device=k.device) < 0.5, k)
        return form(quantization, torch.where(mirror, k.flip(-1), k), generator)

    return of


@dataclass(frozen=True)
class ImageExperiment(Experiment[D]):
    """An experiment on images. Subclasses add the settings of their paper, and build its model from them."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    """Settings of the training."""
    sampling_steps: int = 100
    """Number of steps of the sampler."""

    @abstractmethod
    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        """Returns quantization levels in the form that the model takes."""

    @property
    def classes(self) -> int | None:
        return self.data.classes

    def batches(self, images: ImageDataset) -> Batches:
        """Returns batches of the images in that form, with their labels if the model is conditional.

        Raises:
            UsageError: if some class does not occur.
        """
        conditions = () if self.data.classes is None else ("label",)
        if self.data.classes is not None and images.label is not None:
            refuse_absent_classes(images, self.data.classes, self.data.name)
        form = flipped(self.form) if self.data.flip else self.form
        return images.batches(self.data.batch, form, conditions=conditions, seed=self.data.seed)

    def conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the conditions of the samples whose numbers are `rows`: each class in turn, or no condition."""
        return {} if self.data.classes is None else {"label": rows % self.data.classes}

    def self_contained(self) -> Self:
        return replace(self, data=self.data.self_contained())

    def with_data(self, name: str) -> Self:
        return replace(self, data=replace(self.data, name=name))

    def load(self, split: str = "train", progress: Progress = silent) -> ImageDataset:
        return self.data.load(split, progress)

    def show(self, path: Path, levels: Tensor, quantization: Quantization, columns: int) -> str:
        from ..shared.figures import save_grid

        save_grid(path, levels.float() / (quantization.levels - 1), columns=columns)
        return ""

    def evaluate(self, denoiser: D, **options: Any) -> dict[str, Any]:
        return evaluate_images(self, denoiser, **options)


@dataclass(frozen=True)
class Chain(ImageExperiment[GaussianDenoiser]):
    """An experiment of the DDPM papers: real-valued images, and the variational bound of a chain as code length."""

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.continuous(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.quantize(x)

    @abstractmethod
    def bound(self, denoiser: GaussianDenoiser, quantization: Quantization) -> Callable[..., CodeLength]:
        """Returns the bound that the paper reports."""

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        bound = self.bound(denoiser, quantization)
        return lambda k, generator, progress, **cond: bound(
            quantization.continuous(k), generator=generator, progress=progress, **cond
        )


@dataclass(frozen=True)
class Quantized(ImageExperiment[CategoricalDenoiser]):
    """An experiment of the categorical papers: images as quantization levels, and their variational bound."""

    bound_terms: int = 100
    """Number of stratified times at which the bound is evaluated for each image, such as 100."""

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.quantized(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return x

    def code_length(self, denoiser: CategoricalDenoiser, quantization: Quantization) -> CodeLengthOf:
        bound = VariationalBound(denoiser, terms=self.bound_terms)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)


@dataclass(frozen=True)
class Density(ImageExperiment[GaussianDenoiser]):
    """An experiment of the score SDEs: dequantized images, and the exact code length of the probability flow."""

    tolerance: float = field(default=1e-5, kw_only=True)
    """Relative and absolute tolerance of the RK45 solver, for the likelihood and as a sampler, such as 1e-5."""

    code_length_kind = "exact up to uniform dequantization"

    def form(self, quantization: Quantization, k: Tensor, generator: Source = None) -> Tensor:
        return quantization.dequantized(k, generator)

    def levels(self, quantization: Quantization, x: Tensor) -> Tensor:
        return quantization.cell_of(x)

    def code_length(self, denoiser: GaussianDenoiser, quantization: Quantization) -> CodeLengthOf:
        return self.exact_code_length(denoiser, UniformDequantization(quantization))

    def exact_code_length(self, denoiser: GaussianDenoiser, dequantizer: Dequantizer) -> CodeLengthOf:
        """Returns the code length of quantization levels by the probability flow, under a dequantizer."""
        exact = ChangeOfVariables(denoiser, dequantizer, integrator=Adaptive(self.tolerance, self.tolerance))
        return lambda k, generator, progress, **cond: exact(k, generator=generator, progress=progress, **cond)
