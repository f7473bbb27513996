"""Time grids of samplers, written as in published code: for the command line and recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .. import continuous
from ..continuous import sections
from ..shared.corruption import Corruption
from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule
from ..shared.serialization import serializable
from ..shared.values import notation

Spacing: TypeAlias = Callable[[int, Corruption], int | Tensor]
"""`(steps, process) -> steps of a sampler`: their number, for the grid of the process itself, or a grid of times."""


def table_rows(name: str, corruption: Corruption) -> int:
    """Returns the number of steps of a table.

    Raises:
        UsageError: for a process in continuous time.
    """
    rows = getattr(corruption, "steps", None)
    if rows is None:
        raise UsageError(f"spacing={name} is for tables of steps, and {corruption} is in continuous time: give even")
    return rows


@serializable("experiments.even")
def even(steps: int, corruption: Corruption) -> int | Tensor:
    """Returns the number of steps, for the grid of the process itself."""
    return steps


@serializable("experiments.strided")
def strided(steps: int, corruption: Corruption) -> int | Tensor:
    """Returns steps of a whole stride on a table ("ddim"; Song et al. 2020)."""
    return continuous.strided(steps, table_rows("strided", corruption))


@serializable("experiments.quadratic")
def quadratic(steps: int, corruption: Corruption) -> int | Tensor:
    """Returns quadratic steps on a table ("quad"; Song et al. 2020)."""
    return continuous.quadratic(steps, table_rows("quadratic", corruption))


@serializable("experiments.trailing")
def trailing(steps: int, corruption: Corruption) -> int | Tensor:
    """Returns trailing steps on a table (Lin et al. 2023)."""
    return continuous.trailing(steps, table_rows("trailing", corruption))


@serializable("experiments.Sections")
@dataclass(frozen=True)
class Sections:
    """Steps in equal sections of a table, for the number that they add up to; even steps for other numbers.

    Called with (steps, process). Nichol & Dhariwal 2021, code.

    Attributes:
        counts: numbers of steps in the sections, from the cleanest to the noisiest, such as (90, 60, 60, 20, 20).
    """

    counts: tuple[int, ...]
    __repr__ = notation

    def __call__(self, steps: int, corruption: Corruption) -> int | Tensor:
        return sections(list(self.counts), table_rows(repr(self), corruption)) if steps == sum(self.counts) else steps


@serializable("experiments.Karras")
@dataclass(frozen=True)
class Karras:
    """Noise levels whose powers 1 / rho are evenly spaced (Karras et al. 2022, eq. 5). Called with (steps, process).

    Attributes:
        rho: 7 as published, 1 for even noise levels.
    """

    rho: float = 7.0
    __repr__ = notation

    def __call__(self, steps: int, corruption: Corruption) -> int | Tensor:
        assert isinstance(corruption, Schedule)
        return continuous.karras(steps, corruption, self.rho)


@serializable("experiments.adaptive")
def adaptive(steps: int, corruption: Corruption) -> int | Tensor:
    """Returns the two steps of an adaptive solver, which chooses its own: to the last noisy time, and to the data."""
    assert isinstance(corruption, Schedule)
    return whole(corruption)


SPACINGS = (even, strided, quadratic, trailing, Sections, Karras, adaptive)
"""All spacings of sampling steps."""


def spaced(spec: str, corruption: Corruption) -> int | Tensor:
    """Returns the argument `steps` of a sampler, a number or a grid of times, from its notation.

    "50" for even steps, "ddim50" for a whole stride, "quad50" for quadratic steps, "trailing50" for trailing steps, or
    numbers of steps in equal sections of a table, such as "90,60,60,20,20".

    Raises:
        UsageError: for any other notation, or a notation for tables with a model in continuous time.
    """
    name, digits = spec.rstrip("0123456789"), spec[len(spec.rstrip("0123456789")) :]
    if name in ("", "-") and digits:
        return int(spec)
    rows = getattr(corruption, "steps", None)
    if rows is None:
        raise UsageError(f"steps={spec}: the time of this model is continuous: give a number of steps, such as 50")
    if "," in spec and all(part.strip().isdigit() for part in spec.split(",")):
        return sections([int(part) for part in spec.split(",")], rows)
    named = {"ddim": continuous.strided, "quad": continuous.quadratic, "trailing": continuous.trailing}
    if name not in named or not digits:
        raise UsageError(
            f"steps={spec} is unknown: give a number such as 50, one of ddim50, quad50 and trailing50, or numbers of "
            "steps in equal sections such as 90,60,60,20,20"
        )
    return named[name](int(digits), rows)


def whole(schedule: Schedule) -> Tensor:
    """Returns the grid of an adaptive solver: one step from noise to the last noisy time, and one that denoises."""
    return torch.tensor([1.0, schedule.t_last, 0.0], dtype=torch.float64)
