"""Pictures: everything takes images `(N, C, H, W)` in [0, 1] and writes a PNG."""

from .curves import save_curves
from .grids import save_grid, save_panels
from .lines import Lines, save_lines
from .strips import save_strip

__all__ = ["Lines", "save_curves", "save_grid", "save_lines", "save_panels", "save_strip"]
