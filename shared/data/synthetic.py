"""Synthetic data whose distribution is known exactly."""

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
    """A stationary first-order Markov chain over K tokens: `P(x_1 .. x_L) = pi(x_1) prod_i P[x_i, x_(i+1)]`.

    pi is the stationary distribution; tokens are 0..K-1.

    Args:
        transition: `P`, float64 `(K, K)`; row i is the distribution of the token that follows token i.

    Raises:
        UsageError: for rows that are not distributions, or a chain that cannot get from every token to every other.
    """

    transition: Tensor

    def __post_init__(self) -> None:
        p = self.transition
        if p.ndim != 2 or p.shape[0] != p.shape[1] or p.dtype != torch.float64:
            raise UsageError(f"transition has shape {tuple(p.shape)} and {p.dtype}: give (K, K) in float64")
        if bool((p < 0).any()) or not torch.allclose(p.sum(1), torch.ones_like(p[0]), rtol=0, atol=1e-9):
            raise UsageError(
                "some row of transition is not a distribution: give numbers of 0 or more that sum to one in each row"
            )
        reach = ((p > 0) | torch.eye(len(p), dtype=torch.bool)).double()
        for _ in range(len(p).bit_length()):  # paths of up to 2, 4, 8, ... steps
            reach = (reach @ reach > 0).double()
        if not bool(reach.all()):
            raise UsageError(
                "the chain cannot get from every token to every other: add a small probability to all transitions"
            )

    @property
    def vocabulary(self) -> int:
        """K, the number of tokens."""
        return len(self.transition)

    def stationary(self) -> Tensor:
        """Computes the stationary distribution `pi` with `pi P = pi`, float64 `(K,)`."""
        k = self.vocabulary
        equations = torch.cat(
            [self.transition.T - torch.eye(k, dtype=torch.float64), torch.ones(1, k, dtype=torch.float64)]
        )
        right = torch.zeros(k + 1, dtype=torch.float64)
        right[-1] = 1.0
        pi = torch.linalg.lstsq(equations, right[:, None]).solution[:, 0].clamp(min=0.0)
        return pi / pi.sum()

    def entropy_rate(self) -> float:
        """Computes the entropy rate `sum_i pi_i H(P_i)` in bits per token, with H the entropy of row i of P."""
        return float(self.stationary() @ _entropy(self.transition))

    def entropy(self, length: int) -> float:
        """Computes the entropy of a window of `length` tokens in bits, `H(pi) + (length - 1) entropy_rate()`.

        The mean code length of any model is at least this.
        """
        return float(_entropy(self.stationary())) + (length - 1) * self.entropy_rate()

    def bits(self, windows: Tensor) -> Tensor:
        """Computes the code length `-log2 P(x_1 .. x_L)` in bits of windows, int64 `(N, L)`: float64 `(N,)`."""
        first, steps = self.stationary()[windows[:, 0]], self.transition[windows[:, :-1], windows[:, 1:]]
        return -first.log2() - steps.log2().sum(1)

    def sample(self, count: int, length: int, generator: Source = None) -> Tensor:
        """Samples `count` independent windows of the chain in its stationary state, int64 `(count, length)`."""
        out = torch.empty(count, length, dtype=torch.int64)
        p = self.stationary().expand(count, -1)
        for i in range(length):
            out[:, i] = categorical(p, generator)
            p = self.transition[out[:, i]]
        return out


def sparse_chain(vocabulary: int = 27, seed: int = 0, *, width: float = 0.8, floor: float = 0.002) -> MarkovChain:
    """Returns a Markov chain in which a token has few likely successors, and neighboring tokens have similar ones.

    Tokens lie on a circle. Token i is followed by tokens around `2 i + shift`, with Gaussian weights that random
    factors make uneven. Neighborhood thus carries information, which transitions of discrete diffusion may use, and the
    chain mixes fast.

    Args:
        vocabulary: K, 3 or more.
        seed: seed of the shift and the factors.
        width: standard deviation of the Gaussian in tokens; 0.8 gives between 1.5 and 2 bits per token.
        floor: share of the probability that is spread evenly over all tokens.

    Raises:
        UsageError: for fewer than 3 tokens, a width that is not positive, or a floor outside of (0, 1).
    """
    if vocabulary < 3 or width <= 0 or not 0 < floor < 1:
        raise UsageError(
            f"vocabulary={vocabulary}, width={width}, floor={floor}: give a vocabulary of 3 or more, a positive width, "
            "and 0 < floor < 1"
        )
    generator = torch.Generator().manual_seed(whole_seed(seed))
    shift = vocabulary * uniform((), generator, dtype=torch.float64)
    place = torch.arange(vocabulary, dtype=torch.float64)
    distance = (place - 2 * place[:, None] - shift).remainder(vocabulary)
    distance = torch.minimum(distance, vocabulary - distance)
    uneven = 0.5 + uniform((vocabulary, vocabulary), generator, dtype=torch.float64)
    weights = uneven * torch.exp(-0.5 * (distance / width) ** 2)
    likely = weights / weights.sum(1, keepdim=True)
    rows = (1 - floor) * likely + floor / vocabulary
    return MarkovChain(rows / rows.sum(1, keepdim=True))


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1) / torch.log(torch.tensor(2.0, dtype=p.dtype))
