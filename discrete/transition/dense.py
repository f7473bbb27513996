"""A chain given by its transition matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.memory import refuse_beyond
from ...shared.serialization import serializable
from ...shared.tensors import Table, like
from .stepwise import Stepwise

ROUNDING = 1e-6
STRUCTURED = "take Uniform, Absorbing or NearestNeighbor, whose memory grows with K and not with its square"


@serializable("discrete.Dense", formerly="unnoise.discrete.transition.dense.Dense", renamed={"levels": "categories"})
class Dense(Stepwise):
    """Any chain, given by its matrices `Q_1 .. Q_T`; their products from x_0 are a second table of the same size.

    Args:
        matrices: `(T, K, K)`; row i of Q_n is the distribution of x_n given x_(n-1) = i.
        last: `(K,)`, the distribution of x_T that sampling starts from; None for the distribution of x_T averaged over
            all x_0 in equal shares. The bound is infinite for data whose x_T may be a token of probability 0 under it;
            where it is one token alone, other tokens of x_T are sampled from the denoiser
            (`CategoricalDenoiser.start`).
        categories: the number of categories in the data, the first ones; None for all K.

    Raises:
        UsageError: where a row is negative or does not sum to one, with its step and index.
    """

    def __init__(self, matrices: Tensor, last: Tensor | None = None, categories: int | None = None) -> None:
        matrices = torch.as_tensor(matrices)
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not len(matrices):
            raise UsageError(
                f"matrices of shape {tuple(matrices.shape)}: give (T, K, K), one square matrix for each step"
            )
        size, numbers = matrices.shape[1], matrices.numel()
        need = 8 * (numbers + size**2) + (0 if matrices.dtype == torch.float64 else 8 * numbers) + numbers
        refuse_beyond(need, f"a table of {len(matrices)} steps of {size} x {size} numbers and its products", STRUCTURED)
        self.matrices, self.last = matrices.detach().double(), last
        refuse_rows(self.matrices)
        if categories is not None and not 2 <= categories <= size:
            raise UsageError(
                f"categories={categories}: give the number of categories in the data, from 2 to {size}, the size of "
                "the matrices"
            )
        super().__init__(categories or size, size, len(matrices))
        total = torch.empty(len(matrices) + 1, size, size, dtype=torch.float64)
        torch.eye(size, out=total[0])
        for n, q in enumerate(self.matrices):
            torch.matmul(total[n], q, out=total[n + 1])
        self._one, self._total = Table(self.matrices), Table(total)
        kept = total[:, : self.categories, : self.categories]
        self.unmasked_is_clean = size > self.categories and all(
            bool((k == torch.diag(k.diagonal())).all()) for k in kept
        )
        if last is not None and (
            last.shape != (size,) or bool((last < 0).any()) or abs(float(last.sum()) - 1) > ROUNDING
        ):
            raise UsageError(
                f"last must be a distribution over the {size} states: {size} numbers of at least 0 that sum to 1"
            )
        start = total[-1][: self.categories].mean(0) if last is None else last.double()
        one = start.argmax()
        if float(1 - start[one]) < ROUNDING:  # a point mass up to the rounding of the rows
            start = torch.zeros_like(start).index_fill_(0, one, 1.0)
        self._stationary = Table(start)

    def one(self, n: Tensor) -> Tensor:
        return self._one[n - 1]

    def back(self, x: Tensor, n: Tensor) -> Tensor:
        return self._one.on(x.device).mT[like(n, x) - 1, x]

    def products(self, n: Tensor) -> Tensor:
        return self._total[n]

    def from_clean(self, p: Tensor, n: Tensor) -> Tensor:
        q = self._total[n].to(p.dtype)
        return p @ q if q.ndim == 2 else (p.reshape(len(p), -1, self.states) @ q).reshape(p.shape)

    def reach(self, x: Tensor, n: Tensor) -> Tensor:
        return self._total.on(x.device).mT[like(n, x), x]

    def stationary(self) -> Tensor:
        return self._stationary.values

    def survival(self, t: Tensor) -> float:
        start = self.stationary()
        left = (
            float((1 - self._total[self.row(t)][: self.categories, int(start.argmax())]).max())
            if bool((start == 1).any())
            else 0.0
        )
        return left if left > ROUNDING**2 else 0.0


def refuse_rows(matrices: Tensor) -> None:
    """Raises an error for matrices `(T, K, K)` with a row that is not a distribution, up to 1e-6 in its sum.

    Raises:
        UsageError: with the first such row.
    """
    for name, wrong in (
        ("has a negative entry", (matrices < 0).any(-1)),
        ("does not sum to one", ~((matrices.sum(-1) - 1).abs() <= ROUNDING)),
    ):
        if bool(wrong.any()):
            n, i = (int(k) for k in wrong.nonzero()[0])
            row = matrices[n, i]
            raise UsageError(
                f"row {i} of Q_{n + 1} {name} (sum {float(row.sum()):.6g}, smallest entry {float(row.min()):.6g}): row "
                "i must be the distribution of x_n given x_(n-1) = i; where the columns are, give matrices.mT"
            )
