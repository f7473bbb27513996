"""A denoiser says what x_0 was."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .calling import ask, refuse_signature
from .corruption import Corruption, Schedule
from .describe import described
from .errors import UsageError
from .labels import Label, thousandths
from .prediction import Prediction, noise
from .random import Source
from .tensors import at_least_float32, exact, like, moment, refuse_unreal


class Denoiser(nn.Module, ABC):
    """`E[x_0 | x_t]` for Gaussian corruptions, `log p(x_0 | x_t)` over K classes for categorical ones.

    Attributes:
        corruption: the process that made x_t.
        conditions: names of the conditions that it takes; None where its network does not say.
    """

    corruption: Corruption
    conditions: tuple[str, ...] | None = None

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """`x_t`: `(B, ...)`; `t`: a scalar or `(B,)`; conditions by name, untouched."""

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """The state that sampling starts from at t, `(B, ...)`, from a draw x of the corruption's prior: x itself,
        unless the process leaves something over at t that the prior leaves out.
        """
        return x


ZERO, ONE = torch.tensor([0.0, 1.0], dtype=torch.float64).unbind()


class Parts(NamedTuple):
    """`E[x_0 | x_t] = of_x x_t + of_out out`: coefficients float64, scalar or `(B,)`; `out` of the shape of x_t."""

    of_x: Tensor
    of_out: Tensor
    out: Tensor


class GaussianDenoiser(Denoiser):
    """`E[x_0 | x_t]`, of the shape of `x_t`.

    Attributes:
        spread: whether `with_spread` says something of the reverse variance.
    """

    corruption: Schedule
    spread: bool = False

    def parts(self, x_t: Tensor, t: Tensor, **cond: Any) -> Parts:
        """`E[x_0 | x_t] = of_x x_t + of_out out`, for what combines it with x_t; the mean itself unless a denoiser has more to say.

        Near t = 0 the coefficients of such combinations are large, and what they leave of each other is small: a denoiser that is itself a
        combination with x_t names its coefficients, so that they are added up before they meet x_t.
        """
        return Parts(ZERO, ONE, self(x_t, t, **cond))

    def combined(self, x_t: Tensor, t: Tensor, of_x: Tensor | float, of_clean: Tensor | float, **cond: Any) -> Tensor:
        """`of_x x_t + of_clean E[x_0 | x_t]`, of the shape of `x_t`: the score, the noise and the flow's velocity are of this form.

        Args:
            x_t, t, cond: as `forward`.
            of_x, of_clean: numbers, or float64 `(B,)`.
        """
        own, of_out, out = self.parts(x_t, t, **cond)
        return like(of_x + of_clean * own, x_t) * x_t + like(of_clean * of_out, x_t) * out

    def score(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""`grad log q(x_t) = (alpha_t E[x_0 | x_t] - x_t) / sigma_t^2`, of the shape of `x_t` (Tweedie's formula)."""
        t = exact(moment(t))
        alpha, sigma = self.corruption(t)
        return self.combined(x_t, t, -torch.ones_like(alpha), alpha, **cond) / like(sigma**2, x_t)

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Noise of sigma_t, from x of sigma_1: the start of a grid whose first time is t."""
        (_, sigma_t), (_, sigma_1) = self.corruption(exact(t)), self.corruption(torch.ones_like(exact(t)))
        return x if t == 1 else like(sigma_t / sigma_1, x) * x

    @abstractmethod
    def on(self, schedule: Schedule) -> GaussianDenoiser:
        """The same denoiser, weights shared, for signals that `schedule` has corrupted."""

    def with_spread(self, x_t: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor | None]:
        """`E[x_0 | x_t]` and, from the same evaluation, what a network with a second output says of the reverse variance, or None."""
        return self(x_t, t, **cond), None


@described
class Learned(GaussianDenoiser):
    r"""A network as a denoiser: `x_0 = c_skip x_t + c_out F`, F the network at `(c_in x_t, label)`.

    `c_in = 1 / sqrt(alpha_t^2 sigma_data^2 + sigma_t^2)` is 1 for variance-preserving schedules and sigma_data = 1. Under a schedule other
    than its home, the network is asked at the home time of equal log-SNR, so a network trained as a DDPM runs under a VP or VE SDE and
    the other way round.

    The network is fed `c_in x_t` and real conditions in the precision of its first parameter, whatever that of x_t, in which F comes back;
    and the time input in float32 `(B,)`: 1000 t by default, which on a table of T = 1000 steps is 1 to 1000. What counts steps from 0, as
    diffusers and an `nn.Embedding(1000)` do, is fed `label=step_index`, and of other T `thousandth_index`. It is not an integer type: index
    with `time.round().long()`.

    Args:
        network: `(x, time label (B,), **cond) -> F`, of the shape of x; one whose attribute `outputs` is 2 gives twice the channels, F
            and then v, which learned reverse variances read.
        schedule: the home schedule, that of training.
        predicts: what F is.
        label: the number that the network is fed for a time of the home schedule.
        sigma_data: standard deviation of the data, for c_in; None for that of the prediction, 1 where it has none.
        scaled: False for c_in = 1 under the home schedule, as Song et al.'s (2021) networks take x_t.

    Raises:
        UsageError: where x_0 cannot be told from F at some time, such as noise prediction under a schedule that ends at zero SNR; and when
            it is called, for conditions, times and outputs of the network that do not fit (see `calling.ask`).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        predicts: Prediction = noise,
        label: Label = thousandths,
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
            raise UsageError(f"sigma_data={sigma_data}, and {own} of the prediction: give one standard deviation of the data, such as 0.5")
        self.network, self.schedule, self.predicts, self.label, self.sigma_data = network, schedule, predicts, label, sigma_data
        self.scaled = scaled
        self.corruption = schedule
        self.spread, self.conditions = getattr(network, "outputs", 1) == 2, getattr(network, "conditions", None)
        refuse_singular(predicts, schedule)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.with_spread(x_t, t, **cond)[0]

    def with_spread(self, x_t: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor | None]:
        t = exact(moment(t))
        c_skip, c_out = self.predicts(*self.corruption(t))
        out, v = self.raw(x_t, t, **cond)
        return like(c_skip, x_t) * x_t + like(c_out, x_t) * out, v

    def parts(self, x_t: Tensor, t: Tensor, **cond: Any) -> Parts:
        t = exact(moment(t))
        return Parts(*self.predicts(*self.corruption(t)), self.raw(x_t, t, **cond)[0])

    def raw(self, x_t: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor | None]:
        """F and v, the network's own outputs at the home time of equal log-SNR, in the dtype of `x_t`; v is None without a second one."""
        t = exact(t)
        if refuse_unreal(x_t, "x_t").ndim < 2:
            raise UsageError(f"x_t of shape {tuple(x_t.shape)}: give signals (B, C, ...), or vectors (B, d)")
        home = t if self.corruption is self.schedule else self.schedule.time(self.corruption.log_snr(t))
        time = on_every_row(self.label(self.schedule, home), x_t)
        out = ask(self, like(self._c_in(t, home), x_t) * x_t, time, cond).to(x_t.dtype)
        channels = x_t.shape[1]
        read = channels * (1 + self.spread)
        if out.shape != (len(x_t), read, *x_t.shape[2:]):
            if out.ndim == x_t.ndim and out.shape[2:] == x_t.shape[2:] and len(out) == len(x_t):
                raise UsageError(
                    f"the network gave {out.shape[1]} channels for {channels}: {read} are read, "
                    "twice the channels from networks whose attribute `outputs` is 2"
                )
            raise UsageError(
                f"the network gave {tuple(out.shape)} for x_t {tuple(x_t.shape)}: give one number for each of its own, "
                f"{(len(x_t), read, *x_t.shape[2:])}"
            )
        return (out[:, :channels], out[:, channels:]) if self.spread else (out, None)

    def time_inputs(self) -> Tensor:
        """What the network is fed for the least noisy and for the noisiest time, `(2,)`."""
        return self.label(self.schedule, torch.tensor([self.schedule.t_min, 1.0], dtype=torch.float64))

    def _c_in(self, t: Tensor, home: Tensor) -> Tensor:
        """c_in at time t, times what brings x_t to the scale that it has at the home time of equal log-SNR."""
        alpha, sigma = self.corruption(t)
        if self.scaled:  # the same for all schedules
            return (alpha**2 * self.sigma_data**2 + sigma**2).rsqrt()
        return torch.hypot(*self.schedule(home)) / torch.hypot(alpha, sigma)

    def on(self, schedule: Schedule) -> Learned:
        refuse_singular(self.predicts, schedule)
        other = copy.copy(self)
        other.corruption = self.schedule if schedule == self.schedule else schedule
        return other


