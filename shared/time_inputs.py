"""Time inputs: the number that a network is fed for a time, as a function `(corruption, t) -> time input`.

Pretrained networks need the time input that they were trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from typing_extensions import TypeVar

from .corruption import Corruption
from .errors import UsageError
from .serialization import serializable
from .tensors import exact
from .values import notation

if TYPE_CHECKING:
    from .gaussian.schedule import Schedule

C = TypeVar("C", bound=Corruption, default=Corruption, contravariant=True)
TimeInput: TypeAlias = Callable[[C, Tensor], Tensor]
"""`(corruption, t) -> time input`, of the shape of t; a `TimeInput[Schedule]` may use alpha_t and sigma_t."""


def rows_of(corruption: Corruption) -> int:
    """Returns T, the number of steps of a process on a table, whose times are t = n / T for n = 1..T.

    Raises:
        UsageError: for a process in continuous time.
    """
    rows = getattr(corruption, "steps", None)
    if rows is None:
        raise UsageError(
            f"{type(corruption).__name__} runs in continuous time, without steps to count: "
            "give time_input=thousandths, song_vp or quarter_log"
        )
    return rows


@serializable("shared.thousandths", formerly="unnoise.shared.labels.thousandths")
def thousandths(corruption: Corruption, t: Tensor) -> Tensor:
    """Returns `1000 t`, the default of denoisers: the same for tables of any length and for continuous time."""
    return 1000 * t


@serializable("shared.step_index", formerly="unnoise.shared.labels.step_index")
def step_index(corruption: Corruption, t: Tensor) -> Tensor:
    """Returns `n - 1` on a table of T steps, t = n / T: the 0-based index of Ho et al. (2020)."""
    return t * rows_of(corruption) - 1


@serializable("shared.nearest_index", formerly="unnoise.shared.labels.nearest_index")
def nearest_index(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns the 0-based index n - 1 of the row n of a table whose sigma / alpha is nearest to sigma_t / alpha_t.

    A time between two rows is thus rounded to one of them. Karras et al. (2022) evaluate networks that were trained on
    a table at these indices.
    """
    rows, t = rows_of(schedule), exact(t)
    above = (t * rows).ceil().clamp(1, rows)
    below = (above - 1).clamp(min=1)
    here, high, low = (torch.exp(-0.5 * schedule.log_snr(time)) for time in (t, above / rows, below / rows))
    return torch.where(high - here <= here - low, above, below) - 1


@serializable("shared.thousandth_index", formerly="unnoise.shared.labels.thousandth_index")
def thousandth_index(corruption: Corruption, t: Tensor) -> Tensor:
    """Returns `(n - 1) 1000 / T` on a table of T steps, t = n / T: from 0 to below 1000 for any T.

    Nichol & Dhariwal 2021, "rescaled timesteps".
    """
    rows = rows_of(corruption)
    return (t * rows - 1) * (1000 / rows)


@serializable("shared.song_vp", formerly="unnoise.shared.labels.song_vp")
def song_vp(corruption: Corruption, t: Tensor) -> Tensor:
    """Returns `999 t`, the time input of Song et al.'s (2021) VP and sub-VP networks."""
    return 999 * t


@serializable("shared.LastIndex", formerly="unnoise.shared.labels.LastIndex")
@dataclass(frozen=True)
class LastIndex:
    """The time input `last t`: `song_vp` for a chain of M steps, `last = M - 1` (Karras et al. 2022, table 1).

    Called with (process, t); returns the time input, of the shape of t.

    Attributes:
        last: the time input at t = 1, which is the last 0-based index of the chain.
    """

    last: float
    __repr__ = notation

    def __call__(self, corruption: Corruption, t: Tensor) -> Tensor:
        """Returns the time input, of the shape of t."""
        return self.last * t


@serializable("shared.noise_level", formerly="unnoise.shared.labels.noise_level")
def noise_level(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns sigma_t, the time input of Song et al.'s (2021) VE networks."""
    return schedule(t)[1]


@serializable("shared.log_noise_level", formerly="unnoise.shared.labels.log_noise_level")
def log_noise_level(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `ln sigma_t`, for networks that do not take the logarithm of the noise level themselves.

    Song et al.'s (2021) VE networks are fed sigma_t, and take its logarithm.
    """
    return schedule(t)[1].log()


@serializable("shared.log_half_noise_level", formerly="unnoise.shared.labels.log_half_noise_level")
def log_half_noise_level(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `ln(sigma_t / 2)`, the time input of Karras et al.'s (2022) VE networks.

    The factor converts the noise level of data in [-1, 1] to that of data in [0, 1], as in Song et al. (2021).
    """
    return (schedule(t)[1] / 2).log()


@serializable("shared.reversed_index", formerly="unnoise.shared.labels.reversed_index")
def reversed_index(corruption: Corruption, t: Tensor) -> Tensor:
    """Returns `T - n` on a table of T steps, t = n / T, rounded.

    It is the 0-based index of Song et al.'s (2021) discrete VE networks, which count from the largest sigma.
    """
    return (rows_of(corruption) * (1 - t)).round()


@serializable("shared.quarter_log", formerly="unnoise.shared.labels.quarter_log")
def quarter_log(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns `ln(sigma_t / alpha_t) / 4`, the time input of EDM networks (Karras et al. 2022, c_noise in table 1)."""
    return -schedule.log_snr(t) / 8
