"""Toy data whose law is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..random import Source, categorical, uniform, whole_seed
from ..serialization import serializable


@serializable("data.MarkovChain", formerly="unnoise.shared.data.toy.MarkovChain")
@dataclass(frozen=True, eq=False)
class MarkovChain:
    """A stationary Markov chain of first order over K symbols: `P(x_1 .. x_L) = pi(x_1) prod_i P[x_i, x_(i+1)]`.

    Args:
        transition: `P`, float64 `(K, K)`, rows sum to one.

    Raises:
        UsageError: for rows that are no laws, or a chain that does not get from every symbol to every other.
    """

    transition: Tensor

    def __post_init__(self) -> None:
        p = self.transition
        if p.ndim != 2 or p.shape[0] != p.shape[1] or p.dtype != torch.float64:
            raise UsageError(f"a transition of shape {tuple(p.shape)} and {p.dtype}: give (K, K) in float64")
        if bool((p < 0).any()) or not torch.allclose(p.sum(1), torch.ones_like(p[0]), rtol=0, atol=1e-9):
            raise UsageError(
                "some row of the transition is no law: give numbers of 0 or more that sum to one in each row"
            )
        reach = ((p > 0) | torch.eye(len(p), dtype=torch.bool)).double()
        for _ in range(len(p).bit_length()):  # paths of up to 2, 4, 8, ... steps
            reach = (reach @ reach > 0).double()
        if not bool(reach.all()):
            raise UsageError(
                "the chain does not get from every symbol to every other: add a small probability to all transitions"
            )

    @property
    def symbols(self) -> int:
        """K."""
        return len(self.transition)

    def stationary(self) -> Tensor:
        """The law `pi` with `pi P = pi`, float64 `(K,)`."""
        k = self.symbols
        equations = torch.cat(
            [self.transition.T - torch.eye(k, dtype=torch.float64), torch.ones(1, k, dtype=torch.float64)]
        )
        right = torch.zeros(k + 1, dtype=torch.float64)
        right[-1] = 1.0
        pi = torch.linalg.lstsq(equations, right[:, None]).solution[:, 0].clamp(min=0.0)
        return pi / pi.sum()

    def entropy_rate(self) -> float:
        """`sum_i pi_i H(P_i)`, bits per symbol."""
        return float(self.stationary() @ _entropy(self.transition))

    def entropy(self, length: int) -> float:
        """Bits of a window of `length` symbols, `H(pi) + (length - 1) entropy_rate()`.

        No model's code is shorter in the mean.
        """
        return float(_entropy(self.stationary())) + (length - 1) * self.entropy_rate()

    def bits(self, windows: Tensor) -> Tensor:
        """`-log2 P(x_1 .. x_L)` of windows `(N, L)`, float64 `(N,)`."""
        first, steps = self.stationary()[windows[:, 0]], self.transition[windows[:, :-1], windows[:, 1:]]
        return -first.log2() - steps.log2().sum(1)

    def sample(self, count: int, length: int, generator: Source = None) -> Tensor:
        """`count` independent windows, int64 `(count, length)`, each begun in the stationary law."""
        out = torch.empty(count, length, dtype=torch.int64)
        p = self.stationary().expand(count, -1)
        for i in range(length):
            out[:, i] = categorical(p, generator)
            p = self.transition[out[:, i]]
        return out


def sparse_chain(symbols: int = 27, seed: int = 0, *, width: float = 0.8, floor: float = 0.002) -> MarkovChain:
    """A chain in which a symbol has a few likely successors, and neighbouring symbols have much the same ones.

    Symbols lie on a circle. Symbol i is followed by symbols around `2 i + shift`, with Gaussian weights that a factor
    from the seed makes uneven; so nearness of symbols, which transitions of discrete diffusion may use, tells
    something, and the chain mixes fast.

    Args:
        symbols: K, 3 or more.
        seed: of the shift and the factors.
        width: standard deviation of the Gaussian in symbols; 0.8 gives between 1.5 and 2 bits per symbol.
        floor: share of the probability that is spread evenly over all symbols.

    Raises:
        UsageError: for fewer symbols, or a width or floor that is not between.
    """
    if symbols < 3 or width <= 0 or not 0 < floor < 1:
        raise UsageError(
            f"symbols={symbols}, width={width}, floor={floor}: give 3 symbols or more, a positive width, 0 < floor < 1"
        )
    generator = torch.Generator().manual_seed(whole_seed(seed))
    shift = symbols * uniform((), generator, dtype=torch.float64)
    place = torch.arange(symbols, dtype=torch.float64)
    distance = (place - 2 * place[:, None] - shift).remainder(symbols)
    distance = torch.minimum(distance, symbols - distance)
    uneven = 0.5 + uniform((symbols, symbols), generator, dtype=torch.float64)
    weights = uneven * torch.exp(-0.5 * (distance / width) ** 2)
    likely = weights / weights.sum(1, keepdim=True)
    rows = (1 - floor) * likely + floor / symbols
    return MarkovChain(rows / rows.sum(1, keepdim=True))


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1) / torch.log(torch.tensor(2.0, dtype=p.dtype))
