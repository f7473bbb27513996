"""Processes whose steps are functions of one matrix, so that its eigenvectors give every `Q_(s->t)`."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ...shared.memory import refuse_beyond
from ...shared.tensors import Table, like
from .generic import GenericTransition


class Eigenbasis:
    """The eigenvalue decomposition `G = L diag(lambda) R` of a matrix G in detailed balance with a distribution pi.

    Detailed balance is `pi_i G_ij = pi_j G_ji`. lambda are the eigenvalues; L and R are the matrices of right and left
    eigenvectors, inverse to each other.

    Args:
        generator: G, `(K, K)`, float64.
        stationary: pi, `(K,)`, positive.

    Attributes:
        values: lambda, `(K,)`, float64, in rising order.
    """

    def __init__(self, generator: Tensor, stationary: Tensor) -> None:
        root = stationary.double().sqrt()
        symmetric = root[:, None] * generator.double() / root
        self.values, u = torch.linalg.eigh((symmetric + symmetric.T) / 2)
        self._left, self._right = Table(u / root[:, None]), Table(u.T * root)

    def push(self, p: Tensor, factor: Tensor) -> Tensor:
        """Returns `p f(G)`, `(..., K)`, for p `(..., K)` and `factor = f(lambda)`, `(K,)` or `(B, K)`.

        Negative results, which for probabilities are rounding, become 0.
        """
        inner = p @ self._left.on(p.device).to(p.dtype) * _spread(factor, p)
        return (inner @ self._right.on(p.device).to(p.dtype)).clamp(min=0)

    def columns(self, x: Tensor, factor: Tensor) -> Tensor:
        """Returns column x of `f(G)`, `(..., K)`, float64, for tokens x `(...)` and `factor = f(lambda)`, as `push`."""
        inner = self._right.on(x.device).T[x]
        return ((inner * _spread(factor, inner)) @ self._left.on(x.device).T).clamp(min=0)


def _spread(factor: Tensor, p: Tensor) -> Tensor:
    """Returns `factor`, `(K,)` or `(B, K)`, in a shape that broadcasts against `(B, ..., K)`."""
    factor = factor.to(p)
    return factor if factor.ndim == 1 else factor.reshape(len(factor), *[1] * (p.ndim - 2), -1)


def refuse_square(categories: int) -> None:
    """Raises an error for square matrices and eigenvectors of more categories than fit into memory.

    Raises:
        UsageError: with the estimate.
    """
    refuse_beyond(
        8 * 8 * categories**2,
        f"rates and eigenvectors of {categories} x {categories} numbers",
        "take Uniform, or fewer categories",
    )


class Spectral(GenericTransition):
    """A transition with an `Eigenbasis`; subclasses define the eigenvalues of `Q_(s->t)`.

    `Q_(s->t)` has the eigenvectors of G for all times. In continuous time the matrix of rates is `R_t = rate(t) G`.

    Args:
        categories: K.
        steps: T, or None in continuous time.
        t_min: as in `Transition`.
        generator: G, `(K, K)`, float64, whose rows sum to 0.
        stationary: the distribution with which G is in detailed balance, and from which sampling starts, `(K,)`.
    """

    def __init__(self, categories: int, steps: int | None, t_min: float, generator: Tensor, stationary: Tensor) -> None:
        super().__init__(categories, steps, t_min=t_min)
        self._stationary, self._generator = Table(stationary), Table(generator)
        self.basis = Eigenbasis(generator, stationary)

    rounding = 1e-12

    @abstractmethod
    def factor(self, s: Tensor, t: Tensor) -> Tensor:
        """Returns the eigenvalues of `Q_(s->t)` in the order of those of G, `(K,)` or `(B, K)`, float64."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """Returns the factor of G in the matrix of rates at t, `R_t = factor G`, of the shape of t; per unit of time.

        Raises:
            UsageError: for a table, which has no rates.
        """

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.basis.push(p, self.factor(s, t))

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.basis.columns(x_t, self.factor(s, t))

    def stationary(self) -> Tensor:
        return self._stationary.values

    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return like(self.rate(t), x_t[..., None]).to(x_t.device) * self._generator.on(x_t.device).T[x_t]

    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return like(self.rate(t), x_t[..., None]).to(x_t.device) * self._generator.on(x_t.device)[x_t]
