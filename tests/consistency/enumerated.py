"""The oracle of the categorical consistency matrix: two positions of three tokens, everything from dense matrices.

Nothing here uses a closed form, a reverse model or a sampler of the package: kernels, bounds and distributions are
sums over all states, from `Q_(0->t)` alone.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from unnoise.discrete import CategoricalDenoiser, Product, VariationalBound
from unnoise.discrete.denoiser import CleanDenoiser

D = torch.float64
ZERO, ONE = torch.zeros((), dtype=D), torch.ones((), dtype=D)
K = 3
DEPENDENT = torch.tensor([[0.30, 0.05, 0.02], [0.02, 0.03, 0.25], [0.15, 0.10, 0.08]], dtype=D)
INDEPENDENT = torch.outer(DEPENDENT.sum(1), DEPENDENT.sum(0))


def pairs(size: int) -> Tensor:
    """All states of two positions, `(size^2, 2)`; state `(a, b)` has the index `a size + b`."""
    return torch.tensor(list(itertools.product(range(size), repeat=2)))


def joint(distribution: Tensor) -> Tensor:
    """The probabilities of pairs from the distributions of both positions, `(..., 2, S)` to `(..., S^2)`."""
    return (distribution[..., 0, :, None] * distribution[..., 1, None, :]).flatten(-2)


def q(transition, s: Tensor, t: Tensor) -> Tensor:
    """`Q_(s->t)`, `(S, S)`."""
    return transition.pushforward(torch.eye(transition.states, dtype=D), s, t)


def noised(transition, data: Tensor, t: Tensor) -> Tensor:
    """The distribution of x_t for data of the distribution `(3, 3)`, `(S, S)`."""
    m = q(transition, ZERO, t)[:K]
    return m.T @ data @ m


def posteriors(transition, data: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """`p(x_0 | x_t)` of each position at every x_t, `(S^2, 2, 3)`, and the leave-one-out posterior, by Bayes'
    rule."""
    x, m = pairs(transition.states), q(transition, ZERO, t)[:K]
    others = torch.stack([m.T[x[:, 1]] @ data.T, m.T[x[:, 0]] @ data], 1)  # sum over the other x_0
    own = m.T[x]
    return tuple(p / p.sum(-1, keepdim=True).clamp(min=1e-300) for p in (others * own, others))


def posterior_is_read(reverse, transition, t: Tensor) -> bool:
    """Which of the two an output at t is read as: the rule of the docs, written again."""
    return not isinstance(reverse, Product) or (
        transition.steps is not None and round(float(t) * transition.steps) == 1
    )


def keeps_tokens(transition) -> bool:
    """Whether a token of the data in x_t is x_0's own at every time, looked up in the matrices."""
    rows = range(1, (transition.steps or 4) + 1)
    m = torch.stack([q(transition, ZERO, torch.tensor(n / (transition.steps or 4), dtype=D)) for n in rows])[:, :K, :K]
    return transition.states > K and bool((m == torch.diag_embed(m.diagonal(dim1=1, dim2=2))).all())


