"""Networks and the blocks that they are made of."""

from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "UNet"]
