"""Pictures: everything takes images `(N, C, H, W)` in [0, 1] and writes a PNG."""

from .curves import save_curves
from .grids import save_grid, save_panels
from .strips import save_strip

__all__ = ["save_curves", "save_grid", "save_panels", "save_strip"]
