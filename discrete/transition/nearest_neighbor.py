"""Moves between symbols that are alike."""

from __future__ import annotations

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ...shared.errors import UsageError
from ...shared.serialization import serializable
from ...shared.tensors import Table, like
from ..schedules import NoiseSchedule, finite, scheduled
from .chebyshev import Chebyshev
from .generic import GenericTransition
from .spectral import Eigenbasis

BY_EIGENVECTORS, AT_ONCE = (
    2048,
    2**24,
)  # symbols up to which eigenvectors take seconds; numbers of angles held at a time


@serializable(
    "discrete.NearestNeighbor",
    formerly="unnoise.discrete.transition.nearest_neighbor.NearestNeighbor",
    renamed={"neighbours": "neighbors"},
)
class NearestNeighbor(GenericTransition):
    r"""A walk on the graph of each symbol's k nearest neighbours: `Q_(s->t) = exp((total(t) - total(s)) R)` (Austin et
    al. 2021, A.2).

    `R = (G + G^T) / 2k - diag`, G_ij = 1 where j is among the k nearest of i. Exponentials are applied: through the
    eigenvectors of R up to a few thousand symbols, by Chebyshev's polynomials beyond, where R stays sparse.

    Args:
        neighbours: `(K, k)`, int64, as `nearest` gives them.
        schedule: a table or one in continuous time; `mutual_information` in the paper.

    Raises:
        UsageError: for neighbours that are no symbols, and for a graph in parts, which would never mix.
    """

    rounding = 1e-12

    def __init__(self, neighbors: Tensor, schedule: Tensor | NoiseSchedule) -> None:
        if (
            neighbors.ndim != 2
            or neighbors.is_floating_point()
            or not bool(((neighbors >= 0) & (neighbors < len(neighbors))).all())
        ):
            raise UsageError(
                f"neighbours of shape {tuple(neighbors.shape)}: give (K, k) symbols 0..K-1, as nearest(embeddings, k) does"
            )
        self.neighbors, self.schedule, self.noise = neighbors, schedule, finite(scheduled(schedule))
        size, k = neighbors.shape
        super().__init__(size, size, self.noise.steps, self.noise.t_min)
        edges = torch.stack([torch.arange(size).repeat_interleave(k), neighbors.flatten()])
        parts, _ = connected_components(
            coo_matrix((torch.ones(size * k).numpy(), edges.numpy()), (size, size)), directed=False
        )
        if parts > 1:
            raise UsageError(
                f"the graph of {k} neighbours falls into {parts} parts, between which no symbol moves: raise k, or mix in Uniform"
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
        self._basis = Eigenbasis(self._rates.to_dense(), self._stationary.values) if few else None
        self._series = None if few else Chebyshev(self._rates, 2 * float(degree.max()))

    def pushforward(self, p: Tensor, s: Tensor, t: Tensor) -> Tensor:
        events = self.noise.total(t) - self.noise.total(s).to(t.device)
        if self._series is not None:
            return self._series.push(p, events)
        return self._basis.push(p, torch.exp(events[..., None] * self._basis.values.to(events.device)))

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
    """The k nearest other symbols by the angle between embeddings, `(K, k)`, int64, the nearest first.

    Args:
        embeddings: `(K, d)`.
        k: neighbours; 5 in the paper's text8 runs.

    Raises:
        UsageError: for a k that is not within 1..K-1.
    """
    if not 1 <= k < len(embeddings):
        raise UsageError(f"k={k}: give the number of neighbours, from 1 to {len(embeddings) - 1}")
    embeddings = torch.as_tensor(embeddings)
    if not bool(torch.isfinite(embeddings).all()):
        raise UsageError("the embeddings hold numbers that are not finite: what is near to what cannot be told")
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    found = []
    for rows in torch.arange(len(unit)).split(max(1, min(1024, AT_ONCE // len(unit)))):
        likeness = unit[rows] @ unit.T
        likeness[torch.arange(len(rows)), rows] = -torch.inf
        found.append(likeness.topk(k, dim=1).indices)
    return torch.cat(found)


def sinkhorn(weights: Tensor, rounds: int = 100) -> Tensor:
    """Non-negative weights `(K, K)` made doubly stochastic.

    Rows and columns are normalised in turn, columns once more at the end.
    """
    for _ in range(rounds):
        weights = weights / weights.sum(1, keepdim=True)
        weights = weights / weights.sum(0, keepdim=True)
    return weights / weights.sum(0, keepdim=True)
