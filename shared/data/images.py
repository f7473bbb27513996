"""Images from anywhere, quantised once; each family takes them in its own form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..progress import Progress, silent
from ..random import Source
from ..scale import Scale
from .batches import Batches
from .sources import load

NO_LABELS = "no labels; use a model without classes, or put the images into a folder for each class"
LEVELS = {"digits": 17}  # every other set has 256


class ImageSet(NamedTuple):
    """A set of images as levels: `k` uint8 `(N, C, H, W)`, `label` int64 `(N,)` or None, and the scale of the levels."""

    k: Tensor
    label: Tensor | None
    scale: Scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, `(C, H, W)`."""
        return tuple(self.k.shape[1:])

    @property
    def dims(self) -> int:
        """Numbers in one image, C H W."""
        return self.k[0].numel()

    def batches(
        self,
        batch: int,
        form: Callable[[Scale, Tensor, Source], Tensor] = Scale.continuous,
        *,
        conditions: Sequence[str] = (),
        seed: int = 0,
    ) -> Batches:
        """Endless batches; `conditions=("label",)` adds the labels."""
        if conditions and (self.label is None or tuple(conditions) != ("label",)):
            raise UsageError(f"conditions={tuple(conditions)}: this set has {NO_LABELS if self.label is None else 'label only'}")
        return Batches(self.k, batch, self.scale, form, {"label": self.label} if conditions else None, seed)


def image_set(
    name: str,
    *,
    split: str = "train",
    size: tuple[int, int] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    progress: Progress = silent,
) -> ImageSet:
    """Loads images: grey or RGB, of any size, all of one size unless `size` (height, width) scales and crops them.

    Args:
        name: a bundled set (`digits`, `mnist5k`), a folder, or a set on the hub.
        split: `train`, `test`, ...
        size: resize the shorter side and crop the centre.
        low, high: the range of the real form.
        progress: how to report progress.

    Raises:
        UsageError: for a set without images, or images of several sizes without `size`.
    """
    from PIL import Image, ImageOps

    if size is not None and min(size) < 1:
        raise UsageError(f"size={size}: give a height and a width of at least 1")
    rows = load(name, split)
    column = next((c for c in ("image", "img") if c in rows.column_names), None)
    if column is None or len(rows) == 0:
        raise UsageError(f"the data set {name} has no images: its columns are {', '.join(rows.column_names)}")
    arrays = []
    try:
        for image in progress(rows[column], len(rows), f"reading {name}"):
            image = image if image.mode == "L" else image.convert("RGB")
            arrays.append(np.asarray(image if size is None else ImageOps.fit(image, size[::-1], Image.Resampling.BOX)))
    except OSError as error:
        raise UsageError(f"image {len(arrays)} of {name} cannot be read ({error}): mend or remove it") from error
    if len(shapes := {a.shape for a in arrays}) > 1:
        raise UsageError(
            f"the images of {name} have {len(shapes)} different shapes, such as {sorted(shapes)[:2]}: give size=(height, width)"
        )
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    levels = LEVELS.get(name, 256)
    k = pixels if levels == 256 else torch.round(pixels.float() * (levels - 1) / 255).to(torch.uint8)
    labels = rows["label"][:] if "label" in rows.column_names else [None]  # None too where a folder has splits and no classes
    return ImageSet(k.contiguous(), None if None in labels else torch.tensor(labels), Scale(levels, low, high))


def images(
    name: str,
    *,
    batch: int,
    form: Callable[[Scale, Tensor, Source], Tensor] = Scale.continuous,
    split: str = "train",
    size: tuple[int, int] | None = None,
    conditions: Sequence[str] = (),
    seed: int = 0,
) -> Batches:
    """Endless batches `{"x0": (batch, C, H, W)}` of an image set; see `image_set` and `ImageSet.batches`."""
    return image_set(name, split=split, size=size).batches(batch, form, conditions=conditions, seed=seed)
