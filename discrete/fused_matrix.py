"""Divergences and draws of a step of any chain of matrices; backward passes are by hand, as in `fused`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.blocks import eager_on_cpu, maybe, row_by_row
from ..shared.random import quantile
from ..shared.tensors import at_least_float32
from .fused import block_size


class StepMatrices(NamedTuple):
    """The matrices of a step from t to s for b examples, `(b, K, K)` each, in the precision of the sums.

    Attributes:
        back: row x_t is the probability of x_t given each x_s.
        ahead: row x_0 is the distribution of x_s.
        weights: row x_t multiplies p0 before it is pushed forward, such as `1 / q(x_t | x_0)` for a posterior; None for
            1 everywhere, as for a leave-one-out p0.
        evidence: row x_t multiplies p0, before normalization, for the posterior of x_0.
        is_whole: whether no x_0 is left out, in no example; the sum of evidence and p0 is then 1 for a posterior, and
            for a leave-one-out p0, `sum_x0 p0(x_0) q(x_t | x_0)`, it is the normalization of `p(x_s | x_t)`.
        factors: `(left, right)`, `(r, K)` each, with `ahead = left^T right` up to rounding, of one example (b = 1)
            whose `ahead` has a low rank; or None.
    """

    back: Tensor
    ahead: Tensor
    weights: Tensor | None
    evidence: Tensor
    is_whole: bool = False
    factors: tuple[Tensor, Tensor] | None = None

    def push(self, p: Tensor) -> Tensor:
        """Returns `p ahead`, `(b, n, K)`, for p `(b, n, K)`."""
        if self.factors is None:
            return p @ self.ahead
        left, right = self.factors
        return (p.to(left) @ left.mT @ right).to(p)

    def pull(self, g: Tensor) -> Tensor:
        """Returns `g ahead^T`, `(b, n, K)`, for g `(b, n, K)`."""
        if self.factors is None:
            return g @ self.ahead.mT
        left, right = self.factors
        return (g.to(left) @ right.mT @ left).to(g)


Matrices = Callable[[slice], StepMatrices]
"""Returns the matrices of the steps of some examples of the batch."""


def matrix_draw(logits: Tensor, x_t: Tensor, u: Tensor, matrices: StepMatrices, eps: float = 0.0) -> Tensor:
    r"""Samples `x_s ~ p(x_s | x_t) prop. to (back + eps) ((p0 weights) ahead + eps)`, int64 `(...)`.

    p0 is the softmax of the logits. Where every x_s has probability 0, x_s is x_t.

    Args:
        logits: `(..., K)`, of any precision.
        x_t: `(...)`, int64.
        u: quantiles of x_s in (0, 1], `(...)`, float64.
        matrices: of one step, b = 1, which all positions take.
        eps: `ReverseModel.eps`.
    """
    back, weights = matrices.back[0] + eps, None if matrices.weights is None else matrices.weights[0]

    def rows(logits: Tensor, x_t: Tensor, u: Tensor) -> Tensor:
        p = at_least_float32(logits).softmax(-1).to(back.dtype)
        p = p if weights is None else p.mul_(weights.index_select(0, x_t))
        p = matrices.push(p[None])[0].add_(eps).mul_(back.index_select(0, x_t))
        return torch.where(p.sum(-1) > 0, quantile(p, u), x_t)

    return row_by_row(rows, logits, x_t, u)


def matrix_divergence(
    logits: Tensor, x_t: Tensor, x0: Tensor, matrices: Matrices, clean: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of any chain, and `-log p(x_0 | x_t)`.

    In nats; both are the latter where s = 0. p0 is the softmax of the logits, and `q prop. to back_k ahead[x_0, k]`,
    `p prop. to back_k w_k`, `w = (p0 weights) ahead`; the factor `back` cancels:
    `KL = log(Z_p / Z_q) + sum_k q_k (log ahead[x_0, k] - log w_k)`.

    Args:
        logits: `(B, ..., K)`, of any precision.
        x_t, x0: `(B, ...)`, int64.
        matrices: of the steps of some examples; they are needed for one block of rows at a time.
        clean: `(B,)`, whether s = 0.

    Returns:
        `(B, ...)` each, float32 or better.
    """
    rows = logits.reshape(len(logits), -1, logits.shape[-1]), x_t.reshape(len(x_t), -1), x0.reshape(len(x0), -1)
    kl, nats = cast(tuple[Tensor, Tensor], _MatrixDivergence.apply(*rows, clean, matrices))
    return kl.view(x0.shape), nats.view(x0.shape)


