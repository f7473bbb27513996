"""Losses that are sums over the vocabulary, with backward passes by hand.

Rows are processed in blocks that stay in cache. Besides the logits, one tensor of their size is kept: the gradient up
to a factor for each row, which the first backward pass scales in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.tensors import at_least_float32, in_transform

LEFT_OUT = -100  # in place of a token at positions that do not count
SMALL = 2**17  # numbers of logits, below which calls cost more than arithmetic
ON_CPU, ON_DEVICE = 2**19, 2**26  # numbers in a block: two megabytes fit a core's cache, an accelerator needs more


def cross_entropy(logits: Tensor, x0: Tensor, counts: Tensor | None = None) -> Tensor:
    """Returns `-log softmax(logits)[x0]`, `(...)`, float32 or better; 0 at positions that do not count.

    Logits at those positions have no effect. On a CPU they are not read either.

    Args:
        logits: `(..., K)`, of any precision.
        x0: `(...)`, int64.
        counts: whether a position counts, bool, `(...)`; None where all do.
    """
    rows, flat = logits.reshape(-1, logits.shape[-1]), x0.reshape(-1)
    if logits.numel() < SMALL or plain_operations():
        flat = flat if counts is None else torch.where(counts.reshape(-1), flat, LEFT_OUT)
        return F.cross_entropy(at_least_float32(rows), flat, reduction="none", ignore_index=LEFT_OUT).view(x0.shape)
    if counts is not None and logits.device.type == "cpu":
        return cast(Tensor, _CrossEntropy.apply(rows, flat, counts.reshape(-1).nonzero().squeeze(1))).view(x0.shape)
    nats = cast(Tensor, _CrossEntropy.apply(rows, flat, None)).view(x0.shape)  # to find rows would wait for the device
    return nats if counts is None else torch.where(counts, nats, 0.0)


def weighted(weight: Tensor, nats: Tensor) -> Tensor:
    """Returns `weight nats`, which is 0 where the weight is 0, even for infinite nats; the weight broadcasts."""
    product = weight.to(nats) * nats
    if weight.device.type == "cpu" and not plain_operations() and float(weight.amin()) > 0:
        return product
    return torch.where(weight > 0, product, 0.0)


def plain_operations() -> bool:
    """Returns whether a compiler, `torch.func` or forward-mode differentiation is at work."""
    return torch.compiler.is_compiling() or in_transform() or torch.autograd.forward_ad._current_level >= 0


def rate_constants(states: int, odds: Tensor, own: Tensor, excess: Tensor) -> Tensor:
    """Returns what the rate of uniform resampling needs of each time, for `uniform_rate`, `(C, n, 2)`, float64.

    The last axis is for positions where x_t is not x_0, and where it is.

    Args:
        states: K.
        odds: u, the probability of x_t given x_0 = x_t over that given another x_0, less one; float64, `(n,)`.
        own: `ReverseModel.own`, the factor by which the reverse model multiplies p0 at x_0 = x_t relative to other x_0;
            1 for a leave-one-out p0. Float64, `(n,)`.
        excess: the factor by which the evidence of x_t raises the probability of x_0 = x_t over p0, less one: u for a
            leave-one-out p0, 0 for a posterior. Float64, `(n,)`.
    """
    u, own, excess = (v[:, None] for v in (odds, own, excess))
    same, rest = _same(u), states - 1
    r, seen = torch.where(same, 1 / (1 + u), 1.0), torch.where(same, 0.0, u)
    constant = rest * r * (r.log() - 1) + torch.xlogy(1 + seen, 1 + seen) - seen
    return _stacked(u, own, excess, torch.ones_like(u), constant, -rest * r - seen, r, seen)


def divergence_constants(states: int, a: Tensor, c: Tensor, own: Tensor, excess: Tensor, clean: Tensor) -> Tensor:
    """Returns what a step of uniform resampling needs of its times, for `uniform_divergence`, `(C, n, 2)`, float64.

    The last axis is for positions where x_t is not x_0, and where it is.

    Args:
        states: K.
        a, c: the probabilities to be kept from s to t and from 0 to s, float64, `(n,)`.
        own, excess: as in `rate_constants`.
        clean: whether s = 0, bool, `(n,)`.
    """
    a, c, own, excess, clean = (v[:, None] for v in (a, c, own, excess, clean))
    same, live = _same(a), (~clean).to(a)
    b, d = (1 - a) / states, (1 - c).masked_fill(clean, states) / states
    # The masses of the true distribution at x_t, at x_0 by way of p0 and at any third token, and the terms that do not
    # depend on the model.
    true_t = c * same + d
    z = b + a * true_t
    q_t, rho = live * (a + b) * true_t / z, live * b * d / z
    others, odds = torch.where(same, 0.0, rho), c / d
    constant = (odds * others + others) * odds.log1p()
    return _stacked(odds, own, excess, live, constant, q_t, rho, odds * others, b / z, a * d / z, d / true_t)


def _same(v: Tensor) -> Tensor:
    """Returns whether x_t = x_0 in the two cases for which constants are computed."""
    return torch.arange(2, device=v.device) > 0


def _stacked(odds: Tensor, own: Tensor, excess: Tensor, *more: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(odds, own, excess, torch.log1p(excess * _same(excess)), *more))


def uniform_rate(logits: Tensor, x_t: Tensor, x0: Tensor, constants: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the rate of the path of uniform resampling divided by `rate / K`, and `-log p(x_0 | x_t)`.

    `rate` is that of the schedule, events per unit of time; p is p0, the softmax of the logits. The former is
    `sum_(y != x_t) m_y - r_y log m_y + r_y (log r_y - 1)` with the model's ratios `m_y = (h + u p_y) / D`,
    `h = 1 - (1 - own) p_(x_t)`, `D = h + own u p_(x_t)`, and the true ratios r_y: `1 / (1 + u)` for every y where x_t =
    x_0; elsewhere 1, and `1 + u` for y = x_0. The derivatives are by hand.

    Args:
        logits: `(..., K)`, of any precision.
        x_t, x0: `(...)`, int64.
        constants: `rate_constants` of some times.
        row: which of them is that of a position, int64, broadcast to `(...)`.

    Returns:
        `(...)` each, float32 or better.
    """
    return _uniform(logits, x_t, x0, constants, row, True)


