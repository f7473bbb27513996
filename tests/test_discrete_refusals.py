"""What categorical diffusion refuses, each in one line that says what to do."""

import pytest
import torch

from unnoise import discrete
from unnoise.discrete import (
    Absorbing,
    BandDiagonal,
    Categorical,
    ConstantNoise,
    ContinuousBound,
    D3PMLoss,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    LogLinearNoise,
    Mixture,
    NearestNeighbor,
    Product,
    ScoreEntropyDenoiser,
    TabulatedNoise,
    Uniform,
    VariationalBound,
    cosine,
    linear,
    mutual_information,
    nearest,
    reciprocal,
)
from unnoise.shared.errors import UsageError

NEAR = torch.tensor([[1], [2], [3], [0]])


def at(n, steps):
    return torch.as_tensor(n, dtype=torch.float64) / steps


class Table(torch.nn.Module):
    """A network whose logits are a table over x_t."""

    def __init__(self, states, categories):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(states, categories, generator=torch.Generator().manual_seed(1)))

    def forward(self, x, label):
        return self.table[x]


class Channels(Table):
    """The same with the vocabulary first."""

    def forward(self, x, label):
        return super().forward(x, label).movedim(-1, 1)


ROWS = torch.full((3, 4, 4), 0.25)
REFUSED = [
    (
        lambda: Uniform(4, cosine(5)).corrupt(torch.tensor([[1, 4]]), torch.ones(1)),
        "x_0 has the token 4, outside the vocabulary 0..3",
    ),
    (
        lambda: Absorbing(4, cosine(5)).corrupt(torch.tensor([[4]]), torch.ones(1)),
        "x_0 has the token 4, outside the vocabulary 0..3",
    ),
    (lambda: DiscretizedGaussian(4, cosine(5)).corrupt(torch.tensor([[-1]]), torch.ones(1)), "x_0 has the token -1"),
    (lambda: Dense(ROWS).corrupt(torch.tensor([[4]]), torch.ones(1)), "x_0 has the token 4"),
    (lambda: Uniform(4, cosine(5)).diffuse(torch.tensor([[7]]), at(1, 5), at(2, 5)), "x_s has the token 7"),
    (
        lambda: Categorical(Table(5, 5), Absorbing(4, cosine(5)))(torch.tensor([[5]]), torch.ones(1)),
        "x_t has the token 5, outside .* 0..4",
    ),
    (
        lambda: ScoreEntropyDenoiser(Table(4, 4), Uniform(4, LogLinearNoise())).ratio(
            torch.tensor([[4]]), torch.ones(1)
        ),
        "x_t has the token 4",
    ),
    (
        lambda: Uniform(4, cosine(5)).corrupt(torch.zeros(2, 2), torch.ones(2)),
        "x_0 is torch.float32: categorical data are integers in 0..3",
    ),
    (lambda: Uniform(4, cosine(5)).corrupt(torch.zeros(2, dtype=torch.bool), torch.ones(2)), "x_0 is torch.bool"),
    (lambda: Absorbing(4, reciprocal(5), mask=4), "mask=4: give one of the categories 0..3"),
    (lambda: Uniform(1, reciprocal(5)), "categories=1"),
    (lambda: Uniform(4, torch.tensor([0.5, 1.0, 0.5])), "1 at the last step only"),
    (lambda: Uniform(4, torch.tensor([0.5, 0.0])), r"numbers in \(0, 1\]"),
    (lambda: Uniform(4, "cosine"), "schedule='cosine': give a table of betas"),
    (lambda: Uniform(4, cosine(5)).grid(6), "this table has 5 steps"),
    (lambda: DiscretizedGaussian(4, torch.tensor([0.5, 1.5])), "schedule"),
    (lambda: Dense(ROWS * torch.tensor([1.0, 1.0, 0.5])[:, None, None]), "row 0 of Q_3 does not sum to one .sum 0.5"),
    (
        lambda: Dense(torch.eye(4).repeat(3, 1, 1) + torch.tensor([[0.0] * 4] * 2 + [[0.5, -0.5, 0, 0]] + [[0.0] * 4])),
        "row 2 of Q_1 has a negative entry",
    ),
    (lambda: Dense(ROWS[0]), r"give \(T, K, K\)"),
    (lambda: Dense(ROWS, categories=5), "categories=5"),
    (lambda: Dense(ROWS, last=torch.ones(4)), "last must be a distribution over the 4 states"),
    (
        lambda: NearestNeighbor(torch.tensor([[1], [0], [3], [2]]), ConstantNoise()),
        "has 2 parts that are not connected: raise k, or add resampling",
    ),
    (lambda: NearestNeighbor(torch.tensor([[1], [4], [3], [2]]), ConstantNoise()), "integers in 0..K-1"),
    (lambda: NearestNeighbor(NEAR, reciprocal(5)), "erases all information by its end.*mutual_information"),
    (lambda: GaussianTarget(4, LogLinearNoise(eps=0.0)), "erases all information by its end"),
    (lambda: GaussianTarget(4, reach=0.0), "reach=0.0"),
    (lambda: nearest(torch.randn(4, 2), 4), "k=4: give the number of neighbors, from 1 to 3"),
    (lambda: BandDiagonal(4, cosine(5), band=4), "band=4: give the largest move of a step, from 1 to 3"),
    (
        lambda: Mixture(NearestNeighbor(NEAR, ConstantNoise()), Uniform(5, ConstantNoise())),
        "the moves have 4 states and T=None, and the resampling has 5 categories",
    ),
    (
        lambda: Mixture(NearestNeighbor(NEAR, ConstantNoise()), Absorbing(4, ConstantNoise(), mask=2)),
        "the moves change the distribution",
    ),
    *(
        (lambda flow=flow: flow(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2)), "table of 5 steps has no rate")
        for flow in (
            Uniform(4, cosine(5)).inflow,
            Absorbing(4, cosine(5)).outflow,
            DiscretizedGaussian(4, linear(5)).outflow,
            BandDiagonal(4, cosine(5)).inflow,
            NearestNeighbor(NEAR, TabulatedNoise(linear(5))).inflow,
            GaussianTarget(4, cosine(5)).outflow,
        )
    ),
    (lambda: Uniform(4, LogLinearNoise()).row(torch.ones(())), "runs in continuous time and has no rows"),
    (
        lambda: DiscretizedGaussian(4, linear(5)).likelihood(
            torch.zeros(2, 1, dtype=torch.int64), at(torch.tensor([1, 2]), 5), torch.ones(2)
        ),
        "one step apart",
    ),
    (
        lambda: D3PMLoss(Categorical(Table(4, 4), Uniform(4, LogLinearNoise()))),
        "continuous time and has no L_n: train it with ContinuousBound",
    ),
    (
        lambda: ContinuousBound(Categorical(Table(4, 4), Uniform(4, cosine(5)))),
        "a table of steps has no rates: train it with D3PMLoss",
    ),
    (
        lambda: VariationalBound(Categorical(Table(4, 4), Uniform(4, cosine(5))), steps=6),
        "steps=6: this table has 5 steps",
    ),
    (
        lambda: VariationalBound(Categorical(Table(4, 4), Uniform(4, cosine(5))), steps=at(torch.arange(5, 0, -1), 5)),
        "ends at t=0.2",
    ),
    (
        lambda: Categorical(Table(4, 4), Uniform(4, LogLinearNoise()), Product(1e-6)),
        "eps at every step.* has no limit in continuous time: take Product",
    ),
    (
        lambda: Categorical(
            Table(4, 4),
            Mixture(NearestNeighbor(NEAR, ConstantNoise()), Absorbing(4, ConstantNoise())),
            head=discrete.carried,
        ),
        "may be noise",
    ),
    (
        lambda: mutual_information(lambda n: Uniform(3, n), torch.tensor([0.5, 0.6, -0.1]), 5),
        "frequencies must be 3 numbers of sum 1",
    ),
    (
        lambda: mutual_information(lambda n: Uniform(3, n), torch.tensor([0.5, 0.5]), 5),
        "frequencies must be 3 numbers of sum 1",
    ),
    (lambda: mutual_information(lambda n: Uniform(3, n), torch.full((3,), 1 / 3), 0), "steps=0"),
    (
        lambda: Categorical(Table(4, 4), Uniform(4, cosine(5)), head=discrete.logistic)(
            torch.zeros(1, 2, dtype=torch.int64), torch.ones(1)
        ),
        "two numbers",
    ),
    (
        lambda: Categorical(Uniform(4, cosine(5)), Table(4, 4)),
        "give Categorical\\(network, transition\\), in this order",
    ),
    (
        lambda: Categorical(Table(4, 4), Uniform(4, cosine(5)), Product),
        "give a reverse model, Product\\(\\) or Marginal",
    ),
    (
        lambda: Categorical(Table(5, 5), Uniform(4, cosine(5)))(torch.zeros(2, 3).long(), torch.ones(2)),
        r"returned \(2, 3, 5\) for x_t \(2, 3\): return .* 4\), the vocabulary last",
    ),
    (
        lambda: Categorical(Channels(4, 4), Absorbing(3, cosine(5)))(torch.zeros(2, 3).long(), torch.ones(2)),
        r"returned \(2, 4, 3\) for x_t \(2, 3\): return .* 3 or 4\), the vocabulary last",
    ),
    (
        lambda: ScoreEntropyDenoiser(Table(5, 5), Uniform(4, LogLinearNoise(1e-3)))(
            torch.zeros(2, 3).long(), torch.ones(2)
        ),
        r"returned \(2, 3, 5\)",
    ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
