"""Tables of measured numbers of several runs, in which no column mixes two protocols."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from warnings import warn

from ..shared.errors import Notice, UsageError, shown
from ..shared.metrics.measurement import Evaluation, Measurement, Origin, Protocol
from ..shared.training.folder import read_object
from . import report

REMEDIES = {
    "features": "the same --features",
    "features_hash": "the same --features, whose weights have to be the same too",
    "resize": "the same --features, which resize alike",
    "reference": "the same --data or --statistics",
    "reference_hash": "the same --data or --statistics, whose content has to be the same too",
    "samples": "the same number of samples or examples",
    "settings": "the same settings",
}
"""What to evaluate with where protocols differ in a field."""
ORIGIN = ("sampler", "steps", "evaluations", "weights", "seed")
"""The fields of an origin that have a column."""
AGAIN = "evaluate again with `unnoise evaluate {}`"


@dataclass(frozen=True)
class Subject:
    """What is compared: a run or a set of samples, with its evaluations.

    Attributes:
        name: its name in the table.
        evaluations: its evaluations by the names of their files, the newest first.
    """

    name: str
    evaluations: dict[str, Evaluation]

    @property
    def is_samples(self) -> bool:
        """Whether it is a folder or file of samples, of which no more can be drawn."""
        return any(isinstance(evaluation.about.get("samples"), str) for evaluation in self.evaluations.values())

    def found(self, measure: str) -> list[Measurement]:
        """Returns the measurements of a name, the newest first."""
        return [m for evaluation in self.evaluations.values() for m in evaluation.measurements if m.name == measure]


def subject_of(argument: str) -> Subject:
    """Returns the evaluations of a run's folder, a folder or file of samples, or a run of an ablation.

    Raises:
        UsageError: where nothing was evaluated yet, or by an earlier version; the message has the command to run.
    """
    path = Path(argument)
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        path = path.parent.parent
    if not path.exists():
        raise UsageError(f"there is no {argument}: give the folder of a run, a folder of samples or an .npz file")
    if (path / "ablation.json").exists():
        raise UsageError(
            f"{argument} is an ablation: give runs of it, files of {path / 'runs'}, or read {path / 'report.md'}"
        )
    files, again = files_of(path), AGAIN.format(argument)
    if not files:
        raise UsageError(f"{argument} has not been evaluated: run `unnoise evaluate {argument}`")
    evaluations = {file.name: evaluation_in(file, again) for file in files}
    known = {name: evaluation for name, evaluation in evaluations.items() if evaluation.measurements}
    if not known:
        raise UsageError(
            f"{files[0]} is of an earlier version, which did not write how its numbers were measured: {again}"
        )
    return Subject(argument.rstrip("/"), known)


def files_of(path: Path) -> list[Path]:
    """Returns the files of evaluations of a path, the newest first.

    `evaluation.json` is the newest, and earlier ones are kept as `evaluation-1.json`, `evaluation-2.json`, ...
    """
    if path.suffix == ".json":
        return [path]
    folder, before = (path, "") if path.is_dir() else (path.parent, f"{path.name}.")
    pattern = re.compile(rf"{re.escape(before)}evaluation(?:-(\d+))?\.json")
    found = [(math.inf if m[1] is None else int(m[1]), f) for f in folder.iterdir() if (m := pattern.fullmatch(f.name))]
    return [file for _, file in sorted(found, reverse=True)]


def evaluation_in(file: Path, again: str) -> Evaluation:
    """Returns the evaluation in a file, also in that of a run of an ablation.

    Raises:
        UsageError: for a file that cannot be read, and for a run that failed.
    """
    data = read_object(file, again)
    if "failure" in data:
        raise UsageError(f"the run of {file} failed ({shown(data['failure'])}): leave it out")
    try:
        return Evaluation.from_json(data.get("evaluation", data))
    except (UsageError, AttributeError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error}): {again}") from error


@dataclass(frozen=True)
class Column:
    """A measure by one protocol, of each subject that has it.

    Attributes:
        title: the head of the column.
        protocol: how the numbers were measured.
        cells: the measurements, None for a subject without one.
        best: the index of the subject whose number is the best by more than the errors, or None.
    """

    title: str
    protocol: Protocol
    cells: list[Measurement | None]
    best: int | None

    @property
    def known(self) -> list[Measurement]:
        """The measurements, without gaps."""
        return [cell for cell in self.cells if cell is not None]

    def text(self, row: int) -> str:
        """Returns a cell as text, with its standard error, and a star for the best."""
        cell = self.cells[row]
        return "-" if cell is None else number(cell) + " *" * (row == self.best)

    def held_out(self) -> str:
        """Returns the number of real held-out data as text; an empty text where it is not known."""
        values = [cell.held_out for cell in self.known if cell.held_out is not None]
        low, high = (f"{f(values):.4g}" for f in (min, max)) if values else ("", "")
        return low if low == high else f"{low} to {high}"


def number(cell: Measurement) -> str:
    """Returns a number with its standard error, to two digits of which it is written; five digits without one."""
    if not math.isfinite(cell.value):
        return "not finite"
    if not (error := known_error(cell)):
        return f"{cell.value:.5g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{cell.value:.{places}f} ± {error:.{places}f}"


def known_error(cell: Measurement) -> float:
    """Returns the standard error of a measurement, 0 where none is known."""
    return cell.error if cell.error is not None and math.isfinite(cell.error) else 0.0


@dataclass(frozen=True)
class Comparison:
    """A table: a row for each subject, a column for each measure."""

    subjects: list[Subject]
    columns: list[Column]

    def origin(self, row: int, name: str) -> str:
        """Returns a field of the origin of a row's numbers as text; differing values stand beside each other."""
        values = [getattr(cell.origin, name) for column in self.columns if (cell := column.cells[row]) is not None]
        known = [str(v) for v in values if v not in ("", None) and (v or name == "seed")]
        return " / ".join(dict.fromkeys(known))

    def head(self) -> list[str]:
        """Returns the heads of the columns."""
        return ["run", *ORIGIN, *(column.title for column in self.columns)]

    def rows(self) -> list[list[str]]:
        """Returns the cells of the table as text; the last row has the numbers of real held-out data."""
        found = [
            [subject.name, *(self.origin(row, name) for name in ORIGIN), *(c.text(row) for c in self.columns)]
            for row, subject in enumerate(self.subjects)
        ]
        held_out = [column.held_out() for column in self.columns]
        return [*found, ["real held-out data", *[""] * len(ORIGIN), *held_out]] if any(held_out) else found

    def notes(self) -> list[str]:
        """Returns what has to be read with the table: errors, the star, and the protocol of each column."""
        lines = []
        if any(known_error(cell) for column in self.columns for cell in column.known):
            lines.append(
                "± is the standard error of each number alone. The difference of two numbers of the same held-out "
                "examples usually has a smaller error, but paired differences are not known: only means are kept."
            )
        if any(column.best is not None for column in self.columns):
            lines.append(
                "* is better than every other number of its column by more than twice the standard error of the "
                "difference, the root of the sum of both squared errors; all numbers of a column need an error for it."
            )
        elif len(self.subjects) > 1:
            lines.append(
                "No number is marked as the best: its differences from all others have to exceed twice their standard "
                "error, and all numbers of the column need an error for it."
            )
        alike: dict[str, list[str]] = {}
        for column in self.columns:
            better = next((cell.better for cell in column.known if cell.better), "")
            word = {"closer": "; closer to real data is better"}.get(better, f"; {better} is better" * bool(better))
            remarks = "".join(f"; {remark}" for remark in self.remarks(column))
            how = f"{column.protocol.short() or 'no protocol'}{word}{remarks}"
            alike.setdefault(how, []).append(column.title)
        return [*lines, *(f"{', '.join(titles)}: {how}" for how, titles in alike.items())]

    def remarks(self, column: Column) -> list[str]:
        """Returns the remarks on the numbers of a column, with the names of those that it is true of, if not of all."""
        of: dict[str, list[str]] = {}
        for subject, cell in zip(self.subjects, column.cells, strict=True):
            for remark in cell.note.split("; ") if cell is not None and cell.note else ():
                of.setdefault(remark, []).append(subject.name)
        return [r if len(names) == len(column.known) else f"{', '.join(names)}: {r}" for r, names in of.items()]

    def as_text(self, width: int = 100) -> str:
        """Returns the table as aligned text; columns that do not fit are continued in a further table."""
        cells = [self.head(), *self.rows()]
        widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
        used = [n for n, size in enumerate(widths) if n == 0 or any(row[n] for row in cells[1:])]
        blocks, room = [[0]], width - widths[0]
        for n in used[1:]:
            if widths[n] + 2 > room and len(blocks[-1]) > 1:
                blocks.append([0])
                room = width - widths[0]
            blocks[-1].append(n)
            room -= widths[n] + 2
        tables = [
            "\n".join("  ".join(row[n].ljust(widths[n]) for n in block).rstrip() for row in cells) for block in blocks
        ]
        notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in self.notes()]
        return "\n\n".join([*tables, "\n".join(notes)])

    def as_markdown(self) -> str:
        """Returns the table as a Markdown page."""
        rows = [[report.cell(text) for text in row] for row in self.rows()]
        notes = "\n".join(f"- {report.cell(line)}" for line in self.notes())
        return f"# Comparison\n\n{report.table([report.cell(t) for t in self.head()], rows)}\n\n{notes}\n"

    def as_html(self) -> str:
        """Returns the table as an HTML page that needs no other file."""
        return report.page(self.as_markdown(), "Comparison", {})

    def as_csv(self) -> str:
        """Returns the numbers in full precision as CSV, a line for each number, with its origin and protocol."""
        keys = ["value", "error", "unit", "better", "held_out", "note"]
        origin, protocol = [f.name for f in fields(Origin)], [f.name for f in fields(Protocol)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "measure", *keys, *origin, *(f"protocol_{name}" for name in protocol)])
        for column in self.columns:
            for subject, cell in zip(self.subjects, column.cells, strict=True):
                if cell is not None:
                    own = [getattr(cell, key) for key in keys]
                    own += [getattr(cell.origin, name) for name in origin]
                    own += [getattr(column.protocol, name) for name in protocol]
                    writer.writerow(["" if value is None else value for value in [subject.name, cell.name, *own]])
        return out.getvalue()


