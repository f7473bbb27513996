"""Ablations: grids of runs, their statistics and their reports."""

from .grid import Ablation, Setup

__all__ = ["Ablation", "Setup"]
