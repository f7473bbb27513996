"""Experiments: a module for each paper, the demo, and the command line.

Importing this package imports every class that one of its checkpoints can name, so `load` needs only a path.
"""

from ..shared.training import load
from . import pretrained, recipes
from .pretrained import earlier_recipes, earlier_runs

__all__ = ["earlier_recipes", "earlier_runs", "load", "pretrained", "recipes"]
