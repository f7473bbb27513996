"""The variational bound on the code length of quantized data."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..shared.calling import warn_in_training
from ..shared.code_length import CodeLength, discretized_gaussian, gaussian_kl, refuse_nan, sampled_steps, total_nats
from ..shared.denoiser import refuse_other_denoiser
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import TableSchedule
from ..shared.progress import Progress, silent
from ..shared.quantization import Quantization
from ..shared.random import Source
from ..shared.tensors import exact, like, per_example, refuse_unless, times_at
from .posterior import ReverseVariance, checked_variance, large, posterior

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class RateDistortion(NamedTuple):
    """Rate and distortion of coding x_0 progressively, from noise to data (Ho et al. 2020, section 4.3).

    The T steps are ordered from noise to data; B is the number of examples.

    Attributes:
        t: times of x_t, `(T,)`, decreasing: 1, (T - 1) / T, .., 1 / T.
        rate: bits/dim sent until x_t is known, the term L_T of the prior included, `(T, B)`.
        rmse: root mean squared error of the estimate of x_0 from x_t, `(T, B)`, in units of the distance between
            quantization levels: on the 0-255 scale for 8 bits.
    """

    t: Tensor
    rate: Tensor
    rmse: Tensor


class VariationalBound:
    r"""The variational bound of Ho et al. (2020, eq. 5), an upper bound on the code length of quantized data.

    Called with x0 `(B, ...)`; returns a `CodeLength` in nats, one for each example: prior L_T, path
    `sum_(n=2..T) L_(n-1)`, data L_0, T the number of steps and t = n / T.
    `L_T = KL(q(x_T | x_0) || N(0, sigma_T^2 I))`, to the distribution that samplers start from: it differs from Ho et
    al.'s N(0, I) by 4e-10 nats per dimension on their table, where sigma_T^2 = 1 - 4e-5. `L_(n-1)` is the KL divergence
    from the posterior to `N(posterior mean at E[x_0 | x_n], variance)`. L_0 codes the quantization levels by the
    Gaussian of the last step, `N(E[x_0 | x_1], variance)`, integrated over their bins, with the value of `variance` for
    t = 1 / T, s = 0 (see `small`).

    Args:
        denoiser: on a table of steps, such as `Tabulated`; wrap it in `Clipped` for the published figures.
        quantization: the quantization levels of the data; None for real-valued data, of which L_0 is
            `-log N(x_0; E[x_0 | x_1], variance)` and the code length a bound on `-log p(x_0)` of a density.
        variance: the variance of the reverse steps: `large`, `small`, `LogInterpolated`, `learned_range`, ..
        terms: how many of the T - 1 terms L_(n-1) to evaluate: each example gets one n from each of that many equal
            parts of 2..T, weighted so that the sum is unbiased; None for all terms.
        tanh: whether L_0 takes the published tanh approximation of the Gaussian distribution function.

    Raises:
        UsageError: for a schedule in continuous time, or a learned variance of a denoiser without a variance output.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        quantization: Quantization | None,
        *,
        variance: ReverseVariance = large,
        terms: int | None = None,
        tanh: bool = False,
    ) -> None:
        chain_of(denoiser)
        self.denoiser, self.quantization, self.terms, self.tanh = denoiser, quantization, terms, tanh
        self.variance = checked_variance(variance, denoiser)

    @property
    def schedule(self) -> TableSchedule:
        """The denoiser's table of T steps."""
        return chain_of(self.denoiser)

    @torch.no_grad()
    def __call__(self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any) -> CodeLength:
        """Returns the code length of each example in nats, with one draw of x_t for each term.

        Args:
            x0: `(B, ...)`, real numbers, for quantized data as `quantization.continuous` gives them.
            generator: the source of noise.
            progress: how to report progress.
            cond: conditions, by name.
        """
        self._check(x0)
        steps = self.schedule.steps
        path = exact(torch.zeros(len(x0), device=x0.device))
        if steps > 1:
            chosen, weight = sampled_steps(2, steps, self.terms or steps, len(x0), generator)
            for n in progress(chosen.flip(0), len(chosen), "bound"):
                t = times_at(n.double() / steps, x0)
                x_t = self.schedule.corrupt(x0, t, generator=generator)
                path += weight * self._step(x0, x_t, *self._estimate(x_t, t, cond), t, t - 1 / steps)
        last = torch.full((), 1 / steps, dtype=torch.float64)
        return refuse_nan(CodeLength(self.prior(x0), path, self.term(x0, last, generator=generator, **cond)))

    @torch.no_grad()
    def rate_distortion(
        self, x0: Tensor, *, generator: Source = None, progress: Progress = silent, **cond: Any
    ) -> RateDistortion:
        """Returns rate and distortion of `x0` `(B, ...)` at each of the T steps, with one draw of x_t for each.

        Every step is evaluated: `terms` does not apply. For the arguments see `__call__`. The errors of real-valued
        data are in their own units.
        """
        self._check(x0)
        spacing = 1.0 if self.quantization is None else self.quantization.spacing
        steps, dims = self.schedule.steps, x0[0].numel()
        rate, rates, errors = self.prior(x0), [], []
        times = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        for t in progress(times, steps, "rate and distortion"):
            x_t = self.schedule.corrupt(x0, t, generator=generator)
            estimate, v = self._estimate(x_t, t, cond)
            rates.append(rate / (dims * math.log(2)))
            errors.append(per_example((estimate - x0) ** 2, torch.mean).sqrt() / spacing)
            rate = rate + self.between(x0, x_t, estimate, v, t)
        return RateDistortion(times, torch.stack(rates), torch.stack(errors))

    def prior(self, x0: Tensor) -> Tensor:
        """Returns `L_T = (alpha_T / sigma_T)^2 ||x_0||^2 / 2`, `(B,)`, in nats; alpha_T, sigma_T are those at t = 1."""
        snr_T = self.schedule.log_snr(torch.ones((), dtype=torch.float64)).exp()
        return total_nats(0.5 * float(snr_T) * exact(x0) ** 2)

    def term(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns L_(n-1), `(B,)`, in nats, for x0 `(B, ...)` and t = n / T, a scalar or `(B,)`, with one draw of x_t.

        At t = 1 / T it is L_0, the code length of the quantization levels.
        """
        t = exact(t)
        x_t = self.schedule.corrupt(x0, t, generator=generator)
        return self.between(x0, x_t, *self._estimate(x_t, t, cond), t)

    def between(self, x0: Tensor, x_t: Tensor, estimate: Tensor, v: Tensor | None, t: Tensor) -> Tensor:
        """Returns L_(n-1), `(B,)`, in nats, from an estimate at x_t: a KL divergence, or for n = 1 a code length.

        Args:
            x0: the data, real numbers, `(B, ...)`.
            x_t: x0 corrupted to time t, `(B, ...)`.
            estimate: the denoiser's estimate of x_0 from x_t, `(B, ...)`.
            v: the network's variance output, of the shape of x_t; None for a network without one.
            t: n / T, a scalar or `(B,)`.
        """
        n = torch.round(t * self.schedule.steps)
        first = n == 1
        if t.ndim == 0:
            return (
                self._decoder(x0, estimate, v, t)
                if first
                else self._step(x0, x_t, estimate, v, t, (n - 1) / self.schedule.steps)
            )
        # Where n = 1 the step has variance 0: n = 2 is computed in its place, and not used.
        t_step = torch.where(first, 2 / self.schedule.steps, t)
        s_step = torch.where(first, 1, n - 1) / self.schedule.steps
        decoder = self._decoder(x0, estimate, v, torch.full_like(t, 1 / self.schedule.steps))
        return (
            torch.where(first, decoder, self._step(x0, x_t, estimate, v, t_step, s_step))
            if self.schedule.steps > 1
            else decoder
        )

    def _estimate(self, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Returns `E[x_0 | x_t]` and the variance output."""
        estimate = self.denoiser.estimate(x_t, t, **cond)
        return estimate.mean(x_t), estimate.variance_output

    def _check(self, x0: Tensor) -> None:
        warn_in_training(self.denoiser)
        if self.quantization is None:
            if not isinstance(x0, Tensor) or not x0.is_floating_point():
                found = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
                raise UsageError(f"x0 is {found}: give real numbers")
            return
        low, high = (
            self.quantization.low - self.quantization.spacing,
            self.quantization.high + self.quantization.spacing,
        )
        needed = (
            f"give real numbers in [{self.quantization.low:g}, {self.quantization.high:g}], "
            "such as quantization.continuous(k) of quantization levels k"
        )
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            raise UsageError(f"x0 is {x0.dtype if isinstance(x0, Tensor) else type(x0).__name__}: {needed}")
        refuse_unless((x0 >= low) & (x0 <= high), f"x0 has values outside of the quantization's range: {needed}")

    def _step(self, x0: Tensor, x_t: Tensor, estimate: Tensor, v: Tensor | None, t: Tensor, s: Tensor) -> Tensor:
        true_mean, true_variance = posterior(self.schedule, x_t, x0, t, s)
        mean, _ = posterior(self.schedule, x_t, estimate, t, s)
        variance = self.variance(self.schedule, t, s, v)
        return total_nats(
            gaussian_kl(
                exact(true_mean),
                like(true_variance, exact(x0)),
                exact(mean),
                like(exact(variance), exact(x0)),
            )
        )

    def _decoder(self, x0: Tensor, estimate: Tensor, v: Tensor | None, t: Tensor) -> Tensor:
        std = like(exact(self.variance(self.schedule, t, torch.zeros_like(t), v)).sqrt(), exact(x0))
        if self.quantization is None:
            return total_nats(0.5 * ((exact(x0) - exact(estimate)) / std) ** 2 + std.log() + LOG_SQRT_2PI)
        return -total_nats(
            discretized_gaussian(
                self.quantization.quantize(x0), exact(estimate), std, self.quantization, tanh=self.tanh
            )
        )


def chain_of(denoiser: GaussianDenoiser) -> TableSchedule:
    """Returns the denoiser's schedule, a table of steps such as `Tabulated`.

    Raises:
        UsageError: for a schedule in continuous time, which has no steps, and a denoiser that is not Gaussian.
    """
    refuse_other_denoiser(denoiser, GaussianDenoiser, "the bound of a chain")
    if not isinstance(denoiser.corruption, TableSchedule):
        raise UsageError(
            f"{type(denoiser.corruption).__name__} is a schedule in continuous time, and a chain of steps is needed: "
            "take denoiser.on(tabulate(schedule, steps))"
        )
    return denoiser.corruption
