"""Grids of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

GAP = 0.6
"""Gray between the images of a grid, distinct from black and white ones."""


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Returns images as one RGB picture, row by row, with gray between them.

    Three channels are shown as RGB; of any other number the first one is shown in gray.

    Args:
        images: `(N, C, H, W)` in [0, 1].
        columns: images in a row.
        gap: pixels between the images.

    Returns:
        float32 array `(rows (H + gap) - gap, columns (W + gap) - gap, 3)` in [0, 1].

    Raises:
        UsageError: for images of another number of dimensions.
    """
    if images.ndim != 4:
        raise UsageError(f"images of shape {tuple(images.shape)}: give a tensor (N, C, H, W)")
    images = images.detach().float().cpu().clamp(0, 1)
    count, channels, height, width = images.shape
    images = images if channels == 3 else images[:, :1].expand(-1, 3, -1, -1)
    rows = -(-count // columns)
    page = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), GAP)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return page.numpy()


def save_grid(path: Path, images: Tensor, columns: int = 8) -> Path:
    """Writes a PNG of a grid of images without axes or titles, enlarged by an integer factor to 640 pixels at most.

    A grid that is larger than that keeps its size.

    Args:
        path: path of the PNG, which is returned.
        images: `(N, C, H, W)` in [0, 1].
        columns: images in a row.
    """
    from PIL import Image

    page = tile(images, columns)
    scale = max(1, 640 // max(page.shape[:2]))
    enlarged = np.kron(np.round(page * 255).astype(np.uint8), np.ones((scale, scale, 1), dtype=np.uint8))
    Image.fromarray(enlarged).save(path)
    return path


def save_panels(path: Path, panels: Mapping[str, Tensor], columns: int = 10, across: int = 3) -> Path:
    """Writes a PNG of titled grids of images, `across` grids in a row.

    Args:
        path: path of the PNG, which is returned.
        panels: for each title, images `(N, C, H, W)` in [0, 1].
        columns: images in a row of a grid.
        across: grids in a row of the figure.
    """
    from matplotlib.figure import Figure

    down = -(-len(panels) // across)
    pages = {title: tile(images, columns) for title, images in panels.items()}
    aspect = max(page.shape[0] / page.shape[1] for page in pages.values())
    figure = Figure(figsize=(3.4 * across, (3.4 * aspect + 0.45) * down), layout="constrained", dpi=110)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, page) in zip(axes, pages.items(), strict=False):
        axis.imshow(page, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    figure.savefig(path)
    return path
