"""Noise schedules of the DDPM papers as tables of beta_1..beta_T, float64, and functions that convert tables."""

from __future__ import annotations

import math
from operator import index

import torch
from torch import Tensor

from ..shared.errors import UsageError, shown


def linear_betas(steps: int, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Returns betas that increase linearly from `start` to `stop`, both scaled by 1000 / T, `(T,)`.

    T is `steps`. Ho et al. 2020, section 4; Nichol & Dhariwal 2021. The published 1e-4 makes the first noise level
    (sigma at t = 1 / T, for T = 1000) 0.01, which suits quantization levels that are 2 / 255 apart; coarser data can
    start higher.

    Raises:
        UsageError: where a beta would reach 1, as with 20 steps or fewer at the default `stop`, and below 1 step.
    """
    scale = _scale(steps, start=start, stop=stop)
    return torch.linspace(start, stop, steps, dtype=torch.float64) * scale


def quadratic_betas(steps: int, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Returns the squares of numbers evenly spaced from `sqrt(start)` to `sqrt(stop)`, scaled by 1000 / T, `(T,)`.

    T is `steps`. Ho et al. 2020, code.

    Raises:
        UsageError: for a negative `start` or `stop`, where a beta would reach 1, as with 20 steps or fewer at the
            default `stop`, and below 1 step.
    """
    scale = _scale(steps, start=start, stop=stop)
    if start < 0 or stop < 0:
        raise UsageError(f"start={start}, stop={stop}: betas must lie between 0 and 1")
    return torch.linspace(start**0.5, stop**0.5, steps, dtype=torch.float64) ** 2 * scale


def constant_betas(steps: int, value: float = 0.02) -> Tensor:
    """Returns `value`, scaled by 1000 / T with T = `steps`, at every step, `(T,)` (Ho et al. 2020, section 4).

    Raises:
        UsageError: where beta would reach 1, as with 20 steps or fewer at the default `value`, and below 1 step.
    """
    return torch.full((steps,), value, dtype=torch.float64) * _scale(steps, value=value)


def sigmoid_betas(steps: int, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Returns `start + (stop - start) sigmoid(u)`, u evenly spaced from -6 to 6, scaled by 1000 / T, `(T,)`.

    T is `steps`. Song et al. 2020, code.

    Raises:
        UsageError: where a beta would reach 1, as with 20 steps or fewer at the default `stop`, and below 1 step.
    """
    scale = _scale(steps, start=start, stop=stop)
    return (start + (stop - start) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()) * scale


def warmup_betas(steps: int, share: float, start: float = 1e-4, stop: float = 0.02) -> Tensor:
    """Returns betas that are linear from `start` to `stop` over the first `share` of the steps, then constant, `(T,)`.

    Ho et al. 2020, code, where "warmup10" and "warmup50" are `share=0.1` and `0.5`. `start` and `stop` are scaled by
    1000 / T, T = `steps`.

    Raises:
        UsageError: for a share outside of [0, 1], where a beta would reach 1, and below 1 step.
    """
    scale = _scale(steps, start=start, stop=stop)
    _refuse_other(share=share)
    if not 0 <= share <= 1:
        raise UsageError(f"share={share}: give the fraction of the steps over which beta rises, from 0 to 1")
    rising = int(steps * share)
    betas = torch.full((steps,), stop, dtype=torch.float64)
    betas[:rising] = torch.linspace(start, stop, rising, dtype=torch.float64)
    return betas * scale


def reciprocal_betas(steps: int) -> Tensor:
    """Returns `beta_n = 1 / (T - n + 1)`, n = 1..T: each step erases 1 / T of the signal's power, `(T,)`.

    T is `steps`, and alpha-bar_n is `1 - n / T`. Sohl-Dickstein et al. 2015; "jsd" in Ho et al.'s code. The last beta
    is 1: x_T is pure noise, and a network must predict the velocity or the clean signal.
    """
    _check(steps)
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


def cosine_betas(steps: int, s: float = 0.008) -> Tensor:
    r"""Returns the cosine table of Nichol & Dhariwal (2021), `(T,)`.

    `beta_n = min(1 - f(n/T) / f((n-1)/T), 0.999)` with `f(t) = cos^2((t + s) / (1 + s) pi/2)`, n = 1..T, T = `steps`.
    The offset s makes the first betas larger: at s = 0.008 and T = 1000 sigma at t = 1 / T is 0.0064.

    Raises:
        UsageError: for a negative s, and below 1 step.
    """
    _check(steps)
    _refuse_other(s=s)
    if s < 0:
        raise UsageError(f"s={s}: give 0 or more, such as the published 0.008")
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def betas_of(alphas_cumprod: Tensor) -> Tensor:
    r"""Returns the betas of a table of `alpha-bar_1..alpha-bar_T`: `1 - alpha-bar_n / alpha-bar_(n-1)`, `(T,)`.

    `alpha-bar_n = prod_(i <= n) (1 - beta_i)` is the squared scale of the signal at step n, and alpha-bar_0 = 1.

    Raises:
        UsageError: for a table that does not decrease from below 1 to 0 or above.
    """
    table = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    before = torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
    if table.ndim != 1 or len(table) < 1 or not bool(((table < before) & (table >= 0) & (before > 0)).all()):
        raise UsageError(
            "a table of alpha-bar must decrease at every step, from below 1 to 0 or above, such as (0.99, 0.5, 0.01)"
        )
    return (before - table) / before


def zero_terminal(betas: Tensor) -> Tensor:
    r"""Returns betas rescaled to zero SNR at the last step, `(T,)` (Lin et al. 2023, algorithm 1).

    `a_n -> (a_n - a_T) a_1 / (a_1 - a_T)` with `a_n = sqrt(alpha-bar_n)`, `alpha-bar_n = prod_(i <= n) (1 - beta_i)`:
    the first step keeps its noise level, and x_T is pure noise in training as in sampling. The last beta is 1, so a
    network must predict the velocity or the clean signal.

    Raises:
        UsageError: for a table of one step.
    """
    if len(betas) < 2:
        raise UsageError(
            "a table of one step cannot keep its first noise level and end at zero SNR: give two steps or more"
        )
    a = (0.5 * torch.log1p(-betas.double()).cumsum(0)).exp()
    return betas_of(((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2)


def _scale(steps: int, **numbers: float) -> float:
    """Returns 1000 / T; the last of the numbers is the largest beta before it is scaled."""
    _check(steps)
    _refuse_other(**numbers)
    name, largest = list(numbers.items())[-1]
    if largest * 1000 / steps >= 1:
        raise UsageError(
            f"steps={steps}: beta would reach {largest * 1000 / steps:.2g}, and must stay below 1: "
            f"take more than {largest * 1000:g} steps, or a smaller {name}"
        )
    return 1000 / steps


def _check(steps: int) -> None:
    try:
        index(steps)
    except TypeError:
        raise UsageError(f"steps={shown(steps)}: give a whole number of steps, such as 1000") from None
    if steps < 1:
        raise UsageError(f"steps={steps}: a table needs at least one step")


def _refuse_other(**numbers: float) -> None:
    for name, number in numbers.items():
        try:
            finite = math.isfinite(number)
        except TypeError:
            finite = False
        if not finite:
            raise UsageError(f"{name}={shown(number)}: give a number, such as 0.02")
