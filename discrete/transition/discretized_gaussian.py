"""Moves between ordered categories with a discretized Gaussian's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.blocks import eager_on_cpu
from ...shared.memory import refuse_beyond
from ...shared.random import Source, quantile, row_quantile, uniform
from ...shared.serialization import serializable
from ...shared.tensors import Table, checked_time, like
from ..schedules import checked_betas
from .base import as_tokens
from .stepwise import Stepwise

ROUNDING = 2.0**-24  # the relative error of factors of low rank
LOW = 1 / 16  # of K: the largest rank with which factors are faster than a matrix


@serializable(
    "discrete.DiscretizedGaussian",
    formerly="unnoise.discrete.transition.discretized_gaussian.DiscretizedGaussian",
    renamed={"levels": "categories"},
)
class DiscretizedGaussian(Stepwise):
    r"""Discretized Gaussian moves, `Q_n[i, j] = w_n(i - j) / sum_m w_n(m)` off the diagonal, m = -(K-1)..K-1.

    The weights are `w_n(m) = exp(-4 m^2 / ((K - 1)^2 beta_n))`: before discretization a Gaussian with the variance
    `beta_n (K - 1)^2 / 8` in squared categories. The diagonal is one minus the rest of its row, so Q_n is symmetric
    and doubly stochastic (Austin et al. 2021, appendix A.2).

    Single steps are kept as their `(T, K)` offsets. Q_n does not change when the order of the categories is reversed,
    so it maps even functions of the category to even ones and odd to odd; the products from the clean signal are kept
    as these two halves, `(T + 1, K/2, K/2)` each, half of the numbers and half of the work of the whole matrices. Other
    strides are multiplied when a sampler first takes them.

    Args:
        categories: K; beta_n is relative to the width K - 1 of the range of categories, for every K.
        schedule: beta_1..beta_T, `(T,)`, each in (0, 1], such as `linear(1000)`.
    """

    rounding = 1e-12

    def __init__(self, categories: int, schedule: Tensor) -> None:
        self.schedule = checked_betas(schedule)
        steps = len(self.schedule)
        super().__init__(categories, categories, steps)
        need = 8 * categories**2 * ((steps + 1) // 2 + 4)
        refuse_beyond(
            need,
            f"the products of {steps} steps of {categories} x {categories} numbers",
            "take Uniform, or fewer categories or steps",
        )
        offset = torch.arange(categories, dtype=torch.float64)
        w = (-4 * offset**2 / ((categories - 1) ** 2 * self.schedule[:, None])).exp()
        self._offsets = Table(w / (2 * w.sum(1, keepdim=True) - 1))  # (T, K); offset 0 counts once
        self._distance = Table((offset[:, None] - offset).abs().long())
        moved = self._offsets.values.cumsum(1) - self._offsets.values[:, :1]  # by 1 to m categories to one side
        self._rest = Table(1 - moved - moved.flip(1))  # the diagonal
        self._stationary = Table(torch.full((categories,), 1 / categories, dtype=torch.float64))
        self.half = (categories + 1) // 2
        even = torch.eye(self.half, dtype=torch.float64).expand(steps + 1, -1, -1).clone()
        odd = torch.eye(categories // 2, dtype=torch.float64).expand(steps + 1, -1, -1).clone()
        for n in range(1, steps + 1):
            one = self.one(torch.tensor(n))
            torch.matmul(even[n - 1], self._fold(self._fold(one)[0].mT)[0].mT, out=even[n])
            torch.matmul(odd[n - 1], self._fold(self._fold(one)[1].mT)[1].mT, out=odd[n])
        self._even, self._odd = Table(even), Table(odd)
        self._left: dict[int, Table | None] = {}

    def _fold(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Returns p `(..., K)` in the even and odd orthonormal functions, `(..., ceil K/2)` and `(..., floor K/2)`."""
        pairs = self.states // 2
        left, right = p[..., :pairs], p[..., self.half :].flip(-1)
        even, odd = (left + right) * 0.5**0.5, (left - right) * 0.5**0.5
        return (even if self.half == pairs else torch.cat([even, p[..., pairs : pairs + 1]], -1)), odd

    def _unfold(self, even: Tensor, odd: Tensor) -> Tensor:
        """Returns the inverse of `_fold` for numbers that are not negative; rounding below 0 becomes 0."""
        pairs = self.states // 2
        e, o = even[..., :pairs] * 0.5**0.5, odd * 0.5**0.5
        return torch.cat([e + o, even[..., pairs:], (e - o).flip(-1)], -1).clamp(min=0)

    def one(self, n: Tensor) -> Tensor:
        w, size = self._offsets[n - 1], self.states
        q = torch.cat([w[..., 1:].flip(-1), w], -1).unfold(-1, size, 1).flip(-2)  # w_|j - i| in row i, column j
        q.diagonal(dim1=-2, dim2=-1).copy_(self._rest[n - 1])
        return q

    def from_clean(self, p: Tensor, n: Tensor) -> Tensor:
        even, odd = self._fold(p)
        a, b = self._even[n].to(p.dtype), self._odd[n].to(p.dtype)
        if n.ndim:
            rows = (len(p), -1)
            return self._unfold(
                (even.reshape(*rows, even.shape[-1]) @ a).view(even.shape),
                (odd.reshape(*rows, odd.shape[-1]) @ b).view(odd.shape),
            )
        return self._unfold(even @ a, odd @ b)

    def products(self, n: Tensor) -> Tensor:
        even, odd, pairs = self._even[n] * 0.5**0.5, self._odd[n] * 0.5**0.5, self.states // 2
        first = self._unfold(even[:, :pairs], odd)
        if self.half == pairs:
            return torch.cat([first, first.flip(-2, -1)], 1)
        middle = self._unfold(self._even[n][:, pairs:], torch.zeros_like(odd[:, :1]))
        return torch.cat([first, middle, first.flip(-2, -1)], 1)

    def factors(self, n: Tensor, product: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""Returns factors of low rank of `A_n = Q_1 .. Q_n`, where enough steps have made it smooth.

        With the m <= n of the first few binary digits of n and the largest left singular vectors U of A_m,
        `A_n = U U^T A_n` with an error of at most `ROUNDING min A_n` in each entry: A_n is `A_m B` with a doubly
        stochastic B, so its error is at most that of A_m in the spectral norm, and its smallest entry at least that of
        A_m. So `p A_n` has this relative error, for any p that is not negative.
        """
        size = int(n)
        m = size >> (shift := max(0, size.bit_length() - 3)) << shift
        if m not in self._left:
            self._left[m] = _low_rank(self.products(torch.tensor([m]))[0])
        table = self._left[m]
        if table is None:
            return None
        left = table.values
        right = left @ product[0]
        # Terms of both signs cancel to the smallest entries, for which float32 may have too few digits.
        dtype = torch.float32 if product.amax() < 8 * product.amin() else torch.float64
        return left.to(dtype), right.to(dtype)

    def rows(self, x: Tensor, n: Tensor) -> Tensor:
        """Returns row x of `Q_1 .. Q_n`, which is `q(x_n | x_0 = x)`, `(..., K)`, float64; n a scalar or `(B,)`."""
        return self._look(x, n, self._even.on(x.device), self._odd.on(x.device))

    def reach(self, x: Tensor, n: Tensor) -> Tensor:
        return self._look(x, n, self._even.on(x.device).mT, self._odd.on(x.device).mT)

    def _look(self, x: Tensor, n: Tensor, even: Tensor, odd: Tensor) -> Tensor:
        mirrored, n = x >= self.half, like(n.to(x.device), x)
        at = torch.where(mirrored, self.states - 1 - x, x)
        middle = at == self.states // 2  # its own mirror image, used only where K is odd
        root = torch.full((), 0.5**0.5, dtype=torch.float64, device=x.device)
        of_even = torch.where(middle, 1.0, root) if self.states % 2 else root
        of_odd = torch.where(mirrored, -root, root) * ~middle
        return self._unfold(
            of_even[..., None] * even[n, at], of_odd[..., None] * odd[n, at.clamp(max=self.states // 2 - 1)]
        )

    def back(self, x: Tensor, n: Tensor) -> Tensor:
        n = like(n, x)
        column = self._offsets.on(x.device)[(n - 1)[..., None], self._distance[x]]
        return column.scatter(-1, x[..., None], self._rest.on(x.device)[n - 1, x][..., None])

    def corrupt(self, x0: Tensor, t: Tensor, *, generator: Source = None) -> Tensor:
        x0 = as_tokens(x0, self.categories, "x_0")
        n, u = self.row(checked_time(t, len(x0))), uniform(x0.shape, generator, dtype=torch.float64, device=x0.device)
        if x0[:1].numel() < self.states or not eager_on_cpu(x0):
            return quantile(self.rows(x0, n), 1 - u)
        # With more positions than categories, the distributions are summed once for each x_0.
        each = zip(x0, 1 - u, n.expand(len(x0)), strict=True)
        return torch.stack([row_quantile(self.products(m[None])[0].cumsum(-1), x, v) for x, v, m in each])

    def stationary(self) -> Tensor:
        return self._stationary.values


def _low_rank(a: Tensor) -> Table | None:
    """Returns the left singular vectors of a `(K, K)` without which no entry changes by `ROUNDING min a`, `(r, K)`.

    None for more than `LOW K` of them, or entries too small to be exact in float64.
    """
    left, values, _ = torch.linalg.svd(a)
    rank = int((values > ROUNDING * a.min()).sum())
    return Table(left[:, :rank].T.contiguous()) if rank <= LOW * len(a) else None
