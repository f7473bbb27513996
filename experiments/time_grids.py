"""Grids of sampling steps by name, for the command line and the presets: the notations of the published codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..continuous import quadratic, sections, strided, trailing
from ..shared.corruption import Corruption
from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule


def spaced(spec: str, corruption: Corruption) -> int | Tensor:
    """What a sampler takes as `steps`: "50" evenly spaced, "ddim50" by a whole stride, "quad50" quadratic,
    "trailing50", or counts for equal sections, such as "90,60,60,20,20".

    Raises:
        UsageError: for another notation, or one for tables where time is continuous.
    """
    name, digits = spec.rstrip("0123456789"), spec[len(spec.rstrip("0123456789")) :]
    if name in ("", "-") and digits:
        return int(spec)
    rows = getattr(corruption, "steps", None)
    if rows is None:
        raise UsageError(f"{spec}: this model's time is continuous, give a number of steps")
    if "," in spec and all(part.strip().isdigit() for part in spec.split(",")):
        return sections([int(part) for part in spec.split(",")], rows)
    named = {"ddim": strided, "quad": quadratic, "trailing": trailing}
    if name not in named or not digits:
        raise UsageError(
            f"{spec} is no spacing of steps: give a number such as 50, ddim50, quad50, trailing50, or counts such as 90,60,60,20,20"
        )
    return named[name](int(digits), rows)


def whole(schedule: Schedule) -> Tensor:
    """The grid on which an adaptive solver has the whole way for itself.

    From noise to the last noisy time, and the step that denoises.
    """
    return torch.tensor([1.0, schedule.t_last, 0.0], dtype=torch.float64)
