r"""Few-step solvers of the probability flow: Heun, DPM-Solver, DPM-Solver++, UniPC and LMS.

With `y = x / alpha` and `sigma~ = sigma / alpha` every Gaussian schedule has the same flow,
`dy / d sigma~ = epsilon(x, t)`, and with `lambda = log(alpha / sigma) = -log sigma~` (half of the log-SNR) also
`d(x / sigma) / d lambda = e^lambda x_0(x, t)`. Each solver below is written in x, so it serves every schedule, VP and
VE alike. Where it needs a time between t and s, it is found from lambda by the schedule's `time`.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler, Step
from ..shared.serialization import serializable
from ..shared.tensors import exact
from .history import History, divided_differences, integral, phi2, push, stable
from .samplers import clean_and_noise


@serializable("continuous.Heun")
class Heun(Sampler[GaussianDenoiser, Schedule]):
    r"""Heun's method in `sigma~ = sigma / alpha` (Karras et al. 2022, algorithm 1): a step with the mean of two slopes.

    The second slope is that at the end of an Euler step. Two network evaluations per step; the last step, to t = 0,
    takes one and returns the estimate of x_0.

    Args:
        denoiser: the denoiser to sample from.

    Raises:
        UsageError: for a schedule that ends at zero SNR.
    """

    order = 2

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return self.denoiser(x, t, **cond)
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        _, first = clean_and_noise(self.denoiser, x, t, **cond)
        width = end.alpha * (end.sigma_tilde - now.sigma_tilde)
        euler = end.alpha / now.alpha * x + width * first
        _, second = clean_and_noise(self.denoiser, euler, s, **cond)
        return euler + width / 2 * (second - first)


@serializable("continuous.DPMSolver")
class DPMSolver(Sampler[GaussianDenoiser, Schedule]):
    r"""DPM-Solver-2 and DPM-Solver-3, singlestep, noise prediction (Lu et al. 2022a, algorithms 1 and 2).

    `order` network evaluations per step; the last step, to t = 0, takes one and returns the estimate of x_0. Order 2 on
    VE is the "DPM-2" of k-diffusion (Karras et al. 2022).

    Args:
        denoiser: the denoiser to sample from.
        order: 2 (intermediate time at the fraction r1 = 1/2 of the step in lambda) or 3 (r1 = 1/3, r2 = 2/3).

    Raises:
        UsageError: for another order, and for a schedule that ends at zero SNR.
    """

    order: int

    def __init__(self, denoiser: GaussianDenoiser, order: int = 2) -> None:
        super().__init__(denoiser)
        if order not in (2, 3):
            raise UsageError(f"order={order}: give 2 or 3; DPM-Solver of order 1 is DDIM")
        refuse_zero_snr(denoiser.corruption)
        self.order = order

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return self.denoiser(x, t, **cond)
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        h, r1 = end.lam - now.lam, 1 / self.order

        def update(r: float, epsilon: Tensor, difference: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
            """Returns the state at `lambda_t + r h`, and its time."""
            to = end if r == 1 else time_point_at(self.corruption, now.lam + r * h)
            growth = math.expm1(r * h)
            change = growth * epsilon + (growth / (r * h) - 1) * difference
            return to.alpha / now.alpha * x - to.sigma * change, to.t

        _, e0 = clean_and_noise(self.denoiser, x, t, **cond)
        _, e1 = clean_and_noise(self.denoiser, *update(r1, e0), **cond)
        if self.order == 2:
            return update(1, e1)[0]
        _, e2 = clean_and_noise(self.denoiser, *update(2 / 3, e0, 2 * (e1 - e0)), **cond)  # r2 / r1 = 2
        return update(1, e0, 1.5 * (e2 - e0))[0]  # 1 / r2 = 1.5


@serializable("continuous.DPMSolverPPSingle")
class DPMSolverPPSingle(Sampler[GaussianDenoiser, Schedule]):
    r"""DPM-Solver++(2S), singlestep: the midpoint rule for x_0 in lambda (Lu et al. 2022b, algorithm 1, r = 1/2).

    `lambda = log(alpha / sigma)`. Two network evaluations per step; the last step, to t = 0, takes one and returns the
    estimate of x_0.

    Args:
        denoiser: the denoiser to sample from.

    Raises:
        UsageError: for a schedule that ends at zero SNR.
    """

    order = 2

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        x0 = self.denoiser(x, t, **cond)
        if s == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        middle = time_point_at(self.corruption, (now.lam + end.lam) / 2)
        x0_middle = self.denoiser(first_order_update(x, x0, now, middle), middle.t, **cond)
        return first_order_update(x, x0_middle, now, end)


class Multistep(Sampler[GaussianDenoiser, Schedule]):
    """A multistep sampler: a step uses the denoiser's outputs at earlier steps of the run.

    `step` called on its own, outside of a run, has no earlier outputs and is of order one.
    """

    looks_back = True

    def begin(self) -> Step:
        return functools.partial(self.advance, [])

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return self.begin()(x, t, s, generator=generator, **cond)

    @abstractmethod
    def advance(
        self, history: History, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        """Returns x_s from x_t, and puts the denoiser's output at t into `history`, which holds those of the run."""


