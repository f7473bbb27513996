"""A denoiser says what x_0 was."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from .corruption import Corruption, Schedule
from .describe import described
from .labels import Label, thousandths
from .prediction import Prediction, noise
from .tensors import exact, like


class Denoiser(nn.Module, ABC):
    """`E[x_0 | x_t]` for Gaussian corruptions, `log p(x_0 | x_t)` over K classes for categorical ones.

    Attributes:
        corruption: the process that made x_t.
    """

    corruption: Corruption

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`x_t`: `(B, ...)`; `t`: a scalar or `(B,)`; conditions by name, untouched."""


class GaussianDenoiser(Denoiser):
    """`E[x_0 | x_t]`, of the shape of `x_t`."""

    corruption: Schedule

    @abstractmethod
    def score(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""`grad log q(x_t) = (alpha_t E[x_0 | x_t] - x_t) / sigma_t^2`, of the shape of `x_t`."""

    @abstractmethod
    def on(self, schedule: Schedule) -> GaussianDenoiser:
        """The same denoiser, weights shared, for signals that `schedule` has corrupted."""


@described
class Learned(GaussianDenoiser):
    r"""A network as a denoiser: `x_0 = c_skip x_t + c_out F`, F the network at `(c_in x_t, label)`.

    `c_in = 1 / sqrt(alpha_t^2 + sigma_t^2)` is 1 for variance-preserving schedules. Under a schedule other than its home, the network is
    asked at the home time of equal log-SNR, so a network trained as a DDPM runs under a VP or VE SDE and the other way round.

    Args:
        network: `(x, time label (B,), **cond) -> F`, of the shape of x.
        schedule: the home schedule, that of training.
        predicts: what F is.
        label: the number that the network is fed for a time of the home schedule.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, predicts: Prediction = noise, label: Label = thousandths) -> None:
        super().__init__()
        self.network, self.schedule, self.predicts, self.label = network, schedule, predicts, label
        self.corruption = schedule

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        c_skip, c_out = self.predicts(*self.corruption(exact(t)))
        return like(c_skip, x_t) * x_t + like(c_out, x_t) * self.raw(x_t, t, **cond)

    def score(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = self.corruption(exact(t))
        c_skip, c_out = self.predicts(alpha, sigma)
        # The coefficients are combined before they meet x_t: near t = 0 the difference alpha x_0 - x_t would have no digits left.
        of_x, of_out = (alpha * c_skip - 1) / sigma**2, alpha * c_out / sigma**2
        return like(of_x, x_t) * x_t + like(of_out, x_t) * self.raw(x_t, t, **cond)

    def raw(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """F, the network's own output at the home time of equal log-SNR, in the dtype of `x_t`."""
        t = exact(t)
        home = t if self.corruption is self.schedule else self.schedule.time(self.corruption.log_snr(t))
        alpha, sigma = self.corruption(t)
        scaled = like((alpha**2 + sigma**2).rsqrt(), x_t) * x_t
        return self.network(scaled, on_every_row(self.label(self.schedule, home), x_t), **cond).to(x_t.dtype)

    def on(self, schedule: Schedule) -> Learned:
        other = copy.copy(self)
        other.corruption = schedule
        return other


class Clipped(GaussianDenoiser):
    """The denoiser's estimate clamped to the range of the data, as Ho et al. (2020) do when sampling and when coding."""

    def __init__(self, denoiser: GaussianDenoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.denoiser, self.low, self.high = denoiser, low, high
        self.corruption = denoiser.corruption

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x_t, t, **cond).clamp(self.low, self.high)

    def score(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return tweedie(self, x_t, t, **cond)

    def on(self, schedule: Schedule) -> Clipped:
        return Clipped(self.denoiser.on(schedule), self.low, self.high)


def tweedie(denoiser: GaussianDenoiser, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
    """The score that follows from a denoiser's mean (Tweedie's formula)."""
    alpha, sigma = (like(c, x_t) for c in denoiser.corruption(exact(t)))
    return (alpha * denoiser(x_t, t, **cond) - x_t) / sigma**2


def on_every_row(v: Tensor, x: Tensor) -> Tensor:
    """`v`, scalar or `(B,)`, as float32 `(B,)` on the device of `x`, without waiting for an accelerator."""
    if v.ndim == 0 and v.device.type == "cpu":
        return torch.full((len(x),), float(v), device=x.device)
    return v.float().to(x.device).expand(len(x))
