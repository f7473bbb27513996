"""The intervals of ablations cover at their level, and their verdicts keep the stated rate of errors."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import special, stats

from unnoise.experiments.ablation.statistics import (
    Comparison,
    Prior,
    bootstrap_t,
    compare,
    inverse_trigamma,
    prior,
    summary,
)

TABLES = 1000


def binomial(rate, count=TABLES, beyond=1e-4):
    """Returns the rates between which the share of `count` events of a rate lies, except with probability 1e-4."""
    return stats.binom.ppf([beyond / 2, 1 - beyond / 2], count, rate) / count


def tables(cells, seeds, variances, rng, common=1.0):
    """Returns 1,000 tables of errors of cells by seeds; each seed has a part that all cells share."""
    drawn = rng.standard_normal((TABLES, cells, seeds)) * np.sqrt(variances(rng, (TABLES, cells, 1)))
    return drawn + common * rng.standard_normal((TABLES, 1, seeds))


def equal(rng, shape):
    return np.ones(shape)


def inverse_gamma(rng, shape):
    return 4 / rng.chisquare(4, shape)


def noisy_baseline(rng, shape):
    return np.where(np.arange(shape[1])[:, None] == 0, 4.0, np.ones(shape))


def outliers(rng, shape):
    return np.where(np.arange(shape[1])[:, None] >= shape[1] - 2, 400.0, np.ones(shape))


def compared(table, better="lower", moderate=True):
    """Returns the comparisons of the rows of a table with its first."""
    shared = prior(table) if moderate else None
    return [compare(row, table[0], 0.95, len(table) - 1, better, shared) for row in table[1:]]


def test_summary():
    values = [1.3, 2.1, 4.0]
    found = summary(values, 0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.mean, found.deviation, found.count) == pytest.approx((np.mean(values), np.std(values, ddof=1), 3))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    alone = summary([2.0])
    assert alone.mean == 2
    assert math.isnan(alone.deviation)
    assert math.isnan(alone.low)
    assert summary([]).count == 0


@pytest.mark.parametrize("count", [1, 7])
def test_paired_interval_is_that_of_the_t_test_at_the_corrected_level(count):
    a, b = [1.0, 2.5, 2.0], [0.5, 1.0, 1.7]
    found = compare(a, b, 0.95, count)
    expected = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / count)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.level == pytest.approx(1 - 0.05 / count)


def test_pairs_are_the_seeds_that_both_have():
    found = compare({3: 5.0, 1: 2.0, 2: 4.0}, {1: 1.0, 7: 100.0, 3: 1.0})
    assert (found.pairs, found.difference) == (2, 2.5)


@pytest.mark.parametrize("x", [0.02, 0.5, 3.3, 400.0, 3e7])
def test_inverse_trigamma(x):
    assert inverse_trigamma(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-4)


def test_prior_is_that_of_the_variances():
    """Variances s0^2 d0 / chi-squared with d0 degrees of freedom, below those that the prior may have."""
    rng, d0, s02 = np.random.default_rng(2), 1.5, 2.0
    table = rng.standard_normal((6000, 4)) * np.sqrt(s02 * d0 / rng.chisquare(d0, (6000, 1)))
    found = prior(table)
    assert found.degrees == pytest.approx(d0, rel=0.1)
    assert found.variance == pytest.approx(2 * s02, rel=0.1)
    shifted = prior(table + 5 * rng.standard_normal((1, 4)) + rng.standard_normal((6000, 1)))
    assert shifted.degrees == pytest.approx(found.degrees)
    assert shifted.variance == pytest.approx(found.variance)


def test_prior_of_equal_variances_has_few_degrees_of_freedom():
    table = np.random.default_rng(0).standard_normal((6, 20000))
    assert prior(table).variance == pytest.approx(2, rel=0.05)
    assert prior(table).degrees == 2
    assert prior(np.random.default_rng(0).standard_normal((9, 20000))).degrees == 3
    robust = prior(np.random.default_rng(1).standard_normal((12, 20000)))  # with medians of the columns
    assert robust.variance == pytest.approx(2, rel=0.02)
    assert prior(table[:4]) is None
    assert prior(table[:, :1]) is None
    assert prior(np.zeros((6, 3))) is None


def test_moderated_interval():
    found = compare([1.0, 2.0, 6.0], [0.0, 0.0, 0.0], 0.95, 5, prior=Prior(4.0, 3.0))
    variance, degrees = (3 * 4 + 2 * 7) / 5, 5
    half = stats.t.ppf(1 - 0.05 / 10, degrees) * math.sqrt(variance / 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert found.degrees == 3


@pytest.mark.parametrize(
    ("cells", "seeds", "variances", "rate"),
    [
        (12, 3, equal, 0.05),
        (12, 3, inverse_gamma, 0.05),
        (12, 3, noisy_baseline, 0.05),
        (5, 3, equal, 0.05),
        (5, 3, inverse_gamma, 0.05),
        (5, 3, noisy_baseline, 0.06),
        (7, 2, inverse_gamma, 0.05),
        (12, 3, outliers, 0.06),
    ],
)
def test_moderated_intervals_of_a_table_cover_together(cells, seeds, variances, rate):
    """Known differences lie in all intervals of 95 % of the tables; the intervals are shorter than plain ones."""
    rng = np.random.default_rng(cells + seeds)
    known = np.arange(cells) * 0.7
    missed, ratios = 0, []
    for errors in tables(cells, seeds, variances, rng):
        found = compared(errors + known[:, None])
        missed += any(not c.low <= known[n + 1] <= c.high for n, c in enumerate(found))
        plain = compare(errors[1], errors[0], 0.95, cells - 1)
        ratios.append((found[0].high - found[0].low) / (plain.high - plain.low))
    assert missed / TABLES <= binomial(rate)[1]
    assert np.median(ratios) < 0.7


def test_moments_of_the_differences_themselves_would_not_cover():
    """Why the prior is that of residuals: all differences to one baseline contain its errors."""
    rng = np.random.default_rng(0)
    errors = np.concatenate([tables(24, 3, equal, rng) for _ in range(4)])
    differences = errors[:, 1:] - errors[:, :1]
    pooled = differences.var(2, ddof=1).mean(1)
    half = stats.t.ppf(1 - 0.05 / 46, 46) * np.sqrt(pooled / 3)
    missed = (np.abs(differences.mean(2)) > half[:, None]).any(1)
    assert missed.mean() > binomial(0.05, len(errors))[1]


def test_plain_intervals_miss_at_their_rate():
    rng = np.random.default_rng(5)
    missed = sum(
        not (c := compare(x + 1.5, np.zeros(3))).low <= 1.5 <= c.high for x in rng.standard_normal((TABLES, 3))
    )
    low, high = binomial(0.05)
    assert low <= missed / TABLES <= high


@pytest.mark.parametrize("draw", ["normal", "skewed"])
def test_bootstrap_intervals_miss_near_their_rate(draw):
    """Of a skewed distribution they miss less than Student's interval does."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((TABLES, 12)) if draw == "normal" else rng.exponential(size=(TABLES, 12)) - 1
    ends = np.array([bootstrap_t(row, 0.95, rng, least=999) for row in x])
    missed = ((ends[:, 0] > 0) | (ends[:, 1] < 0)).mean()
    student = np.abs(x.mean(1)) > stats.t.ppf(0.975, 11) * x.std(1, ddof=1) / math.sqrt(12)
    assert binomial(0.04)[0] <= missed <= binomial(0.07)[1]
    if draw == "skewed":
        assert missed < student.mean() - 0.01
        assert (ends.mean(1) - x.mean(1)).mean() > 0.05  # the longer end is on the side of the tail


