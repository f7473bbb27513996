"""Experiments: a module for each paper, the demo, and the command line.

Importing this package imports no torch. Every class that one of its checkpoints can name is imported when a checkpoint
names it, so `load` needs only a path.
"""

from typing import TYPE_CHECKING

from ..shared.lazy import imported_later, lazily
from .recipes import PAPERS

if TYPE_CHECKING:
    from ..shared.training import load
    from . import pretrained, recipes
    from .pretrained import earlier_recipes, earlier_runs

__all__ = ["earlier_recipes", "earlier_runs", "load", "pretrained", "recipes"]

__getattr__, __dir__ = lazily(
    __name__, {".shared.training": "load", "pretrained": "earlier_recipes earlier_runs"}, ("pretrained", "recipes")
)
imported_later("unnoise.continuous", "unnoise.sde", f"{__name__}.gaussian", f"{__name__}.papers.ddpm")
imported_later("unnoise.discrete")  # of which a run of the above needs nothing
imported_later(
    *(f"{__name__}.{module}" for module in ("categorical", "tensor_data", *(m for m, _ in PAPERS.values()))),
    *(f"{__name__}.pretrained.{module}" for module in ("imported", "text", "earlier_recipes", "earlier_runs")),
)
