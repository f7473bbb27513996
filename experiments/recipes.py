"""The recipes by name, for the command line: functions of the papers, and functions of one's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..shared.errors import UsageError, shown

if TYPE_CHECKING:
    from .recipe import Recipe

PAPERS = {
    "ddpm": ("papers.ddpm", "digits mnist smoke cifar10 celebahq256 lsun256"),
    "improved-ddpm": ("papers.improved_ddpm", "digits mnist smoke cifar10 imagenet64 imagenet64_classes lsun256"),
    "ddim": ("papers.ddim", "digits mnist smoke cifar10 celeba64 lsun256"),
    "guided-diffusion": ("papers.guided_diffusion", "digits mnist smoke imagenet64 imagenet128 imagenet256 lsun256"),
    "classifier-free": ("papers.classifier_free", "digits mnist smoke imagenet64 imagenet128"),
    "progressive-distillation": ("papers.progressive_distillation", "digits mnist smoke cifar10 imagenet64"),
    "upsampling": ("papers.upsampling", "digits mnist smoke imagenet256"),
    "d3pm": ("papers.d3pm_images", "digits mnist smoke cifar10"),
    "d3pm-text": ("papers.d3pm_text", "chain shakespeare smoke text8 lm1b"),
    "multinomial": ("papers.multinomial", "shakespeare smoke text8"),
    "mdlm": ("papers.mdlm", "shakespeare smoke text8 lm1b owt"),
    "sedd": ("papers.sedd", "shakespeare smoke text8 owt"),
    "udlm": ("papers.udlm", "chain shakespeare smoke text8"),
    "tauldr": ("papers.tauldr", "digits smoke cifar10"),
    "score-sde": (
        "papers.score_sde",
        "digits mnist smoke cifar10 cifar10_subvp cifar10_ve cifar10_subvp_deep cifar10_ve_deep cifar10_likelihood "
        "celeba64_ve ffhq256_ve",
    ),
    "ncsn": ("papers.ncsn", "digits mnist smoke cifar10 cifar10_v2 celeba64_v2 lsun128_v2"),
    "edm": ("papers.edm", "digits mnist smoke cifar10 cifar10_classes ffhq64 afhqv2_64 imagenet64"),
    "flow-matching": ("papers.flow_matching", "digits mnist smoke cifar10"),
    "inverse-problems": ("papers.inverse_problems", "digits mnist smoke cifar10 celeba64"),
    "openmoji": ("papers.text_to_image", "captions groups smoke"),
    "bridge": ("studies.bridge", "digits mnist smoke"),
    "fast": ("studies.fast", "digits smoke"),
}
"""The module of each paper, and the functions of the module that return recipes."""


class Recipes(Mapping[str, "Callable[[], Recipe]"]):
    """Functions that return recipes, by the names of the recipes. A module is imported when its recipe is looked up."""

    def __init__(self, papers: Mapping[str, tuple[str, str]]) -> None:
        self._places = {
            f"{name}-{function.replace('_', '-')}": (module, function)
            for name, (module, functions) in papers.items()
            for function in functions.split()
        }

    def __getitem__(self, name: str) -> Callable[[], Recipe]:
        module, function = self._places[name]
        return getattr(importlib.import_module(f".{module}", __package__), function)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


RECIPES = Recipes(PAPERS)
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
    from .own_files import named_in_file
    from .parts import parameters_of
    from .recipe import Recipe

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
