"""Langevin correctors: parity with reference code, stationary distributions, and sampling with a corrector alone."""

import math

import numpy as np
import pytest
import torch
from helpers import Fixture, FromScore, Recorded, assert_close
from scipy import stats

from unnoise.continuous import Tabulated, linear_betas
from unnoise.sde import VE, VP, Learned, NoiseLevels, ReverseDiffusion, geometric_sigmas
from unnoise.sde.correctors import AnnealedLangevin, Langevin, batch_norms, own_norms, snr_of
from unnoise.sde.predictors import NoPredictor
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.time_points import TimePoint
from unnoise.shared.random import Streams
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector, counted

FIXTURE = Fixture("score_sde_functions")
N = 1000
TABLE = NoiseLevels(geometric_sigmas(0.02, 8.0, 400))


def at(t):
    return torch.tensor(t, dtype=torch.float64)


def corrected(schedule, i, above, t, snr, z):
    corrector = AnnealedLangevin(FromScore(FIXTURE["score"][i : i + 1], schedule), snr, repeats=1)
    return corrector.step(FIXTURE["x"][i : i + 1], above, t, generator=Recorded(z[i : i + 1]))


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("noisy", [True, False])
def test_annealed_langevin_of_the_reference(name, noisy):
    """The step size `2 alpha (snr std)^2`, with `alpha = 1 - beta` of the row and std of the continuous process.

    The reference code's VP combines a table with continuous time. Here both are those of one schedule, so the snr is
    scaled by the ratio of the two sigmas.
    """
    z = FIXTURE["z"] if noisy else torch.zeros_like(FIXTURE["z"])
    key = f"{name}.ald.x" if noisy else f"{name}.ald.x_mean"
    t = FIXTURE["t"]
    row = (t * (N - 1)).long().double()
    steps = []
    for i in range(len(t)):
        if name == "ve":
            steps.append(corrected(VE(), i, t[i] * 1.1, t[i], 0.16, z))
        else:
            chain, there = Tabulated(FIXTURE["vp.discrete_betas"]), (row[i] + 1) / N
            snr = 0.16 * float(VP()(t[i])[1] / chain(there)[1])
            steps.append(corrected(chain, i, (row[i] + 2) / N, there, snr, z))
    assert_close(torch.cat(steps), FIXTURE[key], 1e-10)


def test_the_step_of_ncsn(generator):
    """`x + e_i s + sqrt(2 e_i) z`, `e_i = epsilon sigma_i^2 / sigma_L^2`, T times at each noise level."""
    sigmas, epsilon, repeats = geometric_sigmas(0.01, 1.0, 10), 2e-5, 3
    score = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    z = torch.randn(repeats, 2, 3, generator=generator, dtype=torch.float64)
    schedule = NoiseLevels(sigmas)
    corrector = AnnealedLangevin(FromScore(score, schedule), snr_of(epsilon, 0.01), repeats)
    for row in (1, 4, 10):
        e, expected = epsilon * float(sigmas[row - 1]) ** 2 / 0.01**2, x
        for k in range(repeats):
            expected = expected + e * score + math.sqrt(2 * e) * z[k]
        torch.testing.assert_close(
            corrector.step(x, at((row + 1) / 10), at(row / 10), generator=Recorded(*z)), expected
        )


@pytest.mark.parametrize(("epsilon", "snr"), [(2e-5, 0.316), (6.2e-6, 0.176), (3.3e-6, 0.128), (1.8e-6, 0.095)])
def test_published_epsilons_are_published_snrs(epsilon, snr):
    """The published epsilons at sigma = 0.01 are the snr that Song et al. (2021) print for the same models."""
    assert snr_of(epsilon, 0.01) == pytest.approx(snr, abs=5e-4)


def test_for_data_at_a_point_it_is_langevin():
    """There the score is -noise / sigma, and `||z|| / ||score||` is sigma."""
    sigma = float(TABLE(at(0.5))[1])
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    denoiser = FromScore(-z / sigma, TABLE)
    x = torch.ones(4, 2, dtype=torch.float64)
    one = Langevin(denoiser, 0.2, 1, lambda z, score: z.norm(dim=1) / score.norm(dim=1)).step(
        x, at(0.6), at(0.5), generator=Recorded(z)
    )
    other = AnnealedLangevin(denoiser, 0.2, 1).step(x, at(0.6), at(0.5), generator=Recorded(z))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("variance", [0.0, 0.3])
def test_the_stationary_distribution(variance, generator):
    """Many steps at one time give a Gaussian of variance `v / (1 - e / (2 v))`, as derived."""
    schedule, t, snr = VE(), at(0.6), 0.5
    oracle = AnalyticGaussian(
        torch.zeros(1, dtype=torch.float64), torch.full((1, 1), variance, dtype=torch.float64), schedule
    )
    sigma2 = float(schedule(t)[1] ** 2)
    v = variance + sigma2
    x = AnnealedLangevin(oracle, snr, repeats=60).step(
        v**0.5 * torch.randn(200_000, 1, dtype=torch.float64, generator=generator), t * 1.1, t, generator=generator
    )
    expected = v / (1 - snr**2 * sigma2 / v)
    assert float(x.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / len(x)))
    assert expected <= v / (1 - snr**2) + 1e-12


def annealed(oracle, snr=0.4, repeats=4, denoise=True):
    return CorrectorPredictor(NoPredictor(oracle, denoise), AnnealedLangevin(oracle, snr, repeats))


