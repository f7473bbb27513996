"""What would grow with the square of a vocabulary, or with a whole set, does not, or is refused with its size before it
is tried.
"""

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from unnoise.discrete import (
    Absorbing,
    BandDiagonal,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    Mixture,
    NearestNeighbor,
    Uniform,
    cosine,
    information,
    linear,
    mutual_information,
    nearest,
    reciprocal,
)
from unnoise.discrete.transition import nearest_neighbor
from unnoise.experiments import categorical_builders, notation
from unnoise.experiments.categorical_builders import context_embeddings
from unnoise.experiments.categorical_parts import CATEGORICAL
from unnoise.experiments.papers import d3pm_text
from unnoise.shared import memory
from unnoise.shared.errors import UsageError

D, GPT2 = torch.float64, 50_257


def text(vocabulary: int, windows: int, length: int, generator: torch.Generator):
    """Windows of tokens of which few are common, as of words."""
    weights = 1 / (torch.arange(vocabulary, dtype=D) + 3)
    k = torch.multinomial(weights, windows * length, True, generator=generator).view(windows, length)
    return SimpleNamespace(windows=k, vocabulary=vocabulary)


def token_frequencies(found) -> torch.Tensor:
    """Square roots of the frequencies of the tokens after and before each token, counted one by one."""
    counts = torch.zeros(found.vocabulary, found.vocabulary, dtype=D)
    for window in found.windows.tolist():
        for before, after in pairwise(window):
            counts[before, after] += 1
    return torch.cat([c / c.sum(1, keepdim=True).clamp(min=1) for c in (counts, counts.T)], 1).sqrt()


def test_company_is_counted(monkeypatch, generator):
    found, alone = text(9, 50, 12, generator), 9
    exact = token_frequencies(found)
    torch.testing.assert_close(context_embeddings(found), exact)
    monkeypatch.setattr(categorical_builders, "AT_ONCE", 7)
    torch.testing.assert_close(context_embeddings(found), exact)
    torch.testing.assert_close(
        context_embeddings(found, 20), token_frequencies(SimpleNamespace(windows=found.windows[:20], vocabulary=9))
    )
    found.vocabulary += 3  # tokens that never occur are near to no one in particular
    own = context_embeddings(found)
    assert (own[alone:].abs().sum(1) > 0).all()
    assert len({tuple(row) for row in nearest(own, 2)[alone:].tolist()}) > 1


def test_projections_keep_angles(monkeypatch, generator):
    found = text(60, 400, 40, generator)
    exact = torch.nn.functional.normalize(context_embeddings(found), dim=1)
    monkeypatch.setattr(categorical_builders, "EXACT", 10)
    near = torch.nn.functional.normalize(context_embeddings(found), dim=1)
    assert near.shape == (60, 256)
    assert float((near @ near.T - exact @ exact.T).abs().mean()) < 0.06  # about 1 / sqrt(256)


def test_company_of_a_large_vocabulary_is_sparse(generator):
    found = text(GPT2, 400, 128, generator)
    tracemalloc.start()
    embeddings = context_embeddings(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert embeddings.shape == (GPT2, 256)
    assert peak < 1e9  # the counts written out take 20 GB


def test_neighbors_in_blocks(monkeypatch, generator):
    e = torch.randn(50, 6, dtype=D, generator=generator)
    whole = nearest(e, 3)
    monkeypatch.setattr(nearest_neighbor, "AT_ONCE", 120)
    assert torch.equal(nearest(e, 3), whole)


def test_neighbors_of_a_large_vocabulary():
    """A ring: what two steps of a walk do, alone and beside absorption, without a matrix."""
    ring = torch.stack([(torch.arange(GPT2) + i) % GPT2 for i in (1, 2)], 1)
    walk = NearestNeighbor(ring, cosine(10))
    mixed = Mixture(walk, Absorbing(GPT2, reciprocal(10)))
    zero, t = torch.zeros((), dtype=D), torch.tensor(0.1, dtype=D)
    p = walk.pushforward(walk.one_hot(torch.tensor([0, 9]), D), zero, t)
    events = float(walk.noise.total(t))
    torch.testing.assert_close(p.sum(1), torch.ones(2, dtype=D))
    assert float(p[0, 1]) == pytest.approx(events / 4, rel=2 * events)
    torch.testing.assert_close(p[0].roll(9), p[1])
    both = mixed.pushforward(mixed.one_hot(torch.tensor([0, 9]), D), zero, t)
    torch.testing.assert_close(both[:, :-1], 0.9 * p)
    torch.testing.assert_close(both[:, -1], torch.full((2,), 0.1, dtype=D))


def test_mixtures_look_at_the_moves_a_few_times(monkeypatch):
    wrong = Dense(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=D).expand(40, -1, -1))
    monkeypatch.setattr("unnoise.discrete.transition.mixture.AT_ONCE", 12)
    with pytest.raises(UsageError, match="the moves change the distribution"):
        Mixture(wrong, Uniform(3, cosine(40)))


