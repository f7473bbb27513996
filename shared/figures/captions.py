"""Grids of images with a caption under each."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from .grids import tile

LETTERS, LINES = 23, 3
"""The number of letters in a line of a caption, and the number of lines that are shown."""
WIDTH, MARGIN, DPI = 1.5, 0.1, 100
"""The width of an image and the space between images, in inches, and the resolution."""
BELOW = 0.4
"""The height of a caption, in inches."""


def save_captioned(path: Path, images: Tensor, captions: Sequence[str], columns: int = 6) -> Path:
    """Writes a PNG of a grid of images with a caption under each; of long captions the first lines are shown.

    Args:
        path: path of the PNG, which is returned.
        images: `(N, C, H, W)` in [0, 1].
        captions: N captions.
        columns: images in a row.

    Raises:
        UsageError: for another number of captions.
    """
    from matplotlib.figure import Figure

    if len(captions) != len(images):
        raise UsageError(f"{len(images)} images and {len(captions)} captions: give a caption for each image")
    columns, (height, width) = min(columns, len(images)), images.shape[2:]
    pixel = width / WIDTH  # pixels of an image for each inch
    margin = max(1, round(MARGIN * pixel))
    below = margin + round(BELOW * pixel)
    cells = F.pad(images.detach().float().cpu(), (margin, margin, margin, below), value=1.0)
    blank = torch.ones(-len(cells) % columns, *cells.shape[1:])
    page = tile(torch.cat([cells, blank]), columns, gap=0)
    inches = [size / pixel for size in page.shape[:2]]
    figure = Figure(figsize=(inches[1], inches[0]), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(page, interpolation="nearest", aspect="auto", extent=(0, page.shape[1], page.shape[0], 0))
    for n, caption in enumerate(captions):
        left = n % columns * (width + 2 * margin) + margin + width / 2
        top = n // columns * (height + margin + below) + margin * 1.3 + height
        axis.text(left, top, wrapped(caption), ha="center", va="top", fontsize=7, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # scripts that the font does not have are shown as boxes
        figure.savefig(path)
    return path


def wrapped(caption: str) -> str:
    """Returns a caption in at most three lines, which end in `...` where some of it is left out."""
    return "\n".join(textwrap.wrap(caption, LETTERS, max_lines=LINES, placeholder="..."))
