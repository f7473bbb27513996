"""Real-valued data of any shape in files: latents of images, series, point sets."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..progress import Progress, silent
from ..standardization import Standardization
from .array_files import ENDINGS, Array, SelectedRows, arrays_in
from .class_labels import Labels, class_counts, refuse_other_classes
from .held_out import held_out_note, held_out_rows
from .sources import Absent, file_or_folder, suggestion

Scale = Literal["all", "channels", "none"]
AT_ONCE = 2**22
"""The number of values that are read at a time to measure them."""


class TensorDataset(NamedTuple):
    """Real-valued examples `(N, ...)`, in memory or read from a file, and their class labels, if they have labels.

    Attributes:
        k: the examples in their own units; `k[rows]` reads some.
        label: class labels, int64 `(N,)`, or None.
        quantization: their mean and standard deviation in the split train, by which a model sees them.
        notes: how the split was made, and how they were measured.
    """

    k: Array
    label: Tensor | None
    quantization: Standardization
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.k.shape[1:])

    @property
    def dims(self) -> int:
        """Number of values in one example."""
        return torch.Size(self.shape).numel()

    @property
    def names(self) -> None:
        """None: classes of arrays have no names."""

    @property
    def summary(self) -> str:
        """One line on the data set: `1,204 examples of 4x8x8, float16; mean 0.1 and standard deviation 0.9 ...`."""
        kind = str(self.k.dtype).removeprefix("torch.")
        whole = f"{len(self.k):,} example{'s' * (len(self.k) != 1)} of {'x'.join(map(str, self.shape))}, {kind}"
        classes = [] if self.label is None else [class_counts(self.label, None)]
        return "; ".join([whole, *classes, *self.notes])

    def subset(self, count: int) -> TensorDataset:
        """Returns `count` evenly spaced examples; all of them if there are fewer."""
        if count >= len(self.k):
            return self
        return self.rows(torch.arange(count) * len(self.k) // count)

    def rows(self, rows: Tensor) -> TensorDataset:
        """Returns the examples whose numbers are `rows`, int64 `(n,)`, in memory, with their labels."""
        return self._replace(k=self.k[rows], label=None if self.label is None else self.label[rows])


def tensor_dataset(
    name: str,
    *,
    split: str = "train",
    array: str | None = None,
    scale: Scale = "all",
    held_out: float = 0.1,
    classes: int | None = None,
    progress: Progress = silent,
) -> TensorDataset:
    """Returns a split of real-valued examples in files, which are read row by row when they are needed.

    Mean and standard deviation are those of the whole split train, computed in float64.

    Args:
        name: a file whose name ends in .npy, .npz, .safetensors, .arrow or .parquet; or a folder with a file for each
            split, such as train.npy and test.npy.
        split: `train`, `test`, ...; a single file has only these two.
        array: the name of the examples in the file; None for `x`, or the only array of real numbers. Class labels are
            read from `label`, where the file has it.
        scale: what has mean 0 and variance 1 for the model: `all` values together, those of each of the `channels`, the
            first axis of an example, or `none`.
        held_out: the share of a single file that is held out as the split test, or the number of examples; see
            `held_out_rows`.
        classes: number of classes; labels must lie in 0 to classes - 1. None for any labels, or none.
        progress: how to report progress.

    Raises:
        UsageError: for a file that cannot be read or a split that does not exist, a share that is not between 0 and 1,
            constant data or values that are not finite, and labels outside of 0 to classes - 1.
    """
    path = os.path.expanduser(name)
    k, label, notes = of_split(path, split, array, held_out)
    if classes is not None:
        numbers = None if label is None else label.tolist()
        reason = "there is no array label beside the examples"
        refuse_other_classes(Labels(numbers, reason=reason), classes, name, split)
    train, _, _ = of_split(path, "train", array, held_out)
    quantization = measured(train, path, array, scale, held_out, progress)
    if scale == "all":
        notes += (f"mean {quantization.mean[0]:.4g} and standard deviation {quantization.std[0]:.4g} become 0 and 1",)
    elif scale == "channels":
        notes += (f"mean and standard deviation of each of {len(quantization.mean)} channels become 0 and 1",)
    return TensorDataset(k, label, quantization, notes)


def of_split(path: str, split: str, array: str | None, held_out: float) -> tuple[Array, Tensor | None, tuple[str, ...]]:
    """Returns the examples of a split, their labels or None, and notes."""
    if Path(path).is_dir():
        found = {p.stem: p for p in sorted(Path(path).iterdir()) if p.suffix.lower() in ENDINGS}
        if split not in found:
            has = f"it has {', '.join(p.name for p in found.values())}" if found else "it has no arrays"
            raise UsageError(f"{path} has no split {split}: {has}: add a file {split}.npy")
        return *arrays_in(str(found[split]), array), ()
    if not Path(path).is_file():
        remedy = suggestion(path, "give the path of one that exists")
        raise Absent(f"there is no {file_or_folder(path)} {path}: {remedy}")
    if split not in ("train", "test"):
        raise UsageError(f"{path} is a single file, whose splits are train and test, and not {split}")
    whole, label = arrays_in(path, array)
    rows = held_out_rows(len(whole), held_out, split)
    note = held_out_note(len(whole), held_out, rows, split)
    return SelectedRows(whole, rows), None if label is None else label[rows], (note,)


MEASURED: dict[tuple[object, ...], Standardization] = {}
"""Standardizations by file and settings, so that the other splits do not read the split train again."""


def measured(
    k: Array, path: str, array: str | None, scale: Scale, held_out: float, progress: Progress
) -> Standardization:
    """Returns mean and standard deviation of examples, which are kept for the next call with the same file."""
    if scale == "none":
        return Standardization()
    changed = max(p.stat().st_mtime_ns for p in ([*Path(path).iterdir()] if Path(path).is_dir() else [Path(path)]))
    key = (os.path.abspath(path), changed, array, scale, held_out)
    if key not in MEASURED:
        MEASURED[key] = standardization_of(k, scale, progress)
    return MEASURED[key]


def standardization_of(k: Array, scale: Scale = "all", progress: Progress = silent) -> Standardization:
    """Returns mean and standard deviation of all values, or of each channel, from one pass over the examples.

    Raises:
        UsageError: for values that are not finite, and for constant data.
    """
    parts = torch.arange(len(k)).split(max(1, AT_ONCE // torch.Size(k.shape[1:]).numel()))
    count, mean, square = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for rows in progress(parts, len(parts), "mean and standard deviation"):
        x = k[rows].double().flatten(2) if len(k.shape) > 2 else k[rows].double()[:, :, None]
        values = x.transpose(0, 1).flatten(1) if scale == "channels" else x.reshape(1, -1)
        if not bool(torch.isfinite(values).all()):
            bad = int(rows[(~torch.isfinite(x)).flatten(1).any(1)][0])
            raise UsageError(f"example {bad} has NaN or infinity: remove such examples")
        own, n = values.mean(1), values.shape[1]
        # the parallel form of Welford's sums (Chan et al. 1979), which loses no digits to a large mean
        total = count + n
        square = square + (values - own[:, None]).square().sum(1) + (own - mean).square() * count * n / total
        mean, count = mean + (own - mean) * n / total, total
    std = (square / count).sqrt()
    if bool((std <= 1e-12 * (1 + mean.abs())).any()):
        raise UsageError(
            f"{'some channel of the data is' if scale == 'channels' else 'the data are'} constant "
            f"({float(mean[int(std.argmin())]):g}): leave it out, or give scale=none"
        )
    return Standardization(tuple(mean.tolist()), tuple(std.tolist()))


@functools.cache
def pooled_size(shape: tuple[int, ...], most: int = 512) -> int:
    """Returns the width of the blocks over which values are averaged, so that at most `most` numbers remain."""
    width = 1
    while len(shape) > 1 and shape[0] * torch.Size([-(-n // width) for n in shape[1:]]).numel() > most:
        if width >= max(shape[1:]):
            break
        width *= 2
    return width


def pooled(x: Tensor, width: int) -> Tensor:
    """Returns the means over blocks of `width` along each axis after the channels, `(N, d)`, for x `(N, C, *size)`."""
    for axis in range(2, x.ndim) if width > 1 else ():
        x = torch.stack([part.mean(axis) for part in x.split(width, axis)], axis)
    return x.flatten(1)
