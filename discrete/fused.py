"""Losses that are sums over the vocabulary, with backward passes by hand.

Rows are processed in blocks that stay in cache, and at most one tensor of the size of the logits is kept besides them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.tensors import at_least_float32

ON_CPU, ON_DEVICE = 2**19, 2**26  # numbers in a block: two megabytes fit a core's cache, an accelerator needs more


def cross_entropy(logits: Tensor, x0: Tensor) -> Tensor:
    """Returns `-log softmax(logits)[x0]`, `(...)`, float32 or better.

    Args:
        logits: `(..., K)`, of any precision.
        x0: `(...)`, int64.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    if logits.dtype in (torch.float32, torch.float64):
        return F.cross_entropy(rows, x0.reshape(-1), reduction="none").view(x0.shape)
    return cast(Tensor, _HalfCrossEntropy.apply(rows, x0.reshape(-1))).view(x0.shape)


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
    constants = (v.double().expand(x0.shape).reshape(-1) for v in (odds, own, excess))
    rows = logits.reshape(-1, logits.shape[-1]), x_t.reshape(-1), x0.reshape(-1)
    rate, nats = cast(tuple[Tensor, Tensor], _UniformRate.apply(*rows, *constants))
    return rate.view(x0.shape), nats.view(x0.shape)


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
    states, live = logits.shape[-1], (~clean).to(a)
    b, d = (1 - a) / states, (1 - c).masked_fill(clean, states) / states
    same, cases = (x_t == x0).to(at_least_float32(logits[:0]).dtype), []
    for is_same in (0, 1):
        # The masses of the true distribution at x_t, at x_0 by way of p0 and at any third token, and the terms that do
        # not depend on the model.
        true_t = c * is_same + d
        z = b + a * true_t
        q_t, seen, rho = live * (a + b) * true_t / z, live * (1 - is_same) * b * c / z, live * b * d / z
        constant = q_t * true_t.log() - live * z.log() + (seen + (1 - is_same) * rho) * torch.log1p(c / d)
        cases.append((q_t, seen, rho, constant, torch.log1p(excess * is_same).expand(z.shape)))
    true = (torch.lerp(v.to(same), w.to(same), same).reshape(-1) for v, w in zip(*cases, strict=True))
    model = (_flat(v, x0, logits) for v in (a, b, c, d, own, excess, live))
    rows = logits.reshape(-1, states), x_t.reshape(-1), x0.reshape(-1)
    kl, nats = cast(tuple[Tensor, Tensor], _UniformDivergence.apply(*rows, *true, *model))
    return kl.view(x0.shape), nats.view(x0.shape)


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


class _UniformRate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        rates, costs, tilts, slope = [], [], [], None
        for rows in _blocks(logits):
            p = at_least_float32(logits[rows]).softmax(-1)
            u, own, excess = (v[rows] for v in constants)
            p_t, p_0 = _at(p, x_t[rows]), _floored(_at(p, x0[rows]))
            others = p.scatter_(1, x_t[rows, None], 0.0).sum(-1)  # 1 - p_t without cancellation
            p.scatter_(1, x_t[rows, None], p_t[:, None])
            h = own * p_t + others
            factors = _factors(p, (u / h).to(p))
            rate, *by = _rate_from_sums(
                _sum_log(factors).double(),
                p_t=p_t.double(),
                p_0=p_0.double(),
                others=others.double(),
                h=h.double(),
                u=u,
                own=own,
                same=x_t[rows] == x0[rows],
                states=p.shape[1],
            )
            cost, tilt = _posterior_nats(
                p_t, p_0, logits[rows], x0[rows], excess.to(p), torch.log1p(excess * (x_t[rows] == x0[rows])).to(p)
            )
            rates.append(rate.to(p))
            costs.append(cost)
            tilts.append(tilt)
            if ctx.needs_input_grad[0]:
                by_h = ((1 - own) * p_t / h).to(p)
                slope = _stored(
                    slope, logits, rows, _slope(p, factors, by_h, x_t[rows], x0[rows], *(v.to(p) for v in by))
                )
        ctx.save_for_backward(slope, logits, x_t, x0, _joined(tilts))
        return _joined(rates), _joined(costs)

    @staticmethod
    def backward(ctx: Any, of_rate: Tensor | None, of_cost: Tensor | None) -> tuple[Tensor | None, ...]:
        return (_scaled(*ctx.saved_tensors, of_kl=of_rate, of_nats=of_cost), *[None] * 5)


