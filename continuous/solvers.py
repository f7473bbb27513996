r"""Solvers of the probability flow in the coordinates where it is simple.

With `y = x / alpha` and `sigma~ = sigma / alpha` every Gaussian schedule has the same flow,
`dy / d sigma~ = epsilon(x, t)`, and with `lambda = -log sigma~` (half of the log-SNR) also
`d(x / sigma) / d lambda = e^lambda x_0(x, t)`. Each solver below is written in x, so that it serves VP, VE and all else
alike. Where it needs a level between t and s, the schedule's `time` gives it.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler, Step
from ..shared.tensors import exact
from .samplers import clean_and_noise

Memory: TypeAlias = list[tuple[float, Tensor]]
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(40)


class Heun(Sampler[GaussianDenoiser, Schedule]):
    r"""The trapezoidal rule in sigma~ (Karras et al. 2022, algorithm 1): an Euler step, then the mean of both slopes.

    Two evaluations a step; the last step denoises with one.

    Args:
        denoiser: gives epsilon.
    """

    order = 2

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return self.denoiser(x, t, **cond)
        level_t, level_s = Level(self.corruption, t), Level(self.corruption, s)
        _, first = clean_and_noise(self.denoiser, x, t, **cond)
        width = level_s.alpha * (level_s.ratio - level_t.ratio)
        euler = level_s.alpha / level_t.alpha * x + width * first
        _, second = clean_and_noise(self.denoiser, euler, s, **cond)
        return euler + width / 2 * (second - first)


class DPMSolver(Sampler[GaussianDenoiser, Schedule]):
    r"""DPM-Solver-2 and -3, single step, noise prediction (Lu et al. 2022a, algorithms 1 and 2),
    `h = lambda_s - lambda_t`.

    `order` evaluations a step; the last step denoises with one. Order 2 on VE is Karras et al.'s "DPM-2".

    Args:
        denoiser: gives epsilon.
        order: 2 (with r1 = 1/2) or 3 (r1 = 1/3, r2 = 2/3).
    """

    def __init__(self, denoiser: GaussianDenoiser, order: int = 2) -> None:
        super().__init__(denoiser)
        if order not in (2, 3):
            raise UsageError(f"order={order}: DPM-Solver has order 2 or 3 here; order 1 is DDIM")
        refuse_zero_snr(denoiser.corruption)
        self.order = order

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return self.denoiser(x, t, **cond)
        now, end = Level(self.corruption, t), Level(self.corruption, s)
        h, first = end.half - now.half, 1 / self.order

        def move(share: float, slope: Tensor, bend: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
            """The state at lambda_t + share h, and its time."""
            to = end if share == 1 else level_at(self.corruption, now.half + share * h)
            grown = math.expm1(share * h)
            return to.alpha / now.alpha * x - to.sigma * (grown * slope + (grown / (share * h) - 1) * bend), to.t

        _, e0 = clean_and_noise(self.denoiser, x, t, **cond)
        _, e1 = clean_and_noise(self.denoiser, *move(first, e0), **cond)
        if self.order == 2:
            return move(1, e1)[0]
        _, e2 = clean_and_noise(self.denoiser, *move(2 / 3, e0, 2 * (e1 - e0)), **cond)  # r2 / r1 = 2
        return move(1, e0, 1.5 * (e2 - e0))[0]  # 1 / r2 = 1.5


class DPMSolverPPSingle(Sampler[GaussianDenoiser, Schedule]):
    r"""DPM-Solver++(2S): the midpoint rule for x_0 in lambda (Lu et al. 2022b, algorithm 1, r = 1/2). Two evaluations a
    step.

    Args:
        denoiser: gives x_0.
    """

    order = 2

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        x0 = self.denoiser(x, t, **cond)
        if s == 0:
            return x0
        now, end = Level(self.corruption, t), Level(self.corruption, s)
        middle = level_at(self.corruption, (now.half + end.half) / 2)
        there = self.denoiser(toward(x, x0, now, middle), middle.t, **cond)
        return toward(x, there, now, end)


class Multistep(Sampler[GaussianDenoiser, Schedule]):
    """A sampler that remembers what the denoiser said at earlier levels of a run.

    Alone, `step` has nothing to look back at.
    """

    looks_back = True

    def begin(self) -> Step:
        return functools.partial(self.advance, [])

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)

    @abstractmethod
    def advance(
        self, past: Memory, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        """One step; `past` holds (level, value) pairs, newest first, and is updated in place."""


Correction: TypeAlias = Callable[[float, float, Memory], Tensor]


def midpoint(h: float, decay: float, past: Memory) -> Tensor:
    """Half of `1 - e^-decay` times what x_0 changes over h by its last slope: DPM-Solver++(2M).

    Lu et al. 2022b, algorithm 2.
    """
    slope, _ = differences(past)
    return -math.expm1(-decay) / 2 * h * slope


def exponential(h: float, decay: float, past: Memory) -> Tensor:
    """The last slope integrated exactly, `1 - (1 - e^-decay) / decay`: "heun" of k-diffusion's 2M SDE."""
    slope, _ = differences(past)
    return phi2(decay) * h * slope


