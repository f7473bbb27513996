"""Line plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Lines:
    """A panel of a line plot.

    Attributes:
        xlabel, ylabel: labels of the axes, with their units.
        lines: x and y of each line, by its name, which the legend shows.
        logx, logy: whether the axes are logarithmic; with logx every x is a tick, except those close to another.
        points: texts at the points of a line, by the line's name.
    """

    xlabel: str
    ylabel: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    logx: bool = False
    logy: bool = False
    points: Mapping[str, Sequence[str]] | None = None


def save_lines(path: Path, panels: Mapping[str, Lines], title: str = "") -> Path:
    """Writes a PNG of panels side by side, each with a legend; if all have more than six lines, they share one.

    Args:
        path: path of the PNG, which is returned.
        panels: the panels by their titles.
        title: title of the figure; "" for none.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(4.6 * len(panels), 3.7), layout="constrained", dpi=120)
    if title:
        figure.suptitle(title, fontsize=12)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        for i, (label, (x, y)) in enumerate(panel.lines.items()):
            mark, style = "o" if len(x) <= 12 else None, ("-", "--")[i // 9 % 2]
            axis.plot(x, y, style, color=f"C{i % 10}", marker=mark, markersize=4, linewidth=1.4, label=label)
            for at_x, at_y, text in zip(x, y, (panel.points or {}).get(label, ()), strict=False):
                axis.annotate(text, (at_x, at_y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        if panel.logx:
            axis.set_xscale("log")
            axis.set_xticks(spaced(x for xs, _ in panel.lines.values() for x in xs))
            axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.xaxis.set_minor_locator(NullLocator())
        if panel.logy:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_locator(NullLocator())
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(panel.xlabel)
        axis.set_ylabel(panel.ylabel)
        axis.margins(0.06)
        axis.grid(True, linewidth=0.4, alpha=0.5)
        if 1 < len(panel.lines) <= 6:
            axis.legend(fontsize=8)
    if len(panels) and all(len(panel.lines) > 6 for panel in panels.values()):
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3 * len(panels), fontsize=8
        )
    figure.savefig(path)
    return path


def spaced(values: Iterable[float], ratio: float = 1.15) -> list[float]:
    """Returns the values in ascending order, without those that are less than `ratio` times the one before.

    These are the ticks of a logarithmic axis.
    """
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value >= ratio * kept[-1]:
            kept.append(value)
    return kept
