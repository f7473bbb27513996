"""Local moves on ordered levels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.describe import described
from ...shared.tensors import Table, refuse_unless
from .base import Transition

STRIDES_KEPT = 2**23  # numbers, 64 MiB


@described
class DiscretizedGaussian(Transition):
    r"""Local moves: off the diagonal `Q_n[i, j] = w_n(i - j) / sum_m w_n(m)`, `w_n(m) = exp(-4 m^2 / ((K - 1)^2 beta_n))`, m = -(K-1)..K-1.

    The diagonal is one minus the rest of its row, so Q_n is symmetric and doubly stochastic (Austin et al. 2021, appendix A.2.3).

    One step is kept as its `(T, K)` offsets, the products from the clean signal as one table `(T + 1, K, K)`; products between two noisy
    times are made when a sampler first strides over them.

    Args:
        levels: K; the grid is K - 1 wide for every K.
        schedule: beta_1..beta_T.
    """

    def __init__(self, levels: int, schedule: Tensor) -> None:
        super().__init__(levels, levels, schedule)
        offset = torch.arange(levels, dtype=torch.float64)
        log_w = -4 * offset**2 / ((levels - 1) ** 2 * self.schedule[:, None])
        w = log_w.exp()
        self._offsets = Table(w / (2 * w.sum(1, keepdim=True) - 1))  # (T, K); offset 0 counts once
        self._distance = Table((offset[:, None] - offset).abs().long())
        total, cumulative = torch.eye(levels, dtype=torch.float64), [torch.eye(levels, dtype=torch.float64)]
        for n in range(1, self.steps + 1):
            total = total @ self._one(torch.tensor(n))
            cumulative.append(total)
        self._cumulative = Table(torch.stack(cumulative))
        self._strides: dict[tuple[int, int], Table] = {}

    def _one(self, n: Tensor) -> Tensor:
        """Q_n, `(K, K)` or `(B, K, K)`."""
        distance = self._distance.on(n.device)
        q = self._offsets[n - 1][..., distance]
        rest = q.sum(-1) - q.diagonal(dim1=-2, dim2=-1)
        return torch.where(distance == 0, (1 - rest)[..., None], q)

    def matrix(self, s: Tensor, t: Tensor, device: torch.device) -> Tensor:
        """`Q_(s->t)`, float64: `(K, K)` for scalar times, any pair; `(B, K, K)` for `(B,)`, from the clean row or over one step.

        Raises:
            UsageError: for several pairs at once that are neither.
        """
        i, j = self.row(s), self.row(t)
        if i.ndim == 0 and j.ndim == 0:
            return self._between(int(i), int(j), device)
        i, j = torch.broadcast_tensors(i.to(device), j.to(device))
        from_clean = (i == 0)[:, None, None]
        refuse_unless(
            (i == 0) | (j - i == 1), "times that differ within a batch must start at 0 or be one step apart: sample at one time for all"
        )
        return torch.where(from_clean, self._cumulative[j], self._one(j.clamp(min=1)))

    def _between(self, i: int, j: int, device: torch.device) -> Tensor:
        if i == 0:
            return self._cumulative.on(device)[j]
        if j - i == 1:
            return self._one(torch.full((), j, device=device))
        if (i, j) not in self._strides:
            if (len(self._strides) + 1) * self.states**2 > STRIDES_KEPT:
                self._strides.clear()
            q = self._one(torch.tensor(i + 1))
            for n in range(i + 2, j + 1):
                q = q @ self._one(torch.tensor(n))
            self._strides[i, j] = Table(q)
        return self._strides[i, j].on(device)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        q = self.matrix(s, t, p.device).to(p.dtype)
        return p @ q if q.ndim == 2 else (p.reshape(len(p), -1, self.states) @ q).reshape(p.shape)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        columns = self.matrix(s, t, x_t.device).mT
        if columns.ndim == 2:
            return columns[x_t]
        return columns[torch.arange(len(x_t), device=x_t.device).reshape((-1,) + (1,) * (x_t.ndim - 1)), x_t]

    def stationary(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)
