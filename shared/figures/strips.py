"""Film strips of the states of noising and denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .grids import tile


def save_strip(path: Path, strips: Mapping[str, tuple[Sequence[float], Sequence[Tensor]]], title: str) -> Path:
    """Writes a PNG of strips below each other, each a sequence of states with their times.

    Args:
        path: path of the PNG, which is returned.
        strips: for each label, times `(n,)` and states, n tensors `(rows, C, H, W)` in [0, 1]; a state is a column.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    frames = max(len(times) for times, _ in strips.values())
    rows = next(iter(strips.values()))[1][0].shape[0]
    figure = Figure(figsize=(1.0 * frames + 1.1, (1.0 * rows + 0.5) * len(strips) + 0.5), layout="constrained", dpi=90)
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(len(strips), frames, squeeze=False)
    for line, (label, (times, states)) in zip(axes, strips.items(), strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
        for axis, t, state in zip(line, times, states, strict=False):
            axis.imshow(tile(state, columns=1), interpolation="nearest")
            axis.set_title(f"t = {t:.2f}", fontsize=8)
        line[0].set_ylabel(label, fontsize=10)
    figure.savefig(path)
    return path
