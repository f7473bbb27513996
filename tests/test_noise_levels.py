"""The schedule of a table of noise levels, and the published rules to choose one."""

import math

import pytest
import torch
from helpers import Fixture, FromScore, Recorded, assert_close

from unnoise.sde import SDE, VE, NoiseLevels, ReverseDiffusion
from unnoise.sde.noise_levels import (
    best_epsilon,
    geometric_sigmas,
    largest_sigma,
    level_count,
    level_ratio,
    variance_ratio,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.serialization import deserialize, serialize

FIXTURE = Fixture("score_sde_functions")
UNEVEN = [0.1, 0.5, 0.7, 2.0, 9.0]


def rows(n):
    return torch.arange(n + 1, dtype=torch.float64) / n


def test_sigma_at_the_rows_and_between_them():
    schedule = NoiseLevels(UNEVEN)
    alpha, sigma = schedule(rows(5))
    assert torch.equal(alpha, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(sigma, torch.tensor([0.0, *UNEVEN], dtype=torch.float64))
    between = schedule(torch.tensor([0.3, 0.7, 0.9, 0.05], dtype=torch.float64))[1]
    expected = [math.sqrt(0.1 * 0.5), math.sqrt(0.7 * 2.0), math.sqrt(2.0 * 9.0), 0.1]
    torch.testing.assert_close(between, torch.tensor(expected, dtype=torch.float64))
    assert (schedule.t_min, schedule.t_last, schedule.steps) == (0.2, 0.2, 5)
    assert schedule(torch.ones((), dtype=torch.float32))[1].dtype == torch.float32


@pytest.mark.parametrize("n", [1, 2, 3, 7, 232, 1000])
def test_time_is_the_inverse_of_log_snr(n):
    schedule = NoiseLevels(torch.linspace(0.01, 3.0, n, dtype=torch.float64) ** 1.5)
    t = torch.cat([rows(n)[1:], (rows(n)[1:-1] + 0.37 / n)])
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-12)
    beyond = schedule.time(torch.tensor([1e3, -1e3], dtype=torch.float64))
    assert beyond.tolist() == [1 / n, 1.0]


def test_training_and_sampling_visit_rows_only():
    schedule = NoiseLevels(UNEVEN)
    assert schedule.training_time(torch.tensor([0.0, 0.199, 0.2, 0.999])).tolist() == [0.2, 0.2, 0.4, 1.0]
    assert schedule.grid(5).tolist() == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert schedule.grid(3).tolist() == [1.0, 0.6, 0.2, 0.0]
    with pytest.raises(UsageError, match="steps=6: this table has 5 steps"):
        schedule.grid(6)


def test_its_sde_is_that_of_ve():
    """Geometric noise levels are VE at `(n - 1) / (N - 1)`; g^2 at a row is the derivative of sigma^2 below it."""
    schedule, ve = NoiseLevels(geometric_sigmas(0.01, 50.0, 100)), VE()
    t = torch.tensor([0.5, 0.73, 1.0], dtype=torch.float64)
    there = (t * 100 - 1) / 99
    torch.testing.assert_close(schedule(t)[1], ve(there)[1])
    f, g2 = SDE(schedule).coefficients(t)
    assert not f.any()
    torch.testing.assert_close(g2, SDE(ve).coefficients(there)[1] * 100 / 99)
    _, uneven = SDE(NoiseLevels(UNEVEN)).coefficients(torch.tensor([0.6], dtype=torch.float64))
    torch.testing.assert_close(uneven, torch.tensor([2 * 0.7**2 * math.log(0.7 / 0.5) * 5], dtype=torch.float64))


def test_noise_levels_of_the_reference():
    assert_close(geometric_sigmas(0.01, 50.0, 1000), FIXTURE["ve.discrete_sigmas"], 1e-10)


def test_the_chain_of_the_reference():
    """Reverse diffusion on the table is the reference code's N-step chain, row by row."""
    x, score, z = (FIXTURE[k] for k in ("x", "score", "z"))
    row = (FIXTURE["t"] * 999).long()
    used = torch.nonzero(row > 0).flatten()
    schedule = NoiseLevels(geometric_sigmas(0.01, 50.0, 1000))

    def one(i):
        t, s = ((row[i] + k).double() / 1000 for k in (1, 0))
        return ReverseDiffusion(FromScore(score[i : i + 1], schedule)).step(
            x[i : i + 1], t, s, generator=Recorded(z[i : i + 1])
        )

    assert_close(torch.cat([one(i) for i in used]), FIXTURE["ve.reverse_diffusion.x"][used], 1e-10)


def test_a_table_is_serializable():
    schedule = deserialize(serialize(NoiseLevels(UNEVEN)))
    assert schedule.sigmas.tolist() == UNEVEN


@pytest.mark.parametrize(
    "sigmas", [[], [[1.0, 2.0]], [0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, math.inf], [1.0, math.nan]]
)
def test_sigmas_that_are_refused(sigmas):
    with pytest.raises(UsageError, match="sigmas"):
        NoiseLevels(sigmas)


def test_what_the_rules_refuse():
    for refused, words in (
        (lambda: geometric_sigmas(1.0, 0.01, 10), "0 < low < high"),
        (lambda: geometric_sigmas(0.01, 1.0, 1), "two or more noise levels"),
        (lambda: level_ratio(2), "dims=2: neighboring noise levels overlap by more than overlap=0.5"),
        (lambda: level_ratio(100, 1.0), "overlap=1.0"),
        (lambda: best_epsilon(0.9, 5, 0.01), "ratio=0.9"),
        (lambda: best_epsilon(1.1, 0, 0.01), "repeats=0"),
    ):
        with pytest.raises(UsageError, match=words):
            refused()


def test_largest_distance(generator, monkeypatch):
    x = torch.randn(40, 3, 5, generator=generator, dtype=torch.float64)
    expected = max(float((a - b).norm()) for a in x for b in x)
    assert largest_sigma(x) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("unnoise.sde.noise_levels.PAIRS", 130)  # three rows at a time
    assert largest_sigma(x) == pytest.approx(expected, rel=1e-9)
    assert largest_sigma(torch.tensor([[0], [200]], dtype=torch.uint8)) == 200


@pytest.mark.parametrize("dims", [64, 3072])
def test_the_ratio_of_noise_levels_gives_the_overlap_of_norms(dims, generator):
    """That fraction of norms at one noise level lies within three standard deviations of the mean norm at the next.

    Also by the chi distribution, which the formula approximates.
    """
    from scipy import stats

    for overlap in (0.3, 0.5, 0.9):
        ratio = level_ratio(dims, overlap)
        mean, deviation = math.sqrt(dims), math.sqrt(0.5)
        ends = [(mean + k * deviation) for k in (3, -3)]
        # The interval of the larger noise level under the distribution of the smaller one, as in the paper's formula.
        inside = stats.norm.cdf(ratio * ends[0], mean, deviation) - stats.norm.cdf(ratio * ends[1], mean, deviation)
        assert inside == pytest.approx(overlap, abs=1e-9)
        by_chi = stats.chi(dims).cdf(ratio * ends[0]) - stats.chi(dims).cdf(ratio * ends[1])
        assert by_chi == pytest.approx(overlap, abs=0.03)


PUBLISHED = {
    "CIFAR-10": (3072, 50.0, 232, 5, 6.2e-6),
    "CelebA 64": (12288, 90.0, 500, 5, 3.3e-6),
    "LSUN 128": (49152, 190.0, 1086, 3, 1.8e-6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_noise_levels_and_epsilons(name):
    """The numbers of noise levels from one overlap for all three data sets, and epsilons to the printed digits."""
    dims, high, count, repeats, epsilon = PUBLISHED[name]
    assert level_count(0.01, high, level_ratio(dims, 0.5667)) == count
    assert level_count(0.01, high, level_ratio(dims)) == pytest.approx(count, rel=0.06)
    ratio = float(geometric_sigmas(0.01, high, count)[-2:].log().diff().exp())
    assert float(f"{best_epsilon(ratio, repeats, 0.01):.1e}") == epsilon


def test_the_variance_after_the_steps_at_a_noise_level(generator):
    """Simulated Langevin steps for data at one point against the closed form."""
    ratio, repeats, sigma, epsilon, low = 1.3, 3, 0.7, 2e-5, 0.01
    x = ratio * sigma * torch.randn(400_000, generator=generator, dtype=torch.float64)
    step = epsilon * sigma**2 / low**2
    for _ in range(repeats):
        x = (
            x
            - step * x / sigma**2
            + math.sqrt(2 * step) * torch.randn(len(x), generator=generator, dtype=torch.float64)
        )
    found = float(x.var()) / sigma**2
    expected = variance_ratio(epsilon, ratio, repeats, low)
    assert abs(found - expected) < 4 * expected * math.sqrt(2 / len(x))
    # In the 2019 paper's formula, where a step is half of its alpha, the same epsilon would leave another variance.
    assert abs(found - variance_ratio(epsilon / 2, ratio, repeats, low)) > 0.03
    assert variance_ratio(epsilon, ratio, 10_000, low) == pytest.approx(2 / (2 - epsilon / low**2))


def test_the_best_epsilon_is_a_minimum():
    best = best_epsilon(1.2, 4, 0.05)
    least = variance_ratio(best, 1.2, 4, 0.05)
    assert least > 1
    assert all(variance_ratio(best * k, 1.2, 4, 0.05) > least for k in (0.9, 0.99, 1.01, 1.1))
