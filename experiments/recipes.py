"""The names that the command line knows. Each is a preset of a paper's script."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from ..shared.errors import UsageError
from . import d3pm_images, ddpm, score_sde
from .experiment import Experiment

RECIPES: dict[str, Callable[[], Experiment]] = {
    f"{name}-{preset.__name__}": preset
    for name, script in (("ddpm", ddpm), ("d3pm", d3pm_images), ("score-sde", score_sde))
    for preset in (script.digits, script.mnist, script.smoke)
}


def find(name: str) -> Experiment:
    """The recipe of that name.

    Raises:
        UsageError: with the nearest name, where there is none.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "`unnoise recipes` lists them"
        raise UsageError(f"there is no recipe {name}: {hint}")
    return RECIPES[name]()
