"""Gaussian denoisers, which estimate E[x_0 | x_t]: by a network, or around another denoiser."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..calling import call_network, one_per_example, refuse_signature
from ..denoiser import Denoiser
from ..errors import UsageError
from ..grid_values import on_grid
from ..random import Source
from ..serialization import serializable
from ..tensors import at_least_float32, checked_time, exact, factor, like, refuse_non_float, weighted_sum
from ..time_inputs import TimeInput, thousandths
from .change_of_schedule import equal_snr_time, on_schedule, range_of_time_input, with_modules_on
from .prediction import Prediction, noise, refuse_uncallable
from .schedule import Schedule, refuse_disorder


class Estimate(NamedTuple):
    """The estimate of a Gaussian denoiser as a combination `E[x_0 | x_t] = a x_t + b out`.

    For a network with output F, `out = F`, and a and b are c_skip and c_out of its prediction. The coefficients are
    kept apart so that further combinations with x_t (the score, the noise, a velocity) add them in float64: near t = 0
    they are large and nearly cancel.

    Attributes:
        a, b: the coefficients: numbers, or float64 tensors, scalar or `(B,)`.
        out: the network's output, or the mean where a = 0 and b = 1, of the shape of x_t.
        variance_output: the network's output for the reverse variance, of the shape of x_t; None for a network without
            one. Fixed variances ignore it.
    """

    a: Tensor | float
    b: Tensor | float
    out: Tensor
    variance_output: Tensor | None = None

    @classmethod
    def of_mean(cls, mean: Tensor, variance_output: Tensor | None = None) -> Estimate:
        """Returns the estimate of a denoiser that computes the mean itself: a = 0, b = 1."""
        return cls(0.0, 1.0, mean, variance_output)

    def mean(self, x_t: Tensor) -> Tensor:
        """Returns `E[x_0 | x_t]`, of the shape of x_t."""
        is_mean = not isinstance(self.a, Tensor) and self.a == 0 and self.b == 1
        return self.out if is_mean else weighted_sum((self.a, self.b), (x_t, self.out))

    def combined(self, x_t: Tensor, of_x: Tensor | float, of_clean: Tensor | float) -> Tensor:
        """Returns `of_x x_t + of_clean E[x_0 | x_t]`, of the shape of x_t.

        Args:
            x_t: `(B, ...)`.
            of_x, of_clean: the coefficients, numbers or float64 tensors, scalar or `(B,)`.
        """
        return weighted_sum((of_x + of_clean * self.a, of_clean * self.b), (x_t, self.out))

    def score(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Returns the score `(alpha_t E[x_0 | x_t] - x_t) / sigma_t^2`, of the shape of x_t.

        For noise prediction `alpha_t a - 1` is 0, so it is computed before the division by sigma_t^2.

        Args:
            x_t: `(B, ...)`.
            alpha, sigma: alpha_t and sigma_t, numbers or float64 tensors, scalar or `(B,)`.
        """
        return weighted_sum(((alpha * self.a - 1) / sigma**2, alpha * self.b / sigma**2), (x_t, self.out))


