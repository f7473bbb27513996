"""Neural networks and their building blocks."""

from .adapters import CenteredInput
from .caption_encoder import CaptionEncoder
from .dit import DiT
from .encoder import Encoder
from .image_dit import ImageDiT
from .mlp import MLP
from .refinenet import RefineNet
from .transformer import Transformer
from .unet import UNet

__all__ = ["MLP", "CaptionEncoder", "CenteredInput", "DiT", "Encoder", "ImageDiT", "RefineNet", "Transformer", "UNet"]
