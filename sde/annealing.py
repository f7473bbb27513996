"""The normalizing constant of an energy-based denoiser, by annealed importance sampling along its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.gaussian.schedule import Schedule, refuse_zero_snr
from ..shared.gradients import gradients
from ..shared.progress import Progress, silent
from ..shared.random import Source, normal, normal_like, uniform
from ..shared.sampler import device_of
from ..shared.tensors import exact, full_precision, like, per_example, refuse_unless


class Density(Protocol):
    """An unnormalized density at every time of a schedule: `EnergyDenoiser`, or a module of your own.

    Attributes:
        corruption: the schedule of x_t.
    """

    corruption: Schedule

    def log_density(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `log q(x_t)` up to an additive constant, `(B,)`, in nats, for x_t `(B, ...)` at the time t."""
        ...


class NormalizingConstant(NamedTuple):
    """An estimate of `log Z`, the log of the normalizing constant.

    Attributes:
        log_z: the estimate, in nats.
        error: its standard error by the delta method, `std(w) / (mean(w) sqrt(n))` with the weights w of n chains.
        effective_sample_size: `(sum w)^2 / sum w^2`, at most n; if it is only a few, `log_z` and `error` cannot be
            trusted.
        acceptance_rate: the fraction of Langevin proposals that were accepted, over all chains; NaN for `moves=0`.
        x: the last states of the chains, `(n, ...)`: samples of the density if weighted by `w`.
        log_w: the logs of the weights w, `(n,)`, float64.
    """

    log_z: float
    error: float
    effective_sample_size: float
    acceptance_rate: float
    x: Tensor
    log_w: Tensor


def log_normalizing_constant(
    density: Density,
    shape: Sequence[int],
    *,
    t: float | None = None,
    distributions: int = 200,
    moves: int = 1,
    snr: float = 0.5,
    generator: Source = None,
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
    **cond: Any,
) -> NormalizingConstant:
    r"""Estimates `log Z = log int exp(log_density(x, t)) dx` by annealed importance sampling (Neal 2001).

    The integral is over an example x, at the time t. n chains start from `N(0, (alpha_1^2 + sigma_1^2) I)` and go
    through the densities at `distributions` times, evenly spaced in log-SNR, from 1 to t. At each of them the chain's
    log-weight gains the difference to the log-density before; then `moves` Metropolis-adjusted Langevin steps follow,
    which leave the density invariant. `E w = Z` for any number of distributions and any step size: these change its
    variance only. The chains run in `y = x / sqrt(alpha^2 + sigma^2)`, whose scale is the same at all times.

    Args:
        density: an object with a `corruption` and a `log_density`, differentiable in x; the chains run on its device.
        shape: `(n, ...)`, the number of chains and the shape of an example.
        t: the time of the density whose constant is wanted; None for t_min, the smallest training time.
        distributions: the number of annealed densities, the wanted one included.
        moves: Langevin steps at each of them.
        snr: signal-to-noise ratio of a step `x + e score + sqrt(2 e) z`, as in `AnnealedLangevin`:
            `e = 2 (snr sigma)^2`. Choose it so that about 60 % of the proposals are accepted: smaller for more
            dimensions.
        generator: the source of noise.
        dtype: of the chains; None for that of the network's weights, float64 for a density without weights.
        progress: how to report progress.
        cond: conditions, by name.

    Raises:
        UsageError: for fewer than two chains, no distribution, negative moves, an snr of 0 or below, a t below t_min or
            above 1, a schedule that ends at zero SNR, and a log-density that is NaN or infinite.
    """
    schedule = density.corruption
    refuse_zero_snr(schedule)
    t = schedule.t_min if t is None else t
    if len(shape) < 2 or shape[0] < 2 or distributions < 1 or moves < 0 or not snr > 0:
        given = f"shape={tuple(shape)}, distributions={distributions}, moves={moves}, snr={snr}"
        raise UsageError(
            f"{given}: give two or more chains in the shape, such as (1000, 2), one distribution or more, "
            "0 moves or more, and a positive snr"
        )
    if not schedule.t_min <= t <= 1:
        raise UsageError(f"t={t}: give a time from the schedule's t_min={schedule.t_min:g} to 1")
    ends = torch.tensor([1.0, t], dtype=torch.float64)
    low, high = schedule.log_snr(ends).tolist()
    path = schedule.time(torch.linspace(low, high, distributions, dtype=torch.float64))
    path[-1] = ends[1]
    device = device_of(density) if isinstance(density, torch.nn.Module) else torch.device("cpu")
    weights = next(density.parameters(), None) if isinstance(density, torch.nn.Module) else None
    own = torch.float64 if weights is None else weights.dtype
    y = normal(shape, generator, dtype=own if dtype is None else dtype, device=device)
    before = -0.5 * per_example(y.double() ** 2 + math.log(2 * math.pi))
    log_w, accepted = torch.zeros_like(before), []
    for time in progress(list(path), distributions, "annealing"):
        here, slope = _in_unit_scale(density, y, time, cond)
        log_w = log_w + here - before
        refuse_unless(
            log_w < math.inf,
            f"log_density is NaN or infinite at t={float(time):.4g}: look at the energy there",
            wait=True,
        )
        alpha, sigma = schedule(time)
        size = float(2 * snr**2 * sigma**2 / (alpha**2 + sigma**2))
        for _ in range(moves):
            y, here, slope, moved = _adjusted_step(density, y, here, slope, time, size, generator, cond)
            accepted.append(moved)
        before = here
    alpha, sigma = schedule(path[-1])
    share = float(torch.stack(accepted).double().mean()) if accepted else math.nan
    return _summed(log_w, share, like((alpha**2 + sigma**2).sqrt(), y) * y)


