"""Work that is done row by row, in blocks of rows that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .tensors import in_transform

NUMBERS = 2**18  # in a block: one megabyte in float32


def eager_on_cpu(x: Tensor) -> bool:
    """Returns whether work on x may depend on its values: on the CPU, outside of `torch.compile` and `torch.func`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not in_transform()


def maybe(condition: Tensor) -> bool:
    """Returns whether a condition holds, and True where looking at it would wait for an accelerator."""
    return not eager_on_cpu(condition) or bool(condition)


def row_by_row(function: Callable[..., Tensor], x: Tensor, *each: Tensor) -> Tensor:
    """Returns `function(x, *each)` for a function of rows, computed in blocks of rows on the CPU.

    A large intermediate result costs more time to allocate than to compute. On an accelerator, and where the rows fit
    into one block, it is one call.

    Args:
        function: from rows `(n, K)`, and the numbers `(n,)` of `each`, to one number for each row, `(n,)`.
        x: `(..., K)`.
        each: numbers for each row, `(...)`.
    """
    shape, rows = x.shape[:-1], x.reshape(-1, x.shape[-1])
    numbers = [v.reshape(-1) for v in each]
    size = max(1, NUMBERS // max(1, x.shape[-1]))
    if len(rows) <= size or not eager_on_cpu(x):
        return function(rows, *numbers).view(shape)
    blocks = zip(*(v.split(size) for v in (rows, *numbers)), strict=True)
    return torch.cat([function(*block) for block in blocks]).view(shape)


def at_rows(chosen: Tensor, function: Callable[..., Tensor], other: Tensor, x: Tensor, *each: Tensor) -> Tensor:
    """Returns `function(x, *each)` in the chosen rows and `other` elsewhere; on the CPU computed in the former alone.

    Args:
        chosen: bool, `(n,)`.
        function: as in `row_by_row`.
        other: `(n,)`.
        x: `(n, K)`.
        each: numbers for each row, `(n,)`.
    """
    if not eager_on_cpu(x):
        return torch.where(chosen, function(x, *each), other)
    index = chosen.nonzero().squeeze(1)
    return other.index_copy(0, index, function(*(v[index] for v in (x, *each)))) if len(index) else other
