"""The report of an ablation: report.md, report.html, results.csv and figures."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...shared.training.folder import write_text
from .. import report as pages
from .comparisons import LEVEL, Cell, Effect, cells, direction, effects
from .figures import Picture, save_curves, save_effects
from .results import Results
from .statistics import BOOTSTRAP, Comparison

SIGNS = {"better": "✓", "worse": "✗", "different": "≠", "equal": "=", "inconclusive": "?"}
"""The sign of a verdict, which stands beside its word."""
DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "closer": "closer to real held-out data is better; differences are those of the distances to it",
    "": "neither direction is better",
}


NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
"""A number in a remark."""


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    markdown: Path
    page: Path
    table: Path
    figures: list[Path]


def write(results: Results, folder: Path) -> Written:
    """Writes the report of an ablation into a folder, also of one of which runs are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    table = write_text(folder / "results.csv", as_csv(results))
    own = {measure: cells(results, measure) for measure in results.measures}
    pictures = {}
    main = results.measures[0] if own else ""
    if any(cell.summary.count for cell in own.get(main, [])):
        verdicts = [short(results, cell) for cell in own[main]]
        pictures["effects"] = save_effects(folder / "effects.png", results, main, own[main], verdicts)
    if (drawn := save_curves(folder / "curves.png", results)) is not None:
        pictures["curves"] = drawn
    text = markdown(results, own, pictures)
    svgs = {picture.path.name: picture.svg for picture in pictures.values()}
    source, page = pages.write(folder, "report", text, results.title, svgs)
    return Written(source, page, table, [picture.path for picture in pictures.values()])


def markdown(results: Results, own: dict[str, list[Cell]], pictures: dict[str, Picture]) -> str:
    """Returns the report as Markdown."""
    parts = [f"# {pages.cell(results.title)}", status(results), results.text]
    found = {measure: effects(results, measure) for measure in own}
    if any(found.values()):
        parts += [
            "## Main effects",
            "Each level against the first of its factor, averaged over the combinations of the other factors.",
        ]
        for measure, rows in found.items():
            parts += [f"### Effects on {pages.cell(measure)}", unit_line(results, measure)]
            parts += [effects_table(rows)] * is_measured(results, measure)
    parts.append("## Cells")
    parts += [image(pictures["effects"])] if "effects" in pictures else []
    for measure, rows in own.items():
        parts += [f"### {pages.cell(measure)}", unit_line(results, measure)]
        parts += [cells_table(results, rows)] * is_measured(results, measure)
    if lines := failures(results):
        parts += [
            "## Failures and numbers that are missing",
            pages.table([*map(pages.cell, results.factors), "seed", "failure"], lines),
        ]
    if "curves" in pictures:
        parts += ["## Training", image(pictures["curves"])]
    parts += ["## All runs", all_runs(results), "## How the numbers were measured", protocols(results)]
    parts += ["## How the intervals are computed", intervals(results, own)]
    return "\n\n".join(part for part in parts if part) + "\n"


def status(results: Results) -> str:
    """Returns how many runs there are, failed and are missing; this line is the first of the report."""
    failed = sum(bool(run.failure) for run in results.runs)
    done = sum(run.evaluation is not None for run in results.runs)
    total = done + failed + results.missing
    count = len({tuple(run.levels.items()) for run in results.runs})
    seeds = ", ".join(map(str, results.seeds)) or "none"
    verb = "is" if results.missing == 1 else "are"
    partial = f"**Partial: {results.missing} of {plural(total, 'run')} {verb} missing.** " * bool(results.missing)
    return (
        f"{partial}{plural(count, 'cell')}, {plural(len(results.seeds), 'seed')} ({seeds}): {done} of "
        f"{plural(total, 'run')} finished, {failed} failed, {results.missing} missing."
    )