# Each with a tolerance of the covariance. Times even in t are far apart in noise where a table's sigma is small, and
# chains do not reach the stationary distribution there.
SCHEDULES = {
    "noise-levels": (TABLE, 0.04),
    "ve": (VE(0.02, 8.0), 0.04),
    "table": (Tabulated(linear_betas(1000)), 0.065),
    "vp": (VP(), 0.065),
}
COUNT, STEPS = 4000, 400
MEAN = torch.tensor([0.6, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_corrector_alone_reproduces_a_gaussian(name, generator):
    schedule, tolerance = SCHEDULES[name]
    x = annealed(AnalyticGaussian(MEAN, COVARIANCE, schedule))(
        shape=(COUNT, 2), steps=STEPS, generator=generator
    ).double()
    assert torch.allclose(x.mean(0), MEAN, atol=0.035)
    assert torch.allclose(torch.cov(x.T), COVARIANCE, atol=tolerance)
    for axis in range(2):
        cdf = stats.norm(float(MEAN[axis]), float(COVARIANCE[axis, axis]) ** 0.5).cdf
        assert stats.kstest(x[:, axis].numpy(), cdf).statistic < 0.035


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("ve", "table") else ()) for n in SCHEDULES]
)
def test_corrector_alone_reproduces_a_mixture(name, generator):
    """Its weights too, which are set at the noise levels where chains still move between the components."""
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.2], [1.2, -0.5]], dtype=torch.float64)
    variances = torch.tensor([0.03, 0.08], dtype=torch.float64)
    oracle = AnalyticMixture(weights, means, variances, SCHEDULES[name][0])
    x = annealed(oracle)(shape=(COUNT, 2), steps=STEPS, generator=generator).double()
    assert float((x[:, 0] < 0.1).double().mean()) == pytest.approx(0.7, abs=0.035)
    for axis in range(2):

        def cdf(v, axis=axis):
            return (
                stats.norm(means[:, axis].numpy(), variances.sqrt().numpy()).cdf(np.asarray(v)[..., None])
                @ weights.numpy()
            )

        assert stats.kstest(x[:, axis].numpy(), cdf).statistic < 0.045


def test_the_last_step_denoises_or_not(generator):
    """Without it a sample keeps the noise of the smallest noise level, and a little more by finite steps."""
    point = AnalyticGaussian(torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), TABLE)
    kept = annealed(point, denoise=False)(shape=(20_000, 1), steps=STEPS, generator=generator)
    assert float(kept.std()) == pytest.approx(0.02 / math.sqrt(1 - 0.4**2), rel=0.03)
    assert not annealed(point)(shape=(50, 1), steps=STEPS, generator=generator).any()


def test_each_time_costs_its_repeats():
    oracle = AnalyticGaussian(MEAN, COVARIANCE, TABLE)
    with counted(oracle) as count:
        annealed(oracle, repeats=3)(shape=(2, 2), steps=STEPS)
    assert count.calls == STEPS * 3 + 1
    assert annealed(oracle, repeats=0)(torch.ones(1, 2, dtype=torch.float64), steps=STEPS).shape == (1, 2)


def test_samples_do_not_depend_on_the_batch():
    oracle = AnalyticGaussian(MEAN, COVARIANCE, TABLE)
    whole = annealed(oracle)(shape=(6, 2), steps=20, generator=Streams(7, range(6)))
    torch.testing.assert_close(annealed(oracle)(shape=(2, 2), steps=20, generator=Streams(7, [4, 1])), whole[[4, 1]])


def test_what_it_refuses():
    oracle = AnalyticGaussian(MEAN, COVARIANCE, TABLE)
    for make in (
        lambda: AnnealedLangevin(oracle, 0.0),
        lambda: AnnealedLangevin(oracle, repeats=-1),
        lambda: Langevin(oracle, -1.0),
    ):
        with pytest.raises(UsageError, match="positive ratio"):
            make()


class Constant(torch.nn.Module):
    """A network whose every output is one number."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, time):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("norms", [own_norms, batch_norms])
@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 50.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("size", [0.0, 1e-6])
def test_an_untrained_network_gives_samples(schedule, norms, size):
    """Its score is nearly 0, and a step then adds noise of variance `2 e` with the largest step size e."""
    denoiser = Learned(Constant(size), schedule)
    x = PredictorCorrector(ReverseDiffusion(denoiser), Langevin(denoiser, norms=norms))(
        shape=(8, 16), steps=50, generator=torch.Generator().manual_seed(0)
    )
    assert x.isfinite().all()
    still, t = torch.zeros(500, 16), at(0.5)
    step = Langevin(denoiser, 0.16, 1, norms).step(still, at(0.55), t, generator=torch.Generator().manual_seed(0))
    alpha, sigma = schedule(t)
    e = 2 * (0.16 * 2) ** 2 * float(alpha**2 + sigma**2) * float(alpha / schedule(at(0.45))[0]) ** 2
    assert float(step.var()) == pytest.approx(2 * e, rel=0.06)


@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 50.0)], ids=["vp", "ve"])
def test_a_correct_score_is_not_limited(schedule):
    """In 16 dimensions or more the ratio of the norms stays below its limit, for data of variance 1 at every time."""
    oracle = AnalyticGaussian(torch.zeros(64), torch.eye(64), schedule)
    for t in (0.01, 0.1, 0.5, 1.0):
        x = oracle.corruption.corrupt(torch.randn(1000, 64, generator=torch.Generator().manual_seed(0)), at(t))
        z, score = torch.randn(1000, 64), oracle.score(x, at(t))
        assert torch.equal(Langevin(oracle).ratio(z, score, TimePoint(oracle.corruption, at(t))), own_norms(z, score))
