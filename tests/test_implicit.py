"""Implicit and sliced score matching equal explicit score matching up to a constant, which is known for Gaussians."""

import math

import pytest
import torch
from torch import nn

from unnoise.sde import VP, DenoisingLoss, Learned
from unnoise.sde.implicit import ImplicitScoreMatching, SlicedScoreMatching, gaussian, signs
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.networks import MLP
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.tensors import exact, like

MEAN = torch.tensor([0.6, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
T = 0.3


class Family(GaussianDenoiser):
    """The exact denoiser of Gaussian data, as a function of their mean and of a factor of their covariance."""

    def __init__(self, mean=MEAN, scale=1.0):
        super().__init__()
        self.corruption = VP()
        self.mean = nn.Parameter(mean.clone())
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def distribution(self, t):
        """Returns mean and covariance of x_t."""
        alpha, sigma = self.corruption(exact(t))
        return alpha * self.mean, alpha**2 * self.scale * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)

    def estimate(self, x_t, t, **cond):
        alpha, sigma = (like(c, x_t) for c in self.corruption(exact(t)))
        mean, covariance = self.distribution(exact(t).flatten()[0])
        score = -torch.linalg.solve(covariance, (x_t - mean).T).T
        return Estimate.of_mean((x_t + sigma**2 * score) / alpha)


@torch.no_grad()
def expected(family, scored=True):
    """Returns the exact `E ||s - grad log q||^2 / 2` (or `E ||grad log q||^2 / 2`) times sigma^2 / D, at time T."""
    t = torch.tensor(T, dtype=torch.float64)
    m, c = Family().distribution(t)
    c_inverse = c.inverse()
    if scored:
        m_other, c_other = family.distribution(t)
        slope = c_inverse - c_other.inverse()  # s - grad log q = slope x + shift
        shift = c_other.inverse() @ m_other - c_inverse @ m
        at_mean = slope @ m + shift
        square = (slope @ c @ slope).trace() + at_mean @ at_mean
    else:
        square = c_inverse.trace()
    return float(0.5 * square * VP()(t)[1] ** 2 / 2)


@pytest.fixture(scope="module")
def x0():
    noise = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T


def value(objective, x0, seed=2):
    t = torch.full((len(x0),), T, dtype=torch.float64)
    with torch.no_grad():
        total = objective.at(x0, t, generator=torch.Generator().manual_seed(seed)).total
    return float(total.mean()), float(total.std() / math.sqrt(len(total)))


OTHERS = [(MEAN, 1.0), (MEAN + torch.tensor([0.4, 0.0]), 1.0), (MEAN, 2.0), (MEAN - 0.2, 0.5)]


@pytest.mark.parametrize(("mean", "scale"), OTHERS)
def test_implicit_is_explicit_minus_a_constant(mean, scale, x0):
    found, error = value(ImplicitScoreMatching(Family(mean, scale)), x0)
    assert error < 0.0015
    assert abs(found - (expected(Family(mean, scale)) - expected(None, scored=False))) < 4 * error


def test_the_loss_of_each_example_by_hand():
    """`sigma^2 (||s||^2 / 2 + div s) / D`; for a Gaussian div s is minus the trace of the precision matrix."""
    family, t = Family(), torch.full((3,), T, dtype=torch.float64)
    x0 = torch.tensor([[0.1, 0.2], [1.0, -1.0], [0.0, 3.0]], dtype=torch.float64)
    x_t = family.corruption.corrupt(x0, t, generator=torch.Generator().manual_seed(0))
    sigma = family.corruption(t)[1]
    square = family.score(x_t, t).square().sum(1)
    wanted = sigma**2 * (0.5 * square - family.distribution(t[0])[1].inverse().trace()) / 2
    found = ImplicitScoreMatching(family).at(x0, t, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(found.parts["half_square"] + found.parts["divergence"], found.total.detach())
    many = SlicedScoreMatching(family, 4000, gaussian).at(x0, t, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.total, wanted, rtol=0, atol=0.15)


@pytest.mark.parametrize(
    "make",
    [ImplicitScoreMatching, SlicedScoreMatching, lambda d: SlicedScoreMatching(d, 2, gaussian)],
    ids=["implicit", "signs", "gaussian"],
)
def test_the_minimum_is_the_distribution_of_the_data(make, x0):
    """There the gradients vanish up to sampling error; elsewhere they are those of denoising score matching."""

    def slopes(family, make=make):
        t = torch.full((len(x0),), T, dtype=torch.float64)
        loss = make(family).at(x0, t, generator=torch.Generator().manual_seed(3)).total.mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(family.parameters()))])

    assert slopes(Family()).abs().max() < 0.002
    other = slopes(Family(MEAN + 0.3, 1.6))
    assert other.abs().min() > 0.008
    denoising = slopes(Family(MEAN + 0.3, 1.6), DenoisingLoss)  # without the factor 1/2
    torch.testing.assert_close(2 * other, denoising, rtol=0.05, atol=0.004)


