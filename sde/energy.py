"""Energy-based denoisers: the score is the gradient of a log-density that is known up to a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..shared.calling import call_network, one_per_example, refuse_non_tensor, refuse_signature
from ..shared.errors import UsageError
from ..shared.gaussian.change_of_schedule import equal_snr_time, on_schedule, range_of_time_input
from ..shared.gaussian.denoiser import Estimate, GaussianDenoiser
from ..shared.gaussian.prediction import velocity
from ..shared.gaussian.schedule import Schedule, refuse_disorder
from ..shared.gradients import gradients
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, checked_time, exact, like, per_example, refuse_non_float
from ..shared.time_inputs import TimeInput, thousandths


@serializable("sde.Potential", formerly="unnoise.sde.energy.Potential")
class Potential(nn.Module):
    """A scalar network made of any other network: the sum of its outputs for each example, `(B,)`.

    Args:
        inner: the network, `(x, time input (B,), **cond) -> (B, ...)`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.conditions = inner, getattr(inner, "conditions", None)

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        """Returns the sum of the outputs, `(B,)`, for x `(B, ...)` and the time input `(B,)`."""
        return per_example(at_least_float32(refuse_non_tensor(self.inner(x, time, **cond), x)))


@serializable("sde.EnergyDenoiser", formerly="unnoise.sde.energy.EnergyDenoiser", renamed={"label": "time_input"})
class EnergyDenoiser(GaussianDenoiser):
    r"""A denoiser with an energy: `E(y) = ||y||^2 / 2 + (alpha_t / sigma_t) U(y)`, U a scalar network.

    `log q(x_t) = -E(y) - D log c - log Z` with `y = x_t / c`, `c^2 = alpha_t^2 + sigma_t^2` and D numbers an example.
    For data of unit variance y has unit variance at every time and on every schedule: at equal log-SNR the signals of
    two schedules have the same y. From `score = -grad_x E` and Tweedie's formula follows

    `E[x_0 | x_t] = (alpha_t / c) y - (sigma_t / c) grad U(y)`,

    so grad U is the velocity of Salimans & Ho (2022). Its target has unit variance at all times. An error of grad U is
    multiplied by sigma_t / c in x_0 and is never divided by a small number, from the smallest noise to zero SNR, where
    E does not depend on U. U = 0 is the energy of standard normal data. If U grows at most linearly, as a perceptron
    with SiLU does, the square dominates and E is the energy of a density at every time.

    Z may depend on the time: `log_normalizing_constant` estimates it. Every objective of a `GaussianDenoiser` trains
    this one too, at the cost of a second derivative.

    Args:
        network: `(y, time input (B,), **cond) -> U`, `(B,)`, such as `Potential(MLP(2))`.
        schedule: the schedule of training; on another one, the network is evaluated at the time of equal log-SNR.
        time_input: `(schedule, t) -> time input`, the number that the network is fed for a time t of the training
            schedule: 1000 t by default.

    Raises:
        UsageError: for a network that does not take an input and a time; when it is called, for a network that does not
            return one number for each example.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, time_input: TimeInput[Schedule] = thousandths) -> None:
        super().__init__()
        refuse_disorder(schedule)
        refuse_signature(network)
        self.network, self.schedule, self.time_input = network, schedule, time_input
        self.corruption, self.conditions = schedule, getattr(network, "conditions", None)

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        t = exact(checked_time(t))
        return Estimate(*velocity(*self.corruption(t)), self._slope(x_t, t, cond))

    def log_density(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `-E(y) - D log c`, `(B,)`, in nats: the log-density of `x_t` plus `log Z`.

        For x_t `(B, ...)` and t, a scalar or `(B,)`. Z depends on the time only, and is the same on every schedule at
        equal log-SNR.
        """
        t = exact(checked_time(t))
        alpha, sigma = self.corruption(t)
        refuse_non_float(x_t, "x_t")
        c = (alpha**2 + sigma**2).sqrt()
        y = x_t / like(c, x_t)
        u = at_least_float32(self._potential(y, t, cond))
        square = 0.5 * per_example(at_least_float32(y) ** 2)
        return -square - like(alpha / sigma, u) * u - like(x_t[0].numel() * c.log(), u)

    def on(self, schedule: Schedule) -> Self:
        return on_schedule(self, schedule)

    def time_input_range(self) -> Tensor:
        """Returns the time inputs at the smallest training time and at t = 1, `(2,)`."""
        return range_of_time_input(self)

    def _potential(self, y: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        time = one_per_example(self.time_input(self.schedule, equal_snr_time(self, exact(t))), y)
        u = call_network(self, y, time, cond)
        if u.shape != (len(y),):
            raise UsageError(
                f"the network gave {tuple(u.shape)} for {len(y)} examples, and an energy is one number for each, "
                f"({len(y)},): wrap the network as Potential(network)"
            )
        return u

    def _slope(self, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Returns `grad U(y)`, of the shape and dtype of `x_t`; differentiable where gradients are enabled."""
        trained = torch.is_grad_enabled()
        with gradients(x_t, t, cond) as (x, t, cond):
            alpha, sigma = self.corruption(exact(t))
            y = like((alpha**2 + sigma**2).rsqrt(), x) * x
            y = y if y.requires_grad and trained else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(
                self._potential(y, t, cond).sum(), y, create_graph=trained, allow_unused=True, materialize_grads=True
            )
        return slope.to(x_t.dtype)
