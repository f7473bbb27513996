"""What number a network is fed for a time: one line each, `(schedule, t) -> label`.

Released checkpoints need theirs exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .corruption import Corruption
from .errors import UsageError
from .serialization import serializable
from .tensors import exact

TimeInput: TypeAlias = Callable[[Corruption, Tensor], Tensor]


def rows_of(corruption: Corruption) -> int:
    """The number of steps of a table.

    Raises:
        UsageError: for a process that is not a table.
    """
    rows = getattr(corruption, "steps", None)
    if rows is None:
        raise UsageError(
            f"{type(corruption).__name__} has no table of steps to count: take the label thousandths, song_vp or quarter_log"
        )
    return rows


@serializable("shared.thousandths", formerly="unnoise.shared.labels.thousandths")
def thousandths(corruption: Corruption, t: Tensor) -> Tensor:
    """1000 t: this package's own default, the same for tables of any length and for continuous time."""
    return 1000 * t


@serializable("shared.step_index", formerly="unnoise.shared.labels.step_index")
def step_index(corruption: Corruption, t: Tensor) -> Tensor:
    """N - 1 on a table of T steps, t = n / T: the 0-based index of Ho et al. (2020)."""
    return t * rows_of(corruption) - 1


@serializable("shared.nearest_index", formerly="unnoise.shared.labels.nearest_index")
def nearest_index(corruption: Corruption, t: Tensor) -> Tensor:
    """`step_index` of the row whose sigma / alpha is nearest, as Karras et al.

    (2022) ask networks that were trained on a table.
    """
    rows, t = rows_of(corruption), exact(t)
    above = (t * rows).ceil().clamp(1, rows)
    below = (above - 1).clamp(min=1)
    here, high, low = (torch.exp(-0.5 * corruption.log_snr(time)) for time in (t, above / rows, below / rows))
    return torch.where(high - here <= here - low, above, below) - 1


@serializable("shared.thousandth_index", formerly="unnoise.shared.labels.thousandth_index")
def thousandth_index(corruption: Corruption, t: Tensor) -> Tensor:
    """`(n - 1) 1000 / T` on a table of T steps.

    Nichol & Dhariwal's (2021) rescaled index, 0 to below 1000 for any T.
    """
    rows = rows_of(corruption)
    return (t * rows - 1) * (1000 / rows)


@serializable("shared.song_vp", formerly="unnoise.shared.labels.song_vp")
def song_vp(corruption: Corruption, t: Tensor) -> Tensor:
    """999 t, the label of Song et al.'s (2021) VP and sub-VP networks."""
    return 999 * t


@serializable("shared.LastIndex", formerly="unnoise.shared.labels.LastIndex")
@dataclass(frozen=True)
class LastIndex:
    """`last t`: `song_vp` for chains of another length, of which `last` is the last 0-based index (Karras et al. 2022,
    table 1: M - 1).

    Attributes:
        last: the label at t = 1.
    """

    last: float

    def __call__(self, corruption: Corruption, t: Tensor) -> Tensor:
        """The label."""
        return self.last * t


@serializable("shared.noise_level", formerly="unnoise.shared.labels.noise_level")
def noise_level(corruption: Corruption, t: Tensor) -> Tensor:
    """sigma_t, the label of Song et al.'s (2021) VE networks."""
    return corruption(t)[1]


@serializable("shared.log_noise_level", formerly="unnoise.shared.labels.log_noise_level")
def log_noise_level(corruption: Corruption, t: Tensor) -> Tensor:
    """`ln sigma_t`.

    Where Song et al.'s (2021) VE networks take the logarithm of their label themselves, here the label is it.
    """
    return corruption(t)[1].log()


@serializable("shared.log_half_noise_level", formerly="unnoise.shared.labels.log_half_noise_level")
def log_half_noise_level(corruption: Corruption, t: Tensor) -> Tensor:
    """`ln(sigma_t / 2)`, the label of Karras et al.'s (2022) VE networks.

    Data in [-1, 1] have twice the noise of data in [0, 1].
    """
    return (corruption(t)[1] / 2).log()


@serializable("shared.reversed_index", formerly="unnoise.shared.labels.reversed_index")
def reversed_index(corruption: Corruption, t: Tensor) -> Tensor:
    """T - n on a table of T steps, t = n / T, rounded.

    The 0-based index of Song et al.'s (2021) discrete VE, from the largest sigma.
    """
    return (rows_of(corruption) * (1 - t)).round()


@serializable("shared.quarter_log", formerly="unnoise.shared.labels.quarter_log")
def quarter_log(corruption: Corruption, t: Tensor) -> Tensor:
    """`ln(sigma_t / alpha_t) / 4`, the label of Karras et al.'s (2022) networks."""
    return -corruption.log_snr(t) / 8
