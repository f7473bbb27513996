"""Categorical diffusion with structured transition matrices: D3PM."""

from .bound import VariationalBound
from .denoiser import Categorical, CategoricalDenoiser, CategoricalOracle
from .objectives import Hybrid
from .reverse import Marginal, Product, ReverseModel
from .samplers import Ancestral, most_likely
from .schedules import cosine, linear, reciprocal
from .transition import Absorbing, DiscretizedGaussian, Transition, Uniform

__all__ = [
    "Absorbing",
    "Ancestral",
    "Categorical",
    "CategoricalDenoiser",
    "CategoricalOracle",
    "DiscretizedGaussian",
    "Hybrid",
    "Marginal",
    "Product",
    "ReverseModel",
    "Transition",
    "Uniform",
    "VariationalBound",
    "cosine",
    "linear",
    "most_likely",
    "reciprocal",
]
