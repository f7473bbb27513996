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
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.gaussian.time_points import TimePoint, time_point_at
from ..shared.random import Source, normal_like
from ..shared.sampler import Sampler, Step
from ..shared.serialization import serializable
from ..shared.tensors import weighted_sum
from .history import History, divided_differences, lagrange_weights, nodes_of, phi2, push, stable_weights
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
        if float(s) == 0:
            return self.denoiser(x, t, **cond)
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        _, first = clean_and_noise(self.denoiser, x, t, **cond)
        width = end.alpha * (end.sigma_tilde - now.sigma_tilde)
        euler = weighted_sum((end.alpha / now.alpha, width), (x, first))
        _, second = clean_and_noise(self.denoiser, euler, s, **cond)
        return weighted_sum((end.alpha / now.alpha, width / 2, width / 2), (x, first, second))


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
        if float(s) == 0:
            return self.denoiser(x, t, **cond)
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        h, r1 = end.lam - now.lam, 1 / self.order

        def update(r: float, *epsilons: Tensor, difference: float = 0.0) -> tuple[Tensor, Tensor]:
            """Returns the state at `lambda_t + r h` from epsilon and `difference` times that of two, and its time."""
            to = end if r == 1 else time_point_at(self.corruption, now.lam + r * h)
            growth = math.expm1(r * h)
            slope = (growth / (r * h) - 1) * difference
            weights = (growth - slope, slope) if len(epsilons) == 2 else (growth,)
            return weighted_sum((to.alpha / now.alpha, *(-to.sigma * w for w in weights)), (x, *epsilons)), to.t

        _, e0 = clean_and_noise(self.denoiser, x, t, **cond)
        _, e1 = clean_and_noise(self.denoiser, *update(r1, e0), **cond)
        if self.order == 2:
            return update(1, e1)[0]
        _, e2 = clean_and_noise(self.denoiser, *update(2 / 3, e0, e1, difference=2), **cond)  # r2 / r1 = 2
        return update(1, e0, e2, difference=1.5)[0]  # 1 / r2 = 1.5


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
        if float(s) == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        middle = time_point_at(self.corruption, (now.lam + end.lam) / 2)
        x0_middle = self.denoiser(weighted_sum(now.step_to(middle), (x, x0)), middle.t, **cond)
        return weighted_sum(now.step_to(end), (x, x0_middle))


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


Correction: TypeAlias = Callable[[float, float, Sequence[float]], Sequence[float]]
"""What a `DPMSolverPP` step from t to s adds to the step with constant x_0: `(h, decay, nodes) -> weights`.

`h = lambda_s - lambda_t`, `decay = (1 + eta) h`; the nodes are the lambdas of the last two or three estimates of x_0,
that at t first. What is added is the sum of these estimates with the weights, times alpha_s.
"""


@serializable("continuous.midpoint")
def midpoint(h: float, decay: float, nodes: Sequence[float]) -> Sequence[float]:
    """Returns the weights of `(1 - e^-decay) / 2 h D_1`, D_1 the last slope of x_0 in lambda: DPM-Solver++(2M).

    For the arguments see `Correction`. Lu et al. 2022b, algorithm 2.
    """
    slope, _ = divided_differences(nodes)
    return [-math.expm1(-decay) / 2 * h * d for d in slope]


@serializable("continuous.exponential")
def exponential(h: float, decay: float, nodes: Sequence[float]) -> Sequence[float]:
    """Returns the weights of `(1 - (1 - e^-decay) / decay) h D_1`: "heun" of k-diffusion's SDE solver.

    It integrates D_1, the last slope of x_0 in lambda, exactly. For the arguments see `Correction`.
    """
    slope, _ = divided_differences(nodes)
    return [phi2(decay) * h * d for d in slope]


@serializable("continuous.curved")
def curved(h: float, decay: float, nodes: Sequence[float]) -> Sequence[float]:
    """Returns the weights of a parabola through three estimates: "3M" as published with DPM-Solver++ and k-diffusion.

    The curvature of x_0 in lambda has the published weight, half of that of the exact integral, so the order stays 2;
    `UniPC` takes the exact weight. With two estimates it is `exponential`. For the arguments see `Correction`.
    """
    slope, curvature = divided_differences(nodes)
    if curvature is None:
        return [phi2(decay) * h * d for d in slope]
    of_curvature = phi2(decay) * h * (nodes[0] - nodes[1]) - (phi2(decay) / decay - 0.5) * h**2
    return [phi2(decay) * h * d + of_curvature * dd for d, dd in zip(slope, curvature, strict=True)]


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
        if float(s) == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        push(history, now.lam, x0, 3)
        h = end.lam - now.lam
        decay, kept = (1 + self.eta) * h, math.exp(-self.eta * h) if self.eta else 1.0
        weights = [-math.expm1(-decay)]
        if len(history) > 1:
            corrections = self.correction(h, decay, nodes_of(history))
            weights = [weights[0] + corrections[0], *corrections[1:]]
        outputs = [x0, *(output for _, output in history[1:])][: len(weights)]
        mean = weighted_sum([end.sigma / now.sigma * kept, *(end.alpha * w for w in weights)], [x, *outputs])
        if not self.eta:
            return mean
        return torch.add(mean, normal_like(x, generator), alpha=end.sigma * math.sqrt(1 - kept**2))


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
        if float(s) == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        of_x, of_x0 = now.step_to(end)
        outputs, weights = [x0, *(output for _, output in history)], [0.0] * (1 + len(history))

        def add(factor: float, new: Sequence[float], first: int = 0) -> None:
            for i, weight in enumerate(new, first):
                weights[i] += factor * weight

        if history:
            nodes = nodes_of(history)
            predicted = stable_weights(nodes, nodes[0], now.lam)
            corrected = lagrange_weights((now.lam, *nodes[: len(predicted)]), nodes[0], now.lam)
            add(of_x * now.alpha, corrected)
            add(-of_x * now.alpha, predicted, first=1)
        push(history, now.lam, x0, self.predictor_order)
        if history:
            add(end.alpha, stable_weights(nodes_of(history), now.lam, end.lam))
        else:
            add(of_x0, [1.0])
        return weighted_sum([of_x, *weights], [x, *outputs])


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
        if float(s) == 0:
            return x0
        now, end = TimePoint(self.corruption, t), TimePoint(self.corruption, s)
        push(history, now.sigma_tilde, epsilon, self.order)
        weights = lagrange_weights(nodes_of(history), now.sigma_tilde, end.sigma_tilde, decay=0.0)
        outputs = [output for _, output in history]
        return weighted_sum([end.alpha / now.alpha, *(end.alpha * w for w in weights)], [x, *outputs])
