"""Neural networks and their building blocks.

The names in capitals, such as `ADM`, are variants of the `UNet` and the `Encoder`: `UNet(..., variant=ADM)`.
"""

from .adapters import CenteredInput, IntegerTime, TensorOutput, TimesSigma
from .caption_encoder import CaptionEncoder
from .dit import DiT
from .embeddings import Fourier, Sinusoidal
from .encoder import Encoder
from .image_dit import ImageDiT
from .mlp import MLP
from .refinenet import RefineNet
from .transformer import Transformer
from .unet import UNet
from .unet_variants import (
    ADM,
    ADM_HEADS,
    DDPM,
    DDPMPP,
    EDM_ADM,
    EDM_DDPMPP,
    EDM_NCSNPP,
    IMPROVED,
    IMPROVED_ADDED,
    NCSNPP,
    NCSNPP_SKIP,
    PLAIN,
    SONG_DDPM,
    UNetVariant,
)

__all__ = [
    "ADM",
    "ADM_HEADS",
    "DDPM",
    "DDPMPP",
    "EDM_ADM",
    "EDM_DDPMPP",
    "EDM_NCSNPP",
    "IMPROVED",
    "IMPROVED_ADDED",
    "MLP",
    "NCSNPP",
    "NCSNPP_SKIP",
    "PLAIN",
    "SONG_DDPM",
    "CaptionEncoder",
    "CenteredInput",
    "DiT",
    "Encoder",
    "Fourier",
    "ImageDiT",
    "IntegerTime",
    "RefineNet",
    "Sinusoidal",
    "TensorOutput",
    "TimesSigma",
    "Transformer",
    "UNet",
    "UNetVariant",
]
