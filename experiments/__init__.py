"""Scripts: one for each paper, the demo, and the command line.

Everything that a checkpoint of this package may name is imported here, so `load` needs no flags.
"""

from ..shared.training import load
from . import (
    classifier_free,
    d3pm_images,
    d3pm_text,
    ddim,
    ddpm,
    guided_diffusion,
    improved_ddpm,
    mdlm,
    multinomial,
    progressive_distillation,
    score_sde,
    sedd,
    tauldr,
    upsampling,
)

__all__ = [
    "classifier_free",
    "d3pm_images",
    "d3pm_text",
    "ddim",
    "ddpm",
    "guided_diffusion",
    "improved_ddpm",
    "load",
    "mdlm",
    "multinomial",
    "progressive_distillation",
    "score_sde",
    "sedd",
    "tauldr",
    "upsampling",
]
