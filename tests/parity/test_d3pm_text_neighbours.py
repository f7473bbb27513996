"""google-research d3pm/text, transitions between neighbors, in float64. Columns are the source there, rows here."""

import pytest
import torch
from helpers import Fixture, assert_close

from unnoise.discrete import Dense, NearestNeighbor, TabulatedNoise, cosine, nearest, reciprocal, sinkhorn
from unnoise.discrete.transition.base import CLEAN

FIXTURE = Fixture("d3pm_text_neighbours")
READS = (
    "embeddings",
    r"betas\.(standard|cosine)",
    r"(plain|cached)\.neighbours",
    r"plain\.matrix",
    r"cached\.rate",
    r"(plain|cached)\.(standard|cosine)\.(q_onestep|q_cumulative)",
    r"cached\.(standard|cosine)\.(powers|base)",
)
STEPS, TOKENS = 20, 16
BETAS = {"standard": reciprocal, "cosine": cosine}


def adjacency(neighbors):
    """`A + A^T`: mutual neighbors count twice."""
    a = torch.zeros(TOKENS, TOKENS, dtype=torch.float64).scatter(1, neighbors, 1.0)
    return a + a.T


@pytest.fixture(params=BETAS)
def schedule(request):
    assert_close(BETAS[request.param](STEPS), FIXTURE[f"betas.{request.param}"], 1e-10)
    return request.param


def test_neighbors():
    """By the angle, as in the peer's class with a cache; its plain class takes distances of embeddings as given."""
    embeddings = FIXTURE["embeddings"]
    assert torch.equal(nearest(embeddings, 3), FIXTURE["cached.neighbours"])
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    for given, key in ((unit, "cached"), (embeddings, "plain")):
        distance = torch.cdist(given, given, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        assert torch.equal(distance.topk(3, largest=False).indices, FIXTURE[f"{key}.neighbours"])


def compare(transition, key):
    states = torch.arange(TOKENS)
    eye = torch.eye(TOKENS, dtype=torch.float64)
    for n in range(1, STEPS + 1):
        s, t = (torch.tensor(m / STEPS, dtype=torch.float64) for m in (n - 1, n))
        one, total = FIXTURE[f"{key}.q_onestep"][n - 1], FIXTURE[f"{key}.q_cumulative"][n]
        assert_close(transition.pushforward(eye, s, t), one.T, 1e-10)
        assert_close(transition.likelihood(states, s, t), one, 1e-10)
        assert_close(transition.pushforward(eye, CLEAN, t), total.T, 1e-10)
        assert_close(transition.likelihood(states, CLEAN, t), total, 1e-10)


def test_doubly_stochastic_weights(schedule):
    """The plain class: `Q_n = (1 - beta_n) I + beta_n M` of one's own matrices."""
    m = sinkhorn(adjacency(FIXTURE["plain.neighbours"]), rounds=100)
    assert_close(m, FIXTURE["plain.matrix"], 1e-10)
    beta = BETAS[schedule](STEPS)[:, None, None]
    # Its rows, which are distributions here, sum to one but for what a hundred rounds leave.
    compare(Dense(((1 - beta) * torch.eye(TOKENS, dtype=torch.float64) + beta * m).mT), f"plain.{schedule}")


def test_exponentials(schedule):
    """The class with a cache: exponents rounded to multiples of the smallest beta."""
    powers, least = FIXTURE[f"cached.{schedule}.powers"], BETAS[schedule](STEPS).min()
    assert torch.equal(
        powers, torch.round(torch.cat([torch.zeros(1), BETAS[schedule](STEPS).cumsum(0)]) / least).long()
    )
    transition = NearestNeighbor(FIXTURE["cached.neighbours"], TabulatedNoise(powers.diff() * least))
    assert_close(transition._rates.to_dense(), FIXTURE["cached.rate"], 1e-10)
    base = NearestNeighbor(FIXTURE["cached.neighbours"], TabulatedNoise(least[None]))
    assert_close(
        base.likelihood(torch.arange(TOKENS), CLEAN, torch.ones_like(CLEAN)), FIXTURE[f"cached.{schedule}.base"], 1e-10
    )
    compare(transition, f"cached.{schedule}")
