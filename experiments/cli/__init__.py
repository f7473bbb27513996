"""The command line: a thin layer over recipes, runs and studies."""

from .main import main

__all__ = ["main"]