def _summed(log_w: Tensor, accepted: float, x: Tensor) -> NormalizingConstant:
    n = len(log_w)
    log_z = torch.logsumexp(log_w, 0) - math.log(n)
    relative = (log_w - log_z).exp()  # of mean one
    return NormalizingConstant(
        float(log_z),
        float(relative.std() / math.sqrt(n)),
        float(relative.sum() ** 2 / (relative**2).sum()),
        accepted,
        x,
        log_w,
    )


def _in_unit_scale(density: Density, y: Tensor, t: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the log-density of y, float64 `(n,)`, and its gradient in y."""
    with gradients(y, t, cond) as (y, t, cond), full_precision(y):
        alpha, sigma = density.corruption(t)
        c = (alpha**2 + sigma**2).sqrt()
        y = y.detach().requires_grad_()
        log_density = density.log_density(like(c, y) * y, t, **cond)
        (slope,) = torch.autograd.grad(log_density.sum(), y)
    return log_density.detach().double() + y[0].numel() * float(c.log()), slope


def _adjusted_step(
    density: Density,
    y: Tensor,
    here: Tensor,
    slope: Tensor,
    t: Tensor,
    size: float,
    generator: Source,
    cond: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Takes a Metropolis-adjusted Langevin step of that size.

    Returns the new y, its log-density and gradient, and which proposals were accepted, `(n,)`.
    """
    proposed = y + size * slope + math.sqrt(2 * size) * normal_like(y, generator)
    there, back = _in_unit_scale(density, proposed, t, cond)
    log_ratio = there - here + log_kernel(y, proposed, back, size) - log_kernel(proposed, y, slope, size)
    moved = uniform(log_ratio.shape, generator, dtype=torch.float64, device=y.device).log() < log_ratio
    return (
        torch.where(like(moved, y), proposed, y),
        torch.where(moved, there, here),
        torch.where(like(moved, y), back, slope),
        moved,
    )


def log_kernel(to: Tensor, start: Tensor, slope: Tensor, size: float) -> Tensor:
    """Returns `log q(to | start)` of a Langevin step of size e up to a constant, float64 `(n,)`.

    `-||to - start - e slope||^2 / (4 e)`, e = `size`, slope the gradient of the log-density at `start`.
    """
    return -per_example((exact(to) - exact(start) - size * exact(slope)) ** 2) / (4 * size)
