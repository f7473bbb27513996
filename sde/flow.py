"""The probability flow: an ordinary differential equation with the marginals of the SDE."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..shared.calling import warn_in_training
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.tensors import at_least_float32, like, refuse_unreal
from .flow_coordinates import FlowCoordinates, Place, angle_coordinates
from .integrators import Field, FixedSteps, Integrator, State


class ProbabilityFlow(Sampler[GaussianDenoiser, Schedule]):
    r"""`dx/dt = f x - g^2 score / 2` (Song et al. 2021, eq. 13) from t down to s; the last step denoises.

    With `FixedSteps` one step of the sampler is one step of the method. With `Adaptive`, `TorchDiffEq` or `SciPy` a
    step is as many as the tolerances ask for: the grid `torch.tensor([1, schedule.t_last, 0])` integrates from 1 to
    t_last in one go and then denoises. So does `steps=2` where the schedule's grids end at t_last; those of `Straight`
    and `Cosine` are even down to 0. Count evaluations with `shared.sampler.counted`. A start of lower temperature is a
    smaller one: `flow(0.9 * z, steps=...)`.

    Args:
        denoiser: of any schedule, zero SNR at the end too.
        integrator: `FixedSteps()` for Heun's method.
        coordinates: the coordinates: `angle_coordinates`, or `clock` for t itself.
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
                f"integrator={self.integrator!r}: give an object such as Steps(rk4), Adaptive() or TorchDiffEq()"
            )
        self.order = self.integrator.order
        (end,) = coordinates.places(
            self.corruption, [coordinates.position(self.corruption, torch.ones((), dtype=torch.float64))]
        )
        if not all(math.isfinite(c) for c in end):
            raise UsageError(
                "the flow's velocity is infinite at the schedule's zero SNR: take DDIM or the chart `angle_coordinates`, or put the denoiser on "
                "another schedule with on(...)"
            )

    def field(self, slope: Callable[[Place, State], State]) -> Field:
        """What an integrator asks for, of a slope at places of the chart."""
        return lambda taus: [
            functools.partial(slope, place) for place in self.coordinates.places(self.corruption, taus)
        ]

    def transport(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """`x_t` carried along the flow to s, which may lie on either side of t."""
        coordinates, schedule = self.coordinates, self.corruption
        start, end = coordinates.position(schedule, t), coordinates.position(schedule, s)

        def slope(place: Place, state: State) -> State:
            x = state[0] * place.scale
            return (self.denoiser.estimate(x, place.t, **cond).combined(x, place.of_x, place.of_clean),)

        (z,) = self.integrator(self.field(slope), (x / like(coordinates.scale(schedule, t), x),), start, end)
        return like(coordinates.scale(schedule, s), x) * z

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.denoiser(x, t, **cond) if s == 0 else self.transport(x, t, s, **cond)

    @torch.no_grad()
    def encode(self, x0: Tensor, *, steps: int | Tensor | None = None, **cond: Any) -> Tensor:
        """The x_1 from which this sampler returns about x_0 (Song et al. 2021, section 4.3).

        The data, times alpha, stand for x at t_last. Between two encodings `shared.latents.slerp` interpolates.

        Args:
            x0: `(B, ...)`.
            steps: a number of steps, two or more, or a decreasing grid; None for the way from t_last to 1 in one go,
                which is what adaptive integrators need.
            cond: conditions by name.
        """
        x0 = at_least_float32(refuse_unreal(x0, "x0"))
        warn_in_training(self.denoiser)
        last = torch.tensor([self.corruption.t_last], dtype=torch.float64)
        above = torch.ones(1, dtype=torch.float64) if steps is None else self.times(steps).flip(0)
        grid = torch.cat([last, above[above > last * (1 + 1e-9)]])
        if len(grid) < 2:
            raise UsageError(
                f"steps={steps}: encoding goes from t={float(last):g} to the grid's noisiest level, give two steps or more"
            )
        x = like(self.corruption(last[0])[0], x0) * x0
        for s, t in pairwise(grid):
            x = self.transport(x, s, t, **cond)
        return x
