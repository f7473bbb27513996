"""Standard errors of means."""

from __future__ import annotations

import math

from torch import Tensor


def standard_error(values: Tensor) -> float:
    """`s / sqrt(n)` of n independent values `(n,)`, s their standard deviation.

    NaN for a single value, which has none.
    """
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