def kernel(transition, reverse, p0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """`p(x_s | x_t)` of each position at every x_t, `(S^2, 2, S)`, from outputs p0 `(S^2, 2, 3)`, by sums over
    x_0."""
    x, to_t = pairs(transition.states), q(transition, ZERO, t)
    reach = torch.where(to_t > 1e-12, to_t, 0.0).T[x][..., :K]
    posterior = posterior_is_read(reverse, transition, t)
    w = torch.where(reach > 0, p0 / reach.clamp(min=1e-300), 0.0) if posterior else p0
    if transition.is_clean(s):
        first = transition.steps is not None and round(float(t) * transition.steps) == 1
        distribution = p0 if first and not keeps_tokens(transition) else w * reach
        distribution = torch.nn.functional.pad(distribution, (0, transition.states - K))
    else:
        distribution = (q(transition, s, t).T[x] + reverse.eps) * (w @ q(transition, ZERO, s)[:K] + reverse.eps)
    return distribution / distribution.sum(-1, keepdim=True).clamp(min=1e-300)


def ratio_kernel(transition, m: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """`p(x_s | x_t)` from ratios m `(S^2, 2, S)`: the noise undone by a linear system, then Bayes' rule."""
    x, step = pairs(transition.states), q(transition, s, t)
    before = torch.linalg.solve(step.T, m.movedim(-1, 0).flatten(1)).view(len(step), *m.shape[:-1]).movedim(0, -1)
    distribution = before.clamp(min=0) * step.T[x]
    if transition.is_clean(s):
        distribution[..., K:] = 0
    return distribution / distribution.sum(-1, keepdim=True)


def ratios(transition, data: Tensor, t: Tensor) -> Tensor:
    """`q_t(x_t with y at i) / q_t(x_t)`, `(S^2, 2, S)`."""
    x, distribution = pairs(transition.states), noised(transition, data, t)
    changed = torch.stack([distribution[:, x[:, 1]].T, distribution[x[:, 0]]], 1)
    return changed / distribution[x[:, 0], x[:, 1]][:, None, None]


def true_kernel(transition, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """`q(x_s | x_t, x_0)` of each position for one x_0 `(2,)`, `(S^2, 2, S)`; 0 where x_t cannot come from x_0."""
    x = pairs(transition.states)
    distribution = q(transition, s, t).T[x] * q(transition, ZERO, s)[x0]
    distribution = distribution / distribution.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.where(distribution > 1e-12, distribution, 0.0)  # eigenvectors leave rounding where there is nothing


def divergence(transition, distribution: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """`E_q(x_t | x_0) KL(q(x_s | x_t, x_0) || distribution)`, summed over both positions."""
    x, truth = pairs(transition.states), true_kernel(transition, x0, t, s)
    kl = (torch.xlogy(truth, truth) - torch.xlogy(truth, distribution)).sum((1, 2))
    m = q(transition, ZERO, t)[x0]
    weight = m[0, x[:, 0]] * m[1, x[:, 1]]
    real = weight > 1e-12
    return (weight[real] * kl[real]).sum()


class Fixed(CleanDenoiser):
    """A denoiser whose output at every state and time is a formula: `output(t) -> log p0, (S^2, 2, 3)`."""

    def __init__(self, transition, reverse, output) -> None:
        super().__init__()
        self.corruption, self.reverse, self.output = transition, reverse, output

    def logits(self, x_t: Tensor, t: Tensor, **cond) -> Tensor:
        index = x_t[..., 0] * self.corruption.states + x_t[..., 1]
        if t.ndim == 0:
            return self.output(t)[index]
        out = torch.zeros(*x_t.shape, K, dtype=D)
        for time in t.unique():
            out[t == time] = self.output(time)[index[t == time]]
        return out


def exact_output(transition, reverse, data: Tensor, t: Tensor) -> Tensor:
    """The output that makes a denoiser exact at t, as logarithms; what cannot be is e^-700."""
    posterior, left_out = posteriors(transition, data, t)
    return (posterior if posterior_is_read(reverse, transition, t) else left_out).clamp(min=1e-304).log()


def exact(transition, reverse, data: Tensor = DEPENDENT) -> Fixed:
    """The exact denoiser under a reverse model."""
    return Fixed(transition, reverse, lambda t: exact_output(transition, reverse, data, t))


def wrong(transition, reverse, seed: int = 0) -> Fixed:
    """A denoiser that is wrong in every way: its output depends on both tokens and on the time."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (1.5 * torch.randn(transition.states**2, 2, K, dtype=D, generator=generator) for _ in range(2))
    return Fixed(transition, reverse, lambda t: a + torch.cos(4 * t) * b)


class Free(nn.Module):
    """A network whose logits are free at every state, at one time."""

    def __init__(self, states: int, start: Tensor) -> None:
        super().__init__()
        self.states, self.table = states, nn.Parameter(start.clone())

    def forward(self, x: Tensor, time: Tensor, **cond) -> Tensor:
        return self.table[x[..., 0] * self.states + x[..., 1]]


def walk(start: Tensor, denoiser: CategoricalDenoiser, grid: Tensor, distribution=None) -> Tensor:
    """The distribution of pairs at the end of a grid, by `distribution(x, t, s)` or the denoiser."""
    x = pairs(denoiser.corruption.states)
    for t, s in itertools.pairwise(grid):
        start = start @ joint(torch.nan_to_num((distribution or denoiser.step_distribution)(x, t, s)))
    return start


def generator_of(rates: Tensor, size: int) -> Tensor:
    """Rates of single changes at each pair, `(size^2, 2, size)`, as a matrix with rows that sum to 0."""
    states, out = pairs(size), torch.zeros(size * size, size * size, dtype=D)
    for n, i, y in itertools.product(range(size * size), range(2), range(size)):
        if y != states[n, i]:
            to = states[n].clone()
            to[i] = y
            out[n, to[0] * size + to[1]] += rates[n, i, y]
            out[n, n] -= rates[n, i, y]
    return out


def legendre(low: float, high: float, count: int = 48) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [low, high] (Golub & Welsch 1969), even in log t."""
    k = torch.arange(1, count, dtype=D)
    beta = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    a, b = torch.tensor([low, high], dtype=D).log()
    t = torch.exp(a + (b - a) * (nodes + 1) / 2)
    return t, (b - a) * vectors[0] ** 2 * t


def seen(transition, t: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """All x_t that can come from x_0 `(2,)`, and their probabilities."""
    m, x = q(transition, ZERO, t)[x0], pairs(transition.states)
    weight = m[0, x[:, 0]] * m[1, x[:, 1]]
    real = weight > 1e-12  # eigenvectors leave rounding where there is nothing
    return x[real], weight[real]


class corrupted_to:
    """A context in which `corrupt` of a process returns the given x_t."""

    def __init__(self, transition, x_t: Tensor) -> None:
        self.transition, self.x_t = transition, x_t

    def __enter__(self) -> None:
        self.transition.corrupt = lambda x0, t, *, generator=None: self.x_t

    def __exit__(self, *_) -> None:
        del self.transition.corrupt


def start_of(denoiser: CategoricalDenoiser, t: Tensor = ONE, **cond) -> Tensor:
    """The distribution of pairs that sampling starts from."""
    x = denoiser.corruption.stationary().argmax().expand(1, 2)
    return joint(denoiser.start_distribution(x, t, **cond))[0]


def chain_bound(denoiser: CategoricalDenoiser, grid: Tensor, x0: Tensor, label: Tensor | None = None) -> Tensor:
    """What `VariationalBound` adds up over a grid, each term in expectation over x_t."""
    bound, transition = VariationalBound(denoiser, steps=grid), denoiser.corruption
    total = bound.prior(x0[None], **label_of(label, 1))[0]
    for n in range(1, len(grid)):
        x_t, weight = seen(transition, grid[-1 - n], x0)
        with corrupted_to(transition, x_t):
            batch, cond = x0.expand(len(x_t), 2), label_of(label, len(x_t))
            nats = bound.term(batch, torch.tensor(n), **cond) if n > 1 else bound.data(batch, **cond)
        total = total + (weight * nats).sum()
    return total


def label_of(label: Tensor | None, count: int) -> dict[str, Tensor]:
    """The class for a batch, where there is one."""
    return {} if label is None else {"label": label.expand(count)}


def assert_bounds(denoiser: CategoricalDenoiser, grid: Tensor, label: Tensor | None = None) -> Tensor:
    """Each x_0 costs at least `-log P(x_0)` of the chain's own samples, so all costs together are a code; returns the
    costs."""
    size = denoiser.corruption.states
    cond = label_of(label, size**2)
    distribution = walk(
        start_of(denoiser, grid[0], **label_of(label, 1)),
        denoiser,
        grid,
        lambda x, t, s: denoiser.step_distribution(x, t, s, **cond),
    )
    distribution = distribution.view(size, size)[:K, :K].flatten()
    assert float((distribution.sum() - 1).abs()) < 1e-9
    bounds = torch.stack([chain_bound(denoiser, grid, x0, label) for x0 in pairs(K)])
    assert (bounds >= -distribution.log() - 1e-9).all()
    assert float(torch.exp(-bounds).sum()) <= 1 + 1e-9
    return bounds
