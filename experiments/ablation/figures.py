"""The figures of an ablation: the main measure by cell with intervals, and the learning curves of all runs."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from .comparisons import Cell, direction
from .results import Results, Run

INK, GRID, PAPER = "#1a1b1c", "#d0d1d2", "#fefefd"
"""Colors that a page with a dark mode replaces by its own: text and axes, grid lines, the inside of hollow marks."""
COLORS = ("#0072b2", "#c44e00", "#00805d", "#a8437f", "#7a6200", "#5b54c9", "#b3261e", "#4d5a66")
"""Colors of the levels of the main factor; more levels repeat them with other dashes."""
DASHES = ("-", "--", ":", "-.")
POINTS = 100
"""A learning curve with more points is shown by means of consecutive ones."""


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG file, as SVG whose colors are variables of the page, and what it shows in words."""

    path: Path
    svg: str
    text: str


def style(main: list[str], level: str) -> tuple[str, str]:
    """Returns the color and the dashes of a level of the main factor."""
    at = main.index(level) if level in main else len(main)
    return COLORS[at % len(COLORS)], DASHES[at // len(COLORS) % len(DASHES)]


def finished(figure: Figure, path: Path, text: str) -> Picture:
    """Writes a figure as PNG, and returns it with its SVG."""
    figure.savefig(path, dpi=130)
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\1{path.stem}-", svg)
    for color, variable in ((INK, "currentColor"), (GRID, "var(--line)"), (PAPER, "var(--back)")):
        svg = svg.replace(color, variable)
    for n, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--c{n})")
    return Picture(path, svg, text)


def plain(axis: Axes) -> None:
    """Sets the colors of an axis."""
    axis.tick_params(which="both", colors=INK, labelsize=9)
    for name, spine in axis.spines.items():
        spine.set_color(INK if name in ("left", "bottom") else "none")
    axis.set_axisbelow(True)


def plain_numbers(axis: Axis) -> None:
    """Sets the ticks of a logarithmic axis: 1, 2 and 5 in each decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def save_effects(path: Path, results: Results, measure: str, cells: list[Cell], verdicts: list[str]) -> Picture:
    """Draws the mean of a measure for each cell with its interval, grouped by the first factor and sorted.

    Args:
        path: path of the PNG.
        results: the ablation.
        measure: the measure.
        cells: the cells.
        verdicts: a short verdict for each cell, which is shown beside it.
    """
    factors, better = list(results.factors), direction(results, measure)
    grouping = len(factors) > 1
    main = results.factors[factors[0]] if factors else []
    rows: list[tuple[str, Cell | None, str]] = []
    for level in dict.fromkeys(c.levels[factors[0]] for c in cells) if grouping else [""]:
        own = [(c, v) for c, v in zip(cells, verdicts, strict=True) if not grouping or c.levels[factors[0]] == level]
        own.sort(key=lambda pair: sorting(pair[0].summary.mean, better))
        rows += [(f"{factors[0]} {level}", None, "")] * grouping
        rows += [(", ".join(list(c.levels.values())[grouping:]), c, verdict) for c, verdict in own]

    figure = Figure(figsize=(7.4, 1.1 + 0.235 * len(rows)), layout="constrained")
    axis = figure.subplots()
    plain(axis)
    values = [v for c in cells for run in c.runs if (v := run.value(measure)) is not None]
    low, high, log = limits(values)
    if log:
        axis.set_xscale("log")
        plain_numbers(axis.xaxis)
    axis.set_xlim(low, high)
    axis.grid(True, axis="x", color=GRID, linewidth=0.6)
    base = next((c.summary.mean for c in cells if c.levels == results.baseline), math.nan)
    if math.isfinite(base):
        axis.axvline(base, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    cut = False
    for y, (_, cell, verdict) in enumerate(rows):
        if cell is None:
            continue
        axis.text(1.01, y, verdict, transform=axis.get_yaxis_transform(), va="center", fontsize=8, color=INK)
        if not cell.summary.count:
            continue
        color = style(main, next(iter(cell.levels.values())))[0] if grouping else COLORS[0]
        s, hollow = cell.summary, cell.levels == results.baseline
        ends = (s.mean, s.mean) if math.isnan(s.low) else (max(s.low, low), min(s.high, high))
        axis.plot(ends, (y, y), color=color, linewidth=1.6, solid_capstyle="butt")
        for end, outside, mark in ((low, s.low < low, "<"), (high, s.high > high, ">")):
            if outside:
                cut = True
                axis.plot(end, y, mark, color=color, markersize=5, clip_on=False)
        seeds = [v for run in cell.runs if (v := run.value(measure)) is not None]
        axis.plot(seeds, [y] * len(seeds), "|", color=color, markersize=6, alpha=0.7, markeredgewidth=1)
        axis.plot(s.mean, y, "D" if hollow else "o", color=color, markersize=5.5, mfc=PAPER if hollow else color)
    if len(factors) == 1:
        axis.set_ylabel(factors[0], color=INK, fontsize=9, parse_math=False)
    axis.set_yticks(range(len(rows)), [label if cell else "" for label, cell, _ in rows])
    for y, (tick, (label, cell, _)) in enumerate(zip(axis.get_yticklabels(), rows, strict=True)):
        tick.set_fontsize(8.5)
        tick.set_parse_math(False)
        if cell is None:  # a heading in the plot, where a long one takes no room from it
            place = {"transform": axis.get_yaxis_transform(), "va": "center", "parse_math": False}
            under = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
            axis.text(0.01, y, label, fontsize=8.5, fontweight="bold", color=INK, bbox=under, **place)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    wish = {"lower": "lower is better", "higher": "higher is better", "closer": "closer to real data is better"}
    note = ", ".join(
        part for part in (wish.get(better, ""), "logarithmic axis" * log, "arrows: the interval goes on" * cut) if part
    )
    axis.set_xlabel(f"{measure}{f' ({note})' if note else ''}", color=INK, fontsize=9, parse_math=False)
    return finished(figure, path, effects_text(results, measure, cells))


def sorting(mean: float, better: str) -> tuple[bool, float]:
    """Returns what cells are sorted by: the best first, those without numbers last."""
    return math.isnan(mean), -mean if better == "higher" else mean


def limits(values: list[float]) -> tuple[float, float, bool]:
    """Returns the ends of the axis, and whether it is logarithmic: for positive numbers of more than a factor of 50."""
    if not values:
        return 0.0, 1.0, False
    least, most = min(values), max(values)
    if least > 0 and most > 50 * least:
        pad = (most / least) ** 0.15
        return least / pad, most * pad, True
    pad = 0.25 * (most - least) or 0.1 * abs(most) or 1.0
    return least - pad, most + pad, False


def effects_text(results: Results, measure: str, cells: list[Cell]) -> str:
    """Returns what the picture of the cells shows, in words."""
    found = [c for c in cells if c.summary.count]
    if not found:
        return f"No cell has a number of {measure} yet."
    better = direction(results, measure)
    first, last = (f(found, key=lambda c: sorting(c.summary.mean, better)) for f in (min, max))
    names = [f"{', '.join(c.levels.values())} with {c.summary.mean:.4g}" for c in (first, last)]
    ends = ("best", "worst") if better in ("lower", "higher") else ("lowest", "highest")
    base = next((f"; the baseline has {c.summary.mean:.4g}" for c in found if c.levels == results.baseline), "")
    return (
        f"Dot plot of the mean {measure} of {len(found)} {'cells' if len(found) > 1 else 'cell'} with 95 % intervals "
        "and one tick for each seed. "
        f"The {ends[0]} mean is that of {names[0]}, the {ends[1]} that of {names[1]}{base}."
    )


def thinned(curve: tuple[list[float], list[float]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns a curve of at most 100 points, each the mean of consecutive ones, and the number of those."""
    x, y = (np.asarray(part, dtype=np.float64) for part in curve)
    group = max(1, math.ceil(len(x) / POINTS))
    starts = np.arange(0, len(x), group)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts, group


