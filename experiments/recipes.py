"""The recipes by name, for the command line: functions of the papers, and functions of one's own."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from ..shared.errors import UsageError, shown
from .own_files import named_in_file
from .papers import (
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
    text_to_image,
    udlm,
    upsampling,
)
from .parts import parameters_of
from .recipe import Recipe
from .studies import bridge

PAPERS = {
    "ddpm": (ddpm, "digits mnist smoke cifar10 celebahq256 lsun256"),
    "improved-ddpm": (improved_ddpm, "digits mnist smoke cifar10 imagenet64 imagenet64_classes lsun256"),
    "ddim": (ddim, "digits mnist smoke cifar10 celeba64 lsun256"),
    "guided-diffusion": (guided_diffusion, "digits mnist smoke imagenet64 imagenet128 imagenet256 lsun256"),
    "classifier-free": (classifier_free, "digits mnist smoke imagenet64 imagenet128"),
    "progressive-distillation": (progressive_distillation, "digits mnist smoke cifar10 imagenet64"),
    "upsampling": (upsampling, "digits mnist smoke imagenet256"),
    "d3pm": (d3pm_images, "digits mnist smoke cifar10"),
    "d3pm-text": (d3pm_text, "chain shakespeare smoke text8 lm1b"),
    "multinomial": (multinomial, "shakespeare smoke text8"),
    "mdlm": (mdlm, "shakespeare smoke text8 lm1b owt"),
    "sedd": (sedd, "shakespeare smoke text8 owt"),
    "udlm": (udlm, "chain shakespeare smoke text8"),
    "tauldr": (tauldr, "digits smoke cifar10"),
    "score-sde": (
        score_sde,
        "digits mnist smoke cifar10 cifar10_subvp cifar10_ve cifar10_subvp_deep cifar10_ve_deep cifar10_likelihood "
        "celeba64_ve ffhq256_ve",
    ),
    "ncsn": (ncsn, "digits mnist smoke cifar10 cifar10_v2 celeba64_v2 lsun128_v2"),
    "edm": (edm, "digits mnist smoke cifar10 cifar10_classes ffhq64 afhqv2_64 imagenet64"),
    "flow-matching": (flow_matching, "digits mnist smoke cifar10"),
    "inverse-problems": (inverse_problems, "digits mnist smoke cifar10 celeba64"),
    "openmoji": (text_to_image, "captions groups smoke"),
    "bridge": (bridge, "digits mnist smoke"),
}
"""The module of each paper, and the functions of the module that return recipes."""
RECIPES: dict[str, Callable[[], Recipe]] = {
    f"{name}-{function.replace('_', '-')}": getattr(module, function)
    for name, (module, functions) in PAPERS.items()
    for function in functions.split()
}
"""The functions that return recipes, by the names of the recipes, such as `ddpm-digits`."""


def find(name: str) -> Recipe:
    """Returns the recipe of a name, or that of a function of one's own, `FILE.py:FUNCTION` or `MODULE:FUNCTION`.

    Raises:
        UsageError: for an unknown name; the message suggests the nearest one. For a function of one's own that has
            arguments, or does not return a recipe.
    """
    if ":" in name:
        return own_recipe(name)
    if name not in RECIPES:
        near = sorted(recipe for recipe in RECIPES if recipe.startswith(f"{name}-"))
        near = near or difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`unnoise recipes` lists them"
        raise UsageError(f"there is no recipe {name}: {hint}")
    return RECIPES[name]()


def own_recipe(name: str) -> Recipe:
    """Returns the recipe of a function of one's own, `FILE.py:FUNCTION` or `MODULE:FUNCTION`."""
    function = named_in_file(*name.rsplit(":", 1))
    remedy = "give a function without arguments that returns a recipe"
    if not inspect.isfunction(function):
        raise UsageError(f"{name} is {shown(function)}: {remedy}")
    if needs := [key for key, p in parameters_of(function).items() if p.default is p.empty]:
        raise UsageError(f"{name} needs {', '.join(needs)}: {remedy}")
    try:
        recipe = function()
    except UsageError:
        raise
    except Exception as error:  # whatever the code of the user raises
        raise UsageError(f"{name}() raises {type(error).__name__}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise UsageError(f"{name}() returns {shown(recipe)}: {remedy}")
    return recipe
