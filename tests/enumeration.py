"""Distributions of pairs of tokens by enumeration: what samplers, guidance and editing of tokens must give."""

import itertools

import torch
from torch import Tensor, nn

from unnoise.discrete import Marginal
from unnoise.discrete.denoiser import CleanDenoiser
from unnoise.shared.random import Streams

ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def pairs(k: int) -> Tensor:
    """All states of two positions, `(k * k, 2)`; state `(a, b)` has the index `a k + b`."""
    return torch.tensor(list(itertools.product(range(k), repeat=2)))


def joint(distribution: Tensor) -> Tensor:
    """The probabilities of the next pair from distributions of each position, `(..., 2, K)` to `(..., K * K)`."""
    return (distribution[..., 0, :, None] * distribution[..., 1, None, :]).flatten(-2)


def generator_of(rates: Tensor, k: int) -> Tensor:
    """Rates of single changes at each pair, `(k * k, 2, k)`, as a matrix with rows that sum to 0."""
    states, out = pairs(k), torch.zeros(k * k, k * k, dtype=torch.float64)
    for n, i, y in itertools.product(range(k * k), range(2), range(k)):
        if y != states[n, i]:
            to = states[n].clone()
            to[i] = y
            out[n, to[0] * k + to[1]] += rates[n, i, y]
            out[n, n] -= rates[n, i, y]
    return out


def at_time(transition, joint: Tensor, t: Tensor) -> Tensor:
    """The distribution of x_t, `(states, states)`, for data of the distribution `(categories, categories)`."""
    q = transition.pushforward(torch.eye(transition.states, dtype=torch.float64)[: transition.categories], ZERO, t)
    return q.T @ joint @ q


class JointOracle(CleanDenoiser):
    """The exact posterior at each position of two that depend on each other."""

    def __init__(self, joint: Tensor, transition) -> None:
        super().__init__()
        self.joint, self.corruption, self.reverse = joint, transition, Marginal()

    def logits(self, x_t: Tensor, t: Tensor, **cond) -> Tensor:
        reach = self.corruption.likelihood(x_t, ZERO, t)[..., : self.corruption.categories]
        both = self.joint * reach[:, 0, :, None] * reach[:, 1, None, :]
        return torch.stack([both.sum(2), both.sum(1)], 1).log()


class Both(nn.Module):
    """A network that is wrong in every way: its logits depend on both tokens and on the time."""

    def __init__(self, states: int, categories: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table, self.slope = (
            torch.randn(states, states, 2, categories, dtype=torch.float64, generator=generator) for _ in range(2)
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        wave = torch.cos(0.004 * label.double())[:, None, None]
        return 1.5 * (self.table[x[:, 0], x[:, 1]] + 2 * wave * self.slope[x[:, 0], x[:, 1]])


class Eighths(nn.Module):
    """Chances that are multiples of 1/8, of three tokens, that depend on the other token and on the quarter of the
    time.
    """

    def __init__(self) -> None:
        super().__init__()
        choices = torch.tensor([p for p in itertools.product(range(1, 7), repeat=3) if sum(p) == 8]).double() / 8
        pick = torch.randint(0, len(choices), (4, 4, 4, 2), generator=torch.Generator().manual_seed(3))
        self.table = choices[pick]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        quarter = torch.ceil(label.double() / 250 - 1e-6).long() - 1
        return self.table[quarter, x[:, 0], x[:, 1]].log()


class Given(Streams):
    """A source that replays given numbers."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def uniform(self, shape, dtype, device) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == tuple(shape)
        return draw.to(dtype)


def strata(*counts: int) -> list[Tensor]:
    """Midpoints of a grid over the unit cube, a column `(N,)` for each axis."""
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def frequencies(x: Tensor, k: int) -> Tensor:
    return torch.bincount(x[:, 0] * k + x[:, 1], minlength=k * k).double() / len(x)


def walk(start: Tensor, distribution, grid: Tensor, k: int) -> Tensor:
    """The distribution of pairs at the end of a grid, by step distributions that `distribution(x, t, s)` says."""
    for t, s in itertools.pairwise(grid):
        start = start @ joint(torch.nan_to_num(distribution(pairs(k), t, s)))
    return start


def masked_start(k: int) -> Tensor:
    start = torch.zeros(k * k, dtype=torch.float64)
    start[-1] = 1
    return start


JOINT = torch.tensor([[0.30, 0.05, 0.02], [0.02, 0.03, 0.25], [0.15, 0.10, 0.08]], dtype=torch.float64)


def as_module(formula) -> nn.Module:
    class Network(nn.Module):
        def forward(self, x, label):
            return formula(x, label)

    return Network()