def test_bootstrap_interval_takes_ten_pairs_and_is_reproducible():
    x = np.random.default_rng(0).exponential(size=10)
    found = compare(x, np.zeros(10), prior=Prior(100.0, 3.0), generator=np.random.default_rng(3))
    assert (found.low, found.high) == bootstrap_t(x, 0.95, np.random.default_rng(3))
    assert found.degrees == 0
    nine = compare(x[:9], np.zeros(9))
    assert (nine.low, nine.high) == pytest.approx(tuple(stats.ttest_1samp(x[:9], 0).confidence_interval(0.95)))
    assert bootstrap_t(np.full(10, 2.0), 0.95, np.random.default_rng(0)) == (2, 2)


@pytest.mark.parametrize("variances", [equal, inverse_gamma])
def test_no_difference_is_inconclusive_at_the_stated_rate(variances):
    rng = np.random.default_rng(7)
    told = [sum(c.sign != 0 for c in compared(t)) > 0 for t in tables(10, 3, variances, rng)]
    assert np.mean(told) <= binomial(0.05)[1]


def test_power_grows_with_seeds():
    rng, powers = np.random.default_rng(8), []
    for seeds in (2, 3, 5, 9):
        drawn = tables(6, seeds, equal, rng)[:200]
        drawn[:, 1] -= 2.5
        found = [compared(t)[0].word for t in drawn]
        assert found.count("worse") <= 4
        powers.append(found.count("better") / len(found))
    assert powers == sorted(powers)
    assert powers[0] < 0.2
    assert powers[-1] > 0.9


