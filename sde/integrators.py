"""Integrators of ordinary differential equations: fixed steps, adaptive steps, and those of torchdiffeq and SciPy.

Times are Python numbers and states keep their own dtype, so everything runs in float32 on devices without float64. An
integrator takes a field: a function from several times to the slopes there, each a function `state -> d state / dtime`;
a step asks once for all of its stages. A state is a tuple of tensors. The slopes depend on the first one alone; the
others are integrals along its path, and are not computed at intermediate stages.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.values import notation
from .tableaus import Tableau, dormand_prince, heun2

State: TypeAlias = tuple[Tensor, ...]  # the tensor that moves, and integrals along its path
Slope: TypeAlias = Callable[[State], State]
Field: TypeAlias = Callable[[Sequence[float]], Sequence[Slope]]


class Integrator(ABC):
    """Solves an ordinary differential equation from one time to another, forward or backward in time.

    Called with `(field, state, start, end)`; returns the state at `end`. `field(times)` returns a function
    `state -> d state / dtime` for each of several times. A state is a tuple of tensors, the first of them
    `(B, ...)`; times are Python numbers, shared by the batch. One call covers the whole interval from start to end, in
    one step (`FixedSteps`) or many. Shapes and dtypes of the state are kept.

    Attributes:
        order: global order of convergence in the step size; for adaptive methods in the size of the steps they choose.
    """

    order: int

    @abstractmethod
    def __call__(self, field: Field, state: State, start: float, end: float) -> State:
        """Returns the state at `end`, given the state at `start`, which may be above or below `end`."""


@serializable("sde.FixedSteps")
@dataclass(frozen=True)
class FixedSteps(Integrator):
    """A Runge-Kutta method with one step from each time of the sampler's grid to the next.

    Attributes:
        method: `euler`, `midpoint_rule`, `heun2`, `heun3` or `rk4`, with one evaluation for each of its stages.
    """

    method: Tableau = heun2

    __repr__ = notation

    @property
    def order(self) -> int:
        """The order of the method."""
        return self.method.order

    def __call__(self, field: Field, state: State, start: float, end: float) -> State:
        return stages(self.method, field, state, start, end - start)[0]


@serializable("sde.Adaptive")
@dataclass(frozen=True)
class Adaptive(Integrator):
    """An embedded Runge-Kutta pair with adaptive step size (Hairer, Norsett, Wanner 1993, section II.4).

    A step from x to x' is accepted if the root mean square of `error / (atol + rtol max(|x|, |x'|))`, over the whole
    batch, is at most one for each tensor of the state: an example depends on its batch, within the tolerance.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        evaluations: largest number of evaluations of the slope in one call.
        method: `dormand_prince`, of order 5 (RK45, Song et al.'s choice), or `bogacki_shampine`, of order 3.

    Raises:
        UsageError: for tolerances below 0 or both 0, and a method without an embedded one; when it is called, for a
            slope that is not finite, steps that become too small, and more evaluations than allowed.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    evaluations: int = 10_000
    method: Tableau = dormand_prince

    __repr__ = notation

    def __post_init__(self) -> None:
        check_tolerances(self)
        if self.method.error is None or self.method.weights is not None:
            raise UsageError(
                f"method of order {self.method.order}: adaptive steps need a method with an error estimate whose last "
                "stage is the end of the step, such as dormand_prince or bogacki_shampine"
            )

    @property
    def order(self) -> int:
        """The order of the method."""
        return self.method.order

    def __call__(self, field: Field, state: State, start: float, end: float) -> State:
        if start == end:
            return state
        method, sign = self.method, math.copysign(1.0, end - start)
        assert method.error is not None
        counted = limited(field, self.evaluations, self)
        now, first = start, counted([start])[0](state)
        most = 10.0
        step = self._first_step(counted, state, first, start, end)
        while sign * (end - now) > 0:
            last = sign * (end - now) <= 1.01 * abs(step)  # so that no tiny step is left over
            step = end - now if last else step
            try:
                there, slopes = stages(method, counted, state, now, step, first)
            except UsageError as spent:
                raise UsageError(f"{spent} (at {now:.6g} on the way from {start:.6g} to {end:.6g})") from None
            error = (moved(None, step, method.error, part) for part in zip(*slopes, strict=True))
            ratio = max(self._size(e, x, y) for e, x, y in zip(error, state, there, strict=True))
            if math.isnan(ratio):
                raise UsageError(not_finite(now))
            grow = min(most, max(0.2, 0.9 * ratio ** (-1 / method.order) if ratio > 0 else most))
            if ratio <= 1:
                now, state, first = end if last else now + step, there, slopes[-1]
            most = 10.0 if ratio <= 1 else 1.0  # a step does not grow right after one that was rejected
            step *= grow
            if abs(step) < 1e-12 * abs(end - start):
                raise UsageError(
                    f"rtol={self.rtol}, atol={self.atol} cannot be met at {now:.6g}: give larger tolerances, "
                    "or compute in float64"
                )
        return state

    def _size(self, error: Tensor, x: Tensor, y: Tensor) -> float:
        allowed = torch.maximum(x.abs(), y.abs()).mul_(self.rtol).add_(self.atol)
        return float(torch.linalg.vector_norm(error.div_(allowed))) / math.sqrt(max(error.numel(), 1))

    def _first_step(self, field: Field, state: State, slope: State, start: float, end: float) -> float:
        """Returns a first step over which Euler's method is nearly exact (Hairer et al. 1993, section II.4)."""
        sizes = [(self._size(x.clone(), x, x), self._size(k.clone(), x, x)) for x, k in zip(state, slope, strict=True)]
        if not all(bool(torch.isfinite(k).all()) for k in slope):
            raise UsageError(not_finite(start))
        if not all(math.isfinite(size) for pair in sizes for size in pair):  # tolerances below this precision's range
            return 1e-6 * (end - start)
        guess = min((0.01 * a / b for a, b in sizes if a > 1e-5 and b > 1e-5), default=1e-6)
        guess = math.copysign(min(guess, abs(end - start)), end - start)
        euler_step = tuple(x + guess * k for x, k in zip(state, slope, strict=True))
        bend = tuple(b - a for a, b in zip(slope, field([start + guess])[0](euler_step), strict=True))
        curved = max(self._size(b, x, x) for b, x in zip(bend, state, strict=True)) / abs(guess)
        steepest = max(curved, *(b for _, b in sizes))
        second = max(1e-6, 1e-3 * abs(guess)) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / self.method.order)
        return math.copysign(min(100 * abs(guess), second, abs(end - start)), end - start)


@serializable("sde.TorchDiffEq")
@dataclass(frozen=True)
class TorchDiffEq(Integrator):
    """A method of the package torchdiffeq (Chen 2018).

    Attributes:
        method: its name there: adaptive `dopri5`, `dopri8`, `bosh3`, `adaptive_heun`, `fehlberg2`; or `euler`,
            `midpoint`, `heun2`, `heun3`, `rk4`, which take one step in each call, from `start` to `end`.
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods.
        evaluations: largest number of evaluations of the slope in one call.

    Raises:
        UsageError: for another method and for tolerances below 0 or both 0; when it is called, for tolerances that
            cannot be met, and more evaluations than allowed.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    evaluations: int = 10_000

    __repr__ = notation

    def __post_init__(self) -> None:
        check_tolerances(self)
        if self.method not in ORDERS:
            raise UsageError(f"method={self.method}: choose from {', '.join(ORDERS)}")

    @property
    def order(self) -> int:
        """The order of the method."""
        return ORDERS[self.method]

    def __call__(self, field: Field, state: State, start: float, end: float) -> State:
        from torchdiffeq import odeint

        if start == end:
            return state
        counted = limited(field, self.evaluations, self)
        # By default the solver steps beyond the end, to times where no schedule is defined, and interpolates back. It
        # needs its times on the state's device, and some devices have no float64.
        dtype = torch.float32 if state[0].device.type == "mps" else torch.float64
        times = torch.tensor([start, end], dtype=dtype, device=state[0].device)
        try:
            path = odeint(
                lambda t, x: counted([float(t)])[0](x),
                state,
                times,
                method=self.method,
                rtol=self.rtol,
                atol=self.atol,
                options={"step_t": times[1:]} if self.method in ADAPTIVE else None,
            )
        except AssertionError as error:
            raise UsageError(
                f"{self} cannot meet its tolerances ({error}): give larger ones, or look for NaN in the score"
            ) from error
        return tuple(x[-1] for x in path)


ADAPTIVE = {"bosh3": 3, "adaptive_heun": 2, "fehlberg2": 2, "dopri5": 5, "dopri8": 8}
ORDERS = ADAPTIVE | {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
SCIPY_ORDERS = {"RK23": 3, "RK45": 5, "DOP853": 8}


@serializable("sde.SciPy")
@dataclass(frozen=True)
class SciPy(Integrator):
    """A method of `scipy.integrate.solve_ivp`, on the CPU in float64, as in Song et al.'s (2021) code.

    It is for comparison with their results; `Adaptive` is faster.

    Attributes:
        method: its name there: `RK23`, `RK45` or `DOP853`.
        rtol: relative tolerance.
        atol: absolute tolerance.
        evaluations: largest number of evaluations of the slope in one call.

    Raises:
        UsageError: for another method and tolerances below 0 or both 0; when it is called, for a slope that is not
            finite, tolerances that cannot be met, and more evaluations than allowed.
    """

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5
    evaluations: int = 10_000

    __repr__ = notation

    def __post_init__(self) -> None:
        check_tolerances(self)
        if self.method not in SCIPY_ORDERS:
            raise UsageError(f"method={self.method}: choose from {', '.join(SCIPY_ORDERS)}")

    @property
    def order(self) -> int:
        """The order of the method."""
        return SCIPY_ORDERS[self.method]

    def __call__(self, field: Field, state: State, start: float, end: float) -> State:
        from scipy.integrate import solve_ivp

        counted = limited(field, self.evaluations, self)
        sizes = [x.numel() for x in state]

        def flat(parts: Sequence[Tensor]) -> np.ndarray:
            return torch.cat([part.reshape(-1).cpu().double() for part in parts]).numpy()

        def state_of(values: np.ndarray) -> State:
            parts = torch.from_numpy(values).split(sizes)
            return tuple(part.to(x).reshape(x.shape) for part, x in zip(parts, state, strict=True))

        def slope(time: float, values: np.ndarray) -> np.ndarray:
            rates = flat(counted([float(time)])[0](state_of(values)))
            if not np.isfinite(rates).all():
                raise UsageError(not_finite(time))
            return rates

        solution = solve_ivp(slope, (start, end), flat(state), method=self.method, rtol=self.rtol, atol=self.atol)
        if not solution.success:
            raise UsageError(
                f"{self} cannot meet its tolerances ({solution.message}): give larger ones, "
                "or look for NaN in the score"
            )
        return state_of(solution.y[:, -1].copy())


class Tolerant(Protocol):
    """An integrator with tolerances and a largest number of evaluations."""

    @property
    def rtol(self) -> float: ...
    @property
    def atol(self) -> float: ...
    @property
    def evaluations(self) -> int: ...


def check_tolerances(integrator: Tolerant) -> None:
    """Raises for tolerances that are negative, both 0 or NaN, and for fewer than one evaluation.

    Raises:
        UsageError: for such an integrator.
    """
    rtol, atol, evaluations = integrator.rtol, integrator.atol, integrator.evaluations
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0 and evaluations >= 1):
        raise UsageError(
            f"rtol={rtol}, atol={atol}, evaluations={evaluations}: give tolerances of 0 or more, at least one of them "
            "above 0, and 1 evaluation or more"
        )


def stages(
    method: Tableau, field: Field, state: State, now: float, step: float, first: State | None = None
) -> tuple[State, list[State]]:
    """Returns the state at `now + step` and the slopes of all stages; `first` is the slope at `now`, if known."""
    (there, *rest), known = state, first is not None
    ahead = field([now + node * step for node in method.nodes[known:]])
    slopes = [first if first is not None else ahead[0](state)]
    for slope, row in zip(ahead[not known :], method.rows[1:], strict=True):
        there = moved(state[0], step, row, [k[0] for k in slopes])
        slopes.append(slope((there, *rest)))
    weights = method.rows[-1] if method.weights is None else method.weights
    if method.weights is not None:
        there = moved(state[0], step, weights, [k[0] for k in slopes])
    return (there, *(moved(x, step, weights, [k[i] for k in slopes]) for i, x in enumerate(rest, 1))), slopes


def moved(x: Tensor | None, step: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Returns `x + step sum_i weights_i slopes_i`, with x = 0 if None."""
    pairs = [(step * w, k) for w, k in zip(weights, slopes, strict=False) if w]
    (first, slope), *others = pairs
    y = slope * first if x is None else torch.add(x, slope, alpha=first)
    for w, k in others:
        y.add_(k, alpha=w)
    return y


def limited(field: Field, most: int, integrator: Tolerant) -> Field:
    """Returns the field, which then raises UsageError after `most` evaluations of a slope."""
    done = 0

    def counted(times: Sequence[float]) -> Sequence[Slope]:
        nonlocal done
        done += len(times)
        if done > most:
            raise UsageError(
                f"{type(integrator).__name__} needs more than evaluations={most}: give more, larger tolerances than "
                f"rtol={integrator.rtol} and atol={integrator.atol}, or look for a score that jumps with time"
            )
        return field(times)

    return counted


def not_finite(time: float) -> str:
    """Returns the error message for a slope that is NaN or infinite."""
    return (
        f"the flow's velocity is NaN or infinite at {time:.6g}: look for NaN in the network, or in the x it was given"
    )
