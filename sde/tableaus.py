"""Runge-Kutta methods, given by their Butcher tableaus."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.serialization import serializable
from ..shared.values import notation


@serializable("sde.Tableau")
@dataclass(frozen=True)
class Tableau:
    """The Butcher tableau of an explicit Runge-Kutta method (Butcher 1964).

    Stage i has the slope k_i at the fraction `nodes[i]` of the step and at the state `x + step sum_j rows[i][j] k_j`.

    Attributes:
        order: global order of convergence.
        nodes: times of the stages, as fractions of the step.
        rows: coefficients of the earlier slopes, one row for each stage.
        weights: coefficients of all slopes in the step; None if the last stage is the end of the step, and its row has
            the weights ("first same as last").
        error: coefficients of all slopes in the difference to the embedded method; None for a method without one.
    """

    order: int
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...] | None = None
    error: tuple[float, ...] | None = None

    __repr__ = notation


euler = Tableau(1, (0,), ((),), (1,))
midpoint_rule = Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1))
heun2 = Tableau(2, (0, 1), ((), (1,)), (1 / 2, 1 / 2))
heun3 = Tableau(3, (0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4))
rk4 = Tableau(4, (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
dormand_prince = Tableau(
    5,
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    error=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
bogacki_shampine = Tableau(
    3,
    (0, 1 / 2, 3 / 4, 1),
    ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
