"""The benchmark suite: `make bench`, or `python -m benchmarks`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import categorical, likelihood, matrices, networks, page, processes, samplers, scaling, timing, training
from .machine import ROOT, described
from .timing import Row, Workload

MODULES = (samplers, categorical, matrices, likelihood, networks, training, processes, scaling)
OUT = ROOT / "docs/results/speed"


@dataclass(frozen=True)
class Settings:
    """Measures what the package costs beside the bare work and beside other libraries, in interleaved rounds.

    A row compares a work of the package with references: the bare arithmetic of a sampling step, a cross-entropy of the
    same logits, a bare training loop, other libraries where they are installed (pip install diffusers k-diffusion
    azula). It asserts that both compute the same, then they take turns in one process on one thread; the ratio is the
    median over the rounds, with its quartiles. Rows of memory and of whole processes are measured in fresh processes. A
    whole run takes less than ten minutes on two cores that do nothing else, and writes docs/results/speed: table.md,
    results.json, figure.png and scaling.png.

    Examples:
        python -m benchmarks --list
        python -m benchmarks --only DDIM --only "MDLM, K = 27"
        python -m benchmarks --only scaling --out /tmp/scaling
    """

    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Measure the rows whose name contains this text, such as DDIM, or whose group it is: samplers, categorical,
    matrices, likelihood, networks, training, processes, scaling. May be given several times."""
    full: bool = False
    """Take more rounds and further rows: about an hour."""
    smoke: bool = False
    """Run every row once at the smallest size, in seconds; its figures mean nothing."""
    list: bool = False
    """Print the names of the rows and measure nothing."""
    out: Path | None = None
    """The folder to write; docs/results/speed for a whole run, nothing for --only and --smoke."""


def rows_of(settings: Settings) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads that are asked for, by name; nothing is built before it is called."""
    found, everything = dict[str, Callable[[], Workload]](), settings.full or settings.smoke or settings.list
    for module in MODULES:
        group, known = module.__name__.rsplit(".", 1)[-1], module.workloads(settings.smoke)
        if (everything or settings.only) and hasattr(module, "further"):
            known |= module.further(settings.smoke)
        found |= {name: make for name, make in known.items() if asked_for(settings.only, name, group)}
    return found


def asked_for(only: Sequence[str], name: str, group: str) -> bool:
    """Returns whether a row is measured: if its name contains a text of `only`, if its group is one, or if all are."""
    return not only or any(text.lower() in name.lower() or text.lower() == group for text in only)


def line(row: Row) -> str:
    """Returns what is printed when a row is measured."""
    judged = "" if row.met is None else "met" if row.met else "MISSED"
    limit = f"  target {page.target(row)}" if row.met is not None else ""
    ours = page.cost(row.cost[timing.OURS], row.measure)
    return f"{row.ratio:8.2f} x  [{row.low:.2f}, {row.high:.2f}]  {ours}{limit}  {judged}"


def run(settings: Settings, effort: timing.Effort) -> tuple[list[Row], list[str], bool]:
    """Measures the rows one after the other and prints a line for each; Ctrl-C ends it with what is measured.

    Returns:
        The rows, notes of what was left out, and whether every row that ran computes what its reference does.
    """
    found, notes, good = list[Row](), list[str](), True
    names = rows_of(settings)
    if not names:
        sys.exit(f"no row contains {' or '.join(settings.only)}: see --list")
    for number, (name, make) in enumerate(names.items(), 1):
        print(f"[{number:3}/{len(names)}] {name:62}", end="", flush=True)
        try:
            row = timing.measured(make(), effort)
        except ImportError as missing:
            notes.append(f"{name} is left out: {missing}")
            print(f"  left out: {missing}", flush=True)
            continue
        except KeyboardInterrupt:
            notes.append(f"**stopped at row {number} of {len(names)}, {name}**")
            print("  stopped", flush=True)
            break
        except AssertionError as different:
            notes.append(f"**{name} is not measured: {different}**")
            good = False
            print(f"  NOT EQUAL: {different}", flush=True)
            continue
        found.append(row)
        print(line(row), flush=True)
    return found, notes, good


def main(settings: Settings) -> int:
    """Runs the command, and returns its exit status: 1 where a row does not compute what its reference does."""
    if settings.list:
        print("\n".join(rows_of(settings)))
        return 0
    effort = timing.SMOKE if settings.smoke else timing.FULL if settings.full else timing.QUICK
    begin, about = time.monotonic(), described()
    with timing.threads():
        rows, notes, good = run(settings, effort)
    about["duration"] = f"{(time.monotonic() - begin) / 60:.1f} minutes"
    whole = not settings.only and not settings.smoke
    folder = settings.out or (OUT if whole else None)
    if folder is not None:
        page.write(folder, rows, about, notes)
        print(f"written to {folder}")
    elif settings.smoke:  # the page is drawn too, and thrown away
        with tempfile.TemporaryDirectory() as thrown:
            page.write(Path(thrown), rows, about, notes)
    judged = [row for row in rows if row.met is not None]
    print(f"{sum(bool(row.met) for row in judged)} of {len(judged)} targets are met; {about['duration']}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=Settings.__doc__)))
