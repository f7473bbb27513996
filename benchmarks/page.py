"""The report of the suite: JSON, a table in Markdown, a figure of the ratios and one of how costs grow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unnoise.experiments import report

from .timing import OURS, SCALING, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABOUT = """`make bench` measures all of this in one run, on one thread; `python -m benchmarks --help` says how to
measure a part. Every row first asserts that what it compares computes the same; then ours and its references take turns
in one process. A ratio is the median over the rounds of ours over the base within a round, with its quartiles; costs
are medians for each unit, in processor time. Ratios hold on other machines, milliseconds on this one alone: a target in
milliseconds is that of the machine on which it was stated."""
GREEN, RED, GRAY = "#1a7f37", "#cf222e", "#57606a"
HEAD = ["", "ours", "base", "ratio", "quartiles", "target", "met", "ours over others"]
DEMO = "demo.json"
"""Figures of the demo, which is not run here: minutes, target, date, commit and machine."""


def cost(value: float, measure: str) -> str:
    """Returns milliseconds or megabytes with their unit."""
    if measure == "MB":
        return f"{value:,.0f} MB"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def target(row: Row) -> str:
    """Returns the target of a row, as a ratio, a time, or both."""
    texts = [] if row.target is None else [f"{row.target:.2f}"]
    return " or ".join([*texts, *([] if row.target_ms is None else [cost(row.target_ms, row.measure)])])


def verdict(row: Row) -> str:
    """Returns whether the target is met."""
    return "" if row.met is None else "yes" if row.met else "**no**"


def cells(row: Row) -> list[str]:
    """Returns a row of the table."""
    others = [f"{name} {over:.2f}" for name, over in row.over.items() if name != row.base]
    name = f"{row.name}, for each {row.unit}"
    ours, base = (cost(row.cost[who], row.measure) for who in (OURS, row.base))
    between = f"{row.low:.2f} to {row.high:.2f}"
    return [name, ours, f"{row.base} {base}", f"{row.ratio:.2f}", between, target(row), verdict(row), ", ".join(others)]


def by_group(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, but for those of scaling, with the rows of a group together."""
    groups = list(dict.fromkeys(row.group for row in rows))
    return sorted((row for row in rows if row.group != SCALING), key=lambda row: groups.index(row.group))


