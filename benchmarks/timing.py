"""How everything in the suite is timed: a `Workload` holds what is compared, and `measure` returns its `Row`.

Contenders take turns in one process on one thread, A B C, B C A, ... A turn repeats its work until it lasts long
enough to be timed. The ratio of two contenders is that of their turns in one round, so that other load on the machine
affects both alike; a row has the median of the ratios over the rounds and their quartiles. Before anything is timed,
the workload asserts that what it compares computes the same.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch

Work = Callable[[], object]
Clock = Callable[[Work], float]
"""Runs a work once and returns the seconds that it took."""


def processor_seconds(work: Work) -> float:
    """Returns the processor time of this process for a work; on one thread it does not count what waits."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Work) -> float:
    """Returns the time that passes, for more than one thread and for devices that the work waits for."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def children_seconds(work: Work) -> float:
    """Returns the processor time of the processes that a work starts and waits for."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    start = spent()
    work()
    return spent() - start


def returned(work: Work) -> float:
    """Returns what the work returns, for a work that measures itself: seconds, or bytes of memory."""
    found = work()
    assert isinstance(found, float), f"a work that measures itself returns a float, not {found!r}"
    return found


@dataclass(frozen=True)
class Contender:
    """A work and the number of units that one call of it does, such as the steps of a sampler's run."""

    work: Work
    units: float = 1.0


@dataclass(frozen=True)
class Workload:
    """What one row compares.

    Attributes:
        name: name of the row, such as "DDIM".
        group: name of its part of the table, such as "sampling steps".
        unit: what the cost is counted in, such as "step".
        ours: the work of this package.
        base: name of the reference that the ratio is taken to, one of `references`.
        references: the work of the base and of other libraries, by name.
        equal: compares what ours and the references compute, raises AssertionError if they differ, and returns in a few
            words what has been compared.
        target: largest ratio to the base, or None.
        target_ms: largest number of milliseconds for each unit, on the machine for which it was stated, or None.
        clock: how a turn is measured.
        measure: "ms" where the clock returns seconds, "MB" where it returns bytes.
        rounds: most rounds, for what takes long or is measured in fresh processes; None for those of the effort.
        series, at: the line of a scaling figure that this is a point of, "LINE: PANEL", and its position, such as the
            batch size.
        note: what else a reader must know.
    """

    name: str
    group: str
    unit: str
    ours: Contender
    base: str
    references: Mapping[str, Contender]
    equal: Callable[[], str]
    target: float | None = None
    target_ms: float | None = None
    clock: Clock = processor_seconds
    measure: Literal["ms", "MB"] = "ms"
    rounds: int | None = None
    series: str | None = None
    at: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Effort:
    """How much time a row takes.

    Attributes:
        turn: least seconds of a turn.
        seconds: seconds after which no further round begins.
        least, most: least and most rounds.
    """

    turn: float = 0.02
    seconds: float = 2.5
    least: int = 5
    most: int = 31


QUICK = Effort()
SMOKE = Effort(turn=0.0, seconds=0.0, least=1, most=1)
FULL = Effort(turn=0.1, seconds=30.0, least=11, most=101)


@dataclass(frozen=True)
class Row:
    """What was measured. A cost is that of one unit, in milliseconds or megabytes, as `measure` has it.

    Attributes:
        ratio, low, high: the median of ours over the base, and its quartiles.
        met: whether the ratio is within the target; without a target for the ratio, the milliseconds; or None.
        cost: median cost of ours and of every reference, by name.
        over: median ratio of ours to every reference, by name.
        equal: what was compared before the measurement.
    """

    name: str
    group: str
    unit: str
    base: str
    ratio: float
    low: float
    high: float
    target: float | None
    target_ms: float | None
    met: bool | None
    measure: str
    cost: dict[str, float]
    over: dict[str, float]
    equal: str
    rounds: int
    series: str | None = None
    at: float | None = None
    note: str = ""


OURS, SCALING = "ours", "scaling"


def turns(works: Mapping[str, Work], clock: Clock, effort: Effort) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Returns the seconds of each work's turn in each round, and how often a turn repeats each work.

    Each work is the first of a round in turn. A call of each that comes before warms up and is not counted, except of
    works that measure themselves.
    """
    first = {name: clock(work) for name, work in works.items()}
    if clock is returned:
        found, repeats, repeated = {name: [value] for name, value in first.items()}, dict.fromkeys(works, 1), works
    else:
        found = {name: list[float]() for name in works}
        repeats = {name: max(1, math.ceil(effort.turn / max(took, 1e-6))) for name, took in first.items()}
        repeated = {name: repeatedly(work, repeats[name]) for name, work in works.items()}
    names, start = list(works), time.perf_counter()
    while (turn := len(found[names[-1]])) < effort.most:
        if turn >= effort.least and time.perf_counter() - start > effort.seconds:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(clock(repeated[name]))
    return found, repeats


def repeatedly(work: Work, times: int) -> Work:
    """Returns a work that calls another a number of times."""

    def many() -> None:
        for _ in range(times):
            work()

    return many


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(times: Mapping[str, list[float]], name: str, base: str, scale: float = 1.0) -> list[float]:
    """Returns the ratio of two contenders' seconds in each round, times `scale`."""
    return [scale * a / max(b, 1e-9) for a, b in zip(times[name], times[base], strict=True)]


def measured(workload: Workload, effort: Effort = QUICK) -> Row:
    """Returns the row of a workload.

    Raises:
        AssertionError: where ours and the reference do not compute the same.
    """
    same = workload.equal()
    contenders = {OURS: workload.ours, **workload.references}
    most = effort.most if workload.rounds is None else min(effort.most, workload.rounds)
    seconds = effort.seconds if workload.series is None else effort.seconds / 3  # a point of many
    effort = replace(effort, seconds=seconds, least=min(effort.least, most), most=most)
    times, repeats = turns({name: c.work for name, c in contenders.items()}, workload.clock, effort)
    units = {name: c.units * repeats[name] for name, c in contenders.items()}
    each = {name: [took / units[name] for took in times[name]] for name in times}
    low, ratio, high = quartiles(ratios(each, OURS, workload.base))
    scale = 1e3 if workload.measure == "ms" else 1e-6
    cost = {name: scale * statistics.median(each[name]) for name in each}
    met = None
    if workload.target is not None:
        met = ratio <= workload.target
    elif workload.target_ms is not None:
        met = cost[OURS] <= workload.target_ms
    return Row(
        name=workload.name,
        group=workload.group,
        unit=workload.unit,
        base=workload.base,
        ratio=ratio,
        low=low,
        high=high,
        target=workload.target,
        target_ms=workload.target_ms,
        met=met,
        measure=workload.measure,
        cost=cost,
        over={name: statistics.median(ratios(each, OURS, name)) for name in workload.references},
        equal=same,
        rounds=len(times[OURS]),
        series=workload.series,
        at=workload.at,
        note=workload.note,
    )


@contextmanager
def threads(number: int = 1) -> Iterator[None]:
    """Sets the number of torch's threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the largest difference of two tensors, relative to the largest entry of the second."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


def asserted(found: torch.Tensor, expected: torch.Tensor, what: str, most: float = 1e-5) -> str:
    """Returns "`what` to 1e-7" for the difference of two tensors, and raises if it is above `most`."""
    difference = apart(found, expected)
    assert difference <= most, f"{what} differ by {difference:.1e}, more than {most:.0e}"
    return f"{what} to {max(difference, 1e-17):.0e}" if difference else f"{what} bit for bit"
