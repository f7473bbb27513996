"""Samplers along the rates of a process in continuous time, held to enumerated distributions of pairs."""

import itertools
import math

import pytest
import torch
from enumeration import (
    JOINT,
    ONE,
    ZERO,
    Given,
    JointOracle,
    as_module,
    at_time,
    frequencies,
    generator_of,
    joint,
    pairs,
    strata,
    walk,
)
from scipy import stats
from torch import Tensor

from unnoise.discrete import (
    Absorbing,
    Ancestral,
    CosineNoise,
    Euler,
    GaussianTarget,
    GeometricNoise,
    LogLinearNoise,
    RateCorrector,
    ScoreEntropyDenoiser,
    TauLeaping,
    Uniform,
    ordinal,
    reverse_rates,
    single,
)
from unnoise.discrete.tau_leaping import poisson_quantile, single_jump_distribution
from unnoise.shared.random import categorical
from unnoise.shared.sampler import PredictorCorrector

# ---- rates


def uniform_oracle():
    return JointOracle(JOINT, Uniform(3, LogLinearNoise(eps=0.1)))


def error_of(sampler_distribution, transition, steps: int, end: float = 0.05) -> float:
    grid = torch.linspace(1, end, steps + 1, dtype=torch.float64)
    start = at_time(transition, JOINT, ONE).flatten()
    distribution = walk(start, sampler_distribution, grid, transition.states)
    return float((distribution - at_time(transition, JOINT, grid[-1]).flatten()).abs().sum())


def ordinal_distribution(x: Tensor, means: Tensor, most: int = 9) -> Tensor:
    """The distribution of `ordinal`, by the sums of all numbers of jumps, `(..., K)`."""
    k = means.shape[-1]
    out = torch.zeros_like(means)
    for row, distribution, at in zip(means.reshape(-1, k), out.view(-1, k), x.flatten().tolist(), strict=True):
        others = [y for y in range(k) if y != at]
        for counts in itertools.product(range(most), repeat=len(others)):
            chance = math.prod(
                math.exp(-float(row[y])) * float(row[y]) ** n / math.factorial(n)
                for y, n in zip(others, counts, strict=True)
            )
            distribution[min(max(at + sum(n * (y - at) for y, n in zip(others, counts, strict=True)), 0), k - 1)] += (
                chance
            )
    return out


@pytest.mark.parametrize("make", [uniform_oracle, lambda: JointOracle(JOINT, Absorbing(3, LogLinearNoise(eps=0.1)))])
@pytest.mark.parametrize("name", ["euler", "single"])
def test_steps_along_rates_are_of_order_one(make, name):
    oracle = make()

    def leap(x, t, s):
        return single_jump_distribution(x, (t - s) * reverse_rates(oracle, x, t))

    distribution = {"euler": Euler(oracle).distribution, "single": leap}[name]
    errors = [
        error_of(lambda x, t, s: torch.nan_to_num(distribution(x, t, s)), oracle.corruption, steps)
        for steps in (64, 128, 256)
    ]
    assert errors[-1] < 0.05
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.25)


def test_euler_is_its_formula():
    """A point and a step along the rates; where the step is too long nothing stays."""
    oracle, x, t = uniform_oracle(), pairs(3), ONE * 0.6
    rates = reverse_rates(oracle, x, t)
    hot, total = oracle.corruption.one_hot(x, torch.float64), rates.sum(-1, keepdim=True)
    torch.testing.assert_close(Euler(oracle).distribution(x, t, t - 0.02), hot * (1 - 0.02 * total) + 0.02 * rates)
    far = Euler(JointOracle(JOINT, Uniform(3, GeometricNoise(low=1e-3, high=50.0)))).distribution(x, ONE, ONE * 0.5)
    torch.testing.assert_close(far, (1 - hot) / 2, rtol=0, atol=1e-6)


def test_ordinal_leaps_are_of_order_one():
    oracle = uniform_oracle()

    def distribution(x, t, s):
        return ordinal_distribution(x, (t - s) * reverse_rates(oracle, x, t))

    errors = [error_of(distribution, oracle.corruption, steps) for steps in (32, 64)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("jumps", [single, ordinal])
def test_leaps_have_the_distribution_of_their_jumps(jumps):
    """The sampler's own step at one pair of tokens, over strata."""
    oracle = uniform_oracle()
    t, s, x = ONE * 0.8, ONE * 0.5, torch.tensor([[0, 2]])
    means = 0.3 * reverse_rates(oracle, x, t)
    if jumps is single:
        u = torch.stack(strata(400, 400), 1)
        expected = single_jump_distribution(x, means)
    else:
        axes = strata(20, 20, 20, 20)
        # A position makes no jump to its own token: its number there is free.
        u = torch.stack(
            [
                torch.stack([axes[0] * 0 + 0.5, axes[0], axes[1]], 1),
                torch.stack([axes[2], axes[3], axes[0] * 0 + 0.5], 1),
            ],
            1,
        )
        expected = ordinal_distribution(x, means)
    y = TauLeaping(oracle, jumps).step(x.expand(len(u), 2), t, s, generator=Given(u))
    torch.testing.assert_close(frequencies(y, 3), joint(expected)[0], rtol=0, atol=0.02)


def test_poisson_quantiles():
    mean = torch.tensor([0.0, 1e-6, 0.02, 0.7, 3.0, 9.0], dtype=torch.float64)[:, None]
    u = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)
    ours = poisson_quantile(mean.expand(-1, 301), u.expand(6, -1))
    torch.testing.assert_close(ours, torch.from_numpy(stats.poisson.ppf(u.numpy(), mean.numpy())), rtol=0, atol=0)


