"""Linear measurement operators A, with their adjoint, pseudo-inverse and regularized inverse in closed form.

Signals are `(B, C, *size)` with any number of sizes, or vectors `(B, d)`. Each example is measured by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor

from ...editing import checked_mask
from ...errors import UsageError
from ...serialization import serializable
from ...tensors import Table, full_precision, like

Variance: TypeAlias = Tensor | float
"""A number, or one for each example, `(B,)`."""


class Operator(ABC):
    """The base class of linear maps A from signals to measurements.

    Called with signals x `(B, ...)`; returns `A x`, `(B, ...)`. A acts on each example by itself.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Returns `A x`, `(B, ...)`, for signals x, `(B, ...)`.

        Raises:
            UsageError: for signals of a shape that A does not take.
        """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Returns `A^T y`, of the shape of the signal: `<A x, y> = <x, A^T y>`.

        Raises:
            UsageError: for measurements of a shape that A does not return.
        """

    @abstractmethod
    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        """Returns `(prior A A^T + noise I)^-1 r`, of the shape of `r`; if singular, its pseudo-inverse times r.

        Args:
            r: a residual, `(B, ...)`, in the space of measurements.
            prior: variance of each entry of the signal, a number or `(B,)`.
            noise: variance of each entry of the measurement's noise, a number or `(B,)`.
        """

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns `A^+ y`, `(B, ...)`, the signal x of least norm among those with the least `|A x - y|`."""

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """Returns `y - A x`, where y or x may have a single row for all rows of the other."""
        return y - self(x)


@serializable("gaussian.Masked", formerly="unnoise.shared.inverse.operators.Masked")
class Masked(Operator):
    """The operator of inpainting: the signal where the mask is 1, and 0 elsewhere; `A A^T = I` where the mask is 1.

    A measurement has the shape of the signal; its entries outside of the mask are not used.

    Args:
        mask: broadcast against the signal, 1 or True where it is measured.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask, self._measured = mask, Table(checked_mask(mask, mask))

    def __call__(self, x: Tensor) -> Tensor:
        mask = self._measured.on(x.device)
        if mask.ndim > x.ndim or not broadcasts(mask.shape, x.shape):
            raise UsageError(
                f"a mask of shape {tuple(mask.shape)} does not fit signals of shape {tuple(x.shape)}: "
                "give one that broadcasts to them"
            )
        return torch.where(mask, x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        return self(r / (aligned(prior, r) + aligned(noise, r)))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self(y)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        return self(y - x)


@serializable("gaussian.Gray", formerly="unnoise.shared.inverse.operators.Grey")
class Gray(Operator):
    """The operator of colorization: the weighted sum of the channels, `(B, C, *size)` to `(B, 1, *size)`.

    `A A^T = |w|^2 I`.

    Args:
        weights: w, `(C,)`, not all 0; 1/3 each for the mean of RGB.
    """

    def __init__(self, weights: Tensor) -> None:
        if weights.ndim != 1 or not bool((weights != 0).any()):
            raise UsageError(
                f"weights={weights.tolist()}: give one number for each channel, not all of them 0, such as three "
                "times 1/3"
            )
        self.weights, self._weights = weights, Table(weights.double())
        self._square = float(weights.double().square().sum())

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.weights):
            raise UsageError(
                f"{len(self.weights)} weights do not fit signals of shape {tuple(x.shape)}: give one for each channel"
            )
        return (self._along(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        if y.shape[1] != 1:
            raise UsageError(
                f"a measurement of shape {tuple(y.shape)} has {y.shape[1]} channels: give one, the weighted sum"
            )
        return self._along(y) * y

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        return r / (aligned(prior, r) * self._square + aligned(noise, r))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / self._square

    def _along(self, x: Tensor) -> Tensor:
        return self._weights.on(x.device).to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))