def plural(count: int, noun: str) -> str:
    """Returns a number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def image(picture: Picture) -> str:
    """Returns the link to a picture."""
    return f"![{pages.cell(picture.text)}]({picture.path.name})"


def unit_line(results: Results, measure: str) -> str:
    """Returns the unit of a measure and which numbers are better."""
    if not is_measured(results, measure):
        return "Not measured yet." if results.missing else "No run has this number."
    unit = next((m.unit for run in results.runs if (m := run.measurement(measure)) is not None and m.unit), "")
    line = f"{f'in {unit}; ' * bool(unit)}{DIRECTIONS[direction(results, measure)]}."
    return line[0].upper() + line[1:]


def is_measured(results: Results, measure: str) -> bool:
    """Returns whether a run has the number of a measure."""
    return any(run.value(measure) is not None for run in results.runs)


def decimals(deviations: Sequence[float], values: Sequence[float]) -> int:
    """Returns the number of decimals that shows two digits of the median deviation, or four of the values."""
    known = sorted(d for d in deviations if d > 0 and math.isfinite(d))
    if known:
        return min(max(1 - math.floor(math.log10(known[len(known) // 2])), 0), 8)
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 8) if largest > 0 else 2


def difference_cells(comparison: Comparison, digits: int) -> list[str]:
    """Returns the verdict, the difference with its sign, and its interval."""
    interval = f"{comparison.low:+.{digits}f} to {comparison.high:+.{digits}f}" * (comparison.pairs > 1)
    return [f"{SIGNS[comparison.word]} {comparison.verdict}", f"{comparison.difference:+.{digits}f}", interval]


def effects_table(rows: list[Effect]) -> str:
    """Returns the table of the main effects."""
    digits = decimals([e.comparison.deviation for e in rows], [e.comparison.difference for e in rows])
    lines = []
    for effect in rows:
        found = ["– no runs to compare", "", ""]
        if effect.comparison.pairs:
            found = difference_cells(effect.comparison, digits)
        used = [effect.baseline, f"{effect.used} of {effect.combinations}", str(effect.comparison.pairs)]
        lines.append([*map(pages.cell, [effect.factor, effect.level]), *found, *map(pages.cell, used)])
    level = next((percent(e.comparison.level) for e in rows), "")
    head = ["factor", "level", "verdict", "difference", f"{level} interval", "against", "combinations", "seeds"]
    return pages.table(head, lines)


def percent(level: float) -> str:
    """Returns a level in percent, such as `95 %` or `99.78 %`."""
    return f"{100 * level:.4g} %"


def short(results: Results, cell: Cell) -> str:
    """Returns the verdict of a cell in a few letters, for the figure."""
    if cell.levels == results.baseline and not cell.remark:
        return "baseline"
    if cell.comparison is None:
        return f"– {cell.remark.split(':')[0]}"
    return f"{SIGNS[cell.comparison.word]} {cell.comparison.word}"


def cells_table(results: Results, rows: list[Cell]) -> str:
    """Returns the table of the cells for one measure."""
    digits = decimals([c.summary.deviation for c in rows], [c.summary.mean for c in rows])
    lines = []
    for cell in rows:
        s = cell.summary
        mean = f"{s.mean:.{digits}f}" + f" ± {s.deviation:.{digits}f}" * (s.count > 1) if s.count else ""
        interval = f"{s.low:.{digits}f} to {s.high:.{digits}f}" * (s.count > 1)
        found = [f"– {cell.remark}" if cell.remark else "baseline", "", ""]
        if cell.comparison is not None:
            found = difference_cells(cell.comparison, digits)
        elif cell.levels == results.baseline and not s.count:
            found[0] = "baseline, without numbers"
        if failed := sum(bool(run.failure) for run in cell.runs):
            found[0] += f" ({failed} failed)" * (cell.remark != "failed")
        lines.append([*map(pages.cell, cell.levels.values()), mean, *map(pages.cell, found), interval, str(s.count)])
    level = next((percent(c.comparison.level) for c in rows if c.comparison is not None), "corrected")
    head = [*map(pages.cell, results.factors), "mean ± deviation", "verdict", "difference", f"{level} interval"]
    return pages.table([*head, "95 % interval of the mean", "seeds"], lines)


def failures(results: Results) -> list[list[str]]:
    """Returns a row for each run that failed, or has a number that is not finite."""
    lines = []
    for run in results.runs:
        reasons = [run.failure] if run.failure else []
        for measure in results.measures if run.evaluation is not None else ():
            if measure not in (run.evaluation or {}):
                reasons += [f"{measure} was not measured"] * is_measured(results, measure)
            elif run.value(measure) is None:
                reasons.append(f"{measure} is not a finite number: left out")
        if reasons:
            lines.append([*(pages.cell(run.levels.get(f, "")) for f in results.factors), str(run.seed)])
            lines[-1].append(pages.cell("; ".join(reasons)))
    return lines


def all_runs(results: Results) -> str:
    """Returns the numbers of each run, folded."""
    head = [*results.factors, "seed", *results.measures, "seconds", "failure"]
    lines = []
    for run in results.runs:
        values = [run.value(measure) for measure in results.measures]
        shown = ["" if value is None else f"{value:.6g}" for value in values]
        missing = "missing" * (run.evaluation is None)
        levels = [run.levels.get(factor, "") for factor in results.factors]
        row = [*levels, str(run.seed), *shown, f"{run.seconds:.0f}" * bool(run.seconds), run.failure or missing]
        lines.append([pages.cell(text) for text in row])
    rows = pages.table([pages.cell(name) for name in head], lines)
    return f"<details>\n<summary>The numbers of {plural(len(lines), 'run')}</summary>\n\n{rows}\n\n</details>"


def protocols(results: Results) -> str:
    """Returns how each measure was measured, and what all samples have in common."""
    lines = []
    for measure in results.measures:
        found = [m for run in results.runs if (m := run.measurement(measure)) is not None]
        several = list(dict.fromkeys(m.protocol.short() for m in found))
        real = sorted({m.held_out for m in found if m.held_out is not None})
        line = f"- {pages.cell(measure)}: {pages.cell(several[0]) or 'no protocol' if several else 'not measured'}"
        if len(several) > 1:
            line += f"; and {plural(len(several) - 1, 'other protocol')}, which results.csv lists"
        if real:
            span = f"{real[0]:.4g}" if real[0] == real[-1] else f"{real[0]:.4g} to {real[-1]:.4g}"
            line += f"; real held-out data: {span}"
        lines.append("; ".join([line, *map(pages.cell, remarks(results, measure))]))
    origins = [m.origin for run in results.runs if run.evaluation is not None for m in run.evaluation.measurements]
    if origins:
        names = ["sampler", "steps", "evaluations", "weights", "precision", "version"]
        common = [n for n in names if len({getattr(o, n) for o in origins}) == 1 and getattr(origins[0], n)]
        pairs = ", ".join(f"{name} {getattr(origins[0], name)}" for name in common)
        lines += [f"- the same in all runs: {pages.cell(pairs)}"] * bool(pairs)
    return "\n".join(lines)


def remarks(results: Results, measure: str) -> list[str]:
    """Returns the remarks on the numbers of a measure, one for those that differ in numbers alone.

    Those that are not true of all cells name theirs.
    """
    found: dict[str, dict[str, list[list[str]]]] = {}
    every = set()
    for run in results.runs:
        if (m := run.measurement(measure)) is None:
            continue
        every.add(name := ", ".join(run.levels.values()))
        for remark in m.note.split("; ") if m.note else ():
            in_cells = found.setdefault(NUMBER.sub("{}", remark.replace("{", "(").replace("}", ")")), {})
            in_cells.setdefault(name, []).append(NUMBER.findall(remark))
    lines = []
    for pattern, in_cells in found.items():
        numbers = zip(*(row for rows in in_cells.values() for row in rows), strict=True)
        names = list(in_cells)
        more = f" and {plural(len(names) - 3, 'other cell')}" * (len(names) > 3)
        where = f" ({'; '.join(names[:3])}{more})" * (len(names) < len(every))
        lines.append(pattern.format(*map(span, numbers)) + where)
    return lines


def span(numbers: Sequence[str]) -> str:
    """Returns a number, or the least and the largest of several, such as `1.67 to 2.8`."""
    ends = [end(numbers, key=lambda n: float(n.replace(",", ""))) for end in (min, max)]
    return " to ".join(dict.fromkeys(ends))


def intervals(results: Results, own: dict[str, list[Cell]]) -> str:
    """Returns how the intervals and verdicts are computed."""
    found = [c.comparison for rows in own.values() for c in rows if c.comparison is not None]
    count = max((len(rows) - 1 for rows in own.values()), default=0)
    of_effects = sum(len(levels) - 1 for levels in results.factors.values()) if len(results.factors) > 1 else 0
    counted = f"{count} of cells" + f", {of_effects} of main effects" * bool(of_effects)
    kinds = []
    if any(c.pairs >= BOOTSTRAP for c in found):
        kinds.append(f"studentized bootstrap intervals with {BOOTSTRAP} pairs or more")
    if any(c.pairs < BOOTSTRAP and c.degrees for c in found):
        kinds.append(
            "Student's with variances moderated across the cells (Smyth 2004; at most 3 prior degrees of freedom)"
        )
    if any(1 < c.pairs < BOOTSTRAP and not c.degrees for c in found):
        kinds.append("Student's")
    kind = f" They are {', or '.join(kinds)}." * bool(kinds)
    plain = " Intervals of main effects are not moderated." * bool(of_effects)
    return (
        "The interval of a mean is Student's at 95 %, and treats seeds as independent. Differences are paired by seed, "
        f"and their intervals are corrected for the number of comparisons (Bonferroni; {counted}), so that all "
        f"intervals of one table together contain their differences at {percent(LEVEL)}.{kind}{plain} Each measure has "
        "a correction of its own: a reader who picks one of several measures has to correct for that, too. The number "
        "of seeds that would tell is the number at which a difference of the observed size is found with probability "
        "0.8."
    )


def as_csv(results: Results) -> str:
    """Returns a row for each run: levels, seed, every number with its error, failure, seconds and protocols."""
    numbers: dict[str, None] = dict.fromkeys(results.measures)
    for run in results.runs:
        for name, value in (run.evaluation or {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name)
    measured = {m.name for run in results.runs if run.evaluation is not None for m in run.evaluation.measurements}
    errors = [name for name in numbers if any((m := r.measurement(name)) and m.error is not None for r in results.runs)]
    own = [name for name in numbers if name in measured]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [*(f"{name} error" for name in errors), "seconds", "failure", *(f"{name} protocol" for name in own)]
    writer.writerow([*results.factors, "seed", *numbers, *heads])
    for run in results.runs:
        found = {name: run.measurement(name) for name in numbers}
        row: list[object] = [run.levels.get(factor, "") for factor in results.factors]
        row += [run.seed, *((run.evaluation or {}).get(name, "") for name in numbers)]
        row += ["" if (m := found[name]) is None or m.error is None else m.error for name in errors]
        row += [run.seconds, run.failure or "missing" * (run.evaluation is None)]
        row += ["" if (m := found[name]) is None else m.protocol.short() for name in own]
        writer.writerow(row)
    return out.getvalue()