class GaussianDenoiser(Denoiser[Schedule]):
    """Estimates `E[x_0 | x_t]` under a Gaussian corruption. Subclasses define one method, `estimate`.

    Called with x_t `(B, ...)`, a time t, a scalar or `(B,)`, and conditions by name; returns `E[x_0 | x_t]`. The
    corruption is `x_t = alpha_t x_0 + sigma_t epsilon`, with standard normal noise epsilon.

    Attributes:
        corruption: the schedule that made x_t.
        has_variance_output: whether estimates have a variance output, from which reverse variances are computed.
    """

    corruption: Schedule
    has_variance_output: bool = False

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        """Returns the estimate: coefficients, network output and variance output. The mean alone is `denoiser(x_t, t)`.

        Args:
            x_t: `(B, ...)`.
            t: a scalar or `(B,)`, in [0, 1].
            cond: conditions, by name, with a row for each example.
        """

    def on(self, schedule: Schedule) -> Self:
        """Returns a copy of the denoiser with the same weights, for signals corrupted by `schedule`.

        Modules in its attributes that have a method `on`, such as inner denoisers and classifiers of noisy data, are
        put on the schedule too, also in an `nn.ModuleList` or `nn.ModuleDict`. The denoiser itself does not change.
        """
        other = with_modules_on(self, schedule)
        own = getattr(type(self), "corruption", None)
        if not isinstance(own, property) or own.fset is not None:  # else computed, from an inner denoiser
            other.corruption = schedule
        return other

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `E[x_0 | x_t]`, of the shape of `x_t`."""
        return self.estimate(x_t, t, **cond).mean(x_t)

    def score(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""Returns the score `grad log q(x_t)`, of the shape of `x_t`.

        By Tweedie's formula it is `(alpha_t E[x_0 | x_t] - x_t) / sigma_t^2`.
        """
        return self.estimate(x_t, t, **cond).score(x_t, *on_grid(alpha_and_sigma, self.corruption, t))

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns `(sigma_t / sigma_1) x`, the start of a grid whose first time is t.

        x `(B, ...)` is a draw of the prior `N(0, sigma_1^2 I)`, and t a scalar; at t = 1 the result is x.
        """
        (_, sigma_t), (_, sigma_1) = self.corruption(exact(t)), self.corruption(torch.ones_like(exact(t)))
        return x if t == 1 else like(sigma_t / sigma_1, x) * x


@serializable("gaussian.Learned", formerly="unnoise.shared.denoiser.Learned", renamed={"label": "time_input"})
class Learned(GaussianDenoiser):
    r"""A denoiser with a network: `x_0 = c_skip x_t + c_out F`, with F the network at `(c_in x_t, time input)`.

    `c_in = 1 / sqrt(alpha_t^2 sigma_data^2 + sigma_t^2)` is 1 for variance-preserving schedules and sigma_data = 1.
    Under a schedule other than that of training, the network is evaluated at the training time of equal log-SNR. A
    network that was trained as a DDPM can thus be used with a VP or VE SDE, and vice versa.

    `c_in x_t` and floating-point conditions are cast to the dtype of the network's first parameter, and F is cast to
    that of x_t. The time input is float32 `(B,)`: 1000 t by default, which is 1 to 1000 on a table of T = 1000 steps.
    Networks that count steps from 0, such as those of diffusers or with an `nn.Embedding(1000)`, need
    `time_input=step_index`, or `thousandth_index` for other T. To look up a row, use `time.round().long()`.

    Args:
        network: `(x, time input (B,), **cond) -> F`, of the shape of x. A network with the attribute `outputs = 2`
            returns twice the channels: F, then the variance output.
        schedule: the schedule of training, which defines alpha_t and sigma_t.
        predicts: the prediction, a function `(alpha_t, sigma_t) -> (c_skip, c_out)`: it defines what F stands for.
        time_input: `(schedule, t) -> time input`, for times of the training schedule.
        sigma_data: standard deviation of the data, for c_in; None for that of the prediction, if it defines one,
            else 1.
        scaled: False for c_in = 1 under the training schedule, as for Song et al.'s (2021) networks.

    Raises:
        UsageError: if x_0 cannot be computed from F at some time, as with noise prediction under a schedule that ends
            at zero SNR. When called, for conditions, times and network outputs that do not fit (see
            `calling.call_network`).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        predicts: Prediction = noise,
        time_input: TimeInput[Schedule] = thousandths,
        sigma_data: float | None = None,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            found = f"the class {schedule.__name__}" if isinstance(schedule, type) else f"a {type(schedule).__name__}"
            raise UsageError(f"schedule is {found}: give Learned(network, schedule), in this order, such as VP()")
        refuse_uncallable(predicts)
        if not callable(time_input):
            raise UsageError(f"time_input={time_input!r}: give the function itself, such as thousandths or quarter_log")
        refuse_signature(network)
        refuse_disorder(schedule)
        own: float | None = getattr(predicts, "sigma_data", None)
        if sigma_data is None:
            sigma_data = own or 1.0
        if not sigma_data > 0:
            raise UsageError(f"sigma_data={sigma_data}: give the standard deviation of the data, such as 0.5")
        if sigma_data != (own or sigma_data):
            raise UsageError(f"sigma_data={sigma_data}, but the prediction has {own}: give both the same")
        self.network, self.schedule, self.predicts, self.time_input = network, schedule, predicts, time_input
        self.sigma_data, self.scaled, self.corruption = sigma_data, scaled, schedule
        self.has_variance_output = getattr(network, "outputs", 1) == 2
        self.conditions = getattr(network, "conditions", None)
        refuse_singular(predicts, schedule)

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        if not isinstance(x_t, Tensor) or not x_t.is_floating_point() or x_t.ndim < 2:
            shape = tuple(refuse_non_float(x_t, "x_t").shape)
            raise UsageError(f"x_t of shape {shape}: give signals (B, C, ...), or vectors (B, d)")
        time, c_in, c_skip, c_out = on_grid(Learned.coefficients, self, t)
        time = one_per_example(time, x_t)
        same = not isinstance(c_in, Tensor) and abs(c_in - 1) < 1e-15  # as on a variance-preserving schedule
        x_in = x_t if same else factor(c_in, x_t) * x_t
        out, variance_output = call_network(self, x_in, time, cond).to(x_t.dtype), None
        if self.has_variance_output or out.shape != x_t.shape:
            out, variance_output = self._split(out, x_t)
        return Estimate(c_skip, c_out, out, variance_output)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the time input, c_in, c_skip and c_out at t, float64, of the shape of t."""
        t = exact(checked_time(t))
        trained = t if self.corruption is self.schedule else equal_snr_time(self, t)
        alpha, sigma = self.corruption(t)
        if self.scaled:
            c_in = (alpha**2 * self.sigma_data**2 + sigma**2).rsqrt()
        else:
            c_in = self._rescaling(trained, alpha, sigma)
        return self.time_input(self.schedule, trained), c_in, *self.predicts(alpha, sigma)

    def time_input_range(self) -> Tensor:
        """Returns the time inputs at the smallest training time and at t = 1, `(2,)`."""
        return range_of_time_input(self)

    def on(self, schedule: Schedule) -> Self:
        other = on_schedule(self, schedule)
        refuse_singular(self.predicts, schedule)
        return other

    def _rescaling(self, trained: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the factor from x_t to the scale of the training schedule, at the training time of equal log-SNR."""
        return torch.hypot(*self.schedule(trained)) / torch.hypot(alpha, sigma)

    def _split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns F and the variance output, from a network's output of the right shape."""
        channels = x_t.shape[1]
        read = channels * (1 + self.has_variance_output)
        if out.shape == (len(x_t), read, *x_t.shape[2:]):
            return (out[:, :channels], out[:, channels:]) if self.has_variance_output else (out, None)
        if out.ndim == x_t.ndim and out.shape[2:] == x_t.shape[2:] and len(out) == len(x_t):
            raise UsageError(
                f"the network returned {out.shape[1]} channels for x_t {tuple(x_t.shape)}, but {read} are expected: "
                "twice the channels from a network with the attribute outputs = 2, else as many"
            )
        raise UsageError(
            f"the network returned shape {tuple(out.shape)} for x_t {tuple(x_t.shape)}: "
            f"make it return {(len(x_t), read, *x_t.shape[2:])}"
        )