@serializable("gaussian.Averaged", formerly="unnoise.shared.inverse.operators.Averaged")
class Averaged(Operator):
    """The operator of super-resolution: means over blocks, `(B, C, H, W)` to `(B, C, H / factor, W / factor)`.

    `A A^T = I / n` for blocks of n entries.

    Args:
        factor: the sides of a block, a number for each size or one for all; for vectors `(B, d)`, the length along d.
    """

    def __init__(self, factor: int | tuple[int, ...]) -> None:
        if min(each := (factor,) if isinstance(factor, int) else factor) < 1:
            raise UsageError(f"factor={factor}: give whole numbers of at least 1, such as 2 or (1, 2)")
        self.factor, self._each = factor, each

    def __call__(self, x: Tensor) -> Tensor:
        first, sides = self._sides(x)
        if any(size % side for size, side in zip(x.shape[first:], sides, strict=True)):
            raise UsageError(
                f"factor={self.factor} does not divide the sizes of signals of shape {tuple(x.shape)}: give divisors"
            )
        for axis, side in enumerate(sides, first):
            x = x.unflatten(axis, (-1, side)).mean(axis + 1)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.pseudo_inverse(y) / self._count(y)

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        return r / (aligned(prior, r) / self._count(r) + aligned(noise, r))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        first, sides = self._sides(y)
        for axis, side in enumerate(sides, first):
            y = y.repeat_interleave(side, axis)
        return y

    def _sides(self, x: Tensor) -> tuple[int, tuple[int, ...]]:
        """Returns the first axis that is averaged, and the side of a block along each axis from there."""
        first = min(2, x.ndim - 1)
        sides = self._each * (x.ndim - first) if isinstance(self.factor, int) else self._each
        if len(sides) != x.ndim - first:
            raise UsageError(
                f"factor={self.factor} does not fit tensors of shape {tuple(x.shape)}: give a side for each size, or "
                "one number"
            )
        return first, sides

    def _count(self, x: Tensor) -> int:
        return math.prod(self._sides(x)[1])


@serializable("gaussian.MatrixOperator", formerly=("unnoise.shared.inverse.operators.Dense", "gaussian.Dense"))
class MatrixOperator(Operator):
    """A matrix times the flattened signal of n numbers, `(B, ...)` to `(B, m)`.

    Its singular value decomposition is computed once, when the operator is constructed.

    Args:
        matrix: A, `(m, n)`.
        shape: the shape of one signal, n numbers; None for vectors `(B, n)`.
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...] | None = None) -> None:
        if matrix.ndim != 2 or (shape is not None and math.prod(shape) != matrix.shape[1]):
            raise UsageError(
                f"a matrix of shape {tuple(matrix.shape)} does not fit signals of shape {shape}: give (m, n) for n "
                "numbers in a signal"
            )
        self.matrix, self.shape = matrix, shape
        exact = matrix.detach().cpu().double()
        # All left singular vectors are needed, and the right ones of singular values above 0.
        axes, singular, rows = torch.linalg.svd(exact, full_matrices=len(exact) > exact.shape[1])
        kept = singular > singular.max() * max(exact.shape) * torch.finfo(torch.float64).eps
        squares = torch.zeros(len(exact), dtype=torch.float64)
        squares[: len(singular)] = torch.where(kept, singular, 0) ** 2
        inverse = torch.where(kept, singular, 0) / torch.where(kept, singular, 1) ** 2
        self._matrix = Table(exact)
        self._inverse = Table((rows[: len(singular)].T * inverse) @ axes[:, : len(singular)].T)
        self._axes, self._squares, self._signal = Table(axes), Table(squares), shape or (exact.shape[1],)

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self._signal:
            wanted = ", ".join(map(str, self._signal))
            raise UsageError(
                f"signals of shape {tuple(x.shape)} do not fit the matrix, which takes (B, {wanted}): "
                "give MatrixOperator(matrix, shape=...)"
            )
        return self._times(x.flatten(1), self._matrix)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._times(self._checked(y), self._matrix, transposed=True).unflatten(1, self._signal)

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        weight = aligned(prior, r) * self._squares.on(r.device).to(r.dtype) + aligned(noise, r)
        along = self._times(self._checked(r), self._axes, transposed=True)
        return self._times(torch.where(weight > 0, along / weight, 0), self._axes)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self._times(self._checked(y), self._inverse).unflatten(1, self._signal)

    def _checked(self, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != len(self.matrix):
            raise UsageError(
                f"a measurement of shape {tuple(y.shape)} does not fit the matrix: give (B, {len(self.matrix)})"
            )
        return y

    def _times(self, v: Tensor, table: Table, transposed: bool = False) -> Tensor:
        matrix = table.on(v.device).to(v.dtype)
        with full_precision(v):
            return v @ (matrix if transposed else matrix.T)


def broadcasts(mask: torch.Size, signal: torch.Size) -> bool:
    """Returns whether a mask, by its shape, broadcasts to signals of a shape; one signal may have several masks."""
    try:
        return torch.broadcast_shapes(mask, signal)[1:] == signal[1:]
    except RuntimeError:
        return False


def aligned(variance: Variance, r: Tensor) -> Tensor | float:
    """Returns a variance, a number or `(B,)`, in the shape that broadcasts against `r`, `(B, ...)`."""
    return like(variance, r) if isinstance(variance, Tensor) else variance
