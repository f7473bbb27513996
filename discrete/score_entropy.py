"""A denoiser whose network gives the ratios `q_t(y) / q_t(x_t)`, as in SEDD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.calling import call_network, one_per_example, refuse_signature
from ..shared.errors import UsageError
from ..shared.random import Source, categorical
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32, checked_time, exact, full_precision, like
from ..shared.time_inputs import TimeInput, thousandths
from .denoiser import CategoricalDenoiser, divergence_from, ends_of, in_dtype
from .heads import refuse_shape
from .transition.base import CLEAN, Terms, as_tokens, normalized
from .transition.interpolating import Interpolating

BEFORE_ONE = torch.tensor(1 - 2.0**-52, dtype=torch.float64)  # where a schedule that loses all by t = 1 is still finite
LEAST_LEFT = 32.0  # -log of the share of the data that float32 ratios still resolve
Offset: TypeAlias = Callable[[Interpolating, Tensor], Tensor]


@serializable(
    "discrete.ScoreEntropyDenoiser",
    formerly="unnoise.discrete.denoiser.ScoreEntropyDenoiser",
    renamed={"label": "time_input"},
)
class ScoreEntropyDenoiser(CategoricalDenoiser):
    r"""A denoiser made of a network that gives the logarithms of the ratios `q_t(y) / q_t(x_t)`.

    It is SEDD (Lou et al. 2024). y replaces the token at one position. Called with x_t `(B, ...)`, int64, t and
    conditions by name, it returns `log p(x_0 | x_t)`, `(B, ..., K)`; the ratios are `ratio`. The distribution of x_s
    follows by inverting the noise from s to t: `p(x_s | x_t) prop. to (m Q_(s->t)^-1)[x_s] Q_(s->t)[x_s, x_t]`, with
    the ratios m (Lou et al. 2024, eq. 19, their analytic sampler); negative numbers, which inexact ratios give in long
    steps, count as 0. It needs a process whose steps have an inverse in closed form, `Uniform` or `Absorbing`.

    Args:
        network: `(x_t int64, time input (B,), **cond) -> (..., K)`, log-ratios before the offset; the entry at x_t is
            ignored, and an added mask may be left out of the last axis.
        transition: `Uniform` or `Absorbing`, in continuous time.
        time_input: the number that the network is fed for a time; 1000 t by default, as for `Categorical`.
        offset: `(transition, t) -> ` the number added to all log-ratios at t, of the shape of t: by default
            `scaled_by_noise` for an added mask, as published, and `unscaled` elsewhere.

    Raises:
        UsageError: for another process, and one that leaves nothing of the data by t = 1, where all ratios are equal.
    """

    corruption: Interpolating  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        network: nn.Module,
        transition: Interpolating,
        time_input: TimeInput = thousandths,
        offset: Offset | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(transition, Interpolating) or transition.steps is not None:
            raise UsageError(
                f"{type(transition).__name__} (T={transition.steps}) cannot be trained with ratios: take Uniform or "
                "Absorbing in continuous time, such as Absorbing(27, LogLinearNoise()) or Uniform(27, GeometricNoise())"
            )
        refuse_signature(network)
        self.network, self.transition, self.time_input = network, transition, time_input
        self.offset = offset or (scaled_by_noise if transition.states > transition.categories else unscaled)
        self.corruption, self.conditions = transition, getattr(network, "conditions", None)
        left = -torch.log(torch.expm1(transition.noise.total(BEFORE_ONE)))  # log of kept / (1 - kept)
        if bool((transition.stationary() == 1).any()):  # absorption: ratios go to 0 as `left` does; the offset may too
            left = left - self.offset(transition, BEFORE_ONE)
        if float(left) < -LEAST_LEFT:
            raise UsageError(
                f"{transition.noise} leaves nothing of the data by t = 1, where all tokens have equal ratios: give it "
                "an eps above 0, take GeometricNoise(), or, for Absorbing, offset=scaled_by_noise"
            )

    def log_ratio(self, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Tensor:
        """Returns `log m`, the log of `q_t(y) / q_t(x_t)`, `(..., K)`; 0 at x_t itself; in `dtype` if it is given."""
        x_t = as_tokens(x_t, self.corruption.states, "x_t")
        t = checked_time(t)
        out = call_network(self, x_t, one_per_example(self.time_input(self.corruption, t), x_t), cond)
        refuse_shape(out, x_t, self.corruption)
        out = in_dtype(at_least_float32(out), dtype)
        out = out + like(self.offset(self.corruption, exact(t).clamp(max=float(BEFORE_ONE))).to(out.device), out)
        out = F.pad(out, (0, self.corruption.states - out.shape[-1]), value=-torch.inf)
        return out.scatter(-1, x_t[..., None], 0.0)

    def time_input_range(self) -> Tensor:
        """Returns the time inputs at t_min and at t = 1, `(2,)`."""
        return ends_of(self.time_input, self.corruption)

    def ratio(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.log_ratio(x_t, t, **cond).exp()

    def step_distribution(self, x_t: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        t, s = checked_time(t), checked_time(s)
        m = self.log_ratio(x_t, t, dtype=torch.float64, **cond).exp()
        t = exact(t).clamp(max=float(BEFORE_ONE))
        distribution = self.corruption.undone(m, s, t).clamp(min=0) * self.corruption.likelihood(x_t.long(), s, t)
        if self.corruption.states > self.corruption.categories:  # x_0 is never masked
            allowed = F.one_hot(torch.tensor(self.corruption.categories), self.corruption.states).to(m) == 0
            distribution = torch.where(
                like(self.corruption.is_clean(s).to(distribution.device), distribution) & ~allowed, 0.0, distribution
            )
        return normalized(distribution)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `log p(x_0 | x_t)`, normalized log-probabilities `(..., K)`."""
        return self.step_distribution(x_t, t, CLEAN, **cond).log()

    def draw(self, x_t: Tensor, t: Tensor, s: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        return categorical(self.step_distribution(x_t, t, s, **cond), generator)

    def divergence(
        self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, dtype: torch.dtype | None = None, **cond: Any
    ) -> Terms:
        return Terms(divergence_from(self.corruption, self.step_distribution(x_t, t, s, **cond), x0, x_t, t, s), None)

    def path_rate(self, x0: Tensor, x_t: Tensor, t: Tensor, *, dtype: torch.dtype | None = None, **cond: Any) -> Terms:
        t = checked_time(t)
        log_ratio = self.log_ratio(x_t, t, dtype=dtype, **cond)
        with full_precision(x_t):
            return Terms(self.corruption.score_entropy(log_ratio, x0.long(), x_t.long(), t), None)


@serializable("discrete.unscaled", formerly="unnoise.discrete.denoiser.unscaled")
def unscaled(transition: Interpolating, t: Tensor) -> Tensor:
    """Returns 0 for each time, of the shape of t: the output is read as the log-ratios themselves."""
    return torch.zeros_like(t)


@serializable("discrete.scaled_by_noise", formerly="unnoise.discrete.denoiser.scaled_by_noise")
def scaled_by_noise(transition: Interpolating, t: Tensor) -> Tensor:
    r"""Returns `-log(exp(total) - 1) - log(categories)`, the scale of the ratios at masked positions.

    Of the shape of t; `total = total(t)` of the schedule. At a mask the ratios of all data tokens sum to
    `kept / (1 - kept)`, `kept = exp(-total)`, whatever the data. SEDD's published code takes the logarithm of the size
    of the vocabulary with the mask, less one, which is `categories`.
    """
    total = transition.noise.total(t)
    return -torch.log(torch.expm1(total)) - math.log(transition.categories)
