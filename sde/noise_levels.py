"""Noise levels of NCSN: Song & Ermon's (2020) rules for choosing the table of `NoiseLevels`, and the steps at each."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.tensors import at_least_float32

PAIRS = 1 << 24
"""How many distances `largest_sigma` computes at a time."""


def geometric_sigmas(low: float, high: float, steps: int) -> Tensor:
    """Returns a geometric sequence of `steps` noise levels from low to high, float64 `(steps,)`.

    Raises:
        UsageError: unless 0 < low < high and steps is 2 or more.
    """
    if not 0 < low < high or steps < 2:
        raise UsageError(f"low={low}, high={high}, steps={steps}: give 0 < low < high, and two or more noise levels")
    return torch.linspace(math.log(low), math.log(high), steps, dtype=torch.float64).exp()


def largest_sigma(x: Tensor) -> float:
    """Returns the largest Euclidean distance between two examples of `x`, `(n, ...)` (Song & Ermon 2020, technique 1).

    It is the choice for the largest noise level: with that much noise a chain that starts at one example can reach
    every other. All pairs are compared.
    """
    x = at_least_float32(x).flatten(1)
    return max(float(torch.cdist(rows, x).max()) for rows in x.split(max(PAIRS // len(x), 1)))


def level_ratio(dims: int, overlap: float = 0.5) -> float:
    r"""Returns gamma, the ratio of a noise level to the next smaller one (Song & Ermon 2020, technique 2).

    Phi is the standard normal distribution function. In D dimensions the norm of noise is nearly
    `N(sqrt(D) sigma, sigma^2 / 2)`. With gamma, the fraction `overlap` of the norms at one noise level lies within
    three standard deviations of the mean norm at the next:
    `Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = overlap`.

    The paper's overlap is "about 0.5". Its numbers of noise levels (232, 500, 1086) all follow from an overlap of
    0.567; exactly 0.5 would give 219, 472 and 1026.

    Args:
        dims: D, the number of dimensions of an example.
        overlap: the fraction, above 0 and below 0.997.

    Raises:
        UsageError: for dims below 1, an overlap outside of this range, or one that is not reached at any ratio above 1.
    """
    from scipy.optimize import brentq  # here, so that importing the package is fast
    from scipy.special import ndtr

    if dims < 1 or not 0 < overlap < 0.997:
        raise UsageError(
            f"dims={dims}, overlap={overlap}: give 1 dimension or more, and an overlap between 0 and 0.997, such as 0.5"
        )
    scale = math.sqrt(2 * dims)

    def excess(gamma: float) -> float:
        apart = scale * (gamma - 1)
        return float(ndtr(apart + 3 * gamma) - ndtr(apart - 3 * gamma)) - overlap

    # In few dimensions the interval grows faster than the distance of the means, and the overlap never falls so low.
    high = next((1 + width for width in (2.0**k for k in range(-20, 20)) if excess(1 + width) < 0), None)
    if high is None:
        raise UsageError(
            f"dims={dims}: neighboring noise levels overlap by more than overlap={overlap} at every ratio; "
            "give a larger overlap, or choose the noise levels yourself"
        )
    return cast(float, brentq(excess, 1.0, high, xtol=1e-14))


def level_count(low: float, high: float, ratio: float) -> int:
    """Returns the number of noise levels from low to high, both included, with a ratio of about `ratio`; at least 2."""
    return max(round(math.log(high / low) / math.log(ratio)) + 1, 2)


def variance_ratio(epsilon: float, ratio: float, repeats: int, smallest_sigma: float) -> float:
    r"""Returns r, the variance of a sample over sigma_i^2 after the Langevin steps at sigma_i, for data at one point.

    Song & Ermon 2020, technique 4. The chain comes from the next larger noise level with the variance
    `gamma^2 sigma_i^2`. A step `x <- x - c x + sqrt(2 c) sigma_i z` with `c = epsilon / smallest_sigma^2` takes the
    ratio r to `(1 - c)^2 r + 2 c`, which has the fixed point `f = 2 / (2 - c)`: after T steps
    `r = (1 - c)^(2 T) (gamma^2 - f) + f`.

    Args:
        epsilon: step size at the smallest noise level, for steps `x + e s + sqrt(2 e) z` as in the 2020 paper and the
            published code.
        ratio: gamma, the ratio of a noise level to the next smaller one, above 1.
        repeats: T, the number of Langevin steps at each noise level.
        smallest_sigma: the smallest noise level.
    """
    c = epsilon / smallest_sigma**2
    fixed = 2 / (2 - c)
    return (1 - c) ** (2 * repeats) * (ratio**2 - fixed) + fixed


def best_epsilon(ratio: float, repeats: int, smallest_sigma: float) -> float:
    """Returns the epsilon whose `variance_ratio` is closest to 1 (Song & Ermon 2020, technique 4).

    Epsilon is the step size at the smallest noise level; `snr_of(epsilon, smallest_sigma)` turns it into the snr of
    `AnnealedLangevin`. For the arguments see `variance_ratio`. The variance ratio is above 1 for every epsilon: small
    steps leave too much noise of the next larger noise level, large steps add too much noise themselves.

    Raises:
        UsageError: for fewer than one step, or a ratio that is not above 1.
    """
    from scipy.optimize import minimize_scalar

    if repeats < 1 or not ratio > 1:
        raise UsageError(
            f"ratio={ratio}, repeats={repeats}: give a ratio of noise levels above 1, and 1 step or more at each"
        )
    found = minimize_scalar(
        lambda c: variance_ratio(c, ratio, repeats, 1.0), bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-10}
    )
    return float(found.x) * smallest_sigma**2
