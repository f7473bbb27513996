"""Samplers of tokens against enumerated distributions: two positions, networks that read both and the time."""

import itertools

import pytest
import torch
from enumeration import (
    JOINT,
    ONE,
    ZERO,
    Both,
    Eighths,
    Given,
    JointOracle,
    as_module,
    at_time,
    frequencies,
    joint,
    masked_start,
    pairs,
    strata,
    walk,
)
from scipy import stats

from unnoise.discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    CosineNoise,
    Euler,
    FirstHitting,
    LogLinearNoise,
    Product,
    RateCorrector,
    Remasking,
    TauLeaping,
    Uniform,
    Unmasking,
    carried,
    cosine,
    reciprocal,
    single,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.random import Streams, categorical
from unnoise.shared.sampler import PredictorCorrector, counted

ABSORPTIONS = {
    "table": lambda: Absorbing(3, cosine(6)),
    "log-linear": lambda: Absorbing(3, LogLinearNoise()),
    "cosine": lambda: Absorbing(3, CosineNoise()),
}


# ---- exact samplers of absorption


@pytest.mark.parametrize("name", ABSORPTIONS)
def test_unmasking_is_ancestral(name, generator):
    transition = ABSORPTIONS[name]()
    denoiser = Categorical(Both(4, 4), transition, head=carried)
    steps = 4
    expected = walk(masked_start(4), denoiser.step_distribution, transition.grid(steps), 4)
    x = Unmasking(denoiser, last=categorical)(shape=(200_000, 2), steps=steps, generator=generator)
    assert int(x.max()) < 3
    counts = frequencies(x, 4) * len(x)
    keep = expected > 1e-12
    assert float(counts[~keep].sum()) == 0
    assert stats.chisquare(counts[keep].numpy(), (expected[keep] * len(x)).numpy(), sum_check=False).pvalue > 1e-3


def test_unmasking_over_strata_is_the_enumerated_distribution():
    """Chances that are multiples of 1/4 and 1/8: midpoints of a grid give the distribution to the last digit."""
    transition = Absorbing(3, LogLinearNoise(eps=0))
    denoiser = Categorical(Eighths(), transition, head=carried)
    grid = torch.linspace(1, 0, 5, dtype=torch.float64)
    expected = walk(masked_start(4), denoiser.step_distribution, grid, 4)
    r0, r1, v0, v1 = strata(4, 4, 8, 8)
    # At the end of a run each position is drawn by `last`, here from the numbers that are mirrored in the plan.
    v = torch.stack([v0, v1], 1)
    x = Unmasking(denoiser, last=categorical)(
        torch.full((len(r0), 2), 3), steps=grid, generator=Given(torch.stack([r0, r1], 1), v, v)
    )
    torch.testing.assert_close(frequencies(x, 4), expected, rtol=0, atol=1e-12)


def test_first_hitting_over_strata_is_the_joint_distribution_in_continuous_time():
    denoiser = Categorical(Eighths(), Absorbing(3, LogLinearNoise(eps=0)), head=carried)
    p = denoiser.network.table
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for (i, j), (a, b) in itertools.product(
        itertools.product(range(4), repeat=2), itertools.product(range(3), repeat=2)
    ):
        # The first position is revealed in quarter i and the second in quarter j; the later time comes first.
        first = p[i, 3, 3, 0, a] * p[j, a, 3, 1, b]
        second = p[j, 3, 3, 1, b] * p[i, 3, b, 0, a]
        expected[a, b] += (first if i > j else second if j > i else (first + second) / 2) / 16
    # Within a quarter both orders come equally often.
    r0, u0, r1, u1, v0, v1 = strata(4, 2, 4, 2, 8, 8)
    when = torch.stack([r0 - 0.125 + (0.25 + (u0 - 0.25)) / 4, r1 - 0.125 + (0.375 + (u1 - 0.25) / 2) / 4], 1)
    source = Given(when, torch.stack([v0, v1], 1))
    with counted(denoiser) as evaluations:
        x = FirstHitting(denoiser)(torch.full((len(r0), 2), 3), steps=2, generator=source)
    assert evaluations.calls == 2
    torch.testing.assert_close(frequencies(x, 4), expected.flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["log-linear", "cosine"])