def test_reverse_rates_are_the_bayes_rule_of_the_forward_ones():
    """`d q_t / dt` backwards: `-q_t R_hat` is what `q_t R` adds, so the reverse chain undoes the forward one."""
    oracle = uniform_oracle()
    transition, t = oracle.corruption, ONE * 0.6
    q = at_time(transition, JOINT, t).flatten()
    back = generator_of(reverse_rates(oracle, pairs(3), t), 3)
    forth = generator_of(transition.outflow(pairs(3), t), 3)
    torch.testing.assert_close(
        q[:, None] * back - torch.diag(q * back.diag()), (q[:, None] * forth - torch.diag(q * forth.diag())).T
    )


@pytest.mark.parametrize(
    "make",
    [
        uniform_oracle,
        lambda: JointOracle(JOINT, GaussianTarget(3)),
        lambda: JointOracle(JOINT, Absorbing(3, CosineNoise())),
    ],
)
def test_the_corrector_keeps_its_level(make):
    """Its rates leave q_s as it is; a leap does up to the square of its length."""
    oracle = make()
    k, s = oracle.corruption.states, ONE * 0.4
    q = at_time(oracle.corruption, JOINT, s).flatten()
    rates = torch.nan_to_num(RateCorrector(oracle, jumps=single).rates(pairs(k), s))
    assert float((q @ generator_of(rates, k)).abs().max()) < 1e-10 * float(rates.max())
    errors = [
        float((q @ joint(single_jump_distribution(pairs(k), size * rates / rates.max())) - q).abs().sum())
        for size in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.3)
    assert errors[1] > 0


def test_the_corrector_leaps_as_far_as_it_says_and_where():
    oracle = uniform_oracle()
    asked = []

    def note(x, means, transition, source):
        asked.append(means)
        return x

    corrector, x = RateCorrector(oracle, size=1.5, repeats=3, below=0.3, jumps=note), torch.tensor([[0, 2]])
    t, s = ONE * 0.3, ONE * 0.28
    assert corrector.step(x, t, s) is x
    assert len(asked) == 3
    torch.testing.assert_close(asked[0], 1.5 * 0.02 * corrector.rates(x, s))
    for t, s in ((0.31, 0.29), (0.1, 0.0)):
        corrector.step(x, ONE * t, ONE * s)
    assert len(asked) == 3


def test_a_corrector_mends_a_coarse_predictor(generator):
    oracle = uniform_oracle()
    grid = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    expected = at_time(oracle.corruption, JOINT, grid[-1]).flatten()
    errors = []
    for sampler in (
        TauLeaping(oracle, single),
        PredictorCorrector(
            TauLeaping(oracle, single), RateCorrector(oracle, size=0.1, repeats=10, below=1.0, jumps=single)
        ),
    ):
        x = sampler(shape=(40_000, 2), steps=grid, generator=generator)
        errors.append(float((frequencies(x, 3) - expected).abs().sum()))
    assert errors[1] < 0.6 * errors[0]


def test_the_last_step_is_the_denoisers_distribution():
    oracle = uniform_oracle()
    t, x = ONE * 0.3, pairs(3)
    distribution = oracle.step_distribution(x, t, ZERO)
    for make in (Ancestral, Euler, TauLeaping):
        assert torch.equal(make(oracle).step(x, t, ZERO), distribution.argmax(-1))
        u = torch.full((9, 2), 0.25, dtype=torch.float64)
        drawn = make(oracle, last=categorical).step(x, t, ZERO, generator=Given(u))
        assert torch.equal(drawn, (distribution.cumsum(-1) < 0.75).sum(-1))


def test_the_analytic_sampler_of_ratios_is_ancestral_and_exact(generator):
    """A network of true log-ratios, SEDD's: one step from q_t gives each position's q_s."""
    transition = Uniform(3, GeometricNoise(low=1e-3, high=8.0))
    oracle = JointOracle(JOINT, transition)
    denoiser = ScoreEntropyDenoiser(
        as_module(lambda x, label: oracle.ratio(x, label.double()[0] / 1000).log()), transition
    )
    t, s = ONE * 0.75, ONE * 0.5
    after = at_time(transition, JOINT, t).flatten() @ joint(denoiser.step_distribution(pairs(3), t, s))
    for axis in (0, 1):
        torch.testing.assert_close(
            after.view(3, 3).sum(axis), at_time(transition, JOINT, s).sum(axis), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(
        reverse_rates(denoiser, pairs(3), t), reverse_rates(oracle, pairs(3), t), rtol=1e-5, atol=1e-8
    )
    assert Ancestral(denoiser)(shape=(8, 2), steps=5, generator=generator).max() < 3
