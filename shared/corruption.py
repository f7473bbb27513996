"""The base class of forward processes: how x_0 is corrupted as t goes from 0 (clean) to 1 (noise)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .random import Source
from .tensors import exact
from .values import equal, hash_of_type, keep_inherited, notation


class Corruption(ABC):
    """A forward process `q(x_t | x_0)`, with the prior of `x_1` that sampling starts from.

    `t` is a scalar or has shape `(B,)`; 0 <= s < t <= 1 everywhere. Random numbers come from `generator`, a
    `torch.Generator`, `Streams` or None for torch's global generator. A corruption is immutable, so copies of a
    denoiser share it, and two that were constructed from equal arguments are equal.
    """

    __eq__, __hash__, __repr__ = equal, hash_of_type, notation

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keep_inherited(cls)

    def __deepcopy__(self, memo: dict[int, object]) -> Corruption:
        return self

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        """Samples `x_t ~ q(x_t | x_0)`, of the shape of `x0`, `(B, ...)`; one draw for each example."""

    @abstractmethod
    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        """Samples `x_t ~ q(x_t | x_s)`, s < t, of the shape of `x_s`, for samplers that go back to a noisier time."""

    @abstractmethod
    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        """Samples `x_1` from the prior, of the given shape `(B, ...)`, on the given device."""

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """Returns the decreasing times of a sampler of that many steps, `(steps + 1,)`, float64, from 1 down to 0."""

    @abstractmethod
    def state(self, x: Tensor) -> Tensor:
        """Returns x as a state of the process: real numbers in float32 or better, or tokens as int64.

        Raises:
            UsageError: for any other input.
        """

    def refuse_grid(self, grid: Tensor) -> None:  # noqa: B027
        """Raises for a grid with several times at which the process has the same distribution.

        The base class refuses no grid. `grid` contains decreasing times, float64.

        Raises:
            UsageError: for such a grid.
        """

    @abstractmethod
    def training_time(self, u: Tensor) -> Tensor:
        """Returns the training time for `u` uniform on [0, 1), float64, of the shape of u.

        The process thus defines how training times are distributed in [0, 1]: evenly from its smallest time to 1, on
        the rows of a table, or log-normally.
        """


def table_grid(steps: int, rows: int) -> Tensor:
    """Returns the times of evenly spaced rows of a table, including its first and last row, and then 0.

    Row n = 1..T is the time n / T; a single step goes from the last row to 0. The rows are those of OpenAI's respacing
    "N", whose index is row - 1.

    Args:
        steps: of the sampler.
        rows: T, the number of steps of the table.

    Returns:
        The decreasing times, `(steps + 1,)`, float64.

    Raises:
        UsageError: unless 1 <= steps <= rows.
    """
    if not 1 <= steps <= rows:
        raise UsageError(f"steps={steps}: this table has {rows} steps, so give a number from 1 to {rows}")
    stride = torch.full((steps,), (rows - 1) / max(steps - 1, 1), dtype=torch.float64)
    # Halves are rounded to even on the 0-based index, as in OpenAI's code.
    index = torch.round(stride.cumsum(0) - stride) if steps > 1 else stride
    return torch.cat([index.flip(0) + 1, torch.zeros(1, dtype=torch.float64)]) / rows


def table_time(u: Tensor, rows: int) -> Tensor:
    """Returns t = n / T, float64, of the shape of u, with n uniform on 1..T for `u` uniform on [0, 1); `rows` is T."""
    return (torch.floor(exact(u) * rows) + 1).clamp(max=rows) / rows


def refuse_below_first_row(grid: Tensor, rows: int) -> None:
    """Raises for a grid with times strictly between 0 and 1 / T, the first row of a table of T steps.

    At these times the process has the distribution of the first row.

    Args:
        grid: decreasing times, float64.
        rows: T.

    Raises:
        UsageError: for such a grid.
    """
    between = grid[(grid > 0) & (grid * rows < 1 - 1e-6)]
    if len(between):
        raise UsageError(
            f"the grid has t={float(between[0]):g}, below the first row of the table, t=1/{rows}={1 / rows:g}, "
            "where the process does not change: step from the first row to 0"
        )