@described
class Clipped(GaussianDenoiser):
    """The denoiser's estimate clamped to the range of the data, as Ho et al. (2020) do when sampling and when coding."""

    def __init__(self, denoiser: GaussianDenoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.denoiser, self.low, self.high = denoiser, low, high
        self.corruption, self.conditions, self.spread = denoiser.corruption, denoiser.conditions, denoiser.spread

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.with_spread(x_t, t, **cond)[0]

    def with_spread(self, x_t: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor | None]:
        x0, v = self.denoiser.with_spread(x_t, t, **cond)
        return x0.clamp(self.low, self.high), v

    def on(self, schedule: Schedule) -> Clipped:
        return Clipped(self.denoiser.on(schedule), self.low, self.high)


@described
class Thresholded(GaussianDenoiser):
    r"""Dynamic thresholding: each x_0 is clamped to [-m, m] and divided by m (Saharia et al. 2022, section 2.3).

    m is the quantile p of `|x_0|` of the example, at least 1: under strong guidance x_0 leaves the range of the data, and clamping alone
    saturates it.

    Args:
        denoiser: of data in [-1, 1].
        p: the quantile; 0.995 for Imagen and DPM-Solver++.
    """

    def __init__(self, denoiser: GaussianDenoiser, p: float = 0.995) -> None:
        super().__init__()
        if not 0 < p <= 1:
            raise UsageError(f"p={p}: give the quantile of |x_0| to keep, above 0 and up to 1, such as 0.995")
        self.denoiser, self.p = denoiser, p
        self.corruption, self.conditions, self.spread = denoiser.corruption, denoiser.conditions, denoiser.spread

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.with_spread(x_t, t, **cond)[0]

    def with_spread(self, x_t: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor | None]:
        x0, v = self.denoiser.with_spread(x_t, t, **cond)
        m = like(at_least_float32(x0).flatten(1).abs().quantile(self.p, dim=1).clamp(min=1.0), x0)
        return x0.clamp(-m, m) / m, v

    def on(self, schedule: Schedule) -> Thresholded:
        return Thresholded(self.denoiser.on(schedule), self.p)


def taken(denoiser: Denoiser, cond: dict[str, Any]) -> dict[str, Any]:
    """Those of the conditions that the denoiser takes: all, where its network does not say."""
    return cond if denoiser.conditions is None else {name: value for name, value in cond.items() if name in denoiser.conditions}


def refuse_singular(predicts: Prediction, schedule: Schedule) -> None:
    """Refuses a prediction from which x_0 does not follow at the schedule's noisiest time."""
    if not all(bool(torch.isfinite(c)) for c in predicts(*schedule(torch.ones((), dtype=torch.float64)))):
        name = getattr(predicts, "__name__", type(predicts).__name__)
        raise UsageError(
            f"the schedule ends at zero SNR, where x_1 is noise alone and {name} prediction says nothing of x_0: "
            "predict velocity, clean or straight, or take a schedule that ends before, with a last beta below 1 or Straight(end=0.999)"
        )


def on_every_row(v: Tensor, x: Tensor) -> Tensor:
    """`v`, scalar or `(B,)`, as float32 `(B,)` on the device of `x`, without waiting for an accelerator.

    Raises:
        UsageError: for times of another shape.
    """
    if v.ndim > 1 or (v.ndim and len(v) not in (1, len(x))):
        raise UsageError(f"times of shape {tuple(v.shape)} for {len(x)} examples: give one, or one for each, ({len(x)},)")
    if v.ndim == 0 and v.device.type == "cpu":
        return torch.full((len(x),), float(v), device=x.device)
    return v.float().to(x.device).expand(len(x))