class _UniformDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x_t: Tensor, x0: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kls, costs, tilts, slope = [], [], [], None
        for rows in _blocks(logits):
            p = at_least_float32(logits[rows]).softmax(-1)
            q_t, seen, rho, constant, gain, a, b, c, d, own, excess, live = (v[rows] for v in constants)
            p_t, p_0 = _at(p, x_t[rows]), _floored(_at(p, x0[rows]))
            h = own * p_t + (1 - p_t).clamp(min=0)
            factors = _factors(p, c / (d * h))
            cost, tilt = _posterior_nats(p_t, p_0, logits[rows], x0[rows], excess, gain)
            kl, by = _from_sums(_sum_log(factors), p_t, p_0, h, q_t, seen, rho, constant, a, b, c, d, own, live)
            kls.append(torch.where(live > 0, kl, cost))
            costs.append(cost)
            tilts.append(tilt)
            if ctx.needs_input_grad[0]:
                by = (by[0], by[1] + (1 - live) * tilt, by[2])
                slope = _stored(slope, logits, rows, _slope(p, factors, (1 - own) * p_t / h, x_t[rows], x0[rows], *by))
        ctx.save_for_backward(slope, logits, x_t, x0, _joined(tilts))
        return _joined(kls), _joined(costs)

    @staticmethod
    def backward(ctx: Any, of_kl: Tensor | None, of_cost: Tensor | None) -> tuple[Tensor | None, ...]:
        return (_scaled(*ctx.saved_tensors, of_kl=of_kl, of_nats=of_cost), *[None] * 14)


