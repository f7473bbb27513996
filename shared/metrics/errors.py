"""Standard errors of means."""

from __future__ import annotations

import math

from torch import Tensor


def standard_error(values: Tensor) -> float:
    """Returns the standard error `s / sqrt(n)` of the mean of n independent values `(n,)`.

    s is their sample standard deviation, with n - 1 in the denominator. A single value gives NaN.
    """
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def error_of_share(share: float, count: int) -> float:
    """Returns the standard error `sqrt(p (1 - p) / n)` of a share p of n independent examples.

    Of none or all examples, which would give zero, it is that of `p = (n p + 1) / (n + 2)`.
    """
    share = share if 0 < share < 1 else (count * share + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / count)


def ratio_of_sums(numerators: Tensor, denominators: Tensor) -> tuple[float, float]:
    """Returns `sum(a) / sum(b)` of n independent pairs `(n,)`, and its standard error by the delta method.

    The error is `s / (sqrt(n) mean(b))`, with s the sample standard deviation of `a - ratio b`: examples with large b
    have a large weight. A single pair has the error NaN.
    """
    a, b = numerators.double(), denominators.double()
    ratio = float(a.sum() / b.sum())
    return ratio, standard_error(a - ratio * b) / float(b.mean())
