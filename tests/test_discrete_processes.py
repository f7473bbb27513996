"""Processes and schedules in continuous time against exponentials of their rates, written out from the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_transitions import D, close, expm, neighbors_of, seeded, to_token, toward_the_middle, walk

from unnoise.discrete import (
    Absorbing,
    ConstantNoise,
    CosineNoise,
    ExponentialNoise,
    GaussianTarget,
    GeometricNoise,
    LogLinearNoise,
    Mixture,
    NearestNeighbor,
    Uniform,
    nearest,
)
from unnoise.discrete.transition.base import CLEAN
from unnoise.discrete.transition.chebyshev import Chebyshev

PROCESSES = {
    "uniform": (lambda n: Uniform(6, n), torch.full((6, 6), 1 / 6, dtype=D) - torch.eye(6, dtype=D)),
    "mask": (lambda n: Absorbing(6, n), to_token(7, 6) - torch.eye(7, dtype=D)),
    "mask of the data": (lambda n: Absorbing(6, n, mask=2), to_token(6, 2) - torch.eye(6, dtype=D)),
    "neighbors": (lambda n: NearestNeighbor(neighbors_of(6), n), walk(neighbors_of(6))),
    "target": (lambda n: GaussianTarget(6, n, reach=1.5, width=2.0), toward_the_middle(6, 1.5, 2.0)),
    "target, odd": (lambda n: GaussianTarget(7, n, reach=1.5, width=2.0), toward_the_middle(7, 1.5, 2.0)),
    "uniform+target": (
        lambda n: Mixture(GaussianTarget(6, n, reach=2.0, width=1e9), Uniform(6, n)),
        toward_the_middle(6, 2.0, 1e9) + torch.full((6, 6), 1 / 6, dtype=D) - torch.eye(6, dtype=D),
    ),
    "mask+target": (
        lambda n: Mixture(GaussianTarget(6, n, reach=1.5, width=2.0), Absorbing(6, n)),
        F.pad(toward_the_middle(6, 1.5, 2.0), (0, 1, 0, 1)) + to_token(7, 6) - torch.eye(7, dtype=D),
    ),
    "mask+neighbors": (
        lambda n: Mixture(NearestNeighbor(neighbors_of(6), n), Absorbing(6, n)),
        F.pad(walk(neighbors_of(6)), (0, 1, 0, 1)) + to_token(7, 6) - torch.eye(7, dtype=D),
    ),
}
# rate(t), its integral from 0, and the lowest time at which the two agree
SCHEDULES = [
    (LogLinearNoise(eps=0.01), lambda t: -math.log(1 - 0.99 * t)),
    (GeometricNoise(0.01, 3.0), lambda t: 0.01 ** (1 - t) * 3.0**t),
    (ExponentialNoise(0.5, 9.0), lambda t: 0.5 * (9**t - 1)),
    (ConstantNoise(2.5), lambda t: 2.5 * t),
    (
        CosineNoise(),
        lambda t: -math.log(math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)),
    ),
]


@pytest.mark.parametrize(("schedule", "total"), SCHEDULES, ids=lambda v: type(v).__name__)
def test_schedules_in_continuous_time(schedule, total):
    t = torch.tensor([0.02, 0.3, 0.77, 0.93], dtype=D)
    close(schedule.total(t), torch.tensor([total(float(x)) for x in t], dtype=D))
    close(schedule.rate(t), (schedule.total(t + 1e-5) - schedule.total(t - 1e-5)) / 2e-5, 1e-6)
    close(schedule.time(schedule.total(t)), t)
    assert float(schedule.total(CLEAN)) == 0


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("schedule", [s for s, _ in SCHEDULES], ids=lambda v: type(v).__name__)
def test_processes_are_exponentials_of_their_rates(kind, schedule):
    make, generator = PROCESSES[kind]
    transition = make(schedule)
    states, s, t = torch.arange(len(generator)), *torch.tensor([0.23, 0.71], dtype=D)
    for low, high in ((CLEAN, s), (s, t)):
        q = expm(float(schedule.total(high) - schedule.total(low)) * generator)
        close(transition.likelihood(states, low, high), q.T)
        close(transition.pushforward(torch.eye(len(q), dtype=D), low, high), q)
    start = transition.stationary()
    close(start @ generator, torch.zeros(len(q), dtype=D))
    # d/dt Q_(0->t) = Q_(0->t) R_t
    r, out = transition.inflow(states, t).T.clone(), transition.outflow(states, t).clone()
    for matrix in (r, out):
        matrix.fill_diagonal_(0)
        matrix -= torch.diag(matrix.sum(1))
        close(matrix, float(schedule.rate(t)) * generator)
    h = 1e-5
    slope = (transition.likelihood(states, CLEAN, t + h) - transition.likelihood(states, CLEAN, t - h)).T / (2 * h)
    close(slope, transition.likelihood(states, CLEAN, t).T @ r, 1e-7)
    times = torch.stack([s, t])
    x = states.expand(2, -1)
    for flow in (transition.inflow, transition.outflow):
        close(flow(x, times), torch.stack([flow(states, s), flow(states, t)]))


def test_exponentials_by_chebyshev_are_those_by_eigenvectors():
    near = nearest(torch.randn(40, 5, dtype=D, generator=torch.Generator().manual_seed(0)), 3)
    r = walk(near)
    values, vectors = torch.linalg.eigh(r)
    series = Chebyshev(r.to_sparse_coo(), float(-2 * r.diagonal().min()))
    p = seeded(0, 6, 2, 40)
    tau = torch.tensor([1e-3, 0.1, 1.0, 30.0, 1e3, 1e4], dtype=D)
    exact = torch.stack([p[b] @ (vectors * torch.exp(tau[b] * values)) @ vectors.T for b in range(6)])
    close(series.push(p, tau), exact)
    for b in range(6):
        close(series.push(p[b], tau[b]), exact[b])
        assert len(series.coefficients(tau[b])) < 20 + 12 * (float(tau[b]) * series.bound / 2) ** 0.5


@pytest.mark.parametrize("mask", [None, 2])
def test_tokens_are_masked_as_often_as_the_process_has_it(mask, generator):
    """Under the log-linear schedule x_t is masked with the probability `0.999 t`, also on the way through x_s."""
    process = Absorbing(6, LogLinearNoise(eps=1e-3), mask=mask)
    t, x0 = torch.tensor([0.4, 0.9], dtype=D), torch.full((2, 20_000), 5)
    through = process.diffuse(process.corrupt(x0, t / 2, generator=generator), t / 2, t, generator=generator)
    for x_t in (process.corrupt(x0, t, generator=generator), through):
        masked = (x_t == process.mask_token).double()
        assert ((x_t == 5) | (masked > 0)).all()
        torch.testing.assert_close(masked.mean(1), 0.999 * t, rtol=0, atol=0.015)