def _posterior_nats(
    p_t: Tensor, p_0: Tensor, logits: Tensor, x0: Tensor, excess: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns `-log p(x_0 | x_t) = log(1 + excess p_t) - gain - log p_0` and its derivative by `log p_t`.

    The former is infinite where x_0 is ruled out.
    """
    lift = excess * p_t
    costs = torch.log1p(lift) - gain - p_0.log()
    return costs.masked_fill(_at(logits, x0) == -torch.inf, torch.inf), lift / (1 + lift)


def _rate_from_sums(
    total: Tensor,
    p_t: Tensor,
    p_0: Tensor,
    others: Tensor,
    h: Tensor,
    u: Tensor,
    own: Tensor,
    same: Tensor,
    states: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Returns the rate from S and p0 at x_t and x_0, and its derivatives by S, `log p_t` and `log p_0`; float64.

    `M = sum_(y != x_t) m_y = ((K - 1) h + u (1 - p_t)) / D`,
    `L = sum_(y != x_t) log m_y = S - log(1 + u p_t / h) - (K - 1) log(D / h)`, and the rate is
    `M - r L + (K - 1) r (log r - 1)` where x_t = x_0, else
    `M - L - u log m_(x_0) + (1 + u) log(1 + u) - u - (K - 1)`.
    """
    rest, differs = states - 1, (~same).double()
    d_t, c = h + own * u * p_t, 1 - own
    log_d = torch.log1p(own * u * p_t / h)  # log(D / h)
    m = (rest * h + u * others) / d_t
    log_m = total - torch.log1p(u * p_t / h) - rest * log_d
    log_m_0 = torch.log1p(u * p_0 / h) - log_d
    r = torch.where(same, 1 / (1 + u), 1.0)
    truth = rest * r * (r.log() - 1) + differs * (torch.xlogy(1 + u, 1 + u) - u)
    rate = m - r * log_m - differs * u * log_m_0 + truth
    # h and D depend on p_t: dh = -c, dD = own u - c. `_slope` adds the dependence of S on h.
    by_d = (own * u - c) / d_t
    of_m = -(rest * c + u) / d_t - m * by_d
    of_log_m = -rest * c / h - (u - c) / (h + u * p_t) - c / h - rest * by_d
    of_log_m_0 = -c / (h + u * p_0) - by_d
    by_t = p_t * (of_m - r * of_log_m - differs * u * of_log_m_0)
    return rate, -r, by_t, -differs * u * u * p_0 / (h + u * p_0)


def _from_sums(
    total: Tensor, p_t: Tensor, p_0: Tensor, h: Tensor,
    q_t: Tensor, seen: Tensor, rho: Tensor, constant: Tensor,
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, own: Tensor, live: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    r"""Returns the divergence from S and p0 at x_t and x_0, and its derivatives by S, `log p_t` and `log p_0`.

    Where s = 0 the derivatives are those of `-log p0(x_0)`.

    `KL = constant + log Z - q_t log w_t - (1 - q_t) log h - rho (S - log(1 + u p_t / h)) - seen log(1 + u p_0 / h)`.
    """
    odds, dw = c / (d * h), c * own - d * (1 - own)
    u_t, u_0 = odds * p_t, odds * p_0
    w_t = d * h * (1 + own * u_t)
    z = b * h + a * w_t
    kl = (
        constant
        + live * (z / h).log()
        + q_t * (h / w_t).log()
        - rho * (total - torch.log1p(u_t))
        - seen * torch.log1p(u_0)
    )
    f_t, f_0 = u_t / (1 + u_t), u_0 / (1 + u_0)
    by_h = (q_t - live - rho * f_t + seen * f_0) / h  # h and w_t depend on p_t
    by_t = p_t * (live * (a * dw - b * (1 - own)) / z - q_t * dw / w_t - (1 - own) * by_h) + rho * f_t
    return kl, (-rho, by_t, live - 1 - seen * f_0)


def _slope(
    p: Tensor, factors: Tensor, by_h: Tensor, x_t: Tensor, x0: Tensor, by_sum: Tensor, by_t: Tensor, by_0: Tensor
) -> Tensor:
    r"""Returns the gradient by the logits of `by_sum S + by_t log p_t + by_0 log p_0`, `(n, K)`, in place of `factors`.

    With `f_k = u p_k / (h + u p_k)` and `F = sum_k f_k`: `dS / dp_k = f_k / p_k`, to which p_t adds `(1 - own) F / h`
    through h; through the softmax that is `f_k - p_k (F + (1 - own) p_t F / h)`, and further terms at x_t and x_0.
    `by_h` is `(1 - own) p_t / h`.
    """
    inverse = factors.reciprocal_()  # 1 - f
    through = by_sum * (p.shape[1] - inverse.sum(-1))
    own = by_h * through + by_t
    grad = inverse.sub_(1).mul_(-by_sum[:, None]).addcmul_(p, (through + own + by_0)[:, None], value=-1)
    return grad.scatter_add_(1, x_t[:, None], own[:, None]).scatter_add_(1, x0[:, None], by_0[:, None])


def _scaled(
    slope: Tensor, logits: Tensor, x_t: Tensor, x0: Tensor, tilt: Tensor, of_kl: Tensor | None, of_nats: Tensor | None
) -> Tensor:
    """Returns the gradient by the logits `(N, K)` from that of the divergence, `slope`, and that of the cost.

    `tilt` is the derivative of the cost by `log p_t`; `slope` is needed where `of_kl` is given.
    """
    grad = torch.zeros_like(logits) if of_kl is None else slope.view(logits.shape) * of_kl.reshape(-1, 1).to(slope)
    if of_nats is not None:
        scale, up = of_nats.reshape(-1, 1), (of_nats * tilt).reshape(-1, 1)
        for rows in _blocks(logits):
            grad[rows].addcmul_(at_least_float32(logits[rows]).softmax(-1).to(grad), (scale - up)[rows].to(grad))
        grad.scatter_add_(1, x0[:, None], -scale.to(grad)).scatter_add_(1, x_t[:, None], up.to(grad))
    return grad


def _stored(slope: Tensor | None, logits: Tensor, rows: slice, block: Tensor) -> Tensor:
    """Returns the gradient with a block of rows filled in; a single block as it is."""
    if block.shape == logits.shape:
        return block
    slope = torch.empty_like(logits) if slope is None else slope
    slope[rows] = block
    return slope


def _floored(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny)


def _factors(p: Tensor, odds: Tensor) -> Tensor:
    """Returns `1 + odds p_k`, `(n, K)`."""
    return (p * odds[:, None]).add_(1)


def _sum_log(x: Tensor) -> Tensor:
    """Returns `sum_k log x_k`, `(n,)`, with half of the logarithms, as `log x + log y = log(x y)`.

    A product overflows for x above 1e18.
    """
    half = x.shape[1] // 2
    total = (x[:, :half] * x[:, half : 2 * half]).log_().sum(-1)
    return total + x[:, -1].log() if x.shape[1] % 2 else total


def _joined(parts: list[Tensor]) -> Tensor:
    """Returns blocks as one tensor; a single block as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, None]).squeeze(1)


def _flat(v: Tensor, x: Tensor, logits: Tensor) -> Tensor:
    """Returns `v` for each position, `(N,)`, in the precision of the sums."""
    return v.to(at_least_float32(logits[:0])).expand(x.shape).reshape(-1)


def _blocks(logits: Tensor) -> Iterator[slice]:
    rows = max(1, block_size(logits) // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def block_size(logits: Tensor) -> int:
    """Returns how many numbers of the logits to process at a time on their device."""
    return ON_CPU if logits.device.type == "cpu" else ON_DEVICE
