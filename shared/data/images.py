"""Images from anywhere, quantised once; each family takes them in its own form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..progress import Progress, silent
from ..quantization import Quantization
from ..random import Source
from .batches import Batches
from .classes import NO_LABELS, Labels, counted, labels_of, refuse_other_classes
from .folders import listed
from .sources import bundled, load
from .stacks import Cells, Files, stacked

if TYPE_CHECKING:
    from datasets import Dataset

LEVELS = {"digits": 17}  # every other set has 256


class ImageDataset(NamedTuple):
    """A set of images as levels: `k` uint8 `(N, C, H, W)`, `label` int64 `(N,)` or None, and the scale of the levels.

    Attributes:
        names: of the classes, where they have names.
        notes: what was left out of what there was, or changed in reading it.
    """

    k: Tensor
    label: Tensor | None
    quantization: Quantization
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, `(C, H, W)`."""
        return tuple(self.k.shape[1:])

    @property
    def dims(self) -> int:
        """Numbers in one image, C H W."""
        return self.k[0].numel()

    @property
    def summary(self) -> str:
        """What it holds, in one line: `1,204 images of 1x8x8, 3 classes: blood 400, test 402, urine 402.

        2 other files left out: ...`.
        """
        whole = f"{len(self.k):,} image{'s' * (len(self.k) != 1)} of {'x'.join(map(str, self.shape))}"
        return "; ".join([whole if self.label is None else f"{whole}, {self.counted}", *self.notes])

    @property
    def counted(self) -> str:
        """How often each class occurs, in words."""
        return counted(self.label, self.names)

    @property
    def unlabelled(self) -> str:
        """That there are no labels, and why."""
        return next((note for note in self.notes if note.startswith("no labels")), "no labels")

    @property
    def labels(self) -> Labels:
        """The labels as a list, their names, and why there are none."""
        reason = self.unlabelled.removeprefix("no labels").removeprefix(": ")
        return Labels(None, reason=reason) if self.label is None else Labels(self.label.tolist(), self.names)

    def part(self, count: int) -> ImageDataset:
        """`count` of the images at even distances, for folders are sorted by their classes.

        All of them where there are no more.
        """
        if count >= len(self.k):
            return self
        rows = torch.arange(count) * len(self.k) // count
        return self._replace(k=self.k[rows], label=None if self.label is None else self.label[rows])

    def batches(
        self,
        batch: int,
        form: Callable[[Quantization, Tensor, Source], Tensor] = Quantization.continuous,
        *,
        conditions: Sequence[str] = (),
        seed: int = 0,
    ) -> Batches:
        """Endless batches; `conditions=("label",)` adds the labels."""
        if conditions and (self.label is None or tuple(conditions) != ("label",)):
            has = "label only" if self.label is not None else f"{self.unlabelled}; {NO_LABELS}"
            raise UsageError(f"conditions={tuple(conditions)}: this set has {has}")
        names = self.names if conditions else None
        return Batches(
            self.k, batch, self.quantization, form, {"label": self.label} if conditions else None, seed, names=names
        )


