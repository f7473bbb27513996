"""Networks and the blocks that they are made of."""

from .dit import DiT
from .encoder import Encoder
from .image_dit import ImageDiT
from .mlp import MLP
from .recentred import Recentred
from .refinenet import RefineNet
from .tokens import TokenEncoder
from .transformer import Transformer
from .unet import UNet

__all__ = ["MLP", "DiT", "Encoder", "ImageDiT", "Recentred", "RefineNet", "TokenEncoder", "Transformer", "UNet"]