class _MatrixDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, clean: Tensor, matrices: Matrices
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(logits, x_t, x0, clean)
        ctx.matrices = matrices
        return _divergence(logits, x_t, x0, clean, matrices, ctx.slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_kl: Tensor | None, of_nats: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, x_t, x0, clean = ctx.saved_tensors
        grad, ctx.slope = ctx.slope, None
        if grad is None:  # the first backward pass has scaled it in place
            grad = torch.empty_like(logits)
            _divergence(logits, x_t, x0, clean, ctx.matrices, grad)
        if of_nats is None:
            return grad if of_kl is None else grad.mul_(of_kl[..., None].to(grad)), *[None] * 4
        tiny = torch.finfo(of_nats.dtype).tiny
        for some, m in _boxes(logits, ctx.matrices):
            posterior = at_least_float32(logits[some]).softmax(-1).clamp_(min=tiny)
            posterior.mul_(_rows(m.evidence, x_t[some]))
            scale = of_nats[some][..., None] / posterior.sum(-1, keepdim=True).clamp_(min=tiny)
            here = grad[some].zero_() if of_kl is None else grad[some].mul_(of_kl[some][..., None].to(grad))
            here.addcmul_(posterior.to(grad), scale.to(grad))
        return grad.scatter_add_(-1, x0[..., None], -of_nats[..., None].to(grad)), *[None] * 4


def _divergence(
    logits: Tensor, x_t: Tensor, x0: Tensor, clean: Tensor, matrices: Matrices, slope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes `matrix_divergence` of rows, `(B, n)` each; `slope`, `(B, n, K)`, becomes its gradient by the logits."""
    exact = at_least_float32(logits[:0]).dtype
    kl, nats = (torch.empty(x0.shape, dtype=exact, device=x0.device) for _ in range(2))
    tiny = torch.finfo(exact).tiny
    for some, m in _boxes(logits, matrices):
        here_t, here_0, ended = x_t[some], x0[some], clean[some[0], None]
        p = at_least_float32(logits[some]).softmax(-1)
        posterior = None if m.is_whole else _rows(m.evidence, here_t).mul_(p.clamp(min=tiny))
        r = p if m.weights is None else p * _rows(m.weights, here_t)
        w, impossible = m.push(r), None
        from_x_t, true = _rows(m.back, here_t), _rows(m.ahead, here_0)
        q = from_x_t * true
        if m.factors is None and maybe(w.amin() <= 0):
            # The cost is infinite only for an x_0 that is ruled out, and finite for one whose probability underflows.
            impossible = ((w <= 0) & (q > 0)).any(-1) & (_at(logits[some], here_0) == -torch.inf)
            w.clamp_(min=tiny)
        z, true_z = (from_x_t * w).sum(-1, keepdim=True), q.sum(-1, keepdim=True).clamp_(min=tiny)
        if posterior is None:
            total = z if m.weights is None else torch.ones_like(z)
        else:
            total = posterior.sum(-1, keepdim=True).clamp_(min=tiny)
        costs = _costs(p, m, total, logits[some], here_t, here_0)
        ratio = true.div_(w)
        gains = torch.clamp(ratio, min=tiny, out=w).log_().mul_(q).sum(-1)
        here = (z / true_z).log().squeeze(-1) + gains / true_z.squeeze(-1)
        here = here if impossible is None else here.masked_fill(impossible, torch.inf)
        kl[some], nats[some] = torch.where(ended, costs, here), costs
        if slope is not None:
            # p dKL/dp, since p may be too small to be divided out of it; its sum is 0, as KL does not depend on the
            # scale of p
            by = m.pull(ratio.mul_(-1 / true_z).add_(1 / z).mul_(from_x_t)).mul_(r)
            if posterior is not None and maybe(ended.any()):
                of_cost = posterior.div_(total).scatter_add_(-1, here_0[..., None], -torch.ones_like(p[..., :1]))
                by = torch.where(ended[..., None], of_cost, by)
            slope[some] = by
    return kl, nats


def _costs(p: Tensor, m: StepMatrices, total: Tensor, logits: Tensor, x_t: Tensor, x0: Tensor) -> Tensor:
    """Returns `-log p(x_0 | x_t)`, `(b, n)`, from p0 and the sum of `evidence p0`, `(b, n, 1)`.

    It is infinite where x_0 is ruled out.
    """
    tiny = torch.finfo(p.dtype).tiny
    evidence = _rows(m.evidence.reshape(len(m.evidence), -1, 1), x_t * p.shape[-1] + x0).squeeze(-1)
    costs = -(evidence * _at(p, x0).clamp(min=tiny) / total.squeeze(-1)).clamp(min=tiny).log()
    return costs.masked_fill(_at(logits, x0) == -torch.inf, torch.inf)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-1, index[..., None]).squeeze(-1)


def _rows(matrices: Tensor, index: Tensor) -> Tensor:
    """Returns rows of matrices `(b, n, m)`, of one for each row of indices `(b, k)`, as `(b, k, m)`."""
    _, n, m = matrices.shape
    if len(matrices) > 1:
        index = index + torch.arange(len(index), device=index.device)[:, None] * n
    return matrices.reshape(-1, m).index_select(0, index.flatten()).view(*index.shape, m)


def _boxes(logits: Tensor, matrices: Matrices) -> Iterator[tuple[tuple[slice, slice], StepMatrices]]:
    """Yields blocks of logits `(B, n, K)`, several examples or rows of one, with the matrices of their steps."""
    batch, length, states = logits.shape
    rows = max(1, block_size(logits) // states)
    # An example with more positions than categories is worth a product of its own, perhaps of a low rank.
    examples = 1 if length >= states and eager_on_cpu(logits) else max(1, rows // max(1, length))
    for b in range(0, batch, examples):
        m = matrices(slice(b, b + examples))
        yield from (((slice(b, b + examples), slice(i, i + rows)), m) for i in range(0, length, rows))
