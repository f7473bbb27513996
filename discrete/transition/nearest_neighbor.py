"""Moves between tokens with similar embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.serialization import serializable
from ...shared.tensors import Table, like
from ..schedules import NoiseSchedule, finite, scheduled
from .chebyshev import Chebyshev
from .generic import GenericTransition
from .spectral import Eigenbasis

BY_EIGENVECTORS = 2048  # categories up to which eigenvectors take seconds
AT_ONCE = 2**24  # numbers in memory at a time


@serializable(
    "discrete.NearestNeighbor",
    formerly="unnoise.discrete.transition.nearest_neighbor.NearestNeighbor",
    renamed={"neighbours": "neighbors"},
)
class NearestNeighbor(GenericTransition):
    r"""A random walk on the graph of nearest neighbors, `Q_(s->t) = exp((total(t) - total(s)) R)`.

    Austin et al. 2021, appendix A.2. `R = (G + G^T) / 2k - diag`, G_ij = 1 where j is among the k nearest of i, and the
    diagonal makes its rows sum to 0; `total(t)` of the schedule is the time for which R has acted by t. The stationary
    distribution is uniform. Products with its exponentials are computed from the eigenvectors of R for up to 2048
    categories, and by Chebyshev polynomials for more, where R stays sparse.

    Args:
        neighbors: the indices of the k nearest tokens of each of the K tokens, `(K, k)`, int64, as `nearest` returns.
        schedule: betas `(T,)` of a table, whose step n lasts `-log(1 - beta_n)`, or a `NoiseSchedule`;
            `mutual_information` in the paper.

    Raises:
        UsageError: for neighbors outside 0..K-1, for a graph of several parts, which would never mix, and for a
            schedule with infinite `total(1)`.
    """

    rounding = 1e-12

    def __init__(self, neighbors: Tensor, schedule: Tensor | NoiseSchedule) -> None:
        if (
            neighbors.ndim != 2
            or neighbors.is_floating_point()
            or not bool(((neighbors >= 0) & (neighbors < len(neighbors))).all())
        ):
            raise UsageError(
                f"neighbors of shape {tuple(neighbors.shape)}: give (K, k) integers in 0..K-1, as nearest(embeddings, "
                "k) returns them"
            )
        self.neighbors, self.schedule, self.noise = neighbors, schedule, finite(scheduled(schedule))
        size, k = neighbors.shape
        super().__init__(size, self.noise.steps, t_min=self.noise.t_min)
        edges = torch.stack([torch.arange(size).repeat_interleave(k), neighbors.flatten()])
        from scipy.sparse import coo_matrix  # here, so that importing the package is fast
        from scipy.sparse.csgraph import connected_components

        parts, _ = connected_components(
            coo_matrix((torch.ones(size * k).numpy(), edges.numpy()), (size, size)), directed=False
        )
        if parts > 1:
            raise UsageError(
                f"the graph of {k} neighbors has {parts} parts that are not connected: raise k, or add resampling, "
                "Mixture(neighbors, Uniform(...))"
            )
        weights = torch.full((2 * size * k,), 1 / (2 * k), dtype=torch.float64)
        adjacency = torch.sparse_coo_tensor(
            torch.cat([edges, edges.flip(0)], 1), weights, (size, size), check_invariants=True
        ).coalesce()
        degree = torch.sparse.sum(adjacency, 1).to_dense()
        diagonal = torch.sparse_coo_tensor(
            torch.arange(size).expand(2, -1), -degree, (size, size), check_invariants=True
        )
        self._rates = (adjacency + diagonal).coalesce()
        self._stationary = Table(torch.full((size,), 1 / size, dtype=torch.float64))
        few = size <= BY_EIGENVECTORS
        self._exponential = (
            Eigenbasis(self._rates.to_dense(), self._stationary.values)
            if few
            else Chebyshev(self._rates, 2 * float(degree.max()))
        )

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        events, exponential = self.noise.total(t) - self.noise.total(s).to(t.device), self._exponential
        if isinstance(exponential, Chebyshev):
            return exponential.push(p, events)
        return exponential.push(p, torch.exp(events[..., None] * exponential.values.to(events.device)))

    def likelihood(self, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.pushforward(self.one_hot(x_t, torch.float64), s, t)  # R is symmetric

    def stationary(self) -> Tensor:
        return self._stationary.values

    def inflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        rates = self._rates.to(x_t.device).index_select(0, x_t.flatten()).to_dense().view(*x_t.shape, -1)
        return like(self.noise.rate(t), rates).to(rates.device) * rates

    def outflow(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.inflow(x_t, t)  # R is symmetric


def nearest(embeddings: Tensor, k: int = 5) -> Tensor:
    """Returns the k nearest other tokens by the angle between embeddings, `(K, k)`, int64, the nearest first.

    Args:
        embeddings: one vector for each token, `(K, d)`, such as those of a pretrained network.
        k: the number of neighbors; 5 in the paper's text8 runs.

    Raises:
        UsageError: for a k that is not in 1..K-1, and embeddings that are not finite.
    """
    if not 1 <= k < len(embeddings):
        raise UsageError(f"k={k}: give the number of neighbors, from 1 to {len(embeddings) - 1}")
    embeddings = torch.as_tensor(embeddings)
    if not bool(torch.isfinite(embeddings).all()):
        raise UsageError("the embeddings contain NaN or infinity: give finite numbers, (K, d)")
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    found = []
    for rows in torch.arange(len(unit)).split(max(1, min(1024, AT_ONCE // len(unit)))):
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def sinkhorn(weights: Tensor, rounds: int = 100) -> Tensor:
    """Returns non-negative weights `(K, K)` scaled to be doubly stochastic.

    Sinkhorn's iteration: rows and columns are normalized in turn, `rounds` times, columns once more at the end, so that
    columns sum to 1 exactly and rows nearly. Rows and columns need a positive entry each.
    """
    for _ in range(rounds):
        weights = weights / weights.sum(1, keepdim=True)
        weights = weights / weights.sum(0, keepdim=True)
    return weights / weights.sum(0, keepdim=True)