Correction: TypeAlias = Callable[[float, float, History], Tensor]
"""What a `DPMSolverPP` step from t to s adds to the step with constant x_0: `(h, decay, history) -> correction`.

`h = lambda_s - lambda_t`, `decay = (1 + eta) h`; the history has two or three outputs, the newest at t.
"""


@serializable("continuous.midpoint")
def midpoint(h: float, decay: float, history: History) -> Tensor:
    """Returns `(1 - e^-decay) / 2 h D_1`, D_1 the last slope of x_0 in lambda: DPM-Solver++(2M).

    Of the shape of x_0; for the arguments see `Correction`. Lu et al. 2022b, algorithm 2.
    """
    slope, _ = divided_differences(history)
    return -math.expm1(-decay) / 2 * h * slope


@serializable("continuous.exponential")
def exponential(h: float, decay: float, history: History) -> Tensor:
    """Returns `(1 - (1 - e^-decay) / decay) h D_1`: "heun" of k-diffusion's SDE solver.

    It integrates D_1, the last slope of x_0 in lambda, exactly. For the arguments see `Correction`.
    """
    slope, _ = divided_differences(history)
    return phi2(decay) * h * slope


@serializable("continuous.curved")
def curved(h: float, decay: float, history: History) -> Tensor:
    """Returns the correction of a parabola through three outputs: "3M" as published with DPM-Solver++ and k-diffusion.

    The curvature of x_0 in lambda has the published weight, half of that of the exact integral, so the order stays 2;
    `UniPC` takes the exact weight. With two outputs it is `exponential`. For the arguments see `Correction`.
    """
    slope, curvature = divided_differences(history)
    if curvature is None:
        return phi2(decay) * h * slope
    here = slope + (history[0][0] - history[1][0]) * curvature
    return phi2(decay) * h * here - (phi2(decay) / decay - 0.5) * h**2 * curvature


