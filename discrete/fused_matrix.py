"""The divergence of a step of any chain of matrices, with a backward pass by hand, as in `fused`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from ..shared.tensors import at_least_float32
from .fused import block_size


def matrix_divergence(
    logits: Tensor,
    x_t: Tensor,
    x0: Tensor,
    back: Tensor,
    ahead: Tensor,
    weights: Tensor,
    evidence: Tensor,
    clean: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of any chain, and `-log p(x_0 | x_t)`.

    In nats; both are the latter where s = 0. p0 is the softmax of the logits, and `q prop. to back_k ahead[x_0, k]`,
    `p prop. to back_k w_k`, `w = (p0 weights) ahead`; the factor `back` cancels:
    `KL = log(Z_p / Z_q) + sum_k q_k (log ahead[x_0, k] - log w_k)`.

    Args:
        logits: `(B, ..., K)`, of any precision.
        x_t, x0: `(B, ...)`, int64.
        back: `(B, K, K)`, whose row x_t is the probability of x_t given each x_s.
        ahead: `(B, K, K)`, whose row x_0 is the distribution of x_s.
        weights: `(B, K, K)`, whose row x_t multiplies p0 before it is pushed forward: 1 for a leave-one-out p0,
            `1 / q(x_t | x_0)` for a posterior.
        evidence: `(B, K, K)`, whose row x_t multiplies p0, before normalization, for the posterior of x_0.
        clean: `(B,)`, whether s = 0.

    Returns:
        `(B, ...)` each, float32 or better.
    """
    rows = logits.reshape(len(logits), -1, logits.shape[-1]), x_t.reshape(len(x_t), -1), x0.reshape(len(x0), -1)
    exact = at_least_float32(logits[:0]).dtype
    kl, nats = cast(
        tuple[Tensor, Tensor],
        _MatrixDivergence.apply(*rows, *(m.to(exact) for m in (back, ahead, weights, evidence)), clean),
    )
    return kl.view(x0.shape), nats.view(x0.shape)


class _MatrixDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        x_t: Tensor,
        x0: Tensor,
        back: Tensor,
        ahead: Tensor,
        weights: Tensor,
        evidence: Tensor,
        clean: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kl, nats = (torch.empty(x0.shape, dtype=ahead.dtype, device=x0.device) for _ in range(2))
        slope, tiny = torch.empty_like(logits) if ctx.needs_input_grad[0] else None, torch.finfo(ahead.dtype).tiny
        for some in _boxes(logits):
            batch, here_t, here_0 = some[0], x_t[some], x0[some]
            offset = torch.arange(len(here_t), device=x0.device)[:, None] * logits.shape[-1]
            p = at_least_float32(logits[some]).softmax(-1)
            posterior, costs = _posterior(p, _rows(evidence[batch], here_t + offset), logits[some], here_0)
            r = p * _rows(weights[batch], here_t + offset)
            w = r @ ahead[batch]
            missed = w <= 0
            w.clamp_(min=tiny)
            from_x_t, true = _rows(back[batch], here_t + offset), _rows(ahead[batch], here_0 + offset)
            q = from_x_t * true
            # The cost is infinite only for an x_0 that is ruled out, and finite for one whose probability underflows.
            impossible = (missed & (q > 0)).any(-1) & (
                logits[some].gather(-1, here_0[..., None]).squeeze(-1) == -torch.inf
            )
            true_z, z = q.sum(-1, keepdim=True).clamp_(min=tiny), (from_x_t * w).sum(-1, keepdim=True)
            q.div_(true_z)
            here = (z / true_z).log().squeeze(-1) + (true.div_(w).clamp_(min=tiny).log_().mul_(q)).sum(-1)
            kl[some], nats[some] = (
                torch.where(clean[batch, None], costs, here.masked_fill(impossible, torch.inf)),
                costs,
            )
            if slope is not None:
                # p dKL/dp, since p may be too small to be divided out of it
                by = r.mul_(from_x_t.div_(z).sub_(q.div_(w)) @ ahead[batch].mT)
                by.addcmul_(p, by.sum(-1, keepdim=True), value=-1)
                of_cost = posterior.scatter_add_(-1, here_0[..., None], -torch.ones_like(p[..., :1]))
                slope[some] = torch.where(clean[batch, None, None], of_cost, by)
        ctx.save_for_backward(slope, logits, x_t, x0, evidence)
        return kl, nats

    @staticmethod
    def backward(ctx: Any, of_kl: Tensor | None, of_nats: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, logits, x_t, x0, evidence = ctx.saved_tensors
        grad = torch.zeros_like(logits) if of_kl is None else slope * of_kl[..., None].to(slope)
        if of_nats is not None:
            for some in _boxes(logits):
                offset = torch.arange(len(x_t[some]), device=x0.device)[:, None] * logits.shape[-1]
                p = at_least_float32(logits[some]).softmax(-1)
                posterior, _ = _posterior(p, _rows(evidence[some[0]], x_t[some] + offset), logits[some], x0[some])
                grad[some].addcmul_(posterior.to(grad), of_nats[some][..., None].to(grad))
            grad.scatter_add_(-1, x0[..., None], -of_nats[..., None].to(grad))
        return grad, *[None] * 7


def _posterior(p: Tensor, evidence: Tensor, logits: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `p(x_0 | x_t)`, `(..., K)`, and the cost of x_0, infinite where it is ruled out; `evidence` is reused."""
    tiny = torch.finfo(p.dtype).tiny
    posterior = evidence.mul_(p.clamp(min=tiny))
    posterior.div_(posterior.sum(-1, keepdim=True).clamp_(min=tiny))
    costs = -posterior.gather(-1, x0[..., None]).squeeze(-1).clamp(min=tiny).log()
    ruled_out = logits.gather(-1, x0[..., None]).squeeze(-1) == -torch.inf
    return posterior, costs.masked_fill(ruled_out, torch.inf)


def _rows(matrices: Tensor, index: Tensor) -> Tensor:
    """Returns rows of matrices `(b, K, K)` by their consecutive numbers, `(b, n)` to `(b, n, K)`."""
    return matrices.reshape(-1, matrices.shape[-1]).index_select(0, index.flatten()).view(*index.shape, -1)


def _boxes(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields blocks of logits `(B, n, K)`: several examples, or rows of one."""
    rows = max(1, block_size(logits) // logits.shape[2])
    examples = max(1, rows // max(1, logits.shape[1]))
    for b in range(0, len(logits), examples):
        yield from ((slice(b, b + examples), slice(i, i + rows)) for i in range(0, logits.shape[1], rows))
