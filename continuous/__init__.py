"""Gaussian diffusion on a table of steps: DDPM, DDIM and their bound."""

from ..shared.denoiser import Clipped, Learned
from ..shared.prediction import clean, noise, velocity
from .betas import cosine_betas, linear_betas
from .bound import VariationalBound
from .objectives import Simple
from .posterior import large, posterior, small
from .samplers import DDIM, Ancestral
from .tabulated import Tabulated

__all__ = [
    "DDIM",
    "Ancestral",
    "Clipped",
    "Learned",
    "Simple",
    "Tabulated",
    "VariationalBound",
    "clean",
    "cosine_betas",
    "large",
    "linear_betas",
    "noise",
    "posterior",
    "small",
    "velocity",
]
