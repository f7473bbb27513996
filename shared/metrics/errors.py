"""Standard errors of means."""

from __future__ import annotations

import math

from torch import Tensor


def standard_error(values: Tensor) -> float:
    """Returns the standard error `s / sqrt(n)` of the mean of n independent values `(n,)`.

    s is their sample standard deviation, with n - 1 in the denominator. A single value gives NaN.
    """
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