def compare(arguments: Sequence[str], measures: Sequence[str] = (), *, apart: bool = False) -> Comparison:
    """Returns the comparison of runs and sets of samples.

    Args:
        arguments: folders of runs, folders or files of samples, or files of evaluations.
        measures: the measures to compare; all that were measured where it is empty.
        apart: whether different protocols of a measure have a column each, instead of being refused.

    Raises:
        UsageError: for different protocols of one measure; the message has the fields and values that differ. For an
            argument that is given twice or was not evaluated, and for a measure that none has.
    """
    subjects = [subject_of(argument) for argument in arguments]
    names = [subject.name for subject in subjects]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{again} is given twice: give it once")
    every = list(dict.fromkeys(m.name for s in subjects for e in s.evaluations.values() for m in e.measurements))
    for measure in measures:
        if measure not in every:
            raise UsageError(
                f"{measure} was measured of none of {', '.join(names)}: choose from {', '.join(every)}, or measure it "
                "with `unnoise evaluate`"
            )
    columns = [c for measure in dict.fromkeys(measures or every) for c in columns_of(measure, subjects, apart)]
    return Comparison(subjects, columns)


def columns_of(measure: str, subjects: list[Subject], apart: bool) -> list[Column]:
    """Returns the column of a measure, or with `apart` one for each protocol of the newest measurements."""
    found = [subject.found(measure) for subject in subjects]
    newest = list(dict.fromkeys(every[0].protocol for every in found if every))
    common = [
        m.protocol
        for m in next(every for every in found if every)
        if all(any(o.protocol == m.protocol for o in every) for every in found if every)
    ]
    if not apart and not common:
        raise UsageError(refusal(measure, subjects, found))
    protocols = newest if apart and len(newest) > 1 else (common or newest)[:1]
    columns = []
    for n, protocol in enumerate(protocols):
        cells = [next((m for m in every if m.protocol == protocol), None) for every in found]
        title = f"{measure}{f' ({chr(97 + n)})' * (len(protocols) > 1)}"
        columns.append(Column(title, protocol, cells, best_of(cells)))
        for subject, every, cell in zip(subjects, found, cells, strict=True):
            if cell is not None and cell.protocol != every[0].protocol:
                warn(
                    Notice(
                        f"{measure} of {subject.name} is that of an earlier evaluation, {file_of(subject, cell)}, "
                        "whose protocol is that of the column"
                    ),
                    stacklevel=2,
                )
    return columns