def save_curves(path: Path, results: Results) -> Picture | None:
    """Draws the learning curves of all runs, colored by the first factor; None if no run has one.

    Runs that differ in sampling alone share the curve of their training, which is drawn once.
    """
    factors = list(results.factors)
    main = results.factors[factors[0]] if factors else []
    curves: dict[tuple[str, tuple[float, ...]], Run] = {}
    for run in results.runs:
        if len(run.curve[0]):
            curves.setdefault((run.levels.get(factors[0], "") if factors else "", tuple(run.curve[1])), run)
    if not curves:
        return None
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axis = figure.subplots()
    plain(axis)
    axis.grid(True, which="major", color=GRID, linewidth=0.6)
    groups, shown = set(), set()
    for (level, _), run in sorted(curves.items(), key=lambda item: item[1].seed):  # no level covers all others
        color, dashes = style(main, level)
        x, y, group = thinned(run.curve)
        groups.add(group)
        label = None if level in shown else f"{factors[0]} {level}".replace("$", r"\$") if factors else None
        shown.add(level)
        axis.plot(x, y, dashes, color=color, linewidth=0.8, alpha=0.75, label=label)
    losses = np.concatenate([np.asarray(run.curve[1], dtype=np.float64) for run in curves.values()])
    if np.all(losses[np.isfinite(losses)] > 0):
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
    axis.set_xlabel("examples or steps seen", color=INK, fontsize=9)
    most = max(groups)
    note = f" (means of up to {most} recorded ones)" if most > 1 else ""
    axis.set_ylabel(f"training loss{note}", color=INK, fontsize=9)
    if factors:
        legend = axis.legend(fontsize=8, labelcolor=INK, frameon=False, ncols=2)
        for handle in legend.get_lines():
            handle.set_linewidth(2.5)
            handle.set_alpha(1)
    seeds = f"{len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}"
    text = f"Training losses of {len(curves)} training{'s' * (len(curves) > 1)} over {seeds}" + (
        f", colored by {factors[0]}: {', '.join(sorted(shown, key=lambda n: (n not in main, n)))}." if factors else "."
    )
    return finished(figure, path, text)
