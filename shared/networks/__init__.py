"""Networks and the blocks that they are made of."""

from .dit import DiT
from .encoder import Encoder
from .mlp import MLP
from .tokens import TokenEncoder
from .transformer import Transformer
from .unet import UNet

__all__ = ["MLP", "DiT", "Encoder", "TokenEncoder", "Transformer", "UNet"]
