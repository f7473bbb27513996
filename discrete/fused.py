"""Sums over the vocabulary that losses are made of, with backward passes by hand.

Rows are taken in blocks that stay in cache, and beside the logits at most one tensor of their size is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.tensors import at_least_float32

LEAST = 1e-30
ON_CPU, ON_DEVICE = 2**18, 2**26  # numbers in a block: a megabyte stays in a core's cache, an accelerator wants to be filled


def cross_entropy(logits: Tensor, x0: Tensor) -> Tensor:
    """`-log softmax(logits)[x0]`, `(...)`, float32 or better.

    Args:
        logits: `(..., K)`, of any precision.
        x0: `(...)`, int64.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    if logits.dtype in (torch.float32, torch.float64):
        return F.cross_entropy(rows, x0.reshape(-1), reduction="none").view(x0.shape)
    return _HalfCrossEntropy.apply(rows, x0.reshape(-1)).view(x0.shape)


def resampled_sums(logits: Tensor, x_t: Tensor, x0: Tensor, u: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""`S = sum_k log(1 + u p_k / h)`, `h = 1 - (1 - own) p_(x_t)`, with `log p_(x_t)` and `log p_(x_0)` for `p = softmax(logits)`.

    Args:
        logits: `(..., K)`, of any precision.
        x_t, x0: `(...)`, int64.
        u, own: broadcast to `(...)`, at least 0, and in (0, 1]; no gradient reaches them.

    Returns:
        `(...)` each, float32 or better.
    """
    u, own = (_flat(c, x0, logits) for c in (u, own))
    out = _ResampledSums.apply(logits.reshape(-1, logits.shape[-1]), x_t.reshape(-1), x0.reshape(-1), u, own)
    return tuple(part.view(x0.shape) for part in out)


def uniform_divergence(logits: Tensor, x_t: Tensor, x0: Tensor, a: Tensor, c: Tensor, own: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    r"""`KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of uniform resampling, `-log p0(x_0)` where clean, and `-log p0(x_0)`.

    `q_k prop. to back_k (c 1[k = x_0] + d)`, `p_k prop. to back_k w_k`, `back_k = a 1[k = x_t] + b`, `w_k = c own_k p0_k + d h`, and `back`
    cancels: `KL = log(Z_p / Z_q) + sum_k q_k (log w^q_k - log w^p_k)`. The derivatives are by hand. A `p0(x_0)` below the smallest normal
    number counts as that number.

    Args:
        logits: `(..., K)`, of any precision.
        x_t, x0: `(...)`, int64.
        a, c: the chances to be kept from s to t and from 0 to s, float64, broadcast to `(...)`.
        own: the reverse model's weight of x_0 = x_t, as these.
        clean: where s = 0.

    Returns:
        `(...)` each, float32 or better.
    """
    states, live = logits.shape[-1], (~clean).to(a)
    b, d = (1 - a) / states, (1 - c).masked_fill(clean, states) / states
    same, cases = (x_t == x0).to(at_least_float32(logits[:0]).dtype), []
    for is_same in (0, 1):
        # The masses of the true law at x_t, at x_0 by way of p0 and at any third symbol, and what does not depend on the model.
        true_t = c * is_same + d
        z = b + a * true_t
        q_t, seen, rho = live * (a + b) * true_t / z, live * (1 - is_same) * b * c / z, live * b * d / z
        constant = q_t * true_t.log() - live * z.log() + (seen + (1 - is_same) * rho) * torch.log1p(c / d)
        cases.append((q_t, seen, rho, constant))
    true = (torch.lerp(*(v.to(same) for v in pair), same).reshape(-1) for pair in zip(*cases, strict=True))
    model = (_flat(v, x0, logits) for v in (a, b, c, d, own, live))
    rows = logits.reshape(-1, states), x_t.reshape(-1), x0.reshape(-1)
    kl, nll = _UniformDivergence.apply(*rows, *true, *model)
    return kl.view(x0.shape), nll.view(x0.shape)


def matrix_divergence(
    logits: Tensor, x_t: Tensor, x0: Tensor, back: Tensor, ahead: Tensor, discount: Tensor, clean: Tensor
) -> tuple[Tensor, Tensor]:
    r"""`KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of any chain, `-log p0(x_0)` where clean, and `-log p0(x_0)`.

    `q prop. to back_k ahead[x_0, k]`, `p prop. to back_k w_k`, `w = (p0 discount) ahead`; the factor `back` cancels:
    `KL = log(Z_p / Z_q) + sum_k q_k (log ahead[x_0, k] - log w_k)`.

    Args:
        logits: `(B, ..., K)`, of any precision.
        x_t, x0: `(B, ...)`, int64.
        back: `(B, K, K)`, row x_t the chance of x_t from each x_s.
        ahead: `(B, K, K)`, row x_0 the law of x_s.
        discount: `(B, K, K)`, row x_t what p0 is multiplied with, or `(0,)` for nothing.
        clean: `(B,)`, where s = 0.

    Returns:
        `(B, ...)` each, float32 or better.
    """
    rows = logits.reshape(len(logits), -1, logits.shape[-1]), x_t.reshape(len(x_t), -1), x0.reshape(len(x0), -1)
    exact = at_least_float32(logits[:0]).dtype
    kl, nll = _MatrixDivergence.apply(*rows, *(m.to(exact) for m in (back, ahead, discount)), clean.to(exact))
    return kl.view(x0.shape), nll.view(x0.shape)


class _HalfCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x0: Tensor) -> Tensor:
        p = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        nats = torch.empty(x0.shape, device=x0.device)
        for rows in _blocks(logits):
            log_p = logits[rows].float().log_softmax(-1)
            nats[rows] = -_at(log_p, x0[rows])
            if p is not None:
                p[rows] = log_p.exp_()
        ctx.save_for_backward(p, x0)
        return nats

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        p, x0 = ctx.saved_tensors
        grad = p * g[:, None].to(p)
        return grad.scatter_add_(1, x0[:, None], -g[:, None].to(p)), None


class _ResampledSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, u: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total, log_p_t, log_p_0 = torch.empty_like(u), torch.empty_like(u), torch.empty_like(u)
        for rows in _blocks(logits):
            log_p = at_least_float32(logits[rows]).log_softmax(-1)
            log_p_t[rows], log_p_0[rows] = _at(log_p, x_t[rows]), _at(log_p, x0[rows])
            total[rows] = _sum_log(_factors(log_p.exp_(), u[rows] / _rest(log_p_t[rows], own[rows])))
        ctx.save_for_backward(logits, x_t, x0, u, own)
        return total, log_p_t, log_p_0

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor, of_t: Tensor, of_0: Tensor) -> tuple[Tensor | None, ...]:
        logits, x_t, x0, u, own = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _blocks(logits):
            log_p = at_least_float32(logits[rows]).log_softmax(-1)
            log_p_t = _at(log_p, x_t[rows])
            p = log_p.exp_()
            h = _rest(log_p_t, own[rows])
            by_h = (1 - own[rows]) * log_p_t.exp() / h
            grad[rows] = _slope(p, _factors(p, u[rows] / h), by_h, x_t[rows], x0[rows], of_sum[rows], of_t[rows], of_0[rows])
        return grad, None, None, None, None


class _UniformDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kls, nlls, slope = [], [], None
        for rows in _blocks(logits):
            p = at_least_float32(logits[rows]).softmax(-1)
            here = [v[rows] for v in constants]
            c, d, own = here[6:9]
            p_t, p_0 = _at(p, x_t[rows]), _at(p, x0[rows]).clamp(min=torch.finfo(p.dtype).tiny)
            h = own * p_t + (1 - p_t).clamp(min=0)
            factors = _factors(p, c / (d * h))
            kl, nll, by = _from_sums(_sum_log(factors), p_t, p_0, h, *here)
            kls.append(kl)
            nlls.append(nll)
            if ctx.needs_input_grad[0]:
                block = _slope(p, factors, (1 - own) * p_t / h, x_t[rows], x0[rows], *by)
                if block.shape == logits.shape:
                    slope = block
                else:
                    slope = torch.empty_like(logits) if slope is None else slope
                    slope[rows] = block
        ctx.save_for_backward(slope, logits, x0)
        return _joined(kls), _joined(nlls)

    @staticmethod
    def backward(ctx: Any, of_kl: Tensor | None, of_nll: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, logits, x0 = ctx.saved_tensors
        return (_scaled(slope, logits, x0, of_kl, of_nll), *[None] * 12)


class _MatrixDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, back: Tensor, ahead: Tensor, discount: Tensor, clean: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kl, nll = (torch.empty(x0.shape, dtype=ahead.dtype, device=x0.device) for _ in range(2))
        slope, tiny = torch.empty_like(logits) if ctx.needs_input_grad[0] else None, torch.finfo(ahead.dtype).tiny
        for some in _boxes(logits):
            batch, here_t, here_0 = some[0], x_t[some], x0[some]
            offset = torch.arange(len(here_t), device=x0.device)[:, None] * logits.shape[-1]
            p = at_least_float32(logits[some]).softmax(-1)
            costs = -p.gather(-1, here_0[..., None]).squeeze(-1).clamp(min=tiny).log()
            r = p.clamp(min=LEAST)  # a trace of every symbol, as in `ReverseModel`
            if len(discount):
                r.mul_(_rows(discount[batch], here_t + offset))
            w = (r @ ahead[batch]).clamp_(min=tiny)
            from_x_t, true = _rows(back[batch], here_t + offset), _rows(ahead[batch], here_0 + offset)
            q = from_x_t * true
            true_z, z = q.sum(-1, keepdim=True).clamp_(min=tiny), (from_x_t * w).sum(-1, keepdim=True)
            q.div_(true_z)
            here = (z / true_z).log().squeeze(-1) + (true.div_(w).clamp_(min=tiny).log_().mul_(q)).sum(-1)
            kl[some], nll[some] = torch.lerp(here, costs, clean[batch, None]), costs
            if slope is not None:
                by = r.mul_(from_x_t.div_(z).sub_(q.div_(w)) @ ahead[batch].mT)  # p dKL/dp: p may be too small to be divided out of it
                by.addcmul_(p, by.sum(-1, keepdim=True), value=-1)
                p.scatter_add_(-1, here_0[..., None], -torch.ones_like(p[..., :1]))
                slope[some] = by.lerp_(p, clean[batch, None, None])
        ctx.save_for_backward(slope, logits, x0)
        return kl, nll

    @staticmethod
    def backward(ctx: Any, of_kl: Tensor | None, of_nll: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, logits, x0 = ctx.saved_tensors
        return (_scaled(slope, logits.flatten(0, 1), x0.flatten(), of_kl, of_nll).view(logits.shape), *[None] * 6)


def _from_sums(
    total: Tensor, p_t: Tensor, p_0: Tensor, h: Tensor,
    q_t: Tensor, seen: Tensor, rho: Tensor, constant: Tensor,
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, own: Tensor, live: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    r"""The divergence from S and p0 at x_t and x_0, `-log p0(x_0)`, and the divergence's derivatives by S, `log p_t` and `log p_0`.

    `KL = constant + log Z - q_t log w_t - (1 - q_t) log h - rho (S - log(1 + u p_t / h)) - seen log(1 + u p_0 / h)`.
    """
    odds, dw = c / (d * h), c * own - d * (1 - own)
    u_t, u_0 = odds * p_t, odds * p_0
    w_t = d * h * (1 + own * u_t)
    z = b * h + a * w_t
    nll = -p_0.log()
    kl = constant + live * (z / h).log() + q_t * (h / w_t).log() - rho * (total - torch.log1p(u_t)) - seen * torch.log1p(u_0)
    f_t, f_0 = u_t / (1 + u_t), u_0 / (1 + u_0)
    by_h = (q_t - live - rho * f_t + seen * f_0) / h  # h and w_t follow p_t
    by_t = p_t * (live * (a * dw - b * (1 - own)) / z - q_t * dw / w_t - (1 - own) * by_h) + rho * f_t
    return kl + (1 - live) * nll, nll, (-rho, by_t, live - 1 - seen * f_0)


def _slope(p: Tensor, factors: Tensor, by_h: Tensor, x_t: Tensor, x0: Tensor, by_sum: Tensor, by_t: Tensor, by_0: Tensor) -> Tensor:
    r"""The gradient by the logits of `by_sum S + by_t log p_t + by_0 log p_0`, `(n, K)`, in place of `factors`.

    With `f_k = u p_k / (h + u p_k)` and `F = sum_k f_k`: `dS / dp_k = f_k / p_k`, to which p_t adds `(1 - own) F / h` by way of h;
    through the softmax that is `f_k - p_k (F + (1 - own) p_t F / h)`, and more at x_t and x_0. `by_h` is `(1 - own) p_t / h`.
    """
    inverse = factors.reciprocal_()  # 1 - f
    through = by_sum * (p.shape[1] - inverse.sum(-1))
    own = by_h * through + by_t
    grad = inverse.sub_(1).mul_(-by_sum[:, None]).addcmul_(p, (through + own + by_0)[:, None], value=-1)
    return grad.scatter_add_(1, x_t[:, None], own[:, None]).scatter_add_(1, x0[:, None], by_0[:, None])


def _scaled(slope: Tensor, logits: Tensor, x0: Tensor, of_kl: Tensor | None, of_nll: Tensor | None) -> Tensor:
    """The gradient by the logits `(N, K)` of a divergence whose own is `slope`, and of `-log p0(x_0)`."""
    grad = torch.zeros_like(logits) if of_kl is None else slope.view(logits.shape) * of_kl.reshape(-1, 1).to(slope)
    if of_nll is not None:
        scale = of_nll.reshape(-1, 1)
        for rows in _blocks(logits):
            grad[rows].addcmul_(at_least_float32(logits[rows]).softmax(-1).to(grad), scale[rows].to(grad))
        grad.scatter_add_(1, x0[:, None], -scale.to(grad))
    return grad


def _factors(p: Tensor, odds: Tensor) -> Tensor:
    """`1 + odds p_k`, `(n, K)`."""
    return (p * odds[:, None]).add_(1)


def _sum_log(x: Tensor) -> Tensor:
    """`sum_k log x_k`, `(n,)`; as `log x + log y = log(x y)`, half of the logarithms do. A product overflows from x = 1e18 on."""
    half = x.shape[1] // 2
    total = (x[:, :half] * x[:, half : 2 * half]).log_().sum(-1)
    return total + x[:, -1].log() if x.shape[1] % 2 else total


def _joined(parts: list[Tensor]) -> Tensor:
    """Blocks as one tensor; a single block as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rest(log_p: Tensor, own: Tensor) -> Tensor:
    """`1 - (1 - own) p`, which stays positive where p rounds to one."""
    return own * log_p.exp() - torch.expm1(log_p)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, None]).squeeze(1)


def _flat(v: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    """`v` for each position, `(N,)`, in the precision of the sums."""
    return v.to(at_least_float32(logits[:0])).expand(x.shape).reshape(-1)


def _rows(matrices: Tensor, index: Tensor) -> Tensor:
    """Rows of matrices `(b, K, K)` that are numbered through, `(b, n)` to `(b, n, K)`."""
    return matrices.reshape(-1, matrices.shape[-1]).index_select(0, index.flatten()).view(*index.shape, -1)


def _boxes(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of logits `(B, n, K)`: several examples, or rows of one."""
    numbers = ON_CPU if logits.device.type == "cpu" else ON_DEVICE
    rows = max(1, numbers // logits.shape[2])
    examples = max(1, rows // max(1, logits.shape[1]))
    for b in range(0, len(logits), examples):
        yield from ((slice(b, b + examples), slice(i, i + rows)) for i in range(0, logits.shape[1], rows))


def _blocks(logits: Tensor) -> Iterator[slice]:
    numbers = ON_CPU if logits.device.type == "cpu" else ON_DEVICE
    rows = max(1, numbers // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