def test_first_hitting_is_the_limit_of_many_steps(name, generator):
    transition = ABSORPTIONS[name]()
    denoiser = Categorical(Both(4, 4), transition, head=carried)
    grid = torch.cat([torch.linspace(1, 1e-3, 1500, dtype=torch.float64), ZERO[None]])
    expected = walk(masked_start(4), denoiser.step_distribution, grid, 4)
    x = FirstHitting(denoiser)(shape=(100_000, 2), steps=2, generator=generator)
    keep = expected > 1e-12
    counts = frequencies(x, 4)[keep] * len(x)
    assert stats.chisquare(counts.numpy(), (expected[keep] * len(x)).numpy(), sum_check=False).pvalue > 1e-3


def test_first_hitting_by_groups(generator):
    """Seven positions in three calls: all are revealed, four at most are left after the first, and times fall."""
    seen = []

    def network(x, label):
        seen.append(((x == 3).sum(1), label))
        return torch.zeros(*x.shape, 4)

    denoiser = Categorical(as_module(network), Absorbing(3, LogLinearNoise(eps=0.0)), head=carried)
    states = list(FirstHitting(denoiser).trajectory(shape=(50, 7), steps=3, generator=generator))
    assert [int((x == 3).sum(1).unique()) for x in states] == [4, 2, 0]
    assert [int(n.unique()) for n, _ in seen] == [7, 4, 2]
    assert (seen[0][1] > seen[1][1]).all()
    assert (seen[1][1] > seen[2][1]).all()
    with counted(denoiser) as evaluations:
        FirstHitting(denoiser)(shape=(50, 7), steps=20, generator=generator)
    assert evaluations.calls == 7
    for length in range(1, 50):
        states = FirstHitting(denoiser).trajectory(shape=(1, length), steps=length, generator=generator)
        assert [int((x == 3).sum()) for x in states] == list(range(length))[::-1]