def image_dataset(
    name: str,
    *,
    split: str = "train",
    size: tuple[int, int] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    classes: int | None = None,
    progress: Progress = silent,
) -> ImageDataset:
    """Loads images: gray or RGB, of any size, all of one size unless `size` (height, width) scales and crops them.

    What files hold becomes 8 bits by the rules of `pixels`; gray images beside others are read as RGB. What was left
    out or changed is counted in `ImageDataset.summary`.

    Args:
        name: a bundled set (`digits`, `mnist5k`), a folder, read by the rules of `listed`, or a set on the hub.
        split: `train`, `test`, ...
        size: resize the shorter side and crop the center.
        low, high: the range of the real form.
        classes: that labels must be 0 to classes - 1, which is looked at before pixels are read; None for any, or none.
        progress: how to report progress.

    Raises:
        UsageError: for a set without images or such a split, images that cannot be read or need more memory than there
            is, or images of several sizes without `size`; or labels that are not those of `classes`.
    """
    if size is not None and min(size) < 1:
        raise UsageError(f"size={size}: give a height and a width of at least 1")
    name = str(Path(name).expanduser()) if str(name).startswith("~") else str(name)
    pictures, labels, notes = found(name, split, classes)
    k, done = stacked(pictures, name, size, progress)
    levels = LEVELS.get(name, 256)
    k = k if levels == 256 else torch.round(k.float() * (levels - 1) / 255).to(torch.uint8)
    label = None if labels.numbers is None else torch.tensor(labels.numbers)
    unlabelled = [] if label is not None else [f"no labels: {labels.reason}" if labels.reason else "no labels"]
    return ImageDataset(k, label, Quantization(levels, low, high), labels.names, (*unlabelled, *done, *notes))


def found(name: str, split: str, classes: int | None) -> tuple[Files | Cells, Labels, tuple[str, ...]]:
    """The encoded pictures of a split, their labels, which must be those of `classes`, and what to say of them."""
    if name not in bundled() and Path(name).is_dir():
        files, labels, notes = listed(name, split)
        pictures = Files(name, files)
    else:
        pictures, labels, notes = tabled(name, split)
    if classes is not None:
        refuse_other_classes(labels, classes, name, split)
    return pictures, labels, notes


def untested(name: str, classes: int | None = None) -> str:
    """Why a set has no split test to measure on, in one line; nothing where it has."""
    try:
        count = len(found(str(Path(name).expanduser()) if name.startswith("~") else name, "test", classes)[0])
    except UsageError as error:
        return str(error)
    return (
        ""
        if count > 1
        else f"the split test of {name} holds 1 image, and a standard error needs at least 2; hold more images out"
    )


def tabled(name: str, split: str) -> tuple[Cells, Labels, tuple[str, ...]]:
    """The encoded pictures of a bundled set or one on the hub, their labels, and what to say of them."""
    import datasets

    rows = load(name, split)
    column = next((c for c in ("image", "img") if c in rows.column_names), None)
    if column is None or len(rows) == 0 or not isinstance(rows.features[column], datasets.Image):
        raise UsageError(f"the data set {name} has no images: its columns are {', '.join(rows.column_names)}")
    pictures = Cells(rows.cast_column(column, datasets.Image(decode=False))[column])
    notes = (
        (f"the folder {name} that is here is not read, its name is ./{name}",)
        if name in bundled() and Path(name).is_dir()
        else ()
    )
    return pictures, column_labels(name, split, rows), notes


def column_labels(name: str, split: str, rows: Dataset) -> Labels:
    """The column `label`; names are those of the column, or numbered in their natural order in the split train."""
    if "label" not in rows.column_names:
        others = [column for column in rows.column_names if "label" in column]
        return Labels(None, reason=f"the columns {', '.join(others)} are not read, only label is" if others else "")
    labels = labels_of(rows["label"][:])
    if labels.names and split.split("[")[0] != "train":
        labels = labels_of(rows["label"][:], known := load(name, "train")["label"][:])
        if unknown := set(labels.names or ()) - set(known):
            return Labels(None, reason=f"{min(unknown)} is not a label of the train split")
    names = getattr(rows.features["label"], "names", None)
    return labels if names is None or labels.numbers is None else labels._replace(names=tuple(names))


def images(
    name: str,
    *,
    batch: int,
    form: Callable[[Quantization, Tensor, Source], Tensor] = Quantization.continuous,
    split: str = "train",
    size: tuple[int, int] | None = None,
    conditions: Sequence[str] = (),
    seed: int = 0,
) -> Batches:
    """Endless batches `{"x0": (batch, C, H, W)}` of an image set; see `image_dataset` and `ImageDataset.batches`."""
    return image_dataset(name, split=split, size=size).batches(batch, form, conditions=conditions, seed=seed)
