"""A corruption says how x_0 is destroyed as t runs from 0 (clean) to 1 (noise)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .random import Source
from .tensors import exact
from .values import equal, hash_of_type, notation


class Corruption(ABC):
    """`x_t ~ q(x_t | x_0)`, and the law of `x_1` that sampling starts from.

    `t` is a scalar or has shape `(B,)`; 0 <= s < t <= 1 everywhere. A corruption does not change, so copies of a
    denoiser share it, and two that were made of equal values are equal.
    """

    __eq__, __hash__, __repr__ = equal, hash_of_type, notation

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("__eq__", "__hash__", "__repr__"):  # in each class itself, where @dataclass would put its own
            if name not in vars(cls):
                setattr(cls, name, getattr(Corruption, name))

    def __deepcopy__(self, memo: dict[int, object]) -> Corruption:
        return self

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        """A draw of `x_t` given `x_0`, of the shape of `x0`."""

    @abstractmethod
    def diffuse(self, x_s: Tensor, s: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        """A draw of `x_t` given `x_s`, s < t: the way back up, for samplers that revisit a level."""

    @abstractmethod
    def prior(self, shape: Sequence[int], *, generator: Source = None, device: torch.device | str = "cpu") -> Tensor:
        """A draw of `x_1`."""

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The `steps + 1` times of a sampler, float64, from 1 down to 0."""

    @abstractmethod
    def state(self, x: Tensor) -> Tensor:
        """Makes x a state of the process: real numbers in float32 or better, or tokens as int64.

        Raises:
            UsageError: for any other input.
        """

    def refuse_grid(self, grid: Tensor) -> None:  # noqa: B027
        """Refuses a grid with times that the process does not tell apart.

        Raises:
            UsageError: with what to do.
        """

    @abstractmethod
    def training_time(self, u: Tensor) -> Tensor:
        """Maps `u` uniform on [0, 1) to the times that training visits, float64."""


def table_grid(steps: int, rows: int) -> Tensor:
    """Evenly spaced rows of a table of `rows` steps, both ends included, and then 0: `(steps + 1,)`, float64.

    Rows fall where OpenAI's respacing "N" puts them (its index is row - 1).

    Raises:
        UsageError: unless 1 <= steps <= rows.
    """
    if not 1 <= steps <= rows:
        raise UsageError(f"steps={steps}: this table has {rows} steps, ask for 1 to {rows}")
    stride = torch.full((steps,), (rows - 1) / max(steps - 1, 1), dtype=torch.float64)
    index = (
        torch.round(stride.cumsum(0) - stride) if steps > 1 else stride
    )  # halves to even on the 0-based index, as OpenAI's
    return torch.cat([index.flip(0) + 1, torch.zeros(1, dtype=torch.float64)]) / rows


def table_time(u: Tensor, rows: int) -> Tensor:
    """`u` uniform on [0, 1) to t = n / T, n uniform on 1..T, float64."""
    return (torch.floor(exact(u) * rows) + 1).clamp(max=rows) / rows


def refuse_below_first_row(grid: Tensor, rows: int) -> None:
    """Refuses a grid with times between 0 and the first row of a table, where nothing moves.

    Raises:
        UsageError: with what to do.
    """
    between = grid[(grid > 0) & (grid * rows < 1 - 1e-6)]
    if len(between):
        raise UsageError(
            f"the grid has t={float(between[0]):g} below the first row of the table, t=1/{rows}={1 / rows:g}, where nothing moves: go from "
            "there to 0 in one step"
        )


def segment(t: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where t lies in a table whose rows 1..T stand at t = n / T: indices of the rows around it, from 0, and the share
    of the way from the lower to the upper; below row 1 it is row 1.

    The segment below a row belongs to it, so that the derivative at t is that of the step which leaves t for s < t.
    Times that rounding puts 1e-9 of a row off one, such as `49 * (1 / 49) < 1`, are at the row.
    """
    row = exact(t) * rows - 1
    whole = row.detach().round()
    row = torch.where((row - whole).abs() < 1e-9, whole + (row - row.detach()), row).clamp(0, rows - 1)
    low = (row.detach().ceil().long() - 1).clamp(0, max(rows - 2, 0))
    return low, (low + 1).clamp(max=rows - 1), row - low