@pytest.mark.parametrize(("difference", "degrees"), [(0.9, 0.0), (1.2, 3.0)])
def test_further_seeds_would_tell_with_the_power_that_is_promised(difference, degrees):
    """The t test of so many seeds finds the difference in 80 % of the cases; with one seed less in fewer."""
    comparison = Comparison(difference, -1.0, 3.0, 3, 1.0, 0.99, "lower", degrees)
    more, rng = comparison.more_seeds(), np.random.default_rng(9)

    def power(n, count=20000):
        means = difference + rng.standard_normal(count) / math.sqrt(n)
        variances = rng.chisquare(n - 1 + degrees, count) / (n - 1 + degrees)
        return (np.abs(means) > stats.t.ppf(0.995, n - 1 + degrees) * np.sqrt(variances / n)).mean()

    assert power(3 + more) > 0.79
    assert power(3 + more - 1) < 0.81
    assert comparison.verdict == f"inconclusive: {more} more seeds would tell"


def test_a_deviation_that_is_known_better_needs_fewer_further_seeds():
    found = [Comparison(1.2, -1.0, 3.0, 3, 1.0, 0.99, "lower", degrees).more_seeds() for degrees in (0.0, 3.0, 100.0)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3


def test_verdicts():
    made = partial(Comparison, pairs=3, deviation=1.0, level=0.95)
    assert made(-2.0, -3.0, -1.0, better="lower").verdict == "better"
    assert made(-2.0, -3.0, -1.0, better="higher").verdict == "worse"
    assert made(2.0, 1.0, 3.0, better="lower").verdict == "worse"
    assert made(2.0, 1.0, 3.0, better="higher").verdict == "better"
    assert made(2.0, 1.0, 3.0).verdict == "different"
    assert made(0.01, -1.0, 1.0).verdict == "inconclusive: more than 100 more seeds would be needed"
    assert compare([1.0], [2.0]).verdict == "inconclusive: give 3 seeds or more"
    assert compare([], []).verdict == "inconclusive: give 3 seeds or more"
    assert compare([1.0, 2.0], [1.0, 2.0]).verdict == "equal"
    assert compare([1.0, 2.0], [1.0, 2.0], prior=Prior(1.0, 2.0)).verdict == "equal"
    exact = compare([1.0, 2.0], [2.0, 3.0], better="lower")
    assert (exact.low, exact.high, exact.verdict) == (-1, -1, "better")
