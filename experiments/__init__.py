"""Scripts: one for each paper, the demo, and the command line.

Everything that a checkpoint of this package may name is imported here, so `load` needs no flags.
"""

from ..shared.training import load
from . import imported_runs, pretrained, recipes

__all__ = ["imported_runs", "load", "pretrained", "recipes"]
