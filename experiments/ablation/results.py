"""The results of an ablation, which its report is written from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...shared.metrics.measurement import Evaluation, Measurement


@dataclass(frozen=True)
class Run:
    """A run of an ablation: what it varied, and what was measured of it.

    Attributes:
        levels: the level of each factor by the name of the factor, such as `{"schedule": "linear", "predicts":
            "noise"}`.
        seed: seed of the run; runs of one seed are compared with each other.
        evaluation: what was measured, or None for a run that failed or is missing.
        failure: one line, for a run that raised.
        curve: training: examples or steps seen, and the loss at each.
        seconds: duration of the run.
    """

    levels: dict[str, str]
    seed: int
    evaluation: Evaluation | None
    failure: str = ""
    curve: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    seconds: float = 0.0

    def value(self, measure: str) -> float | None:
        """Returns the number of a measure, or None where the run has none or one that is not finite."""
        value = None if self.evaluation is None else self.evaluation.get(measure)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def measurement(self, measure: str) -> Measurement | None:
        """Returns the measurement of a name, or None where the run has none."""
        found = () if self.evaluation is None else self.evaluation.measurements
        return next((m for m in found if m.name == measure), None)


@dataclass(frozen=True)
class Results:
    """The runs of an ablation.

    Attributes:
        title: title of the report.
        text: Markdown: what is varied, what it shows and what it does not show.
        factors: the levels of each factor; the first is the baseline.
        measures: the names of the measurements to report; the first is the main one.
        runs: the runs; those that are missing may be left out.
        missing: number of runs of the grid that have not finished or failed yet.
    """

    title: str
    text: str
    factors: dict[str, list[str]]
    measures: list[str]
    runs: list[Run]
    missing: int = 0

    @property
    def baseline(self) -> dict[str, str]:
        """The first level of each factor."""
        return {factor: levels[0] for factor, levels in self.factors.items()}

    @property
    def seeds(self) -> list[int]:
        """The seeds in ascending order."""
        return sorted({run.seed for run in self.runs})
