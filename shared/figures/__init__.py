"""Figures, written as PNG files; images are `(N, C, H, W)` in [0, 1]."""

from .captions import save_captioned
from .curves import save_curves
from .grids import save_grid, save_panels
from .lines import Lines, save_lines
from .strips import save_strip

__all__ = ["Lines", "save_captioned", "save_curves", "save_grid", "save_lines", "save_panels", "save_strip"]
