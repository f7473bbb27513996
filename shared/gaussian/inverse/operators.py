"""Linear measurements `A x`, with what inverse problems ask of them in closed form.

Signals are `(B, C, *size)` with any number of sizes, or vectors `(B, d)`, and every example is measured by itself.
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


class Operator(ABC):
    """A linear map A of signals to measurements."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """`A x`, `(B, ...)`, of signals `(B, ...)`.

        Raises:
            UsageError: for signals of a shape that A does not take.
        """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """`A^T y`, of the shape of the signal: `<A x, y> = <x, A^T y>`.

        Raises:
            UsageError: for measurements of a shape that A does not give.
        """

    @abstractmethod
    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        """`(prior A A^T + noise I)^-1 r`, of the shape of `r`, within the image of A where that is singular.

        Args:
            r: `(B, ...)`, in the space of measurements.
            prior: variance of the signal, a number or `(B,)`.
            noise: variance of the noise, a number or `(B,)`.
        """

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """`A^+ y`: of the signals that come closest to the measurement, the smallest."""

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """`y - A x`, where either may have a single row for all of the other's."""
        return y - self(x)


@serializable("gaussian.Masked", formerly="unnoise.shared.inverse.operators.Masked")
class Masked(Operator):
    """Inpainting: what the mask shows, at its place; `A A^T = I` there. Elsewhere a measurement is 0, and is not looked
    at.

    Args:
        mask: broadcast against the signal, 1 or True where it is seen.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask, self._seen = mask, Table(checked_mask(mask, mask))

    def __call__(self, x: Tensor) -> Tensor:
        seen = self._seen.on(x.device)
        if seen.ndim > x.ndim or not broadcasts(seen.shape, x.shape):
            raise UsageError(
                f"a mask of shape {tuple(seen.shape)} does not fit signals of shape {tuple(x.shape)}: give one that broadcasts against them"
            )
        return torch.where(seen, x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        return self(r / (against(prior, r) + against(noise, r)))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self(y)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        return self(y - x)


@serializable("gaussian.Gray", formerly="unnoise.shared.inverse.operators.Grey")
class Gray(Operator):
    """Colourisation: the weighted sum over the channels, `(B, C, *size)` to `(B, 1, *size)`; `A A^T = |w|^2 I`.

    Args:
        weights: `(C,)`, not all 0; 1/3 each for the mean of RGB.
    """

    def __init__(self, weights: Tensor) -> None:
        if weights.ndim != 1 or not bool((weights != 0).any()):
            raise UsageError(
                f"weights={weights.tolist()}: give one for each channel, not all of them 0, such as three times 1/3"
            )
        self.weights, self._weights, self._square = (
            weights,
            Table(weights.double()),
            float(weights.double().square().sum()),
        )

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.weights):
            raise UsageError(
                f"{len(self.weights)} weights do not fit signals of shape {tuple(x.shape)}: give one for each channel"
            )
        return (self._along(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        if y.shape[1] != 1:
            raise UsageError(
                f"a measurement of shape {tuple(y.shape)} is not one of a weighted sum: its axis 1 has one entry"
            )
        return self._along(y) * y

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        return r / (against(prior, r) * self._square + against(noise, r))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / self._square

    def _along(self, x: Tensor) -> Tensor:
        return self._weights.on(x.device).to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))


@serializable("gaussian.Averaged", formerly="unnoise.shared.inverse.operators.Averaged")
class Averaged(Operator):
    """Super-resolution: means over blocks of n entries, `(B, C, H, W)` to `(B, C, H / factor, W / factor)`;
    `A A^T = I / n`.

    Args:
        factor: sides of a block, one for each size or the same for all; that of vectors `(B, d)` goes along d.
    """

    def __init__(self, factor: int | tuple[int, ...]) -> None:
        if min(each := (factor,) if isinstance(factor, int) else factor) < 1:
            raise UsageError(f"factor={factor}: give whole numbers of at least 1, such as 2 or (1, 2)")
        self.factor, self._each = factor, each

    def __call__(self, x: Tensor) -> Tensor:
        first, sides = self._sides(x)
        if any(size % side for size, side in zip(x.shape[first:], sides, strict=True)):
            raise UsageError(
                f"factor={self.factor} does not divide the sizes of signals of shape {tuple(x.shape)}: choose divisors"
            )
        for axis, side in enumerate(sides, first):
            x = x.unflatten(axis, (-1, side)).mean(axis + 1)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.pseudo_inverse(y) / self._count(y)

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        return r / (against(prior, r) / self._count(r) + against(noise, r))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        first, sides = self._sides(y)
        for axis, side in enumerate(sides, first):
            y = y.repeat_interleave(side, axis)
        return y

    def _sides(self, x: Tensor) -> tuple[int, tuple[int, ...]]:
        """The first axis that is averaged, and the side of a block along each from there."""
        first = min(2, x.ndim - 1)
        sides = self._each * (x.ndim - first) if isinstance(self.factor, int) else self._each
        if len(sides) != x.ndim - first:
            raise UsageError(
                f"factor={self.factor} does not fit tensors of shape {tuple(x.shape)}: give a side for each size, or one number"
            )
        return first, sides

    def _count(self, x: Tensor) -> int:
        return math.prod(self._sides(x)[1])


@serializable("gaussian.Dense", formerly="unnoise.shared.inverse.operators.Dense")
class Dense(Operator):
    """Any matrix on the flattened signal, `(B, ...)` of n numbers to `(B, m)`; the eigenvectors of `A A^T` are found
    once.

    Args:
        matrix: `(m, n)`.
        shape: of one signal, n numbers; None for vectors `(B, n)`.
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...] | None = None) -> None:
        if matrix.ndim != 2 or (shape is not None and math.prod(shape) != matrix.shape[1]):
            raise UsageError(
                f"a matrix of shape {tuple(matrix.shape)} for signals of shape {shape}: give (m, n) for n numbers in a signal"
            )
        self.matrix, self.shape = matrix, shape
        exact = matrix.detach().cpu().double()
        axes, singular, rows = torch.linalg.svd(
            exact, full_matrices=len(exact) > exact.shape[1]
        )  # all axes of y, those of x if seen
        kept = singular > singular.max() * max(exact.shape) * torch.finfo(torch.float64).eps
        squares = torch.zeros(len(exact), dtype=torch.float64)
        squares[: len(singular)] = torch.where(kept, singular, 0) ** 2
        inverse = torch.where(kept, singular, 0) / torch.where(kept, singular, 1) ** 2
        self._matrix, self._inverse = (
            Table(exact),
            Table((rows[: len(singular)].T * inverse) @ axes[:, : len(singular)].T),
        )
        self._axes, self._squares, self._signal = Table(axes), Table(squares), shape or (exact.shape[1],)

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self._signal:
            wanted = ", ".join(map(str, self._signal))
            raise UsageError(
                f"signals of shape {tuple(x.shape)} are not those of the matrix, (B, {wanted}): give Dense(matrix, shape=...)"
            )
        return self._times(x.flatten(1), self._matrix)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._times(self._checked(y), self._matrix, transposed=True).unflatten(1, self._signal)

    def solve(self, r: Tensor, prior: Variance, noise: Variance) -> Tensor:
        weight = against(prior, r) * self._squares.on(r.device).to(r.dtype) + against(noise, r)
        along = self._times(self._checked(r), self._axes, transposed=True)
        return self._times(torch.where(weight > 0, along / weight, 0), self._axes)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self._times(self._checked(y), self._inverse).unflatten(1, self._signal)

    def _checked(self, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != len(self.matrix):
            raise UsageError(
                f"a measurement of shape {tuple(y.shape)} is not one of the matrix, (B, {len(self.matrix)})"
            )
        return y

    def _times(self, v: Tensor, table: Table, transposed: bool = False) -> Tensor:
        matrix = table.on(v.device).to(v.dtype)
        with full_precision(v):
            return v @ (matrix if transposed else matrix.T)


def broadcasts(mask: torch.Size, signal: torch.Size) -> bool:
    """Whether the two broadcast to signals of that size.

    A single signal may stand for all rows of a mask that has several.
    """
    try:
        return torch.broadcast_shapes(mask, signal)[1:] == signal[1:]
    except RuntimeError:
        return False


def against(variance: Variance, r: Tensor) -> Tensor | float:
    """A number, or one for each example, as it broadcasts against `r`."""
    return like(variance, r) if isinstance(variance, Tensor) else variance
