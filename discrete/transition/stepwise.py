"""Chains whose steps share no structure: single steps and products from x_0 are given, other strides are multiplied."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ...shared.blocks import eager_on_cpu, maybe
from ...shared.random import Source, uniform
from ...shared.tensors import Table, at_least_float32, refuse_unless
from ..fused_matrix import StepMatrices, matrix_divergence, matrix_draw
from .base import ReverseModel, Terms
from .generic import GenericTransition, generic_divergence, generic_draw

STRIDES_KEPT = 2**23  # numbers, 64 MiB


class Stepwise(GenericTransition):
    """A table of T steps given by the matrices of single steps and their products from the clean signal.

    `Q_n[i, j]` is the probability that x_n = j where x_(n-1) = i; times are t = n / T.

    Args:
        categories: the number of categories in the data.
        states: K.
        steps: T.
    """

    steps: int

    def __init__(self, categories: int, states: int, steps: int) -> None:
        super().__init__(categories, steps, states)
        self._strides: dict[tuple[int, int], Table] = {}

    @abstractmethod
    def one(self, n: Tensor) -> Tensor:
        """Returns Q_n, `(K, K)` for a scalar n >= 1, or `(B, K, K)` for n `(B,)`, float64."""

    @abstractmethod
    def back(self, x: Tensor, n: Tensor) -> Tensor:
        """Returns column x of Q_n, `p(x_n = x | x_(n-1))`, `(..., K)`, float64; n >= 1 is a scalar or `(B,)`."""

    @abstractmethod
    def from_clean(self, p: Tensor, n: Tensor) -> Tensor:
        """Returns `p Q_1 .. Q_n`, `(..., K)`: the distribution of x_n for that of x_0, p; n >= 0 scalar or `(B,)`."""

    @abstractmethod
    def reach(self, x: Tensor, n: Tensor) -> Tensor:
        """Returns column x of `Q_1 .. Q_n`, `p(x_n = x | x_0)`, `(..., K)`, float64; n >= 0 is a scalar or `(B,)`."""

    def between(self, i: int, j: int, device: torch.device) -> Tensor:
        """Returns `Q_(i+1) .. Q_j`, `(K, K)`, float64; the identity for i = j. Products are kept for later calls."""
        if (i, j) not in self._strides:
            if (len(self._strides) + 1) * self.states**2 > STRIDES_KEPT:
                self._strides.clear()
            q = torch.eye(self.states, dtype=torch.float64)
            for n in range(i + 1, j + 1):
                q = q @ self.one(torch.tensor(n))
            self._strides[i, j] = Table(q)
        return self._strides[i, j].on(device)

    def single(self, s: Tensor, t: Tensor, device: torch.device) -> Tensor:
        """Returns the number n of the step from s = (n - 1) / T to t = n / T, int64, a scalar or `(B,)`, on a device.

        Raises:
            UsageError: for times of a batch that are more than a step apart.
        """
        i, j = torch.broadcast_tensors(self.row(s).to(device), self.row(t).to(device))
        refuse_unless(
            j - i == 1,
            "times that differ within a batch must start at 0 or be one step apart: give one time for all examples",
        )
        return j

    def starts_clean(self, s: Tensor) -> bool:
        """Returns whether a stride starts at t = 0, without waiting for an accelerator.

        Times on an accelerator count as noisy: the clean time is a scalar on the host.
        """
        return s.device.type == "cpu" and bool((self.row(s) == 0).all())

    def long_stride(self, s: Tensor, t: Tensor, device: torch.device) -> Tensor | None:
        """Returns the matrix of a stride between scalar times; None for a single step, and for times of a batch."""
        if s.ndim or t.ndim or int(self.row(t) - self.row(s)) == 1:
            return None
        return self.between(int(self.row(s)), int(self.row(t)), device)

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if self.starts_clean(s):
            return self.from_clean(p, self.row(t).to(p.device))
        q = self.long_stride(s, t, p.device)
        q = (self.one(self.single(s, t, p.device)) if q is None else q).to(p.dtype)
        return p @ q if q.ndim == 2 else (p.reshape(len(p), -1, self.states) @ q).reshape(p.shape)

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        if self.starts_clean(s):
            return self.reach(x_t, self.row(t).to(x_t.device))
        q = self.long_stride(s, t, x_t.device)
        return self.back(x_t, self.single(s, t, x_t.device)) if q is None else q.mT[x_t]

    @abstractmethod
    def products(self, n: Tensor) -> Tensor:
        """Returns `Q_1 .. Q_n`, `(B, K, K)`, for n `(B,)`, float64."""

    def factors(self, n: Tensor, product: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns `(left, right)`, `(r, K)` each, with `Q_1 .. Q_n = left^T right` to the rounding of float32.

        None where the rank is not low, or not known; n is `(1,)`, and `product` the matrix itself, `(1, K, K)`.
        """
        return None

    def step_matrices(
        self, reverse: ReverseModel, t: Tensor, s: Tensor, back: Tensor, dtype: torch.dtype
    ) -> StepMatrices:
        """Returns the matrices of steps from t to s, `(b,)` each.

        Args:
            reverse: the reverse model, without an eps.
            t, s: `(b,)`, on the device of the tokens.
            back: `Q_(s->t)^T`, `(b, K, K)`.
            dtype: of the result; float64 where weights would overflow in float32.
        """
        reach, ahead = self.products(self.row(t)).mT, self.products(self.row(s))
        least, clean, weights = max(1e-300, self.rounding), self.is_clean(s), None
        posterior, output = (v[:, None, None] for v in (reverse.reads_posterior(self, t), self.takes_output(t)))
        one_kind = eager_on_cpu(s) and not bool(clean.any()) and bool((posterior == posterior[0]).all())
        is_whole = one_kind and bool(reach.amin() > least)  # looking at it would wait for an accelerator
        if maybe((posterior & ~clean[:, None, None]).any()):
            weights = torch.where(posterior, torch.where(reach > least, 1 / reach.clamp(min=least), 0.0), 1.0)
        if maybe(posterior.any()) or not is_whole:
            known = torch.where(posterior, (reach > least).double(), torch.where(reach > least, reach, 0.0))
            reach = torch.where(output, 1.0, known)
        low = self.factors(self.row(s), ahead) if len(s) == 1 and dtype == torch.float32 and eager_on_cpu(s) else None
        back, ahead, reach = (m.to(dtype).contiguous() for m in (back, ahead, reach))
        weights = None if weights is None else weights.to(dtype).contiguous()
        return StepMatrices(back, ahead, weights, reach, is_whole, low)

    def divergence(self, reverse: ReverseModel, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Terms:
        if reverse.eps or t.ndim == 0 or self.states > self.categories:
            return generic_divergence(self, reverse, logits, x0, x_t, t, s)
        n, dtype = self.single(s, t, logits.device), at_least_float32(logits[:0]).dtype
        t, s = (v.to(logits.device).expand(len(logits)) for v in (t, s))

        def matrices(batch: slice) -> StepMatrices:
            return self.step_matrices(reverse, t[batch], s[batch], self.one(n[batch]).mT, dtype)

        return Terms(*matrix_divergence(logits, x_t, x0, matrices, self.is_clean(s)))

    def draw(
        self, reverse: ReverseModel, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Source = None
    ) -> Tensor:
        if self.states > self.categories or self.is_clean(s):
            return generic_draw(self, reverse, logits, x_t, t, s, generator)
        stride = self.long_stride(s, t, x_t.device)
        t, s = t.to(x_t.device)[None], s.to(x_t.device)[None]
        back = self.one(self.single(s, t, x_t.device)) if stride is None else stride[None]
        dtype = at_least_float32(logits[:0]).dtype
        m = self.step_matrices(reverse, t, s, back.mT, dtype)
        u = 1 - uniform(x_t.shape, generator, dtype=torch.float64, device=x_t.device)
        return matrix_draw(logits, x_t, u, m, reverse.eps)
