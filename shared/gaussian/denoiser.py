"""Gaussian denoisers: estimates of E[x_0 | x_t]."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..calling import ask, refuse_signature
from ..denoiser import Denoiser, on_every_row
from ..errors import UsageError
from ..random import Source
from ..serialization import serializable
from ..tensors import at_least_float32, exact, like, moment, refuse_unreal
from ..time_inputs import TimeInput, thousandths
from .prediction import Prediction, noise
from .schedule import Schedule

ZERO, ONE = torch.tensor([0.0, 1.0], dtype=torch.float64).unbind()


class Estimate(NamedTuple):
    """`E[x_0 | x_t] = a x_t + b out`.

    A denoiser that is such a combination keeps a and b apart, so that further combinations with x_t (the score, the
    noise, a velocity) add up the coefficients first: near t = 0 they are large, and little is left of their difference.

    Attributes:
        a, b: float64, scalar or `(B,)`.
        out: of the shape of x_t.
        variance_output: what the network gives for the reverse variance, of the shape of x_t; None without such an
            output.
    """

    a: Tensor
    b: Tensor
    out: Tensor
    variance_output: Tensor | None = None

    @classmethod
    def of_mean(cls, mean: Tensor, variance_output: Tensor | None = None) -> Estimate:
        """The estimate of a denoiser that gives the mean itself."""
        return cls(ZERO, ONE, mean, variance_output)

    def mean(self, x_t: Tensor) -> Tensor:
        """Returns `E[x_0 | x_t]`, of the shape of x_t."""
        return self.out if self.a is ZERO and self.b is ONE else self.combined(x_t, 0.0, 1.0)

    def combined(self, x_t: Tensor, of_x: Tensor | float, of_clean: Tensor | float) -> Tensor:
        """Returns `of_x x_t + of_clean E[x_0 | x_t]`, of the shape of x_t; the two are numbers, or float64 `(B,)`."""
        return like(of_x + of_clean * self.a, x_t) * x_t + like(of_clean * self.b, x_t) * self.out


class GaussianDenoiser(Denoiser[Schedule]):
    """`E[x_0 | x_t]` under a Gaussian corruption. One method must be written: `estimate`.

    Attributes:
        corruption: the schedule that made x_t.
        has_variance_output: whether estimates come with a variance output, which learned reverse variances read.
    """

    corruption: Schedule
    has_variance_output: bool = False

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        """Returns the estimate of x_0 from x_t.

        Args:
            x_t: `(B, ...)`.
            t: a scalar or `(B,)`.
            cond: conditions, by name.
        """

    def on(self, schedule: Schedule) -> Self:
        """Returns the same denoiser, weights shared, for signals that `schedule` has corrupted."""
        other = copy.copy(self)
        other.corruption = schedule
        return other

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `E[x_0 | x_t]`, of the shape of `x_t`."""
        return self.estimate(x_t, t, **cond).mean(x_t)

    def score(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""Returns `grad log q(x_t) = (alpha_t E[x_0 | x_t] - x_t) / sigma_t^2`, of the shape of `x_t` (Tweedie's
        formula).
        """
        t = exact(moment(t))
        alpha, sigma = self.corruption(t)
        return self.estimate(x_t, t, **cond).combined(x_t, -torch.ones_like(alpha), alpha) / like(sigma**2, x_t)

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns noise of standard deviation sigma_t, from x of sigma_1: the start of a grid whose first time is t."""
        (_, sigma_t), (_, sigma_1) = self.corruption(exact(t)), self.corruption(torch.ones_like(exact(t)))
        return x if t == 1 else like(sigma_t / sigma_1, x) * x


class OfNetwork(Protocol):
    """What asks a network at a time.

    Its current schedule, the one of training, and what the network is fed for a time of the latter.
    """

    corruption: Schedule
    schedule: Schedule
    time_input: TimeInput


def home_time(denoiser: OfNetwork, t: Tensor) -> Tensor:
    """Returns the time of the training schedule whose log-SNR is that of t on the current one."""
    return t if denoiser.corruption is denoiser.schedule else denoiser.schedule.time(denoiser.corruption.log_snr(t))


def ends_of_time_input(denoiser: OfNetwork) -> Tensor:
    """Returns what the network is fed for the least noisy and for the noisiest time, `(2,)`."""
    return denoiser.time_input(denoiser.schedule, torch.tensor([denoiser.schedule.t_min, 1.0], dtype=torch.float64))


def placed(denoiser: OfNetwork, schedule: Schedule) -> Any:
    """Returns a copy of the denoiser on another schedule, weights shared.

    The training schedule itself where they are equal.
    """
    other = copy.copy(denoiser)
    other.corruption = denoiser.schedule if schedule == denoiser.schedule else schedule
    return other


@serializable("gaussian.Learned", formerly="unnoise.shared.denoiser.Learned", renamed={"label": "time_input"})
class Learned(GaussianDenoiser):
    r"""A network as a denoiser: `x_0 = c_skip x_t + c_out F`, with F the network at `(c_in x_t, time input)`.

    `c_in = 1 / sqrt(alpha_t^2 sigma_data^2 + sigma_t^2)` is 1 for variance-preserving schedules and sigma_data = 1.
    Under a schedule other than that of training, the network is asked at the training time of equal log-SNR, so a
    network that was trained as a DDPM runs under a VP or VE SDE, and the other way round.

    The network is fed `c_in x_t` and real conditions in the precision of its first parameter, whatever that of x_t, in
    which F comes back. The time input is float32 `(B,)`: 1000 t by default, which on a table of T = 1000 steps is 1 to
    1000. Networks that count steps from 0, as diffusers' and an `nn.Embedding(1000)` do, need `time_input=step_index`,
      and for other T `thousandth_index`. It is a float: index
    with `time.round().long()`.

    Args:
        network: `(x, time input (B,), **cond) -> F`, of the shape of x; one whose attribute `outputs` is 2 gives twice
            the channels, F and then the variance output.
        schedule: the schedule of training.
        predicts: what F is.
        time_input: the number that the network is fed for a time of the training schedule.
        sigma_data: standard deviation of the data, for c_in; None for that of the prediction, 1 where it has none.
        scaled: False for c_in = 1 under the training schedule, as Song et al.'s (2021) networks take x_t.

    Raises:
        UsageError: where x_0 cannot be computed from F at some time, such as noise prediction under a schedule that
            ends at zero SNR; and when it is called, for conditions, times and outputs of the network that do not fit
            (see `calling.ask`).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        predicts: Prediction = noise,
        time_input: TimeInput = thousandths,
        sigma_data: float | None = None,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise UsageError(f"schedule={type(schedule).__name__}: give Learned(network, schedule), in this order")
        refuse_signature(network)
        own = getattr(predicts, "sigma_data", None)
        sigma_data = own or 1.0 if sigma_data is None else sigma_data
        if not sigma_data > 0 or sigma_data != (own or sigma_data):
            raise UsageError(
                f"sigma_data={sigma_data}, and {own} of the prediction: give one standard deviation of the data, such as 0.5"
            )
        self.network, self.schedule, self.predicts, self.time_input = network, schedule, predicts, time_input
        self.sigma_data, self.scaled, self.corruption = sigma_data, scaled, schedule
        self.has_variance_output, self.conditions = (
            getattr(network, "outputs", 1) == 2,
            getattr(network, "conditions", None),
        )
        refuse_singular(predicts, schedule)

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        t = exact(moment(t))
        if refuse_unreal(x_t, "x_t").ndim < 2:
            raise UsageError(f"x_t of shape {tuple(x_t.shape)}: give signals (B, C, ...), or vectors (B, d)")
        home = home_time(self, t)
        time = on_every_row(self.time_input(self.schedule, home), x_t)
        out = ask(self, like(self._c_in(t, home), x_t) * x_t, time, cond).to(x_t.dtype)
        out, variance_output = self._split(out, x_t)
        return Estimate(*self.predicts(*self.corruption(t)), out, variance_output)

    def time_inputs(self) -> Tensor:
        """Returns what the network is fed for the least noisy and for the noisiest time, `(2,)`."""
        return ends_of_time_input(self)

    def on(self, schedule: Schedule) -> Self:
        refuse_singular(self.predicts, schedule)
        return placed(self, schedule)

    def _c_in(self, t: Tensor, home: Tensor) -> Tensor:
        """c_in at time t, times what brings x_t to the scale that it has at the training time of equal log-SNR."""
        alpha, sigma = self.corruption(t)
        if self.scaled:  # the same for all schedules
            return (alpha**2 * self.sigma_data**2 + sigma**2).rsqrt()
        return torch.hypot(*self.schedule(home)) / torch.hypot(alpha, sigma)

    def _split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """F and the variance output."""
        channels = x_t.shape[1]
        read = channels * (1 + self.has_variance_output)
        if out.shape == (len(x_t), read, *x_t.shape[2:]):
            return (out[:, :channels], out[:, channels:]) if self.has_variance_output else (out, None)
        if out.ndim == x_t.ndim and out.shape[2:] == x_t.shape[2:] and len(out) == len(x_t):
            raise UsageError(
                f"the network gave {out.shape[1]} channels for {channels}: {read} are read, "
                "twice the channels from networks whose attribute `outputs` is 2"
            )
        raise UsageError(
            f"the network gave {tuple(out.shape)} for x_t {tuple(x_t.shape)}: give one number for each of its own, "
            f"{(len(x_t), read, *x_t.shape[2:])}"
        )


class DenoiserWrapper(GaussianDenoiser):
    """A denoiser around another one: forwards what it does not change. Subclasses override `estimate`.

    Args:
        denoiser: the inner one.
    """

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__()
        if not isinstance(denoiser, GaussianDenoiser):
            raise UsageError(
                f"{type(self).__name__} takes a Gaussian denoiser, not {type(denoiser).__name__}: give the denoiser first; for categorical "
                "ones look in unnoise.discrete"
            )
        self.denoiser = denoiser

    @property
    def corruption(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.corruption

    @property
    def conditions(self) -> tuple[str, ...] | None:
        """The inner denoiser's conditions."""
        return self.denoiser.conditions

    @property
    def has_variance_output(self) -> bool:
        """Whether the inner denoiser has a variance output."""
        return self.denoiser.has_variance_output

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        return self.denoiser.estimate(x_t, t, **cond)

    def on(self, schedule: Schedule) -> Self:
        other = copy.copy(self)
        other._modules = {**self._modules, "denoiser": self.denoiser.on(schedule)}
        return other


@serializable("gaussian.Clipped", formerly="unnoise.shared.denoiser.Clipped")
class Clipped(DenoiserWrapper):
    """Clamps the estimate to the range of the data, as Ho et al. (2020) do when sampling and when coding."""

    def __init__(self, denoiser: GaussianDenoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(denoiser)
        self.low, self.high = low, high

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        inner = self.denoiser.estimate(x_t, t, **cond)
        return Estimate.of_mean(inner.mean(x_t).clamp(self.low, self.high), inner.variance_output)


@serializable("gaussian.Thresholded", formerly="unnoise.shared.denoiser.Thresholded")
class Thresholded(DenoiserWrapper):
    r"""Dynamic thresholding: each estimate of x_0 is clamped to [-m, m] and divided by m (Saharia et al. 2022, section
    2.3).

    m is the quantile p of `|x_0|` of the example, at least 1: under strong guidance x_0 leaves the range of the data,
    and clamping alone saturates it.

    Args:
        denoiser: of data in [-1, 1].
        p: the quantile; 0.995 for Imagen and DPM-Solver++.
    """

    def __init__(self, denoiser: GaussianDenoiser, p: float = 0.995) -> None:
        super().__init__(denoiser)
        if not 0 < p <= 1:
            raise UsageError(f"p={p}: give the quantile of |x_0| to keep, above 0 and up to 1, such as 0.995")
        self.p = p

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        inner = self.denoiser.estimate(x_t, t, **cond)
        x0 = inner.mean(x_t)
        m = like(at_least_float32(x0).flatten(1).abs().quantile(self.p, dim=1).clamp(min=1.0), x0)
        return Estimate.of_mean(x0.clamp(-m, m) / m, inner.variance_output)


def refuse_singular(predicts: Prediction, schedule: Schedule) -> None:
    """Refuses a prediction from which x_0 cannot be computed at t = 1.

    Raises:
        UsageError: with what to do.
    """
    if not all(bool(torch.isfinite(c)) for c in predicts(*schedule(torch.ones((), dtype=torch.float64)))):
        name = getattr(predicts, "__name__", type(predicts).__name__)
        raise UsageError(
            f"the schedule ends at zero SNR, where x_1 is pure noise and {name} prediction does not determine x_0: "
            "predict velocity, clean or straight, or take a schedule that ends before, with a last beta below 1 or Straight(end=0.999)"
        )