def uniform_divergence(
    logits: Tensor, x_t: Tensor, x0: Tensor, constants: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of uniform resampling, and `-log p(x_0 | x_t)`.

    In nats; both are the latter where s = 0. p0 is the softmax of the logits; `q_k prop. to back_k (c 1[k = x_0] + d)`,
    `p_k prop. to back_k w_k`, `back_k = a 1[k = x_t] + b`, `w_k = c own_k p0_k + d h`, and `back` cancels:
    `KL = log(Z_p / Z_q) + sum_k q_k (log w^q_k - log w^p_k)`. The derivatives are by hand. A `p0(x_0)` below the
    smallest normal number counts as that number, except for a token that is ruled out (a logit of -inf), whose cost is
    infinite.

    Args:
        logits: `(..., K)`, of any precision.
        x_t, x0: `(...)`, int64.
        constants: `divergence_constants` of some steps.
        row: which of them is that of a position, int64, broadcast to `(...)`.

    Returns:
        `(...)` each, float32 or better.
    """
    return _uniform(logits, x_t, x0, constants, row, False)


def _uniform(
    logits: Tensor, x_t: Tensor, x0: Tensor, constants: Tensor, row: Tensor, is_rate: bool
) -> tuple[Tensor, Tensor]:
    # A rate is a difference of large numbers.
    constants = constants if is_rate else constants.to(at_least_float32(logits[:0]).dtype)
    of_rows = constants.flatten(1).index_select(1, (2 * row + (x_t == x0)).reshape(-1))[..., None]
    rows = logits.reshape(-1, logits.shape[-1]), x_t.reshape(-1, 1), x0.reshape(-1, 1)
    value, nats = cast(tuple[Tensor, Tensor], _Uniform.apply(*rows, of_rows, is_rate))
    return value.view(x0.shape), nats.view(x0.shape)


class _Uniform(torch.autograd.Function):
    r"""The divergence or rate of uniform resampling at each row of the logits, `(N, K)`, and `-log p(x_0 | x_t)`.

    With `h = own p_t + R`, the probability `R = 1 - p_t` of all tokens but x_t, `o = odds / h` and
    `v = 1 + own o p_t`, both are `constant + T(v) - rho S - seen log(1 + o p_0)`, `S = sum_(k != x_t) log(1 + o p_k)`,
    with `T = live log(b + ad v) - q log(over v)` for a divergence, whose logarithms are small where a step is short,
    and `T = (K - 1 + o R) / v - q log v` for a rate. Where `live` is 0 the divergence is the cost,
    `log(1 + excess p_t) - gain - log p_0`.

    The derivative by log p_k is `-rho f_k`, `f_k = o p_k / (1 + o p_k)`, for k other than x_t and x_0; that by the
    logits is therefore `-p_k (rho / (1 / o + p_k) + total)`, with the sum `total` of all derivatives by log p_k.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, constants: Tensor, is_rate: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        odds, own, excess, gain, live, constant, q, rho, seen, *weights = constants.unbind()
        buffer = _buffer(logits)
        whole = torch.empty_like(logits) if ctx.needs_input_grad[0] and buffer.dtype == logits.dtype else None
        ctx.p, sums = whole, buffer.new_empty(5, len(logits), 1)
        eager = odds.device.type == "cpu" and not torch.compiler.is_compiling()
        together = _together(float(odds.amax()), logits) if eager else 2
        for rows in _blocks(logits):
            p, p_t, p_0 = _others(logits[rows], x_t[rows], x0[rows], None if whole is None else whole[rows])
            others = p.sum(-1, keepdim=True)  # 1 - p_t without cancellation
            o = odds[rows] / torch.addcmul(others, own[rows], p_t)
            factors = torch.mul(p, o.to(p), out=buffer[: len(p)]).add_(1)
            log_factors = _sum_log(factors, together)
            found = p_t, p_0, others, log_factors, factors.reciprocal_().mul_(p).sum(-1, keepdim=True)
            for whole_sum, part in zip(sums, found, strict=True):  # small tensors that stay would break up memory
                whole_sum[rows] = part
        p_t, p_0, others, log_factors, shares = sums.to(odds).unbind()
        h = torch.addcmul(others, own, p_t)
        o = odds / h
        o_t, o_0, lift = o * p_t, o * p_0, excess * p_t
        v = 1 + own * o_t
        if is_rate:
            z = (logits.shape[1] - 1 + o * others) / v
            t, by_v = z - q * v.log(), -(z + q) / v
        else:
            b, ad, over = weights
            z = torch.addcmul(b, ad, v)
            t, by_v = live * z.log() - q * (over * v).log(), live * ad / z - q / v
        cost = lift.log1p() - gain - p_0.log()
        if not (eager and float(p_0.amin()) > torch.finfo(sums.dtype).tiny):
            cost = cost.masked_fill(logits.gather(1, x0) == -torch.inf, torch.inf)
        value = torch.where(live > 0, constant + t - rho * log_factors - seen * o_0.log1p(), cost)
        if ctx.needs_input_grad[0]:
            tilt = lift / (1 + lift)  # of the cost by log p_t
            by_h = (1 - own) * p_t / h  # of -log h by log p_t
            share, share_0 = rho * o * shares, seen * o_0 / (1 + o_0)
            by_t = by_v * own * o_t * (1 + by_h) - by_h * (share + share_0) + (1 - live) * tilt
            if is_rate:
                by_t = by_t + (by_h * o * others - o_t) / v
            by_0 = live - 1 - share_0
            ctx.save_for_backward(logits, x_t, x0, p_t, tilt, h / odds, rho, by_t, by_0, by_t + by_0 - share)
        return value.to(buffer), cost.to(buffer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor | None, of_nats: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, x_t, x0, p_t, tilt, one_over_o, rho, by_t, by_0, total = ctx.saved_tensors
        scale = at_t = at_0 = torch.zeros_like(rho)
        if of_value is not None:
            scale, at_t, at_0 = -of_value * total, of_value * by_t, of_value * by_0
        if of_nats is not None:
            scale, at_t, at_0 = scale + of_nats * (1 - tilt), at_t + of_nats * tilt, at_0 - of_nats
        at_t = at_t + p_t * scale
        whole, ctx.p = ctx.p, None  # a second backward pass computes it again
        grad, buffer = torch.empty_like(logits) if whole is None else whole, _buffer(logits)
        for rows in _blocks(logits):
            p = _others(logits[rows], x_t[rows], x0[rows])[0] if whole is None else whole[rows]
            share, of_p = buffer[: len(p)], scale[rows].to(p)
            if of_value is not None:
                torch.div(p, torch.add(p, one_over_o[rows].to(p), out=share), out=share)
            block = torch.mul(p, of_p, out=grad[rows]) if grad.dtype == p.dtype else p.mul_(of_p)
            if of_value is not None:
                block.addcmul_(share, (-of_value * rho)[rows].to(p))
            block.scatter_(1, x_t[rows], at_t[rows].to(p)).scatter_add_(1, x0[rows], at_0[rows].to(p))
            if grad.dtype != p.dtype:
                grad[rows] = block
        return grad, *[None] * 4


def _others(logits: Tensor, x_t: Tensor, x0: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the softmax `(n, K)` with 0 at x_t, and what it is at x_t and at x_0, `(n, 1)` each."""
    p = at_least_float32(logits).softmax(-1) if out is None else torch.softmax(logits, -1, out=out)
    p_t, p_0 = p.gather(1, x_t), p.gather(1, x0)
    return p.scatter_(1, x_t, 0.0), p_t, p_0.clamp_(min=torch.finfo(p.dtype).tiny)


def _cross_entropy_rows(
    logits: Tensor, x0: Tensor, chosen: Tensor | None, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns `-log softmax(logits)[x0]` and its derivative by the logits, 0 but at the chosen rows; None for all."""
    minus_one = -at_least_float32(torch.ones((), dtype=logits.dtype, device=logits.device))
    nats = torch.zeros(x0.shape, dtype=minus_one.dtype, device=x0.device)
    slope = None if not with_slope else torch.empty_like(logits) if chosen is None else torch.zeros_like(logits)
    for rows in _blocks(logits, chosen):
        at_0 = _rows(x0, rows)[:, None]
        z = at_least_float32(_rows(logits, rows))
        p = z.softmax(-1)
        p_0 = p.gather(1, at_0)
        # A p_0 that underflows has a logarithm still; to look at it would make an accelerator wait.
        apart = p_0.device.type != "cpu" or float(p_0.amin()) < torch.finfo(p.dtype).tiny
        log_p_0 = z.log_softmax(-1).gather(1, at_0) if apart else p_0.log()
        _put(nats, rows, log_p_0.squeeze(1).neg_())
        if slope is not None:
            _put(slope, rows, p.scatter_add_(1, at_0, minus_one.expand(at_0.shape)))
    return nats, slope


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x0: Tensor, chosen: Tensor | None) -> Tensor:
        nats, ctx.slope = _cross_entropy_rows(logits, x0, chosen, ctx.needs_input_grad[0])
        ctx.save_for_backward(logits, x0, chosen)
        return nats

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        logits, x0, chosen = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of the gradient are wanted
            if chosen is not None:
                g = torch.zeros_like(g).index_copy(0, chosen, g[chosen])
            p = at_least_float32(logits).softmax(-1)
            grad = (p * g[:, None]).scatter_add(1, x0[:, None], -g[:, None]).to(logits)
            return grad, None, None
        grad, ctx.slope = ctx.slope, None  # a second backward pass computes it again
        grad = cast(Tensor, _cross_entropy_rows(logits, x0, chosen, True)[1]) if grad is None else grad
        return grad.mul_(g[:, None].to(grad)), None, None


def _together(odds: float, logits: Tensor) -> int:
    """Returns how many factors `1 + o p_k` to multiply: as the sum of `o p_k` is below the odds, products are finite.

    The product of K - 1 factors is at most `(1 + odds / (K - 1))^(K - 1)`, that of four below `(1 + odds)^4`.
    """
    others = logits.shape[1] - 1
    return others + 1 if others * math.log1p(odds / others) < 80 else 4 if odds < 1e9 else 2


def _sum_log(x: Tensor, together: int) -> Tensor:
    """Returns `sum_k log x_k`, `(n, 1)`, with one logarithm for the product of several x: 2, 4 or all of them."""
    if together >= x.shape[1]:
        return x.prod(-1, keepdim=True).log_()
    first, *more = x.split(-(-x.shape[1] // together), 1)
    product = first.clone()
    for factors in more:
        product[:, : factors.shape[1]].mul_(factors)
    return product.log_().sum(-1, keepdim=True)


def _rows(x: Tensor, rows: slice | Tensor) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _put(x: Tensor, rows: slice | Tensor, values: Tensor) -> None:
    if isinstance(rows, slice):
        x[rows] = values
    else:
        x.index_copy_(0, rows, values.to(x.dtype))


def _blocks(logits: Tensor, chosen: Tensor | None = None) -> Iterator[slice | Tensor]:
    """Returns indices of rows, block by block: of all, as slices, or of those that are chosen."""
    size = max(1, block_size(logits) // logits.shape[1])
    if chosen is not None:
        return iter(chosen.split(size)) if len(chosen) else iter(())
    return (slice(start, start + size) for start in range(0, len(logits), size))


def _buffer(logits: Tensor) -> Tensor:
    """Returns memory for one block, in the precision of the sums."""
    rows = min(len(logits), max(1, block_size(logits) // logits.shape[1]))
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(rows, logits.shape[1], dtype=dtype)


def block_size(logits: Tensor) -> int:
    """Returns how many numbers of the logits to process at a time on their device."""
    return ON_CPU if logits.device.type == "cpu" else ON_DEVICE