@pytest.mark.parametrize("probe", [signs, gaussian])
@pytest.mark.parametrize("probes", [1, 3])
def test_sliced_is_implicit_in_the_mean(probe, probes, x0):
    family = Family(MEAN + 0.2, 1.5)
    t = torch.full((len(x0),), T, dtype=torch.float64)
    generator = torch.Generator()
    with torch.no_grad():
        sliced = SlicedScoreMatching(family, probes, probe).at(x0, t, generator=generator.manual_seed(5)).total
        implicit = ImplicitScoreMatching(family).at(x0, t, generator=generator.manual_seed(5)).total
    difference = sliced - implicit  # at the same x_t: the noise is drawn before the probes
    error = float(difference.std() / math.sqrt(len(x0)))
    assert 0 < error < 0.01
    assert abs(float(difference.mean())) < 4 * error
    # The variance of Hutchinson's estimate for a symmetric matrix H: 2 ||H||_F^2, for signs without the diagonal.
    precision = family.distribution(t[0])[1].inverse().detach()
    if probe is signs:
        precision = precision - precision.diag().diag()
    sigma2 = float(VP()(t[:1])[1] ** 2)
    assert float(difference.var()) == pytest.approx(
        2 * float(precision.square().sum()) * (sigma2 / 2) ** 2 / probes, rel=0.03
    )


def test_a_network_gets_gradients(generator):
    torch.manual_seed(0)
    for make in (ImplicitScoreMatching, SlicedScoreMatching):
        objective = make(Learned(MLP(2, 16, 1), VP()))
        loss = objective(torch.randn(32, 2, generator=generator), generator=generator)
        assert loss.total.shape == (32,)
        loss.total.mean().backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in objective.denoiser.network.leave.parameters()
        )


def test_the_shape_of_the_data_does_not_matter(generator):
    oracle = AnalyticGaussian(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), VP())

    class Flat(GaussianDenoiser):
        def __init__(self):
            super().__init__()
            self.corruption = VP()

        def estimate(self, x_t, t, **cond):
            return Estimate.of_mean(oracle(x_t.flatten(1), t).view_as(x_t))

    x0 = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=generator)
    t = torch.full((5,), T, dtype=torch.float64)
    images = ImplicitScoreMatching(Flat()).at(x0, t, generator=torch.Generator().manual_seed(0)).total
    vectors = ImplicitScoreMatching(oracle).at(x0.flatten(1), t, generator=torch.Generator().manual_seed(0)).total
    torch.testing.assert_close(images, vectors)


def test_they_are_serializable():
    objective = deserialize(serialize(SlicedScoreMatching(Learned(MLP(2, 8, 1), VP()), 3, gaussian)))
    assert (objective.probes, objective.probe) == (3, gaussian)
    with pytest.raises(UsageError, match="probes=0"):
        SlicedScoreMatching(Learned(MLP(2, 8, 1), VP()), 0)
