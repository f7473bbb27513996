"""The cells of an ablation compared with its baseline, and the effects of its factors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from .results import Results, Run
from .statistics import MODERATED, Comparison, Summary, compare, prior, summary

LEVEL = 0.95
"""Level of the intervals."""


@dataclass(frozen=True)
class Cell:
    """The runs of one combination of levels, and what their seeds say about a measure.

    Attributes:
        levels: the level of each factor.
        runs: the runs.
        summary: mean, deviation and interval of the measure.
        comparison: the difference to the baseline; None for the baseline, and without a pair of runs.
        remark: why there is no verdict; empty where there is one.
    """

    levels: dict[str, str]
    runs: list[Run]
    summary: Summary
    comparison: Comparison | None = None
    remark: str = ""


@dataclass(frozen=True)
class Effect:
    """The effect of a level of a factor, averaged over the combinations of the other factors.

    Attributes:
        factor, level, baseline: the factor, its level, and the level that it is compared with.
        comparison: the difference, paired by seed.
        used, combinations: number of combinations that could be averaged, and of those in the grid.
    """

    factor: str
    level: str
    baseline: str
    comparison: Comparison
    used: int
    combinations: int


def direction(results: Results, measure: str) -> str:
    """Returns which numbers of a measure are better: `lower`, `higher`, `closer` (to real data), or an empty string."""
    found = (run.measurement(measure) for run in results.runs)
    return next((m.better for m in found if m is not None), "")


def score(run: Run, measure: str) -> float | None:
    """Returns what runs are compared by: the number, or its distance to that of real data where closer is better."""
    value, found = run.value(measure), run.measurement(measure)
    if value is None or found is None or found.better != "closer":
        return value
    return None if found.held_out is None or math.isnan(found.held_out) else abs(value - found.held_out)


def scores(runs: Iterable[Run], measure: str) -> dict[int, float]:
    """Returns the scores of runs by seed, without those that have none."""
    return {run.seed: value for run in runs if (value := score(run, measure)) is not None}


def grouped(results: Results) -> list[tuple[dict[str, str], list[Run]]]:
    """Returns the runs of each combination of levels; the baseline is first, then in the order of the levels."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in results.runs:
        groups.setdefault(key(results, run.levels), []).append(run)
    order = [{level: n for n, level in enumerate(levels)} for levels in results.factors.values()]

    def place(levels: tuple[str, ...]) -> list[int]:
        return [ranks.get(level, len(ranks)) for ranks, level in zip(order, levels, strict=True)]

    return [(dict(zip(results.factors, k, strict=True)), groups[k]) for k in sorted(groups, key=place)]


def key(results: Results, levels: dict[str, str]) -> tuple[str, ...]:
    """Returns the level of each factor, in the order of the factors; a factor that is not given has its baseline."""
    return tuple(levels.get(factor, first) for factor, first in results.baseline.items())


def protocol_difference(runs: list[Run], others: list[Run], measure: str) -> str:
    """Returns how the protocols of a measure differ between runs of one seed, or an empty string."""
    by_seed = {run.seed: run.measurement(measure) for run in others}
    for run in runs:
        a, b = run.measurement(measure), by_seed.get(run.seed)
        if a is not None and b is not None and (lines := a.protocol.differences(b.protocol)):
            return "; ".join(lines)
    return ""