@pytest.mark.parametrize("cap", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("name", ABSORPTIONS)
def test_remasking_keeps_the_marginals(name, cap):
    """With the exact denoiser each position keeps q_s in one step from q_t, and independent positions along a whole
    run.
    """
    transition = ABSORPTIONS[name]()
    grid = transition.grid(4)
    sampler = Remasking(JointOracle(JOINT, transition), cap=cap)
    for t, s in itertools.pairwise(grid):
        after = at_time(transition, JOINT, t).flatten() @ joint(torch.nan_to_num(sampler.distribution(pairs(4), t, s)))
        expected = at_time(transition, JOINT, s)
        for axis in (0, 1):
            torch.testing.assert_close(after.view(4, 4).sum(axis), expected.sum(axis), rtol=0, atol=1e-12)
    alone = JOINT.sum(1, keepdim=True) * JOINT.sum(0, keepdim=True)
    sampler = Remasking(JointOracle(alone, transition), cap=cap)
    end = walk(at_time(transition, alone, ONE).flatten(), sampler.distribution, grid, 4)
    torch.testing.assert_close(end.view(4, 4)[:3, :3], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ABSORPTIONS)
def test_remasking_without_a_cap_is_ancestral(name):
    transition = ABSORPTIONS[name]()
    denoiser = Categorical(Both(4, 4), transition, head=carried)
    for t, s in itertools.pairwise(transition.grid(4)):
        ours, chain = (
            distribution(pairs(4), t, s)
            for distribution in (Remasking(denoiser, cap=0.0).distribution, denoiser.step_distribution)
        )
        torch.testing.assert_close(ours, chain, rtol=1e-9, atol=1e-12)


def test_remasking_falls_back_as_often_as_it_says():
    transition = Absorbing(3, LogLinearNoise(eps=0))
    denoiser = Categorical(Both(4, 4), transition, head=carried)
    t, s, x = ONE * 0.6, ONE * 0.5, torch.tensor([[1, 3]])
    for sampler, sigma in (
        (Remasking(denoiser, cap=1.0), 1.0),
        (Remasking(denoiser, cap=0.3), 0.3),
        (Remasking(denoiser, cap=1.0, share=0.1), 0.1),  # of the largest, min(1, 0.5 / 0.4)
    ):
        distribution = sampler.distribution(x, t, s)[0]
        assert float(distribution[0, 3]) == pytest.approx(sigma)
        assert float(distribution[0, 1]) == pytest.approx(1 - sigma)
        assert float(1 - distribution[1, 3]) == pytest.approx((0.5 - (1 - sigma) * 0.4) / 0.6)


def test_unmasking_runs_the_network_only_where_a_symbol_changes(generator):
    for make in (lambda: Absorbing(3, LogLinearNoise()), lambda: Absorbing(3, reciprocal(1000))):
        denoiser = Categorical(Both(4, 4), make(), head=carried)
        for sampler, calls in ((Ancestral(denoiser), 500), (Unmasking(denoiser), 2)):
            with counted(denoiser) as evaluations:
                states = list(sampler.trajectory(shape=(1, 2), steps=500, generator=generator))
            changes = sum(not torch.equal(a, b) for a, b in itertools.pairwise([torch.tensor([[3, 3]]), *states]))
            assert evaluations.calls == (calls if calls == 500 else changes)
            assert (states[-1] < 3).all()


# ---- every sampler


SAMPLERS = {
    "ancestral": lambda d: Ancestral(d, last=categorical),
    "euler": lambda d: Euler(d, last=categorical),
    "leaping": lambda d: PredictorCorrector(
        TauLeaping(d, single, last=categorical), RateCorrector(d, below=1.0, repeats=2, jumps=single)
    ),
    "unmasking": lambda d: Unmasking(d, last=categorical),
    "hitting": FirstHitting,
    "remasking": lambda d: Remasking(d, cap=0.3, last=categorical),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    """Several runs from one source, so that each starts where the one before left off, some with nothing to reveal at
    their end.
    """
    sampler = SAMPLERS[name](Categorical(Both(4, 4), Absorbing(3, LogLinearNoise(eps=0.01, t_min=0.2)), head=carried))
    whole, part = Streams(5, range(64)), Streams(5, [40, 3, 11])
    for _ in range(6):
        many = sampler(shape=(64, 2), steps=6, generator=whole)
        few = sampler(shape=(3, 2), steps=6, generator=part)
        assert torch.equal(few, many[[40, 3, 11]])
        assert len(many.unique()) == 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_signals_of_other_shapes(name, generator):
    """Images, and the ends of short runs; nothing is left masked."""

    def network(x, label):
        return torch.stack(
            [x.double().sin(), x.double().cos(), label.double().view(-1, 1, 1).cos().expand(x.shape)], -1
        )

    sampler = SAMPLERS[name](Categorical(as_module(network), Absorbing(3, LogLinearNoise()), head=carried))
    for steps in (1, 2, 5):
        x = sampler(shape=(4, 3, 2), steps=steps, generator=generator)
        assert x.shape == (4, 3, 2)
        assert x.dtype == torch.int64
        assert int(x.max()) < 3


def test_bad_samplers_are_refused_in_one_line():
    table, uniform = (Categorical(Both(4, 4), t) for t in (Absorbing(3, cosine(6)), Uniform(4, LogLinearNoise())))
    mask = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()))
    lossy = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise(eps=0)))
    for call, words in (
        (lambda: Euler(table), "Euler needs rates, and a table of 6 steps has no rates: sample with Ancestral"),
        (lambda: TauLeaping(table), "TauLeaping needs rates"),
        (lambda: RateCorrector(table), "RateCorrector needs rates"),
        (lambda: RateCorrector(uniform, below=0.0), "below=0.0"),
        (lambda: RateCorrector(uniform, size=0), "size=0"),
        (lambda: TauLeaping(mask)(shape=(2, 2), steps=3), "outside of their order: take jumps=single"),
        (lambda: Euler(lossy)(shape=(2, 2), steps=3), "infinite at t=1: sample with Ancestral"),
        (
            lambda: Unmasking(uniform),
            "Unmasking is for absorption in an added mask token.* and this is Uniform over 4 states",
        ),
        (
            lambda: FirstHitting(Categorical(Both(4, 4), Absorbing(4, cosine(6), mask=2))),
            "FirstHitting is for absorption",
        ),
        (
            lambda: Remasking(Categorical(Both(4, 4), Absorbing(3, cosine(6)), Product(1e-6))),
            "needs a reverse model without smoothing, and this one has eps=1e-06",
        ),
        (lambda: Remasking(mask, cap=1.5), "cap=1.5"),
        (lambda: FirstHitting(mask).times(0), "steps=0"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
