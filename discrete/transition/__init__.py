"""Transition matrices, a module for each structure."""

from .absorbing import Absorbing
from .band_diagonal import BandDiagonal
from .base import ReverseModel, Transition
from .dense import Dense
from .discretized_gaussian import DiscretizedGaussian
from .gaussian_target import GaussianTarget
from .generic import GenericTransition
from .mixture import Mixture
from .nearest_neighbor import NearestNeighbor, nearest, sinkhorn
from .uniform import Uniform

__all__ = [
    "Absorbing",
    "BandDiagonal",
    "Dense",
    "DiscretizedGaussian",
    "GaussianTarget",
    "GenericTransition",
    "Mixture",
    "NearestNeighbor",
    "ReverseModel",
    "Transition",
    "Uniform",
    "nearest",
    "sinkhorn",
]
