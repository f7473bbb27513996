"""The recipes by name, for the command line. Each is a preset, a function in the module of a paper."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from ..shared.errors import UsageError
from . import (
    bridge,
    classifier_free,
    d3pm_images,
    d3pm_text,
    ddim,
    ddpm,
    edm,
    flow_matching,
    guided_diffusion,
    improved_ddpm,
    inverse_problems,
    mdlm,
    multinomial,
    ncsn,
    progressive_distillation,
    score_sde,
    sedd,
    tauldr,
    udlm,
    upsampling,
)
from .experiment import Experiment

SCRIPTS = {
    "ddpm": (ddpm, ("digits", "mnist", "smoke", "cifar10", "celebahq256", "lsun256")),
    "improved-ddpm": (
        improved_ddpm,
        ("digits", "mnist", "smoke", "cifar10", "imagenet64", "imagenet64_classes", "lsun256"),
    ),
    "ddim": (ddim, ("digits", "mnist", "smoke", "cifar10", "celeba64", "lsun256")),
    "guided-diffusion": (
        guided_diffusion,
        ("digits", "mnist", "smoke", "imagenet64", "imagenet128", "imagenet256", "lsun256"),
    ),
    "classifier-free": (classifier_free, ("digits", "mnist", "smoke", "imagenet64", "imagenet128")),
    "progressive-distillation": (progressive_distillation, ("digits", "mnist", "smoke", "cifar10", "imagenet64")),
    "upsampling": (upsampling, ("digits", "mnist", "smoke", "imagenet256")),
    "d3pm": (d3pm_images, ("digits", "mnist", "smoke", "cifar10")),
    "d3pm-text": (d3pm_text, ("chain", "shakespeare", "smoke", "text8", "lm1b")),
    "multinomial": (multinomial, ("shakespeare", "smoke", "text8")),
    "mdlm": (mdlm, ("shakespeare", "smoke", "text8", "lm1b", "owt")),
    "sedd": (sedd, ("shakespeare", "smoke", "text8", "owt")),
    "udlm": (udlm, ("chain", "shakespeare", "smoke", "text8")),
    "tauldr": (tauldr, ("digits", "smoke", "cifar10")),
    "score-sde": (
        score_sde,
        (
            "digits",
            "mnist",
            "smoke",
            "cifar10",
            "cifar10_subvp",
            "cifar10_ve",
            "cifar10_subvp_deep",
            "cifar10_ve_deep",
            "cifar10_likelihood",
            "celeba64_ve",
            "ffhq256_ve",
        ),
    ),
    "ncsn": (ncsn, ("digits", "mnist", "smoke", "cifar10", "cifar10_v2", "celeba64_v2", "lsun128_v2")),
    "edm": (edm, ("digits", "mnist", "smoke", "cifar10", "cifar10_classes", "ffhq64", "afhqv2_64", "imagenet64")),
    "flow-matching": (flow_matching, ("digits", "mnist", "smoke", "cifar10")),
    "inverse-problems": (inverse_problems, ("digits", "mnist", "smoke", "cifar10", "celeba64")),
    "bridge": (bridge, ("digits", "mnist", "smoke")),
}

RECIPES: dict[str, Callable[[], Experiment]] = {
    f"{name}-{preset.replace('_', '-')}": getattr(script, preset)
    for name, (script, presets) in SCRIPTS.items()
    for preset in presets
}


def find(name: str) -> Experiment:
    """Returns the recipe of that name.

    Raises:
        UsageError: for an unknown name; the message suggests the nearest one.
    """
    if name not in RECIPES:
        near = sorted(recipe for recipe in RECIPES if recipe.startswith(f"{name}-"))
        near = near or difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`unnoise recipes` lists them"
        raise UsageError(f"there is no recipe {name}: {hint}")
    return RECIPES[name]()
