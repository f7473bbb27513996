"""Curves, such as losses by training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def save_curves(
    path: Path, curves: Mapping[str, tuple[Sequence[float], Sequence[float], str]], xlabel: str = "step"
) -> Path:
    """Writes a PNG with one panel for each curve, since losses of different families have different units.

    Returns the path.

    Args:
        path: path of the PNG.
        curves: for each title, x, y and the label of the y axis, with its unit. The y axis is logarithmic.
        xlabel: label of the x axis of every panel.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.0), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (title, (x, y, ylabel)) in zip(axes, curves.items(), strict=True):
        axis.plot(x, y, linewidth=1.4)
        axis.set_yscale("log")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.grid(True, which="both", linewidth=0.4, alpha=0.5)
    figure.savefig(path)
    return path
