"""Means, intervals and verdicts from a few seeds: differences paired by seed, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

BOOTSTRAP = 10
"""With this many pairs or more an interval is a studentized bootstrap interval, with fewer it is Student's."""
MODERATED = 4
"""With this many comparisons or more the variances of few pairs are moderated across the comparisons."""
POWER, MOST = 0.8, 100
"""The power at which further seeds would tell, and the largest number of further seeds that is named."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample deviation of some values, and a confidence interval of the mean.

    Attributes:
        mean: the mean.
        deviation: the sample deviation, with n - 1 degrees of freedom; NaN for one value.
        low, high: the interval; NaN for one value.
        count: number of values.
    """

    mean: float
    deviation: float
    low: float
    high: float
    count: int


def summary(values: Sequence[float], level: float = 0.95) -> Summary:
    """Returns mean, sample deviation and Student's interval of the mean at a level."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Summary(float(x[0]) if len(x) else math.nan, math.nan, math.nan, math.nan, len(x))
    mean, deviation = float(x.mean()), float(x.std(ddof=1))
    half = quantile(level, len(x) - 1) * deviation / math.sqrt(len(x))
    return Summary(mean, deviation, mean - half, mean + half, len(x))


@lru_cache(1024)
def quantile(level: float, degrees: float) -> float:
    """Returns the quantile of Student's t distribution between whose negative and itself `level` lies."""
    return float(stats.t.ppf((1 + level) / 2, degrees))


@dataclass(frozen=True)
class Prior:
    """Prior of the variances of the differences, a scaled inverse chi-squared distribution.

    Attributes:
        variance: the variance s0^2 that it expects.
        degrees: its degrees of freedom d0, the weight of that variance.
    """

    variance: float
    degrees: float

    def moderated(self, variance: float, degrees: float) -> tuple[float, float]:
        """Returns (d0 s0^2 + d s^2) / (d0 + d) and d0 + d, for a variance of d degrees of freedom."""
        total = self.degrees + degrees
        return (self.degrees * self.variance + degrees * variance) / total, total


ROBUST = 10
"""The number of comparisons from which on the common part of a seed is a median."""


def prior(table: np.ndarray) -> Prior | None:
    """Returns the prior of the variance of a difference between two rows of a table, or None for too few numbers.

    The variance of a row is that of its residuals after its mean and the part that its column has in common are taken
    away. This part is the mean of the column, and the median from 10 comparisons on: two rows of 12 with a deviation
    twenty times that of the others make the tables miss in 10 % with means, in 5 % with medians, which need half the
    length; with fewer rows medians vary too much. Differences to one baseline all contain the errors of the baseline,
    and the moments of their own variances would mistake these for agreement (in simulations of 24 cells with three
    seeds, they then miss in 6 to 17 % of the tables instead of 5 %). The degrees of freedom d0 are at most 2 below 8
    comparisons, and at most 3 otherwise. With that, at least one interval of a table misses in at most 5 % of the
    tables with equal and with inverse-gamma variances, with and without a common part of each seed, and in at most 6 %
    where the baseline alone has four times the variance of the others.

    Smyth (2004), Linear models and empirical Bayes methods, section 6.2: with e = log s^2 - digamma(d / 2) + log(d /
    2), trigamma(d0 / 2) = var(e) - trigamma(d / 2) and log s0^2 = mean(e) + digamma(d0 / 2) - log(d0 / 2).

    Args:
        table: `(cells, seeds)` of numbers, without gaps.
    """
    cells, seeds = table.shape
    if cells - 1 < MODERATED or seeds < 2:
        return None
    centered = table - table.mean(1, keepdims=True)
    robust = cells - 1 >= ROBUST
    residuals = centered - (np.median(centered, 0) if robust else centered.mean(0))
    degrees = seeds - 1
    variances = residuals.var(1, ddof=1) * cells / (cells - (2 - math.pi / 2 if robust else 1))
    if not (middle := float(np.median(variances))) > 0:
        return None
    e = np.log(np.maximum(variances, 1e-5 * middle)) - special.digamma(degrees / 2) + math.log(degrees / 2)
    excess = float(e.var(ddof=1) - special.polygamma(1, degrees / 2))
    if excess > 0:
        d0 = 2 * inverse_trigamma(excess)
        expected = math.exp(float(e.mean() + special.digamma(d0 / 2)) - math.log(d0 / 2))
    else:
        d0, expected = math.inf, float(variances.mean())
    return Prior(2 * expected, min(d0, 2.0 if cells - 1 < 8 else 3.0))


def inverse_trigamma(y: float) -> float:
    """Returns x > 0 with trigamma(x) = y > 0, by Newton's method on 1 / trigamma, which converges from below."""
    if y > 1e7:
        return 1 / math.sqrt(y)
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        value = float(special.polygamma(1, x))
        step = value * (1 - value / y) / float(special.polygamma(2, x))
        x += step
        if -step < 1e-10 * x:
            break
    return x