@serializable("continuous.DPMSolverPP")
class DPMSolverPP(Multistep):
    r"""DPM-Solver++ multistep: x_0 is extrapolated from earlier outputs (Lu et al. 2022b, algorithm 2).

    `x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s ((1 - e^(-(1 + eta) h)) x_0 + correction) + sigma_s c z` with
    `h = lambda_s - lambda_t`, `lambda = log(alpha / sigma)`, `c = sqrt(1 - e^(-2 eta h))` and z ~ N(0, I). One network
    evaluation per step. The first step is of order one, which leaves the order of the whole at 2; the last step, to
    t = 0, returns the estimate of x_0.

    Args:
        denoiser: the denoiser to sample from; under strong guidance wrap it in `Thresholded`.
        correction: `midpoint` (2M), `exponential`, or `curved` (3M); None for that of `order`.
        eta: 0 for the flow, 1 for the SDE ("2M SDE", "3M SDE").
        order: the published name of the solver: 2 for `midpoint`, 3 for `curved`.

    Raises:
        UsageError: for a negative eta, and for another order.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, correction: Correction | None = None, eta: float = 0.0, order: int = 2
    ) -> None:
        super().__init__(denoiser)
        if eta < 0:
            raise UsageError(f"eta={eta}: give 0 for the flow, or a positive number for the SDE, such as 1")
        if order not in (2, 3):
            raise UsageError(f"order={order}: give 2 for DPM-Solver++(2M) or 3 for DPM-Solver++(3M)")
        correction = correction or (midpoint if order == 2 else curved)
        self.correction, self.eta, self.order = correction, eta, 2 if eta == 0 else None

    def advance(
        self, history: History, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        x0 = self.denoiser(x, t, **cond)
        if s == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        push(history, now.lam, x0, 3)
        h = end.lam - now.lam
        decay, kept = (1 + self.eta) * h, math.exp(-self.eta * h) if self.eta else 1.0
        z = normal_like(x, generator) if self.eta else 0.0
        x = end.sigma / now.sigma * kept * x - end.alpha * math.expm1(-decay) * x0
        if len(history) > 1:
            x = x + end.alpha * self.correction(h, decay, history)
        return x + end.sigma * math.sqrt(1 - kept**2) * z


@serializable("continuous.UniPC")
class UniPC(Multistep):
    r"""UniPC with data prediction: predictor and corrector share their outputs (Zhao et al. 2023, algorithms 5 to 8).

    The predictor UniP-p takes x_0 as the polynomial in `lambda = log(alpha / sigma)` through the last p outputs, and
    integrates it exactly against the exponential. The corrector UniC-p does the same through one output more, once x_0
    is known at x_s, where the step from t to s ended; this output is also the next predictor's, so each step costs one
    evaluation. As the paper's conditions are solved exactly, its B(h) drops out. The correction of x_s is added at the
    start of the next step: the difference of corrector and predictor over the last interval. It does not contain x, so
    wrappers that change x between steps, such as `Inpainting`, keep working. The order is p + 1. The first steps of a
    run have fewer outputs and are of lower order, and so are steps so much longer in lambda than those before that the
    polynomial would amplify errors of the outputs more than 15 times (3.7 times for three even steps). The last step,
    to t = 0, returns the estimate of x_0.

    Args:
        denoiser: the denoiser to sample from.
        predictor_order: p, 2 or 3 ("UniPC-2", "UniPC-3").

    Raises:
        UsageError: for another order.
    """

    def __init__(self, denoiser: GaussianDenoiser, predictor_order: int = 3) -> None:
        super().__init__(denoiser)
        if predictor_order not in (2, 3):
            raise UsageError(f"predictor_order={predictor_order}: give 2 or 3")
        self.predictor_order, self.order = predictor_order, predictor_order + 1

    def advance(
        self, history: History, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        x0 = self.denoiser(x, t, **cond)
        if s == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        if history:
            before = history[0][0]
            predicted = stable(history, before, now.lam)
            corrected = [(now.lam, x0), *predicted]
            x = x + now.alpha * (integral(before, now.lam, corrected) - integral(before, now.lam, predicted))
        push(history, now.lam, x0, self.predictor_order)
        if not history:
            return first_order_update(x, x0, now, end)
        return end.sigma / now.sigma * x + end.alpha * integral(now.lam, end.lam, stable(history, now.lam, end.lam))


@serializable("continuous.LMS")
class LMS(Multistep):
    r"""The linear multistep method in sigma~ (Adams-Bashforth): "LMS" of k-diffusion.

    `sigma~ = sigma / alpha`. Epsilon is the polynomial in sigma~ through its last `order` values, integrated exactly.
    The first steps of a run have fewer values and are of lower order. One network evaluation per step; the last step,
    to t = 0, returns the estimate of x_0.

    Args:
        denoiser: the denoiser to sample from.
        order: number of values of epsilon that a step uses, 2 or more.

    Raises:
        UsageError: for an order below 2, and for a schedule that ends at zero SNR.
    """

    order: int

    def __init__(self, denoiser: GaussianDenoiser, order: int = 4) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        if order < 2:
            raise UsageError(f"order={order}: give 2 or more; LMS of order 1 is DDIM")
        self.order = order

    def advance(
        self, history: History, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any
    ) -> Tensor:
        x0, epsilon = clean_and_noise(self.denoiser, x, t, **cond)
        if s == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        push(history, now.sigma_tilde, epsilon, self.order)
        return end.alpha / now.alpha * x + end.alpha * integral(now.sigma_tilde, end.sigma_tilde, history, decay=0.0)


class TimePoint:
    """A time of a schedule with its coefficients as Python numbers, so that a step does not wait for a device.

    Attributes:
        t: the time, float64 on the CPU, where samplers keep times.
        alpha: alpha_t.
        sigma: sigma_t.
        lam: `lambda_t = log(alpha_t / sigma_t)`, half of the log-SNR; -inf at zero SNR.
        sigma_tilde: `sigma_t / alpha_t`.
    """

    def __init__(self, schedule: Schedule, t: Tensor) -> None:
        self.t = exact(t)
        self.alpha, self.sigma = (float(c) for c in schedule(self.t))
        self.lam = float(schedule.log_snr(self.t)) / 2
        self.sigma_tilde = math.exp(-self.lam) if self.lam > -700 else math.inf


def time_point_at(schedule: Schedule, lam: float) -> TimePoint:
    """Returns the time at which `lambda = log(alpha / sigma)` is `lam`, with its coefficients."""
    return TimePoint(schedule, schedule.time(torch.tensor(2 * lam, dtype=torch.float64)))


def first_order_update(x: Tensor, x0: Tensor, now: TimePoint, to: TimePoint) -> Tensor:
    """Returns `(sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) x_0`, the flow with constant x_0: a DDIM step over h."""
    return to.sigma / now.sigma * x - to.alpha * math.expm1(now.lam - to.lam) * x0
