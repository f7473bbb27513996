"""The probability flow: an ordinary differential equation with the marginals of the SDE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from ..shared.denoiser import GaussianDenoiser
from ..shared.errors import UsageError
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.tensors import exact
from .sde import SDE

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "bosh3": 3, "adaptive_heun": 2, "dopri5": 5, "dopri8": 8}
ADAPTIVE = ("bosh3", "adaptive_heun", "dopri5", "dopri8")


class ProbabilityFlow(Sampler):
    r"""`dx/dt = f x - g^2 score / 2` (Song et al. 2021, eq. 13) from t down to s by a method of torchdiffeq; the last step denoises.

    With a fixed-step method one step of the sampler is one step of the method. With an adaptive one a step is as many as the
    tolerances ask for: `steps=2` integrates from 1 to the schedule's t_last in one go and then denoises. Count evaluations with
    `shared.sampler.counted`.

    Args:
        denoiser: gives the score.
        method: fixed: `euler`, `midpoint`, `heun2`, `heun3`, `rk4`; adaptive: `dopri5` (RK45), `bosh3`, `adaptive_heun`, `dopri8`.
        rtol, atol: tolerances of adaptive methods.

    Raises:
        UsageError: for an unknown method, or one whose steps would have to become too small.
    """

    def __init__(self, denoiser: GaussianDenoiser, method: str = "heun2", rtol: float = 1e-5, atol: float = 1e-5) -> None:
        super().__init__(denoiser)
        if method not in ORDERS:
            raise UsageError(f"method={method}: choose from {', '.join(ORDERS)}")
        self.sde, self.method, self.rtol, self.atol, self.order = SDE(denoiser.corruption), method, rtol, atol, ORDERS[method]

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`dx/dt`, of the shape of x."""
        return self.sde.reverse_drift(x, t, self.denoiser.score(x, t, **cond), eta=0.0)

    def step(self, x: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        if s == 0:
            return self.denoiser(x, t, **cond)
        times = exact(torch.stack([t, s]))
        return solve(lambda t, x: self.velocity(x, t, **cond), x, times, self.method, self.rtol, self.atol)[-1]


def solve(velocity: Any, state: Any, times: Tensor, method: str, rtol: float, atol: float) -> Any:
    """`odeint`, with its assertion about vanishing steps as a `UsageError` that says what to change."""
    first = state[0] if isinstance(state, tuple) else state
    times = times.to(first.device)
    # Left alone, adaptive methods step over the end and interpolate back; beyond the end lie times below 0, where no schedule is defined.
    options = {"step_t": times[1:]} if method in ADAPTIVE else None
    try:
        return odeint(velocity, state, times, method=method, rtol=rtol, atol=atol, options=options)
    except AssertionError as error:
        raise UsageError(f"{method} cannot meet rtol={rtol}, atol={atol} ({error}): loosen them, or look for NaN in the score") from error
