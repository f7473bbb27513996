"""Products with exponentials of large sparse matrices, without the exponentials themselves."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ...shared.tensors import exact

DROPPED = 1e-13  # the size of terms that are left out


class Chebyshev:
    r"""Computes `p exp(tau G)` for a symmetric G with eigenvalues in [-bound, 0] by Chebyshev polynomials.

    `exp(tau G) = sum_k c_k T_k(1 + 2 G / bound)`, `c_k = (2 - [k = 0]) exp(-z) I_k(z)`, `z = tau bound / 2` (Abramowitz
    & Stegun 1964, 9.6.34): about `sqrt(60 z)` products with G for double precision, one recursion for all tau of a
    batch.

    I_k is the modified Bessel function of the first kind, T_k the Chebyshev polynomial.

    Args:
        generator: G, sparse `(K, K)`, a matrix of rates whose rows sum to 0.
        bound: above 0; no eigenvalue of G is below `-bound`.
    """

    def __init__(self, generator: Tensor, bound: float) -> None:
        self.bound = bound
        self._generator = generator.coalesce().double()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns G on a device in the given precision, as a sparse CSR tensor `(K, K)`."""
        if (device, dtype) not in self._copies:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                self._copies[device, dtype] = self._generator.to(device, dtype).to_sparse_csr()
        return self._copies[device, dtype]

    def push(self, p: Tensor, tau: Tensor) -> Tensor:
        """Returns `p exp(tau G)`, `(..., K)`, for p `(..., K)`; tau >= 0 is a scalar or `(B,)`, for the first axis."""
        tau, flat = exact(tau), p.reshape(-1, p.shape[-1]).T.contiguous()  # (K, N): sparse matrices are the left factor
        c = self.coefficients(tau).to(flat)  # (terms,) or (terms, B)
        each = p[0, ..., 0].numel() if tau.ndim else 1
        before, now = flat, flat + (2 / self.bound) * (g := self.on(p.device, p.dtype)).mm(flat)
        total = _of(c[0], each) * before + (_of(c[1], each) * now if len(c) > 1 else 0)
        for k in range(2, len(c)):
            before, now = now, torch.add(2 * now - before, g.mm(now), alpha=4 / self.bound)
            total.addcmul_(_of(c[k], each).expand_as(total), now)
        return total.clamp(min=0).T.reshape(p.shape)

    def coefficients(self, tau: Tensor) -> Tensor:
        """Returns c_k, `(terms,)` or for tau `(B,)` `(terms, B)`, float64, as many as the largest tau needs."""
        from scipy.special import ive  # here, so that importing the package is fast

        z = tau.cpu().numpy() * (self.bound / 2)
        longest = float(z.max())
        terms = 3 + int(math.sqrt(2 * (longest + 1) * -2 * math.log(DROPPED)) + 12 * math.log1p(longest) ** 0.5)
        return torch.stack(
            [(1.0 if n == 0 else 2.0) * torch.as_tensor(ive(float(n), z), dtype=torch.float64) for n in range(terms)]
        )


def _of(c: Tensor, each: int) -> Tensor:
    """Returns a coefficient, a scalar or `(B,)`, for the columns `(B * each,)`."""
    return c if c.ndim == 0 else c.repeat_interleave(each)