def curved(h: float, decay: float, past: Memory) -> Tensor:
    """Slope and curvature from two earlier levels: "3M" as released with DPM-Solver++ and k-diffusion.

    The released weight of the curvature, as here, is half of what integrating the parabola gives, so the order stays 2;
    `UniPC` has all.
    """
    slope, curvature = differences(past)
    if curvature is None:
        return phi2(decay) * h * slope
    here = slope + (past[0][0] - past[1][0]) * curvature
    return phi2(decay) * h * here - (phi2(decay) / decay - 0.5) * h**2 * curvature


class DPMSolverPP(Multistep):
    r"""DPM-Solver++ multistep: x_0 extrapolated from earlier levels (Lu et al. 2022b, algorithm 2), one evaluation a
    step.

    `x_s = (sigma_s / sigma_t) e^(-eta h) x + alpha_s ((1 - e^(-(1 + eta) h)) x_0 + correction) + sigma_s sqrt(1 - e^(-2
    eta h)) z`, `h = lambda_s -
    lambda_t`. The first step is of order one, which keeps the whole at order 2; the last step denoises.

    Args:
        denoiser: gives x_0; under strong guidance wrap it in `Thresholded`.
        correction: `midpoint` (2M), `exponential`, or `curved` (3M).
        eta: 0 for the flow, 1 for the SDE ("2M SDE", "3M SDE").
    """

    def __init__(self, denoiser: GaussianDenoiser, correction: Correction = midpoint, eta: float = 0.0) -> None:
        super().__init__(denoiser)
        if eta < 0:
            raise UsageError(f"eta={eta}: give 0 for the flow, or a positive number for an SDE")
        self.correction, self.eta, self.order = correction, eta, 2 if eta == 0 else None

    def advance(
        self, past: Memory, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        x0 = self.denoiser(x, t, **cond)
        if s == 0:
            return x0
        now, end = Level(self.corruption, t), Level(self.corruption, s)
        remember(past, now.half, x0, 3)
        h = end.half - now.half
        decay, kept = (1 + self.eta) * h, math.exp(-self.eta * h) if self.eta else 1.0
        z = normal_like(x, generator) if self.eta else 0.0
        x = end.sigma / now.sigma * kept * x - end.alpha * math.expm1(-decay) * x0
        if len(past) > 1:
            x = x + end.alpha * self.correction(h, decay, past)
        return x + end.sigma * math.sqrt(1 - kept**2) * z


class UniPC(Multistep):
    r"""UniPC on x_0 (Zhao et al. 2023, algorithms 5 to 8), one evaluation a step.

    Predictor: x_0 as the polynomial in lambda through the last `levels` levels, its exponential integral taken exactly.
    Corrector: once x_0 at the next level is known, the same through one level more. Solving the paper's conditions
    exactly makes its B(h) drop out. The correction is applied as the difference of the two integrals, in which x does
    not occur, so hooks that change x between steps keep working. Its order is `levels` + 1; the first steps of a run,
    with fewer levels to look back at, are of lower order, and so are steps many times as long in lambda as the one
    before, over which a parabola would shoot off. The last step denoises.

    Args:
        denoiser: gives x_0.
        levels: of the predictor, 2 or 3 ("UniPC-2", "UniPC-3").
    """

    def __init__(self, denoiser: GaussianDenoiser, levels: int = 3) -> None:
        super().__init__(denoiser)
        if levels not in (2, 3):
            raise UsageError(f"levels={levels}: give 2 or 3")
        self.levels, self.order = levels, levels + 1

    def advance(
        self, past: Memory, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        x0 = self.denoiser(x, t, **cond)
        if s == 0:
            return x0
        now, end = Level(self.corruption, t), Level(self.corruption, s)
        if past:
            before, taken = past[0][0], steady(past, past[0][0], now.half)
            x = x + now.alpha * (
                integral(before, now.half, [(now.half, x0), *taken]) - integral(before, now.half, taken)
            )
        remember(past, now.half, x0, self.levels)
        if not past:
            return toward(x, x0, now, end)
        return end.sigma / now.sigma * x + end.alpha * integral(now.half, end.half, steady(past, now.half, end.half))


class LMS(Multistep):
    r"""Adams-Bashforth in sigma~: epsilon as the polynomial through the last levels, integrated exactly ("LMS" of
    k-diffusion).

    Its order is `levels`; the first steps of a run, with fewer levels to look back at, are of lower order. One
    evaluation a step; the last step denoises.

    Args:
        denoiser: gives epsilon.
        levels: of the polynomial.
    """

    def __init__(self, denoiser: GaussianDenoiser, levels: int = 4) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        if levels < 2:
            raise UsageError(f"levels={levels}: give 2 or more; one level is DDIM")
        self.levels, self.order = levels, levels

    def advance(
        self, past: Memory, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        x0, epsilon = clean_and_noise(self.denoiser, x, t, **cond)
        if s == 0:
            return x0
        now, end = Level(self.corruption, t), Level(self.corruption, s)
        remember(past, now.ratio, epsilon, self.levels)
        return end.alpha / now.alpha * x + end.alpha * integral(now.ratio, end.ratio, past, decay=0.0)


class Level:
    """A level of a schedule as Python numbers: samplers' times live on the CPU, so nothing waits for a device.

    Attributes:
        t, alpha, sigma: of the level; `half` is lambda = log(alpha / sigma), `ratio` is sigma~ = sigma / alpha.
    """

    def __init__(self, schedule: Schedule, t: Tensor) -> None:
        self.t = exact(t)
        self.alpha, self.sigma = (float(c) for c in schedule(self.t))
        self.half = float(schedule.log_snr(self.t)) / 2
        self.ratio = math.exp(-self.half) if self.half > -700 else math.inf


def level_at(schedule: Schedule, half: float) -> Level:
    """The level with `lambda = half`."""
    return Level(schedule, schedule.time(torch.tensor(2 * half, dtype=torch.float64)))


def toward(x: Tensor, x0: Tensor, now: Level, to: Level) -> Tensor:
    """The flow with x_0 held constant, `(sigma_s / sigma_t) x + alpha_s (1 - e^-h) x_0`."""
    return to.sigma / now.sigma * x - to.alpha * math.expm1(now.half - to.half) * x0


def remember(past: Memory, level: float, value: Tensor, count: int) -> None:
    """Puts a level first and forgets the oldest; the level of zero SNR has no place on the axis."""
    if math.isfinite(level):
        past.insert(0, (level, value))
        del past[count:]


def differences(past: Memory) -> tuple[Tensor, Tensor | None]:
    """First and second divided differences at the newest level; the second is None with two levels."""
    (a, x), (b, y), *older = past
    slope = (x - y) / (a - b)
    if not older:
        return slope, None
    c, z = older[0]
    return slope, (slope - (y - z) / (b - c)) / (a - c)


def integral(a: float, b: float, nodes: Memory, decay: float = 1.0) -> Tensor:
    """`int_a^b e^(decay (u - b)) p(u) du`, p the polynomial through `nodes`."""
    weights = lagrange_weights([u for u, _ in nodes], a, b, decay)
    return functools.reduce(torch.add, (w * value for w, (_, value) in zip(weights, nodes, strict=True)))


def steady(nodes: Memory, a: float, b: float) -> Memory:
    """As many of the newest nodes as extrapolate to [a, b] without blowing up the errors of their values.

    The weights of the integral sum to `1 - e^(a - b)`; what they add up to without signs is how much errors are
    amplified: 3.7 times for three even steps, 41 times where a grid of 10 even steps of a table jumps to its first row.
    """
    for count in range(len(nodes), 1, -1):
        weights = lagrange_weights([u for u, _ in nodes[:count]], a, b, decay=1.0)
        if sum(map(abs, weights)) <= 15 * sum(weights):
            return nodes[:count]
    return nodes[:1]


def lagrange_weights(nodes: Sequence[float], a: float, b: float, decay: float) -> list[float]:
    """`int_a^b e^(decay (u - b)) l_j(u) du` for the Lagrange polynomials l_j of the nodes, by Gauss-Legendre quadrature
    to rounding.
    """
    u = (a + b) / 2 + (b - a) / 2 * POINTS
    mass = (b - a) / 2 * WEIGHTS * np.exp(decay * (u - b))
    polynomials = (
        math.prod(((u - k) / (node - k) for k in nodes if k != node), start=np.ones_like(u)) for node in nodes
    )
    return [float(mass @ polynomial) for polynomial in polynomials]


def phi2(decay: float) -> float:
    """`1 - (1 - e^-decay) / decay`, the integral of `decay u e^(-decay (1 - u))` over [0, 1]."""
    return 1 + math.expm1(-decay) / decay
