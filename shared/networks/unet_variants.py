"""The variants of the residual U-Net in the papers: one dataclass of their differences, and a constant for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from ..serialization import serializable
from ..values import notation
from .blocks import Downsample, GroupNormalization, Upsample, group_norm
from .embeddings import SINES, Fourier, Sinusoidal
from .progressive import InputResidual, InputSkip, OutputResidual, OutputSkip
from .resampling import FIR, MEAN, SMOOTH

Block = Callable[..., nn.Module]


@serializable("networks.Strided", formerly="unnoise.shared.networks.style.Strided")
@dataclass(frozen=True)
class Strided:
    """Down-sampling by strided convolutions, up-sampling by nearest neighbors and a convolution (Ho et al. 2020).

    The argument `block` of its methods is not used.

    Attributes:
        same: as in `Downsample`: whether even sizes are padded at their end only, as in the code of Ho et al.
    """

    same: bool = False
    __repr__ = notation

    def shrink(self, block: Block, dims: int, channels: int) -> nn.Module:
        """Returns the layer that halves the sizes, `(h, embedding) -> h`."""
        return Downsample(dims, channels, self.same)

    def grow(self, block: Block, dims: int, channels: int) -> nn.Module:
        """Returns the layer that doubles the sizes, `(h, embedding, size) -> h`."""
        return Upsample(dims, channels)


@serializable("networks.Resampled", formerly="unnoise.shared.networks.style.Resampled")
@dataclass(frozen=True)
class Resampled:
    """Down- and up-sampling by filters inside residual blocks.

    As in Brock et al. (2019, BigGAN), Dhariwal & Nichol (2021) and Song et al. (2021). The argument `block` of its
    methods builds such a block: `(channels_in, channels_out, resize=..., project=...)`.

    Attributes:
        filter: taps (1, 1) for means and nearest neighbors, (1, 3, 3, 1) for NCSN++.
        project: whether the skip connection of these blocks has a 1 x 1 convolution, as in Song et al. (2021).
    """

    filter: FIR = MEAN
    project: bool = False
    __repr__ = notation

    def shrink(self, block: Block, dims: int, channels: int) -> nn.Module:
        """Returns the layer that halves the sizes, `(h, embedding) -> h`."""
        return block(channels, channels, resize=self.filter.down(dims), project=self.project)

    def grow(self, block: Block, dims: int, channels: int) -> nn.Module:
        """Returns the layer that doubles the sizes, `(h, embedding, size) -> h`."""
        return block(channels, channels, resize=self.filter.up(dims), project=self.project)


@serializable(
    "networks.UNetVariant",
    formerly="unnoise.shared.networks.style.Style",
    renamed={"enters": "progressive_input", "leaves": "progressive_output"},
)
@dataclass(frozen=True)
class UNetVariant:
    """How the blocks of a residual U-Net are built and connected; the defaults are this package's own variant.

    Attributes:
        norm: maps a number of channels to a normalization layer.
        adaptive: whether the embedding scales and shifts the output of the second normalization of each block (AdaGN);
            otherwise it is added before that normalization.
        resize: how sizes are halved and doubled.
        gain: factor of each residual sum, `gain (x + branch)`.
        attend_once: whether on the way up attention follows only the last block of a resolution, not each block.
        head_width: number of channels of an attention head, in place of a number of heads; or None.
        time: the features of the time input, `Sinusoidal` or `Fourier`; they determine which time input it suits.
        early_label: whether the class embedding is added to the features of the time, before the perceptron, as in
            Karras et al. (2022); otherwise it is added to the output of the perceptron.
        wide_stem: whether the first convolution has the channels of the first resolution, `multipliers[0] * width`, not
            `width`.
        progressive_input: how the image enters at the lower resolutions of the way down, or None.
        progressive_output: how each resolution of the way up contributes to the prediction, or None.
    """

    norm: GroupNormalization = group_norm
    adaptive: bool = True
    resize: Strided | Resampled = Strided()
    gain: float = 1.0
    attend_once: bool = False
    head_width: int | None = None
    time: Sinusoidal | Fourier = SINES
    early_label: bool = False
    wide_stem: bool = False
    progressive_input: InputSkip | InputResidual | None = None
    progressive_output: OutputSkip | OutputResidual | None = None
    __repr__ = notation

    def heads(self, heads: int, channels: int) -> int:
        """Returns the number of attention heads of a layer of `channels` channels; `heads` without a `head_width`."""
        return heads if self.head_width is None else max(channels // self.head_width, 1)


HALF = 0.5**0.5
"""Factor of a residual sum that halves its variance."""

PLAIN = UNetVariant()
"""This package's own variant."""

DDPM = UNetVariant(norm=GroupNormalization(32, 1, 1e-6), adaptive=False, resize=Strided(same=True))
"""Ho et al. (2020)."""

IMPROVED = UNetVariant(norm=GroupNormalization(32, 1), time=Sinusoidal(cosine_first=True, inclusive=False))
"""Nichol & Dhariwal (2021)."""

IMPROVED_ADDED = replace(IMPROVED, adaptive=False)
"""Nichol & Dhariwal (2021) for images of 256 pixels, where the time embedding is added and does not scale."""

ADM = UNetVariant(
    norm=GroupNormalization(32, 1),
    time=Sinusoidal(cosine_first=True, inclusive=False),
    resize=Resampled(),
    head_width=64,
    wide_stem=True,
)
"""Dhariwal & Nichol (2021)."""

ADM_HEADS = replace(ADM, head_width=None)
"""Dhariwal & Nichol (2021), for their models with a fixed number of heads."""

SONG_DDPM = UNetVariant(
    norm=GroupNormalization(32, 1, 1e-6), adaptive=False, resize=Strided(same=True), attend_once=True
)
"""The DDPM of Song et al. (2021), with one attention layer for each resolution on the way up."""

DDPMPP = UNetVariant(
    norm=GroupNormalization(32, 4, 1e-6), adaptive=False, resize=Resampled(project=True), gain=HALF, attend_once=True
)
"""DDPM++ (Song et al. 2021)."""

NCSNPP = replace(DDPMPP, resize=Resampled(SMOOTH, project=True), time=Fourier(), progressive_input=InputResidual())
"""NCSN++ for images of 32 pixels (Song et al. 2021)."""

NCSNPP_SKIP = replace(NCSNPP, progressive_input=InputSkip(), progressive_output=OutputSkip())
"""NCSN++ for images of 256 pixels and above (Song et al. 2021)."""

EDM_ADM = replace(ADM, norm=GroupNormalization(32, 4))
"""The variant of ADM in Karras et al. (2022)."""

EDM_DDPMPP = replace(DDPMPP, early_label=True)
"""The variant of DDPM++ in Karras et al. (2022)."""

EDM_NCSNPP = replace(NCSNPP, early_label=True)
"""The variant of NCSN++ in Karras et al. (2022)."""