def cells(results: Results, measure: str, level: float = LEVEL) -> list[Cell]:
    """Returns the cells of an ablation, each compared with the baseline by the runs of equal seeds.

    The intervals of the differences are corrected for the number of cells beside the baseline. The variances of few
    seeds are moderated (see `prior`) by the
    largest part of the table that has no gaps. Runs whose protocols differ are not compared.
    """
    groups, better = grouped(results), direction(results, measure)
    base = next((runs for levels, runs in groups if levels == results.baseline), [])
    found = [scores(runs, measure) for _, runs in groups]
    used, seeds = most_complete(found, MODERATED + 1)
    shared = prior(np.array([[values[seed] for seed in seeds] for values in used])) if used else None
    order, generator = "lower" if better == "closer" else better, np.random.default_rng(0)
    out = []
    for (levels, runs), values in zip(groups, found, strict=True):
        numbers = [value for run in runs if (value := run.value(measure)) is not None]
        comparison, remark = None, ""
        if runs is not base and (remark := without_verdict(runs, base, values, measure)) == "":
            comparison = compare(
                values, scores(base, measure), level, max(len(groups) - 1, 1), order, shared, generator
            )
            comparison, remark = (comparison, "") if comparison.pairs else (None, "no seed in common with the baseline")
        out.append(Cell(levels, runs, summary(numbers, level), comparison, remark))
    return out


def without_verdict(runs: list[Run], base: list[Run], values: dict[int, float], measure: str) -> str:
    """Returns why a cell has no verdict: failed, missing, not measured, or measured by another protocol."""
    if not values:
        failed = sum(bool(run.failure) for run in runs)
        if failed:
            return "failed"
        if any(run.value(measure) is not None for run in runs):
            return "no number of real data to be close to"
        return "not measured" if any(run.evaluation is not None for run in runs) else "missing"
    if not base:
        return "no baseline"
    different = protocol_difference(runs, base, measure)
    return f"not comparable: {different}" if different else ""


def effects(results: Results, measure: str, level: float = LEVEL) -> list[Effect]:
    """Returns the main effects: each level of a factor against the first, averaged over the other factors.

    Within each seed the differences of all combinations of the other factors are averaged, and the averages are
    compared over the seeds: an average has less noise than one cell, and there are fewer comparisons to correct for.
    Combinations with a failed or missing run, or with other protocols, are left out of it. With one factor there are
    no effects beside the cells.
    """
    if len(results.factors) < 2:
        return []
    better = direction(results, measure)
    order, generator = "lower" if better == "closer" else better, np.random.default_rng(0)
    by_cell = {key(results, levels): runs for levels, runs in grouped(results)}
    values = {k: scores(runs, measure) for k, runs in by_cell.items()}
    count = sum(len(levels) - 1 for levels in results.factors.values())
    out = []
    for at, (factor, levels) in enumerate(results.factors.items()):
        others = list(product(*(own for name, own in results.factors.items() if name != factor)))
        for name in levels[1:]:
            pairs = [((*o[:at], name, *o[at:]), (*o[:at], levels[0], *o[at:])) for o in others]
            pairs = [(a, b) for a, b in pairs if a in by_cell and b in by_cell]
            differences = [
                {s: values[a][s] - values[b][s] for s in values[a].keys() & values[b].keys()}
                for a, b in pairs
                if not protocol_difference(by_cell[a], by_cell[b], measure)
            ]
            used, seeds = most_complete(differences)
            means = {s: float(np.mean([d[s] for d in used])) for s in seeds}
            comparison = compare(means, dict.fromkeys(means, 0.0), level, count, order, None, generator)
            out.append(Effect(factor, name, levels[0], comparison, len(used), len(pairs)))
    return out


def most_complete(rows: list[dict[int, float]], least: int = 1) -> tuple[list[dict[int, float]], list[int]]:
    """Returns rows and seeds without gaps: those with the most numbers.

    Those of two seeds or more come first, then those of `least` rows or more; of equally many numbers, those with more
    seeds. Seeds are added from the most frequent one on; a row stays as long as it has all of them.
    """
    frequent = [seed for seed, _ in Counter(sorted(s for row in rows for s in row)).most_common()]
    choices = [
        ([row for row in rows if row.keys() >= set(frequent[:n])], frequent[:n]) for n in range(1, len(frequent) + 1)
    ]
    full = [(used, seeds) for used, seeds in choices if used]
    return max(
        full, key=lambda c: (len(c[1]) > 1, len(c[0]) >= least, len(c[0]) * len(c[1]), len(c[1])), default=([], [])
    )
