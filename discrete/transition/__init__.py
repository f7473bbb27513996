"""Transition matrices by structure."""

from .absorbing import Absorbing
from .base import Transition
from .discretized_gaussian import DiscretizedGaussian
from .uniform import Uniform

__all__ = ["Absorbing", "DiscretizedGaussian", "Transition", "Uniform"]
