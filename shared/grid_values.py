"""Functions of time, evaluated once for all steps of a run: a step then looks its coefficients up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .tensors import in_transform

Columns: TypeAlias = tuple[Tensor, ...]
Row: TypeAlias = tuple[Tensor | float, ...]


class GridValues:
    """The coefficients of a run's steps, each function of the times evaluated for the whole grid at its first use.

    Within `with values:`, `on_grid` looks up what it is asked for at the times of the grid. Times are recognized as
    objects: another tensor of the same value is not looked up.

    Args:
        path: the pairs (t, s) of the run's steps, scalars on the CPU.
    """

    def __init__(self, path: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.path = path  # keeps the tensors, and so their identities
        self.times: dict[int, list[Tensor]] = {}
        self.rows: dict[int, dict[tuple[int, ...], int]] = {}
        self.tables: dict[tuple[Any, int], tuple[Any, list[Row] | None]] = {}
        self.tokens: list[Token[GridValues | None]] = []
        self.above: GridValues | None = None

    def __enter__(self) -> None:
        self.tokens.append(_present.set(self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _present.reset(self.tokens.pop())

    def at(self, function: Callable[..., Columns], owner: Any, times: tuple[Tensor, ...]) -> Row:
        """Returns `function(owner, *times)`, from the table of the function if the times are those of a step."""
        rows = self.rows.get(len(times)) or self.rows_of(len(times))
        row = rows.get(tuple(map(id, times)))
        if row is None:
            return function(owner, *times) if self.above is None else self.above.at(function, owner, times)
        found = self.tables.get((function, id(owner)))
        if found is None:
            if in_transform():
                return function(owner, *times)
            found = self.tables[function, id(owner)] = owner, self.table(function, owner, len(times))
        return function(owner, *times) if found[1] is None else found[1][row]

    def rows_of(self, count: int) -> dict[tuple[int, ...], int]:
        """Returns the rows of the times (count = 1) or of the pairs with s > 0 (2) of the path, by their identities.

        The step to s = 0 is taken once, and is special in many samplers.
        """
        columns = [*zip(*((t, s) for t, s in self.path if count == 1 or float(s) > 0), strict=True)]
        if count == 1:
            columns = [tuple({id(t): t for column in columns for t in column}.values())]
        self.times[count] = [torch.tensor([*map(float, column)], dtype=torch.float64) for column in columns]
        self.rows[count] = {ids: i for i, ids in enumerate(zip(*(map(id, column) for column in columns), strict=True))}
        return self.rows[count]

    def time_above(self, t: Tensor, s: Tensor) -> Tensor:
        """Returns 2 t - s for a step (t, s), with which `(2 t - s, t)` is looked up too."""
        if self.above is None:
            self.above = GridValues([(2 * t - s, t) for t, s in self.path])
        row = (self.rows.get(2) or self.rows_of(2)).get((id(t), id(s)))
        return 2 * t - s if row is None else self.above.path[row][0]

    @torch.no_grad()
    def table(self, function: Callable[..., Columns], owner: Any, count: int) -> list[Row] | None:
        """Returns the values of a function at all times, as Python numbers.

        None for values on an accelerator, and for those that are not one number for each time.
        """
        columns, times = function(owner, *self.times[count]), self.times[count][0]
        if any(c.device.type != "cpu" or c.shape not in (times.shape, ()) for c in columns):
            return None
        return list(zip(*(c.expand(times.shape).tolist() for c in columns), strict=True))


_present: ContextVar[GridValues | None] = ContextVar("the values of the run that takes a step", default=None)


def on_grid(function: Callable[..., Columns], owner: Any, *times: Tensor) -> Row:
    """Returns `function(owner, *times)`; during a run as Python numbers, evaluated once for all times of its grid.

    Args:
        function: an elementwise function of an owner, such as a schedule or a sampler, and of one or two times; returns
            a tuple of tensors of the shape of the times. It must not depend on anything that changes during a run.
        owner: its first argument.
        times: of a step (t, s) either t, or s, or both.
    """
    values = None if torch.compiler.is_compiling() else _present.get()
    return function(owner, *times) if values is None else values.at(function, owner, times)


def time_above(t: Tensor, s: Tensor) -> Tensor:
    """Returns 2 t - s, the time as far above t as s is below; during a run `on_grid` knows (2 t - s, t) as a step."""
    values = None if torch.compiler.is_compiling() else _present.get()
    return 2 * t - s if values is None else values.time_above(t, s)
