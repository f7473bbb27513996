"""What distinguishes the papers' residual U-Nets: one value object, and the papers' own as constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from ..serialization import serializable
from .blocks import Downsample, Groups, Upsample, group_norm
from .embeddings import SINES, Fourier, Sinusoidal
from .progressive import InputResidual, InputSkip, OutputResidual, OutputSkip
from .resampling import FIR, MEAN, SMOOTH

Block = Callable[..., nn.Module]


@serializable("networks.Strided", formerly="unnoise.shared.networks.style.Strided")
@dataclass(frozen=True)
class Strided:
    """Sizes halve with a strided convolution and double with nearest neighbours and a convolution (Ho et al. 2020).

    Attributes:
        same: of `Downsample`: zeros beyond the end alone, as Ho et al.'s code pads.
    """

    same: bool = False

    def shrink(self, block: Block, dims: int, channels: int) -> nn.Module:
        """A layer `(h, embedding) -> h`."""
        return Downsample(dims, channels, self.same)

    def grow(self, block: Block, dims: int, channels: int) -> nn.Module:
        """A layer `(h, embedding, size) -> h`."""
        return Upsample(dims, channels)


@serializable("networks.Resampled", formerly="unnoise.shared.networks.style.Resampled")
@dataclass(frozen=True)
class Resampled:
    """Sizes halve and double inside residual blocks (Brock et al. 2019, BigGAN; Dhariwal & Nichol 2021; Song et al.
    2021).

    Attributes:
        filter: (1, 1) for means and nearest neighbours, (1, 3, 3, 1) for NCSN++.
        project: the resized signal passes a 1 x 1 convolution before it is added, as in Song et al. (2021).
    """

    filter: FIR = MEAN
    project: bool = False

    def shrink(self, block: Block, dims: int, channels: int) -> nn.Module:
        """A layer `(h, embedding) -> h`."""
        return block(channels, channels, resize=self.filter.down(dims), project=self.project)

    def grow(self, block: Block, dims: int, channels: int) -> nn.Module:
        """A layer `(h, embedding, size) -> h`."""
        return block(channels, channels, resize=self.filter.up(dims), project=self.project)


@serializable("networks.UNetVariant", formerly="unnoise.shared.networks.style.Style")
@dataclass(frozen=True)
class UNetVariant:
    """How the blocks of a residual U-Net are made and joined; this package's own by default.

    Attributes:
        norm: the norms.
        adaptive: the embedding scales and shifts the second norm of each block, and is not merely added before it.
        resize: how sizes halve and double.
        gain: factor of every residual sum.
        attend_once: on the way up attention follows the last block of a resolution alone, not each.
        head_width: channels of each attention head, in place of a number of heads.
        time: how the time label becomes features.
        early_label: the class joins these features, and not what the perceptron makes of them (Karras et al. 2022).
        wide_stem: the first convolution gives the first resolution's channels, not `width`; a multiplier below 1 is
            then a thinner stem.
        enters: how the image accompanies the way down, or None.
        leaves: how the prediction grows on the way up, or None.
    """

    norm: Groups = group_norm
    adaptive: bool = True
    resize: Strided | Resampled = Strided()
    gain: float = 1.0
    attend_once: bool = False
    head_width: int | None = None
    time: Sinusoidal | Fourier = SINES
    early_label: bool = False
    wide_stem: bool = False
    enters: InputSkip | InputResidual | None = None
    leaves: OutputSkip | OutputResidual | None = None

    def heads(self, heads: int, channels: int) -> int:
        """Attention heads of a layer of `channels` channels."""
        return heads if self.head_width is None else max(channels // self.head_width, 1)


HALF = 0.5**0.5  # of variance

PLAIN = UNetVariant()
"""This package's own."""

DDPM = UNetVariant(norm=Groups(32, 1, 1e-6), adaptive=False, resize=Strided(same=True))
"""Ho et al. (2020)."""

IMPROVED = UNetVariant(norm=Groups(32, 1), time=Sinusoidal(cosine_first=True, inclusive=False))
"""Nichol & Dhariwal (2021)."""

ADM = UNetVariant(
    norm=Groups(32, 1),
    time=Sinusoidal(cosine_first=True, inclusive=False),
    resize=Resampled(),
    head_width=64,
    wide_stem=True,
)
"""Dhariwal & Nichol (2021); without `head_width` where a model has a number of heads."""

SONG_DDPM = UNetVariant(norm=Groups(32, 1, 1e-6), adaptive=False, resize=Strided(same=True), attend_once=True)
"""Song et al.'s (2021) own DDPM, with one attention layer for each resolution on the way up."""

DDPMPP = UNetVariant(
    norm=Groups(32, 4, 1e-6), adaptive=False, resize=Resampled(project=True), gain=HALF, attend_once=True
)
"""DDPM++ (Song et al. 2021)."""

NCSNPP = replace(DDPMPP, resize=Resampled(SMOOTH, project=True), time=Fourier(), enters=InputResidual())
"""NCSN++ of 32 pixels (Song et al. 2021)."""

NCSNPP_SKIP = replace(NCSNPP, enters=InputSkip(), leaves=OutputSkip())
"""NCSN++ of 256 pixels and above."""

EDM_ADM = replace(ADM, norm=Groups(32, 4))
"""Karras et al.'s (2022) variant of ADM."""
