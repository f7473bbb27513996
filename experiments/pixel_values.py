"""Changes of the pixel values of whole data sets: fewer quantization levels, and gray images in color."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..shared.data import ImageDataset
from ..shared.errors import UsageError


def coarser(images: ImageDataset, levels: int) -> ImageDataset:
    """Returns images of fewer quantization levels: level k of L becomes `floor(k levels / L)`.

    Raises:
        UsageError: for fewer than 2 levels, or not fewer than the images have.
    """
    own = images.quantization
    if not 2 <= levels < own.levels:
        raise UsageError(
            f"levels={levels}: these images have {own.levels} quantization levels: give 2 to {own.levels - 1}"
        )
    k = torch.div(images.in_memory.int() * levels, own.levels, rounding_mode="floor").to(torch.uint8)
    return images._replace(k=k, quantization=replace(own, levels=levels))


def palette(classes: int) -> Tensor:
    """Returns RGB colors of evenly spaced hues, `(classes, 3)`, all of mean 1/2, so that gray images look alike."""
    hue = 2 * math.pi * torch.arange(classes)[:, None] / classes
    return 0.5 + 0.4 * torch.cos(hue - 2 * math.pi * torch.arange(3) / 3)


def tinted(images: ImageDataset) -> ImageDataset:
    """Returns gray images multiplied by the color of their label, and color images unchanged.

    Raises:
        UsageError: for gray images without labels.
    """
    if images.shape[0] != 1:
        return images
    if images.label is None:
        raise UsageError(
            "gray images are tinted by their label, and these have none: take a set with labels, or images in color"
        )
    colors = palette(len(images.names or ()) or int(images.label.max()) + 1)[images.label][:, :, None, None]
    return images._replace(k=torch.round(images.in_memory * colors).to(torch.uint8))
