"""Losses that are sums over the vocabulary, with backward passes by hand.

Rows are processed in blocks that stay in cache. Besides the logits, one tensor of their size is kept: the gradient up
to a factor for each row, which the first backward pass scales in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..shared.tensors import at_least_float32

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
    if plain_operations():
        nats = F.cross_entropy(at_least_float32(rows), flat, reduction="none").view(x0.shape)
    elif counts is None or logits.device.type != "cpu":  # to find the rows that count would wait for the device
        nats = cast(Tensor, _CrossEntropy.apply(rows, flat, None)).view(x0.shape)
    else:
        return cast(Tensor, _CrossEntropy.apply(rows, flat, counts.reshape(-1).nonzero().squeeze(1))).view(x0.shape)
    return nats if counts is None else torch.where(counts, nats, 0.0)


def plain_operations() -> bool:
    """Returns whether a compiler, `torch.func` or forward-mode differentiation is at work."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return torch.compiler.is_compiling() or forward_mode or torch._C._are_functorch_transforms_active()


def uniform_rate(
    logits: Tensor, x_t: Tensor, x0: Tensor, odds: Tensor, own: Tensor, excess: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Returns the rate of the path of uniform resampling divided by `rate / K`, and `-log p(x_0 | x_t)`.

    `rate` is that of the schedule, events per unit of time; p is p0, the softmax of the logits. The former is
    `sum_(y != x_t) m_y - r_y log m_y + r_y (log r_y - 1)` with the model's ratios `m_y = (h + u p_y) / D`,
    `h = 1 - (1 - own) p_(x_t)`, `D = h + own u p_(x_t)`, and the true ratios r_y: `1 / (1 + u)` for every y where x_t =
    x_0; elsewhere 1, and `1 + u` for y = x_0. The derivatives are by hand.

    Args:
        logits: `(..., K)`, of any precision.
        x_t, x0: `(...)`, int64.
        odds: u, the probability of x_t given x_0 = x_t over that given another x_0, less one; float64, broadcast to
            `(...)`.
        own: `ReverseModel.own`, the factor by which the reverse model multiplies p0 at x_0 = x_t relative to other x_0;
            1 for a leave-one-out p0. Float64, broadcast to `(...)`.
        excess: the factor by which the evidence of x_t raises the probability of x_0 = x_t over p0, less one: u for a
            leave-one-out p0, 0 for a posterior. Float64, broadcast to `(...)`.

    Returns:
        `(...)` each, float32 or better.
    """
    u, own, excess, live = (v[..., None] for v in (odds, own, excess, torch.ones_like(odds)))
    same, rest = _same(u), logits.shape[-1] - 1
    r, seen = torch.where(same, 1 / (1 + u), 1.0), torch.where(same, 0.0, u)
    constant = rest * r * (r.log() - 1) + torch.xlogy(1 + seen, 1 + seen) - seen
    return _uniform(logits, x_t, x0, True, u, own, excess, live, constant, -rest * r - seen, r, seen)


def uniform_divergence(
    logits: Tensor, x_t: Tensor, x0: Tensor, a: Tensor, c: Tensor, own: Tensor, excess: Tensor, clean: Tensor
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
        a, c: the probabilities to be kept from s to t and from 0 to s, float64, broadcast to `(...)`.
        own, excess: as in `uniform_rate`; own_k is `own` at k = x_t and else 1.
        clean: whether s = 0, bool, broadcast to `(...)`.

    Returns:
        `(...)` each, float32 or better.
    """
    a, c, own, excess, clean = (v[..., None] for v in (a, c, own, excess, clean))
    states, same, live = logits.shape[-1], _same(a), (~clean).to(a)
    b, d = (1 - a) / states, (1 - c).masked_fill(clean, states) / states
    # The masses of the true distribution at x_t, at x_0 by way of p0 and at any third token, and the terms that do not
    # depend on the model.
    true_t = c * same + d
    z = b + a * true_t
    q_t, rho = live * (a + b) * true_t / z, live * b * d / z
    others = torch.where(same, 0.0, rho)
    odds, seen = c / d, others * (c / d)
    constant = q_t * (true_t / d).log() - live * z.log() + (seen + others) * odds.log1p()
    return _uniform(logits, x_t, x0, False, odds, own, excess, live, constant, q_t, rho, seen, b, a * d)


def _same(v: Tensor) -> Tensor:
    """Returns whether x_t = x_0 in the two cases for which constants are computed."""
    return torch.arange(2, device=v.device) > 0


class _Rows(NamedTuple):
    """Values at each row of the logits, and the derivative of the first by the logits, where it was asked for.

    Attributes:
        value: the divergence or rate, `(N,)`.
        nats: `-log p(x_0 | x_t)`, `(N,)`.
        tilt: the derivative of `nats` by `log p_t`, `(N, 1)`.
        slope: the derivative of `value` by the logits, `(N, K)`, or None.
    """

    value: Tensor
    nats: Tensor
    tilt: Tensor
    slope: Tensor | None


def _uniform(
    logits: Tensor, x_t: Tensor, x0: Tensor, is_rate: bool, odds: Tensor, own: Tensor, excess: Tensor, *more: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns value and nats of `_uniform_rows` from constants `(..., 2)`, where x_t is not x_0 and where it is."""
    gain = torch.log1p(excess * _same(excess))
    constants = torch.broadcast_tensors(odds, own, excess, gain, *more)
    shape = constants[0].shape[:-1]
    table = torch.stack(constants).view(len(constants), -1)
    cell = torch.arange(0, 2 * shape.numel(), 2, device=x0.device).view(shape) + (x_t == x0)
    rows = logits.reshape(-1, logits.shape[-1]), x_t.reshape(-1, 1), x0.reshape(-1, 1), cell.reshape(-1)
    value, nats = cast(tuple[Tensor, Tensor], _Uniform.apply(*rows, table, is_rate))
    return value.view(x0.shape), nats.view(x0.shape)


def _uniform_rows(
    logits: Tensor, x_t: Tensor, x0: Tensor, cell: Tensor, table: Tensor, is_rate: bool, with_slope: bool
) -> _Rows:
    r"""Returns the divergence or rate of uniform resampling at each row of the logits, `(N, K)`, and its derivative.

    With `h = own p_t + R`, the probability `R = 1 - p_t` of all tokens but x_t, `o = odds / h` and
    `v = 1 + own o p_t`, both are `constant + T(v) - q log v - rho S - seen log(1 + o p_0)`,
    `S = sum_(k != x_t) log(1 + o p_k)`, with `T = live log(b + ad v)` for a divergence and `T = (K - 1 + o R) / v` for
    a rate. For a token k other than x_t and x_0 the derivative by log p_k is `-rho f_k`, `f_k = o p_k / (1 + o p_k)`.
    """
    slope = torch.empty_like(logits) if with_slope else None
    values, costs, tilts = [], [], []
    for rows in _blocks(logits):
        p = at_least_float32(logits[rows]).softmax(-1)
        at_t, at_0 = x_t[rows], x0[rows]
        odds, own, excess, gain, live, constant, q, rho, seen, *weights = table[:, cell[rows], None]
        p_t, p_0 = p.gather(1, at_t).double(), p.gather(1, at_0).clamp_(min=torch.finfo(p.dtype).tiny).double()
        others = p.scatter_(1, at_t, 0.0).sum(-1, keepdim=True).double()  # 1 - p_t without cancellation
        h = torch.addcmul(others, own, p_t)
        o = odds / h
        o_t, o_0 = o * p_t, o * p_0
        v = 1 + own * o_t
        if is_rate:
            t = (p.shape[1] - 1 + o * others) / v
            by_v = -t / v
        else:
            b, ad = weights
            w = torch.addcmul(b, ad, v)
            t, by_v = live * w.log(), live * ad / w
        buffer = slope[rows] if slope is not None and slope.dtype == p.dtype else torch.empty_like(p)
        factors = torch.mul(p, o.to(p), out=buffer).add_(1)
        value = constant + t - q * v.log() - rho * _sum_log(factors) - seen * o_0.log1p()
        lift = excess * p_t
        cost = lift.log1p() - gain - p_0.log()
        cost = cost.masked_fill(logits[rows].gather(1, at_0) == -torch.inf, torch.inf)
        tilt = lift / (1 + lift)
        values.append(torch.where(live > 0, value, cost).to(p))
        costs.append(cost.to(p))
        tilts.append(tilt.to(p))
        if slope is None:
            continue
        shares = factors.reciprocal_().mul_(p)  # f = o shares, and 0 at x_t
        share, share_0 = rho * o * shares.sum(-1, keepdim=True), seen * o_0 / (1 + o_0)
        by_h = (1 - own) * p_t / h  # that of -log h by log p_t
        by_t = (by_v - q / v) * own * o_t * (1 + by_h) - by_h * (share + share_0) + (1 - live) * tilt
        if is_rate:
            by_t = by_t + (by_h * o * others - o_t) / v
        by_0 = live - 1 - share_0
        total = by_t + by_0 - share
        shares.mul_((-rho * o).to(p)).addcmul_(p, total.to(p), value=-1)
        shares.scatter_(1, at_t, (by_t - p_t * total).to(p)).scatter_add_(1, at_0, by_0.to(p))
        if slope.dtype != p.dtype:
            slope[rows] = shares
    return _Rows(_joined(values).squeeze(1), _joined(costs).squeeze(1), _joined(tilts), slope)


class _Uniform(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, cell: Tensor, table: Tensor, is_rate: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        found = _uniform_rows(logits, x_t, x0, cell, table, is_rate, ctx.needs_input_grad[0])
        ctx.save_for_backward(logits, x_t, x0, cell, table, found.tilt)
        ctx.slope, ctx.is_rate = found.slope, is_rate
        return found.value, found.nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor | None, of_nats: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, x_t, x0, cell, table, tilt = ctx.saved_tensors
        if of_value is None:
            grad = torch.zeros_like(logits)
        else:
            grad, ctx.slope = ctx.slope, None  # a second backward pass computes it again
            if grad is None:
                grad = cast(Tensor, _uniform_rows(logits, x_t, x0, cell, table, ctx.is_rate, True).slope)
            grad.mul_(of_value[:, None].to(grad))
        if of_nats is not None:
            scale = of_nats[:, None]
            up = scale * tilt
            for rows in _blocks(logits):
                p = at_least_float32(logits[rows]).softmax(-1)
                grad[rows].addcmul_(p.to(grad), (scale - up)[rows].to(grad))
            grad.scatter_add_(1, x0, -scale.to(grad)).scatter_add_(1, x_t, up.to(grad))
        return grad, *[None] * 5


def _cross_entropy_rows(
    logits: Tensor, x0: Tensor, chosen: Tensor | None, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns `-log softmax(logits)[x0]` and its derivative by the logits, 0 but at the chosen rows; None for all."""
    nats = torch.zeros(x0.shape, dtype=at_least_float32(logits[:0]).dtype, device=x0.device)
    slope = None if not with_slope else torch.empty_like(logits) if chosen is None else torch.zeros_like(logits)
    for rows in _blocks(logits, chosen):
        z, at_0 = at_least_float32(logits[rows]), x0[rows][:, None]
        p = z.softmax(-1)
        # The largest p is one over the sum of exp(z - max z).
        nats[rows] = (z.amax(-1) - z.gather(1, at_0).squeeze(1)).sub_(p.amax(-1).log_())
        if slope is not None:
            slope[rows] = p.scatter_add_(1, at_0, p.new_full((), -1.0).expand(at_0.shape)).to(slope)
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


def _sum_log(x: Tensor) -> Tensor:
    """Returns `sum_k log x_k`, `(n, 1)`, with half of the logarithms, as `log x + log y = log(x y)`.

    A product overflows for x above 1e18.
    """
    half = x.shape[1] // 2
    total = (x[:, :half] * x[:, half : 2 * half]).log_().sum(-1, keepdim=True)
    return total + x[:, -1:].log() if x.shape[1] % 2 else total


def _joined(parts: list[Tensor]) -> Tensor:
    """Returns blocks as one tensor; a single block as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blocks(logits: Tensor, chosen: Tensor | None = None) -> Iterator[Any]:
    """Returns indices of rows, block by block: of all, as slices, or of those that are chosen."""
    size = max(1, block_size(logits) // logits.shape[1])
    if chosen is not None:
        return iter(chosen.split(size)) if len(chosen) else iter(())
    return (slice(start, start + size) for start in range(0, len(logits), size))


def block_size(logits: Tensor) -> int:
    """Returns how many numbers of the logits to process at a time on their device."""
    return ON_CPU if logits.device.type == "cpu" else ON_DEVICE
