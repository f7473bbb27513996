"""Networks and the blocks that they are made of."""

from .encoder import Encoder
from .mlp import MLP
from .tokens import TokenEncoder
from .unet import UNet

__all__ = ["MLP", "Encoder", "TokenEncoder", "UNet"]
