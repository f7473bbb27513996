"""Public constants that are parts, by name, for the notation of parts."""

from __future__ import annotations

from typing import Any

from .. import sde
from ..sde.tableaus import Tableau
from ..shared import networks
from ..shared.networks import UNetVariant
from ..shared.values import same

CONSTANTS: dict[str, Any] = {
    **{name: value for name in networks.__all__ if isinstance(value := getattr(networks, name), UNetVariant)},
    **{name: getattr(sde, name) for name in ("angle_coordinates", "time_coordinates")},
    **{name: value for name in sde.__all__ if isinstance(value := getattr(sde, name), Tableau)},
}
"""Variants of the U-Net, coordinates of the flow, and Runge-Kutta tableaus."""


def constant_name(value: Any) -> str | None:
    """Returns the public name of a constant, such as `ADM`, or None for another value."""
    found = (name for name, constant in CONSTANTS.items() if type(value) is type(constant) and same(value, constant))
    return next(found, None)