class DenoiserWrapper(GaussianDenoiser):
    """The base class of denoisers around another one. Subclasses override `estimate`.

    It forwards the inner denoiser's `corruption`, `conditions`, `has_variance_output` and `sigma_data`.

    Args:
        denoiser: the inner denoiser.
    """

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__()
        if not isinstance(denoiser, GaussianDenoiser):
            raise UsageError(
                f"the denoiser of {type(self).__name__} is a {type(denoiser).__name__}: give a Gaussian denoiser as "
                "first argument; for categorical denoisers see unnoise.discrete"
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

    @property
    def sigma_data(self) -> float | None:
        """The inner denoiser's standard deviation of the data; None if it does not define one."""
        return getattr(self.denoiser, "sigma_data", None)

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        return self.denoiser.estimate(x_t, t, **cond)


@serializable("gaussian.Clipped", formerly="unnoise.shared.denoiser.Clipped")
class Clipped(DenoiserWrapper):
    """Clamps the estimate to the range of the data, as Ho et al. (2020) do for sampling and for likelihood bounds.

    Args:
        denoiser: the inner denoiser.
        low, high: the ends of the range of the data.

    Raises:
        UsageError: unless low < high.
    """

    def __init__(self, denoiser: GaussianDenoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(denoiser)
        if not low < high:
            raise UsageError(f"low={low}, high={high}: give the ends of the range of the data, such as -1 and 1")
        self.low, self.high = low, high

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        inner = self.denoiser.estimate(x_t, t, **cond)
        return Estimate.of_mean(inner.mean(x_t).clamp(self.low, self.high), inner.variance_output)


@serializable("gaussian.Thresholded", formerly="unnoise.shared.denoiser.Thresholded")
class Thresholded(DenoiserWrapper):
    r"""Clamps each estimate of x_0 to [-m, m] and divides it by m: dynamic thresholding.

    Saharia et al. 2022, section 2.3. m is the quantile p of `|x_0|` of the example, at least 1. Under strong guidance
    the estimate leaves the range of the data, and clamping alone would saturate it.

    Args:
        denoiser: the inner denoiser, of data in [-1, 1].
        p: the quantile; 0.995 for Imagen and DPM-Solver++.
    """

    def __init__(self, denoiser: GaussianDenoiser, p: float = 0.995) -> None:
        super().__init__(denoiser)
        if not 0 < p <= 1:
            raise UsageError(f"p={p}: give the quantile of |x_0| to clamp at, above 0 and up to 1, such as 0.995")
        self.p = p

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        inner = self.denoiser.estimate(x_t, t, **cond)
        x0 = inner.mean(x_t)
        m = like(at_least_float32(x0).flatten(1).abs().quantile(self.p, dim=1).clamp(min=1.0), x0)
        return Estimate.of_mean(x0.clamp(-m, m) / m, inner.variance_output)


def alpha_and_sigma(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns alpha_t and sigma_t, float64, of the shape of t."""
    return schedule(exact(checked_time(t)))


LARGEST = 1e6
"""c_skip and c_out above it amplify the rounding of x_t in float32 to the size of the data."""


def refuse_singular(predicts: Prediction, schedule: Schedule) -> None:
    """Raises for a prediction from which x_0 cannot be computed at t = 1, where alpha may be 0.

    Raises:
        UsageError: if c_skip or c_out is not finite there, or so large that rounding of x_1 decides, as for noise
            prediction at zero SNR.
    """
    if not all(bool(c.abs() < LARGEST) for c in predicts(*schedule(torch.ones((), dtype=torch.float64)))):
        name = getattr(predicts, "__name__", type(predicts).__name__)
        raise UsageError(
            f"the schedule ends at zero SNR, where x_1 is pure noise and {name} prediction does not determine x_0: "
            "give predicts=velocity, clean or straight, or a schedule that ends at positive SNR, such as one with a "
            "last beta below 1 or Straight(end=0.999)"
        )
