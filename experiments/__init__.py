"""Scripts: one for each paper, the demo, and the command line.

Everything that a checkpoint of this package may name is imported here, so `load` needs no flags.
"""

from ..shared.training import load
from . import classifier_free, d3pm_images, ddim, ddpm, guided_diffusion, improved_ddpm, progressive_distillation, score_sde, upsampling

__all__ = [
    "classifier_free",
    "d3pm_images",
    "ddim",
    "ddpm",
    "guided_diffusion",
    "improved_ddpm",
    "load",
    "progressive_distillation",
    "score_sde",
    "upsampling",
]
