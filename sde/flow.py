"""The probability flow: the ordinary differential equation with the same marginals as the SDE."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..shared.calling import warn_in_training
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.grid_values import GridValues
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, like, refuse_non_float
from .flow_coordinates import FlowCoefficients, FlowCoordinates, angle_coordinates
from .integrators import Field, FixedSteps, Integrator, Slope, State


@serializable("sde.ProbabilityFlow")
class ProbabilityFlow(Sampler[GaussianDenoiser, Schedule]):
    r"""Samples along the probability flow, `dx/dt = f x - g^2 score / 2`; the last step denoises.

    f and g are those of the schedule's `SDE`; the last step, to t = 0, returns the estimate of x_0. Song et al. 2021,
    eq. 13. With `FixedSteps` one step of the sampler is one step of the method. With `Adaptive`, `TorchDiffEq` or
    `SciPy` a step is divided as the tolerances require: the grid `torch.tensor([1, schedule.t_last, 0])` integrates
    from 1 to t_last at once and then denoises. So does `steps=2` on schedules whose grids end at t_last; those of
    `Straight` and `Cosine` are even down to 0. Count network evaluations with `shared.sampler.counted`. For a lower
    temperature scale the start: `flow(0.9 * z, steps=...)`.

    Args:
        denoiser: the denoiser to sample from, on any schedule, one that ends at zero SNR too.
        integrator: how the equation is solved; None for `FixedSteps()`, Heun's method.
        coordinates: the variables in which it is solved: `angle_coordinates`, with `atan(sigma_t / alpha_t)` in place
            of t and x scaled by `1 / sqrt(alpha_t^2 + sigma_t^2)`, or `time_coordinates`, t and x themselves.

    Raises:
        UsageError: for an integrator of another type, and for `time_coordinates` on a schedule whose velocity is
            infinite at zero SNR.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        integrator: Integrator | None = None,
        coordinates: FlowCoordinates = angle_coordinates,
    ) -> None:
        super().__init__(denoiser)
        self.integrator, self.coordinates = FixedSteps() if integrator is None else integrator, coordinates
        if not isinstance(self.integrator, Integrator):
            raise UsageError(
                f"integrator={self.integrator!r}: give an object such as FixedSteps(rk4), Adaptive() or TorchDiffEq()"
            )
        self.order = self.integrator.order
        (end,) = coordinates.coefficients(
            self.corruption, [coordinates.variable(self.corruption, torch.ones((), dtype=torch.float64))]
        )
        if not all(math.isfinite(c) for c in end):
            raise UsageError(
                "the flow's velocity is infinite at the schedule's zero SNR: take coordinates=angle_coordinates, "
                "or DDIM, or put the denoiser on another schedule with on(schedule)"
            )

    def field(self, slope: Callable[[FlowCoefficients, State], State]) -> Field:
        """Returns the field for an integrator: a function from values of tau to slopes `state -> d state / d tau`.

        Args:
            slope: `(coefficients at tau, state) -> d state / d tau`; the state's first tensor is `z = x / r`.
        """

        def field(taus: Sequence[float]) -> list[Slope]:
            found = self.coordinates.coefficients(self.corruption, taus)
            if len(found) == 1:
                return [functools.partial(slope, found[0])]
            values = GridValues([(here.t, here.t) for here in found])

            def at(here: FlowCoefficients, state: State) -> State:
                with values:  # what the denoiser needs at the stages of a step is computed at once
                    return slope(here, state)

            return [functools.partial(at, here) for here in found]

        return field

    def transport(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """Returns x_s, found from x_t `(B, ...)` by following the flow from t to s > 0, scalars, up or down in time."""
        coordinates, schedule = self.coordinates, self.corruption
        start, end = coordinates.variable(schedule, t), coordinates.variable(schedule, s)

        def slope(here: FlowCoefficients, state: State) -> State:
            x = state[0] if abs(here.scale - 1) < 1e-15 else state[0] * here.scale
            return (self.denoiser.estimate(x, here.t, **cond).combined(x, here.of_x, here.of_clean),)

        (z,) = self.integrator(self.field(slope), (x / like(coordinates.scale(schedule, t), x),), start, end)
        return like(coordinates.scale(schedule, s), x) * z

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.denoiser(x, t, **cond) if s == 0 else self.transport(x, t, s, **cond)

    @torch.no_grad()
    def encode(self, x0: Tensor, *, steps: int | Tensor | None = None, **cond: Any) -> Tensor:
        """Returns the x_1, of the shape of x_0, from which this sampler returns about x_0.

        alpha times x_0 is taken as x at t_last, the last noisy time of the schedule's grids, without noise. `slerp`
        interpolates between two encodings. Song et al. 2021, section 4.3.

        Args:
            x0: real numbers, `(B, ...)`.
            steps: a number of steps, two or more, or a decreasing grid of times that ends with 0; None to integrate
                from t_last to 1 at once, for adaptive integrators.
            cond: conditions, by name.

        Raises:
            UsageError: for fewer than two steps.
        """
        x0 = at_least_float32(refuse_non_float(x0, "x0"))
        warn_in_training(self.denoiser)
        last = torch.tensor([self.corruption.t_last], dtype=torch.float64)
        above = torch.ones(1, dtype=torch.float64) if steps is None else self.times(steps).flip(0)
        grid = torch.cat([last, above[above > last * (1 + 1e-9)]])
        if len(grid) < 2:
            raise UsageError(
                f"steps={steps}: encoding goes from t={float(last):g} to the noisiest time of the grid, "
                "so give two steps or more"
            )
        x = like(self.corruption(last[0])[0], x0) * x0
        for s, t in pairwise(grid):
            x = self.transport(x, s, t, **cond)
        return x
