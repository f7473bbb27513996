"""Experiments: a module for each paper, the demo, and the command line.

Importing this package imports every class that one of its checkpoints can name, so `load` needs only a path.
"""

from ..shared.training import load
from . import imported_runs, pretrained, recipes

__all__ = ["imported_runs", "load", "pretrained", "recipes"]
