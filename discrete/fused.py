"""Sums over the vocabulary that losses are made of, with backward passes by hand: blocks of rows stay in cache and nothing of the size of
the logits is kept beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..shared.tensors import at_least_float32

ON_CPU, ON_DEVICE = 2**18, 2**26  # numbers in a block: a megabyte stays in a core's cache, an accelerator wants to be filled


def log_likelihood(logits: Tensor, x0: Tensor) -> Tensor:
    """`log softmax(logits)[x0]`, `(...)`, float32 or better.

    Args:
        logits: `(..., K)`, of any precision.
        x0: `(...)`, int64.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    return _LogLikelihood.apply(flat, x0.reshape(-1)).view(x0.shape)


def resampled_sums(logits: Tensor, x_t: Tensor, x0: Tensor, u: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""`S = sum_k log(1 + u p_k / (1 - (1 - own) p_(x_t)))`, `log p_(x_t)` and `log p_(x_0)` for `p = softmax(logits)`, `(...)` each.

    Args:
        logits: `(..., K)`, of any precision.
        x_t, x0: `(...)`, int64.
        u, own: `(...)`, at least 0, and in (0, 1]; no gradient reaches them.
    """
    shape, flat = x0.shape, logits.reshape(-1, logits.shape[-1])
    u, own = (c.expand(shape).reshape(-1).to(at_least_float32(logits[..., :0])) for c in (u, own))
    return tuple(out.view(shape) for out in _ResampledSums.apply(flat, x_t.reshape(-1), x0.reshape(-1), u, own))


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x0: Tensor) -> Tensor:
        lse = torch.cat([at_least_float32(logits[rows]).logsumexp(-1) for rows in _blocks(logits)])
        ctx.save_for_backward(logits, x0, lse)
        return _at(logits, x0).to(lse) - lse

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        logits, x0, lse = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _blocks(logits):
            p = at_least_float32(logits[rows]).sub(lse[rows, None]).exp_()
            torch.mul(p, -g[rows, None], out=grad[rows]) if grad.dtype == p.dtype else grad[rows].copy_(p.mul_(-g[rows, None]))
        grad.scatter_add_(1, x0[:, None], g[:, None].to(grad))
        return grad, None


class _ResampledSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, u: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lse, total = torch.empty_like(u), torch.empty_like(u)
        for rows in _blocks(logits):
            block = at_least_float32(logits[rows])
            lse[rows] = block.logsumexp(-1)
            over = u[rows, None] / _rest(block.gather(1, x_t[rows, None]).sub_(lse[rows, None]), own[rows, None])
            total[rows] = block.sub(lse[rows, None]).exp_().mul_(over).log1p_().sum(-1)
        ctx.save_for_backward(logits, x_t, x0, u, own, lse)
        return total, _at(logits, x_t).to(lse) - lse, _at(logits, x0).to(lse) - lse

    @staticmethod
    def backward(ctx: Any, g_sum: Tensor, g_t: Tensor, g_0: Tensor) -> tuple[Tensor, None, None, None, None]:
        r"""With `v = 1 - (1 - own) p_t`, `f_k = u p_k / (u p_k + v)` and `F = sum_k f_k`: `dS / dp_k = u / (u p_k + v)`, to which p_t adds
        `(1 - own) F / v` by way of v; through the softmax that is `S' (f_k - p_k (F + (1 - own) p_t F / v))`, and more at x_t and x_0.
        """
        logits, x_t, x0, u, own, lse = ctx.saved_tensors
        grad, at_t = torch.empty_like(logits), torch.empty_like(lse)
        for rows in _blocks(logits):
            p = at_least_float32(logits[rows]).sub(lse[rows, None]).exp_()
            log_p_t = at_least_float32(logits[rows].gather(1, x_t[rows, None])) - lse[rows, None]
            v = _rest(log_p_t, own[rows, None])
            f = (u[rows, None] * p).div_(torch.addcmul(v, p, u[rows, None]))
            through = f.sum(-1, keepdim=True)
            by_v = (1 - own[rows, None]) * log_p_t.exp() * through / v
            back = g_sum[rows, None] * (through + by_v) + g_t[rows, None] + g_0[rows, None]
            grad[rows] = f.mul_(g_sum[rows, None]).sub_(p.mul_(back))
            at_t[rows] = (g_sum[rows, None] * by_v + g_t[rows, None]).squeeze(1)
        grad.scatter_add_(1, x_t[:, None], at_t[:, None].to(grad))
        grad.scatter_add_(1, x0[:, None], g_0[:, None].to(grad))
        return grad, None, None, None, None


def _rest(log_p: Tensor, own: Tensor) -> Tensor:
    """`1 - (1 - own) p`, which stays positive where p rounds to one."""
    return own * log_p.exp() - torch.expm1(log_p)


def _at(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None]).squeeze(1)


def _blocks(logits: Tensor) -> Iterator[slice]:
    numbers = ON_CPU if logits.device.type == "cpu" else ON_DEVICE
    rows = max(1, numbers // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