def bootstrap_t(x: np.ndarray, level: float, generator: np.random.Generator, least: int = 9999) -> tuple[float, float]:
    """Returns the studentized bootstrap interval of a mean (Efron and Tibshirani 1993, section 12.5).

    Its ends are mean - q s / sqrt(n), where q are quantiles of (mean* - mean) / (s* / sqrt(n)) over resamples of x.
    There are `least` resamples or more, at least 20 of them beyond each end.
    """
    n, tail = len(x), (1 - level) / 2
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return mean, mean
    drawn = x[generator.integers(n, size=(max(least, math.ceil(20 / tail)), n))]
    errors = drawn.std(1, ddof=1) / math.sqrt(n)
    kept = errors > 1e-9 * error  # a resample of one value alone has no deviation
    t = (drawn.mean(1)[kept] - mean) / errors[kept]
    low, high = np.quantile(t, [tail, 1 - tail])
    return float(mean - high * error), float(mean - low * error)


@dataclass(frozen=True)
class Comparison:
    """A difference to the baseline, paired by seed.

    Attributes:
        difference: mean of the differences.
        low, high: its interval, corrected for the number of comparisons; NaN for fewer than two pairs.
        pairs: number of pairs.
        deviation: deviation of the differences, moderated where variances are.
        level: the corrected level of the interval.
        better: `lower` or `higher`, or empty where neither is better.
        degrees: degrees of freedom of the deviation, beside those of the pairs.
    """

    difference: float
    low: float
    high: float
    pairs: int
    deviation: float
    level: float
    better: str = ""
    degrees: float = 0.0

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, and 0 otherwise."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def word(self) -> str:
        """`better`, `worse`, `different`, `equal` where all differences are zero, or `inconclusive`."""
        if self.pairs > 1 and self.difference == 0 and self.low == self.high:
            return "equal"
        if not self.sign:
            return "inconclusive"
        if self.better not in ("lower", "higher"):
            return "different"
        return "better" if (self.sign > 0) == (self.better == "higher") else "worse"

    @property
    def verdict(self) -> str:
        """The word, and for an inconclusive comparison how many more seeds would tell."""
        if self.word != "inconclusive":
            return self.word
        if self.pairs < 2:
            return "inconclusive: give 3 seeds or more"
        more = self.more_seeds()
        if more is None:
            return f"inconclusive: more than {MOST} more seeds would be needed"
        return f"inconclusive: {more} more {'seed' if more == 1 else 'seeds'} would tell"

    def more_seeds(self) -> int | None:
        """Returns how many more seeds find this difference with power 0.8, or None for more than 100.

        The power of n pairs is that of the two-sided t test at the corrected level, from the noncentral t
        distribution with noncentrality |difference| sqrt(n) / deviation.
        """
        n = self.pairs + np.arange(1, MOST + 1)
        if not self.deviation > 0:
            return None
        degrees = n - 1 + self.degrees
        critical = stats.t.ppf((1 + self.level) / 2, degrees)
        power = stats.nct.sf(critical, degrees, abs(self.difference) * np.sqrt(n) / self.deviation)
        enough = np.flatnonzero(power >= POWER)
        return int(enough[0]) + 1 if len(enough) else None


def compare(
    a: Mapping[int, float] | Sequence[float],
    b: Mapping[int, float] | Sequence[float],
    level: float = 0.95,
    comparisons: int = 1,
    better: str = "",
    prior: Prior | None = None,
    generator: np.random.Generator | None = None,
) -> Comparison:
    """Compares the numbers `a` with those of the baseline `b`, paired by seed.

    The interval of the mean difference has the level 1 - (1 - level) / comparisons (Bonferroni), so that all
    intervals of a table contain their differences at `level`, whatever the dependence between them. With 10 pairs or
    more it is a studentized bootstrap interval; with fewer it is Student's, since a bootstrap interval of three
    values does not cover: there are only ten different resamples.

    Args:
        a, b: the numbers by seed, or in the order of the seeds.
        level: level of all intervals of a table together.
        comparisons: number of comparisons in the table.
        better: whether `lower` or `higher` numbers are better; empty for neither.
        prior: what the variances of other comparisons say about this one, for fewer than 10 pairs; None for nothing.
        generator: generator of the resamples; one with seed 0 for None.
    """
    a, b = (x if isinstance(x, Mapping) else dict(enumerate(x)) for x in (a, b))
    x = np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], dtype=np.float64)
    n, corrected = len(x), 1 - (1 - level) / max(comparisons, 1)
    if n < 2:
        difference = float(x[0]) if n else math.nan
        return Comparison(difference, math.nan, math.nan, n, math.nan, corrected, better)
    mean, variance, degrees = float(x.mean()), float(x.var(ddof=1)), n - 1.0
    if n >= BOOTSTRAP:
        low, high = bootstrap_t(x, corrected, generator or np.random.default_rng(0))
        return Comparison(mean, low, high, n, math.sqrt(variance), corrected, better)
    if prior is not None and (variance > 0 or mean != 0):
        variance, degrees = prior.moderated(variance, degrees)
    half = quantile(corrected, degrees) * math.sqrt(variance / n)
    return Comparison(mean, mean - half, mean + half, n, math.sqrt(variance), corrected, better, degrees - (n - 1))