def slopes(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Returns for each series its points, and the slope of the logarithm of the cost over that of the position."""
    found = dict[str, dict[str, Any]]()
    for row in rows:
        if row.series is not None:
            series = found.setdefault(row.series, {"measure": row.measure, "unit": row.unit, "points": []})
            series["points"].append([row.at, row.cost[OURS], row.ratio])
    for series in found.values():
        at, costs = np.array([point[:2] for point in sorted(series["points"])]).T
        series["slope"] = float(np.polyfit(np.log(at), np.log(np.maximum(costs, 1e-9)), 1)[0]) if len(at) > 1 else None
        if series["measure"] == "MB" and len(at) > 1:
            series["MB for each"] = float(np.polyfit(at, costs, 1)[0])
    return found


def markdown(rows: Sequence[Row], about: dict[str, str], notes: Sequence[str], demo: dict[str, Any] | None) -> str:
    """Returns the table of a run."""
    parts = ["# Speed", ABOUT, ", ".join(f"{name} {value}" for name, value in about.items())]
    judged = [row for row in rows if row.met is not None]
    profiles = " [Where the time of the others goes](profiles.md)." if demo else ""
    parts.append(f"{sum(bool(row.met) for row in judged)} of {len(judged)} targets are met.{profiles}")
    plain = by_group(rows)
    for group, members in groupby(plain, lambda row: row.group):
        parts += [f"## {group[0].upper()}{group[1:]}", report.table(HEAD, [cells(row) for row in members])]
    if demo:
        parts += ["## Demo", ", ".join(f"{name} {value}" for name, value in demo.items()) + "."]
    if found := slopes(rows):
        head = ["", "from", "to", "cost at the ends", "slope", "ratio to the base at the ends"]
        lines = []
        for name, series in found.items():
            (a, first, r), (b, last, q) = (sorted(series["points"])[i] for i in (0, -1))
            ends = f"{cost(first, series['measure'])}, {cost(last, series['measure'])} for each {series['unit']}"
            slope = "" if series["slope"] is None else f"{series['slope']:.2f}"
            if "MB for each" in series:
                slope += f" ({series['MB for each']:.1f} MB for each example)"
            lines.append([name, f"{a:,.0f}", f"{b:,.0f}", ends, slope, f"{r:.2f}, {q:.2f}"])
        text = "The slope is that of the logarithm of the cost over the logarithm of the position: 1 is proportional."
        parts += ["## How costs grow", text, report.table(head, lines)]
    alone = [row for row in rows if row.group == SCALING and row.series is None]
    if alone:
        parts.append(report.table(HEAD, [cells(row) for row in alone]))
    equal = [f"- {row.name}: {row.equal}{f'; {row.note}' if row.note else ''}; {row.rounds} rounds" for row in plain]
    parts += ["## What was compared before it was timed", "\n".join(equal)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def ratios_figure(rows: Sequence[Row], path: Path) -> None:
    """Draws the ratio of each row with its quartiles, its target and the other libraries, colored by met or missed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    shown = by_group(rows)
    lines, y = list[tuple[float, Row]](), 0.0
    labels, heads = list[tuple[float, str]](), list[tuple[float, str]]()
    for group, members in groupby(shown, lambda row: row.group):
        heads.append((y, group))
        y += 1
        for row in members:
            lines.append((y, row))
            labels.append((y, row.name))
            y += 1
        y += 0.4
    figure = Figure(figsize=(11, 1.2 + 0.27 * max(y, 4)), layout="constrained")
    axes = figure.add_subplot()
    for at, row in lines:
        color = GRAY if row.met is None else GREEN if row.met else RED
        axes.plot([row.low, row.high], [at, at], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot([row.ratio], [at], "o", color=color, markersize=6)
        for name, over in row.over.items():
            if name != row.base and over:
                axes.plot([row.ratio / over], [at], "D", color="white", markeredgecolor=GRAY, markersize=4.5, zorder=1)
        limit = row.target if row.target is not None else _in_ratio(row)
        if limit:
            axes.plot([limit, limit], [at - 0.38, at + 0.38], color="black", linewidth=1.6)
        axes.annotate(f"{row.ratio:.2f}", (1.005, at), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(1, color="#d0d7de", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(max(0.05, min([0.2, *(0.8 * row.ratio for row in shown)])), None)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(y, -1)
    axes.set_yticks([at for at, _ in labels], [name for _, name in labels], fontsize=8)
    for at, group in heads:
        axes.annotate(group, (0.002, at), xycoords=("axes fraction", "data"), va="center", fontsize=9, weight="bold")
    axes.set_xlabel("time or memory over that of the base")
    marks = [("o", GREEN, "target met"), ("o", RED, "target missed"), ("o", GRAY, "no target")]
    for marker, color, text in marks:
        axes.plot([], [], marker, color=color, label=text)
    axes.plot([], [], "|", color="black", markersize=11, markeredgewidth=1.6, label="target")
    axes.plot([], [], "D", color="white", markeredgecolor=GRAY, markersize=4.5, label="another library")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.6 / max(y * 0.27, 1)), ncols=5, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eaeef2", zorder=0)
    figure.savefig(path, dpi=130)


def _in_ratio(row: Row) -> float | None:
    return None if row.target_ms is None else row.target_ms / row.cost[row.base]


def scaling_figure(rows: Sequence[Row], path: Path) -> None:
    """Draws the cost over batch, vocabulary and length, one panel for each, with fitted slopes in the legend."""
    from matplotlib.figure import Figure

    panels = dict[str, dict[str, dict[str, Any]]]()
    for name, series in slopes(rows).items():
        line, panel = name.split(": ", 1)
        panels.setdefault(panel, {})[line] = series
    if not panels:
        return
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.2 * columns, 3.4 * math.ceil(len(panels) / columns)), layout="constrained")
    for number, (panel, lines) in enumerate(panels.items(), 1):
        axes: Axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, number)
        for line, series in lines.items():
            at, costs = np.array([point[:2] for point in sorted(series["points"])]).T
            slope = "" if series["slope"] is None else f", slope {series['slope']:.2f}"
            axes.loglog(at, costs, "o-", markersize=4, linewidth=1.3, label=f"{line}{slope}")
        first = next(iter(lines.values()))
        axes.set_title(panel, fontsize=10)
        axes.set_ylabel(f"{first['measure']} for each {first['unit']}", fontsize=8)
        axes.set_xlabel(panel.rsplit(" ", 1)[-1], fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7.5, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eaeef2")
    figure.savefig(path, dpi=130)


def write(folder: Path, rows: Sequence[Row], about: dict[str, str], notes: Sequence[str]) -> None:
    """Writes results.json, table.md, figure.png and scaling.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = json.loads((folder / DEMO).read_text()) if (folder / DEMO).is_file() else None
    data = {"about": about, "rows": [asdict(row) for row in rows], "series": slopes(rows), "notes": list(notes)}
    (folder / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    pictures = "\n\n![ratio of each row](figure.png)\n"
    if slopes(rows):
        pictures += "\n![how costs grow](scaling.png)\n"
    head, rest = markdown(rows, about, notes, demo).split("\n\n## ", 1)
    (folder / "table.md").write_text(f"{head}{pictures}\n## {rest}")
    ratios_figure(rows, folder / "figure.png")
    scaling_figure(rows, folder / "scaling.png")
