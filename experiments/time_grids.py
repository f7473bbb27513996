"""Time grids of samplers, written as in published code: for the command line and the presets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..continuous import quadratic, sections, strided, trailing
from ..shared.corruption import Corruption
from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule


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
    named = {"ddim": strided, "quad": quadratic, "trailing": trailing}
    if name not in named or not digits:
        raise UsageError(
            f"steps={spec} is unknown: give a number such as 50, one of ddim50, quad50 and trailing50, or numbers of "
            "steps in equal sections such as 90,60,60,20,20"
        )
    return named[name](int(digits), rows)


def whole(schedule: Schedule) -> Tensor:
    """Returns the grid of an adaptive solver: one step from noise to the last noisy time, and one that denoises."""
    return torch.tensor([1.0, schedule.t_last, 0.0], dtype=torch.float64)
