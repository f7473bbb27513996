"""Categorical losses and steps as the papers write them, in float64: what the fused ones are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(back: Tensor, truth: Tensor, ahead: Tensor) -> Tensor:
    """Returns `KL(q(x_s | x_t, x_0) || p(x_s | x_t))` of D3PM's reverse model at each position (Austin et al. 2021).

    Args:
        back: `Q_(s->t)[:, x_t]`, `(..., K)`.
        truth: `Q_(0->s)[x_0, :]`, `(..., K)`.
        ahead: `p0 Q_(0->s)`, `(..., K)`.
    """
    q, p = (v / v.sum(-1, keepdim=True) for v in (back * truth, back * ahead))
    some = q > 0  # elsewhere the term is 0, and so is its gradient
    return (q * (torch.where(some, q, 1.0).log() - torch.where(some, p, 1.0).log())).sum(-1)


def step(back: Tensor, ahead: Tensor) -> Tensor:
    """Returns `p(x_s | x_t)`, `(..., K)`."""
    p = back * ahead
    return p / p.sum(-1, keepdim=True)


def cross_entropy(evidence: Tensor, p0: Tensor, x0: Tensor) -> Tensor:
    """Returns `-log p(x_0 | x_t)` at each position, where p0 is the posterior without `evidence = q(x_t | x_0)`."""
    p = evidence * p0
    return -(p.gather(-1, x0[..., None]) / p.sum(-1, keepdim=True)).log()[..., 0]


class Uniform:
    """`Q_(s->t) = a I + (1 - a) / K`: with probability 1 - a a token is drawn anew, from all K.

    Args:
        categories: K.
        betas: `(T,)`, the probabilities that a step draws a token anew.
    """

    def __init__(self, categories: int, betas: Tensor) -> None:
        self.categories, self.kept = categories, torch.cat([torch.ones(1).double(), (1 - betas.double()).cumprod(0)])

    def between(self, n: Tensor, m: Tensor, x: Tensor) -> Tensor:
        """Returns a for rows n < m of the table, of a shape that broadcasts against `(..., K)`."""
        return (self.kept[m] / self.kept[n]).view(-1, *[1] * x.ndim)

    def rows(self, p: Tensor, n: Tensor, m: Tensor, x: Tensor) -> Tensor:
        """Returns `p Q_(n->m)`, `(..., K)`."""
        a = self.between(n, m, x)
        return a * p + (1 - a) * p.sum(-1, keepdim=True) / self.categories

    def column(self, x: Tensor, n: Tensor, m: Tensor) -> Tensor:
        """Returns `Q_(n->m)[:, x]`, `(..., K)`."""
        return self.rows(F.one_hot(x, self.categories).double(), n, m, x)

    @property
    def states(self) -> int:
        """The number of states."""
        return self.categories


class Absorbing(Uniform):
    """`Q_(s->t) = a I + (1 - a) 1 e_m^T`: with probability 1 - a a token becomes the mask, the state K."""

    def rows(self, p: Tensor, n: Tensor, m: Tensor, x: Tensor) -> Tensor:
        a = self.between(n, m, x)
        masked = F.one_hot(torch.tensor(self.categories), self.states).double()
        return a * p + (1 - a) * p.sum(-1, keepdim=True) * masked

    def column(self, x: Tensor, n: Tensor, m: Tensor) -> Tensor:
        a = self.between(n, m, x)
        return a * F.one_hot(x, self.states).double() + (1 - a) * (x == self.categories)[..., None]

    @property
    def states(self) -> int:
        return self.categories + 1


class Dense:
    """A table of matrices, as in D3PM's published code.

    Args:
        one: the matrices of single steps, `(T, K, K)`.
        dtype: in which they are kept; their products are computed in float64.
    """

    def __init__(self, one: Tensor, dtype: torch.dtype = torch.float64) -> None:
        self.categories = self.states = one.shape[-1]
        total = [torch.eye(self.states).double()]
        for q in one.double():
            total.append(total[-1] @ q)
        self.one, self.total = one.to(dtype), torch.stack(total).to(dtype)

    def rows(self, p: Tensor, n: Tensor, m: Tensor, x: Tensor) -> Tensor:
        """Returns `p Q_(0->m)`; n is 0."""
        flat = p.to(self.total).reshape(len(p), -1, self.states)
        return (flat @ self.total[m].expand(len(p), -1, -1)).reshape(p.shape)

    def column(self, x: Tensor, n: Tensor, m: Tensor) -> Tensor:
        """Returns `Q_(n->m)[:, x]` for n = 0 or n = m - 1."""
        matrices = (self.total[m] if not n.any() else self.one[m - 1]).mT
        return matrices.expand(len(x), -1, -1)[torch.arange(len(x)).view(-1, *[1] * (x.ndim - 1)), x]


Process = Uniform | Dense


def padded(process: Process, p: Tensor) -> Tensor:
    """Returns probabilities of the categories with 0 for an added mask."""
    return F.pad(p, (0, process.states - process.categories))


def d3pm_loss(process: Process, logits: Tensor, x0: Tensor, x_t: Tensor, n: Tensor, ce: float = 0.0) -> Tensor:
    """Returns `L_n + ce E[-log p(x_0 | x_n)]`, the mean over dimensions `(B,)`, for rows n > 1 of the table."""
    none, p0 = torch.zeros_like(n), padded(process, logits.softmax(-1))
    back = process.column(x_t, n - 1, n)
    truth = process.rows(F.one_hot(x0, process.states).to(p0), none, n - 1, x0)
    nats = divergence(back, truth, process.rows(p0, none, n - 1, x0))
    if ce:
        nats = nats + ce * cross_entropy(process.column(x_t, none, n), p0, x0)
    return nats.flatten(1).mean(1)


def d3pm_step(process: Process, logits: Tensor, x_t: Tensor, n: int, stride: int = 1) -> Tensor:
    """Returns `p(x_(n - stride) | x_n)`, `(..., K)`."""
    rows, p0 = torch.full((len(x_t),), n), padded(process, logits.softmax(-1))
    return step(process.column(x_t, rows - stride, rows), process.rows(p0, torch.zeros_like(rows), rows - stride, x_t))


def mdlm_loss(logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Returns MDLM's loss under `alpha_t = 1 - t`: the cross-entropy at masks over t (Sahoo et al. 2024, eq. 10)."""
    nats = -logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0]
    return torch.where(x_t == logits.shape[-1], nats, 0.0).flatten(1).mean(1) / t


def mdlm_step(logits: Tensor, x_t: Tensor, t: float, s: float) -> Tensor:
    """Returns `p(x_s | x_t)`: a mask is revealed with probability `(t - s) / t`, all else stays (ibid., eq. 7)."""
    mask = logits.shape[-1]
    revealed = F.pad(logits.softmax(-1) * ((t - s) / t), (0, 1), value=s / t)
    return torch.where((x_t == mask)[..., None], revealed, F.one_hot(x_t, mask + 1).to(revealed))