def file_of(subject: Subject, measurement: Measurement) -> str:
    """Returns the name of the file of a measurement."""
    return next(name for name, evaluation in subject.evaluations.items() if measurement in evaluation.measurements)


def refusal(measure: str, subjects: list[Subject], found: list[list[Measurement]]) -> str:
    """Returns the message for a measure whose protocols differ, with the fields, the values and what to do."""
    known = [(s, every[0]) for s, every in zip(subjects, found, strict=True) if every]
    (first, a), (second, b) = next(
        (x, y) for n, x in enumerate(known) for y in known[n + 1 :] if x[1].protocol != y[1].protocol
    )
    differing = [n for n in REMEDIES if getattr(a.protocol, n) != getattr(b.protocol, n)]
    remedy = " and ".join(dict.fromkeys(REMEDIES[name] for name in differing))
    option, again, other = "--count" if a.protocol.coded else "--samples", second, a
    if second.is_samples and not first.is_samples:  # of a run other samples can be drawn
        again, other = first, b
    command = f"`unnoise evaluate {again.name}" + f" {option} {other.protocol.samples}" * ("samples" in differing) + "`"
    if "samples" in differing and again.is_samples:
        command = f"`unnoise sample RUN --count {other.protocol.samples}` and `unnoise evaluate` of these samples"
    return (
        f"{measure} of {first.name} and {second.name} was measured in different ways and cannot stand in one column: "
        f"{'; '.join(a.protocol.differences(b.protocol))}: evaluate again with {remedy}, such as "
        f"{command}, or give --apart for a column for each way"
    )


def best_of(cells: Sequence[Measurement | None]) -> int | None:
    """Returns the index of the number that is better than every other by more than twice the error of the difference.

    The standard error of a difference is `sqrt(e_a^2 + e_b^2)`. None where a number has no error, where no number is
    that much better, or where it is not known which values are better.
    """
    known = [(n, cell) for n, cell in enumerate(cells) if cell is not None]
    if len(known) < 2 or not all(known_error(cell) and cell.better for _, cell in known):
        return None
    costs = {n: cost(cell) for n, cell in known}
    best = min(costs, key=costs.__getitem__)
    for n, cell in known:
        error = math.hypot(known_error(cell), known_error(dict(known)[best]))
        if n != best and not costs[n] - costs[best] > 2 * error:
            return None
    return best


def cost(cell: Measurement) -> float:
    """Returns a number that is lower for better values; NaN where it is not known which are better."""
    if cell.better == "closer":
        return math.nan if cell.held_out is None else abs(cell.value - cell.held_out)
    return {"lower": cell.value, "higher": -cell.value}.get(cell.better, math.nan)