@pytest.mark.parametrize("kind", ["near", "uniform", "absorbing"])
def test_information_between_events_apart(monkeypatch, generator, kind):
    """Of many tokens it is looked at here and there; of few the same gives the exact table nearly."""
    p = torch.rand(40, generator=generator, dtype=D) ** 3
    p /= p.sum()
    ring = nearest(torch.randn(40, 6, generator=generator), 3)
    build = {
        "near": lambda n: NearestNeighbor(ring, n),
        "uniform": lambda n: Uniform(40, n),
        "absorbing": lambda n: Absorbing(40, n),
    }[kind]
    exact = mutual_information(build, p, 30).events.cumsum(0)[:-1].log()
    monkeypatch.setattr(information, "FEW", 10)
    every = mutual_information(build, p, 30, among=torch.arange(40)).events.cumsum(0)[:-1].log()
    some = mutual_information(build, p, 30).events.cumsum(0)[:-1].log()
    assert float((every - exact).abs().max()) < 0.01
    assert float((some - exact).abs().max()) < 0.1
    with pytest.raises(UsageError, match="this process does not mix"):
        mutual_information(lambda n: Dense(torch.eye(40, dtype=D)[None]), p, 30)


@pytest.mark.slow
def test_information_is_looked_at_in_the_middle_of_each_share(monkeypatch):
    """Of 300 tokens whose frequencies fall as 1 / rank the table is off by 0.03.

    From an end of each share it would be by 0.05.
    """
    p = 1 / (torch.arange(300, dtype=D) + 2.7)
    p /= p.sum()
    near = nearest(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), 5)
    some = mutual_information(lambda n: NearestNeighbor(near, n), p, 30).events.cumsum(0)[:-1].log()
    monkeypatch.setattr(information, "FEW", 300)
    exact = mutual_information(lambda n: NearestNeighbor(near, n), p, 30).events.cumsum(0)[:-1].log()
    assert float((some - exact).abs().max()) < 0.04


def test_information_of_a_large_vocabulary():
    p = 1 / (torch.arange(5000, dtype=D) + 3)
    events = mutual_information(lambda n: Absorbing(5000, n), p / p.sum(), 20).events
    torch.testing.assert_close(-torch.expm1(-events), reciprocal(20), rtol=0.01, atol=0)


LARGE = 65_536  # quantization levels of 16 bits


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Dense(torch.eye(3).expand(10**12, -1, -1)), "a table of 1000000000000 steps of 3 x 3 numbers"),
        (lambda: Dense(torch.ones(1, 1).expand(10, 10**6, 10**6)), "a table of 10 steps of 1000000 x 1000000 numbers"),
        (lambda: DiscretizedGaussian(LARGE, linear(1000)), "the products of 1000 steps of 65536 x 65536 numbers"),
        (lambda: BandDiagonal(LARGE * 16, linear(10)), "rates and eigenvectors of"),
        (lambda: GaussianTarget(LARGE * 16), "rates and eigenvectors of"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_size(build, words):
    with pytest.raises(UsageError, match=f"{words}.* need .* GB of memory, and .* GB are free: take Uniform") as error:
        build()
    assert "\n" not in str(error.value)


MOVES = "NearestNeighbor(neighbors=context-neighbors(count=5)"
"""Moves between neighbors, without the end of the notation, which has the schedule."""


def transition_of(line):
    """Returns the transition of a line in the notation of parts."""
    return notation.read(line, CATEGORICAL, "Transition")


def test_steps_on_text_that_do_not_fit_are_refused(monkeypatch):
    recipe = d3pm_text.smoke()
    data = recipe.load()
    recipe.batches(data)
    need = 16 * 8 * 16 * 27
    monkeypatch.setattr(memory, "available", lambda: need - 1)
    with pytest.raises(UsageError, match="steps on 8 x 16 tokens of 27 need .* GB of memory.*smaller --data.batch"):
        recipe.batches(data)
    monkeypatch.setattr(memory, "available", lambda: need)
    recipe.batches(data)
    with pytest.raises(UsageError, match="steps on"):  # walks need more
        replace(recipe, transition=transition_of(f"{MOVES}, schedule=cosine(100))")).batches(data)


@pytest.mark.parametrize(
    "line",
    [
        f"{MOVES}, schedule=reciprocal(100))",
        f"Mixture(moves={MOVES}, schedule=reciprocal(100)), resampling=Absorbing(schedule=reciprocal(100)))",
    ],
)
def test_a_schedule_that_erases_all_is_refused_before_training(line):
    recipe = replace(d3pm_text.smoke(), transition=transition_of(line))
    data = recipe.load()
    with pytest.raises(UsageError, match="take mutual_information.*, cosine") as error:
        recipe.objective(data.shape, data.quantization)
    assert "\n" not in str(error.value)


def test_limits_of_a_process_are_known():
    code = (
        "import resource; from unnoise.shared.memory import available; free = available(); "
        "resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30)); print(0 < available() < 8 * 2**30, free > 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "True",
        "True",
    ]
