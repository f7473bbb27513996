"""Corners of categorical diffusion.

Rows that are rounded, moves that do not fit, grids that meet row 0 early, types.
"""

import itertools
import math

import pytest
import torch

from unnoise.discrete import (
    Absorbing,
    AnalyticCategorical,
    Ancestral,
    Categorical,
    ClassifierGuided,
    ContinuousBound,
    CrossEntropy,
    Dense,
    DiscretizedGaussian,
    Euler,
    LogLinearNoise,
    Marginal,
    Mixture,
    NearestNeighbor,
    Product,
    RateCorrector,
    Remasking,
    Uniform,
    Unmasking,
    VariationalBound,
    cosine,
    every_neighbor,
    most_likely,
    reciprocal,
    reverse_rates,
    single,
    to_leave_one_out,
    to_posterior,
)
from unnoise.shared.errors import UsageError
from unnoise.shared.sampler import CorrectorPredictor

D = torch.float64
SHARES = torch.tensor([0.7, 0.2, 0.1], dtype=D)


def masking(*betas, mask=3, size=4):
    """Matrices of absorption in a mask, each token at its own pace."""
    rows = []
    for b in betas:
        q = torch.zeros(size, size, dtype=D)
        q[range(len(b)), range(len(b))] = 1 - torch.tensor(b, dtype=D)
        q[: len(b), mask] += torch.tensor(b, dtype=D)
        q[mask] = 0
        q[mask, mask] = 1
        rows.append(q)
    return torch.stack(rows)


class Table(torch.nn.Module):
    """Logits by the token, the same at all times but for what a function of the label adds."""

    def __init__(self, states, categories, of_time=None):
        super().__init__()
        self.of_time = of_time
        self.register_buffer(
            "table", torch.randn(states, categories, dtype=D, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, x, label):
        out = self.table[x]
        return (
            out
            if self.of_time is None
            else out + self.of_time(label).view(-1, *[1] * (x.ndim - 1), self.table.shape[1])
        )


def distribution_of(denoiser, grid):
    """The distribution of one token at the end of a grid, from the sampler's start."""
    x = torch.arange(denoiser.corruption.states)[:, None]
    distribution = denoiser.start_distribution(denoiser.corruption.stationary().argmax().view(1, 1), grid[0]).flatten()
    for t, s in itertools.pairwise(grid):
        distribution = distribution @ denoiser.step_distribution(x, t, s)[:, 0].double()
    return distribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_that_rounding_leaves_a_little_short_is_the_start(dtype):
    """Survivors of rows in float32, whose probability of the mask is 1 - 1e-8, are drawn and coded."""
    rows = masking([0.1, 0.2, 0.13], [0.7, 0.35, 0.61], [1.0, 1.0, 1.0]).to(dtype)
    transition = Dense(rows, categories=3)
    assert transition.stationary().tolist() == [0, 0, 0, 1]
    grid = torch.tensor([2 / 3, 1 / 3, 0.0], dtype=D)
    assert transition.survival(grid[0]) == pytest.approx(1 - (1 - 0.8 * 0.65), abs=1e-6)
    oracle = AnalyticCategorical(torch.cat([SHARES, torch.zeros(1)]), transition)
    torch.testing.assert_close(distribution_of(oracle, grid)[:3], SHARES, rtol=0, atol=1e-6)
    assert torch.isfinite(VariationalBound(oracle, steps=grid).prior(torch.tensor([[0], [1]]))).all()


def test_drawn_starts_have_the_distribution_that_the_bound_codes():
    """Tokens that are masked each at its own pace.

    Fewer survive than the largest probability, which depends on the token.
    """
    transition = Dense(masking([0.1, 0.2, 0.13], [0.7, 0.35, 0.61], [1.0, 1.0, 1.0]), categories=3)
    denoiser, t, n = (
        AnalyticCategorical(torch.cat([SHARES, torch.zeros(1)]), transition),
        torch.tensor(2 / 3, dtype=D),
        60000,
    )
    distribution = denoiser.start_distribution(torch.tensor([[3]]), t).flatten()
    x = denoiser.start(torch.full((n, 1), 3), t, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(x.flatten(), minlength=4) / n
    assert ((found - distribution).abs() < 5 * (distribution * (1 - distribution) / n).sqrt()).all(), (
        found,
        distribution,
    )
    assert float(1 - distribution[3]) < 0.8 * transition.survival(t)


@pytest.mark.parametrize("h", [0.01, 0.05])
def test_an_euler_step_is_the_identity_and_its_rates(h):
    denoiser, x, t = (
        Categorical(Table(3, 3), Uniform(3, LogLinearNoise(0.1))),
        torch.arange(3)[:, None],
        torch.tensor(0.5, dtype=D),
    )
    rates = reverse_rates(denoiser, x, t)
    off = h * rates
    own = torch.nn.functional.one_hot(x, 3) * (1 - off.sum(-1, keepdim=True))
    torch.testing.assert_close(Euler(denoiser).distribution(x, t, t - h), own + off)


def test_moves_that_keep_pi_only_together_are_refused():
    """Q_1 changes the uniform distribution, and the last row brings it back.

    Products would not be of the mixture's form.
    """
    first = torch.tensor([[0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.02, 0.08, 0.9]], dtype=D)
    moves = Dense(torch.stack([first, torch.full((3, 3), 1 / 3, dtype=D)]))
    with pytest.raises(UsageError, match="the moves change"):
        Mixture(moves, Uniform(3, torch.tensor([0.5, 0.1])))


@pytest.mark.parametrize("reverse", [Product(), Marginal()])
def test_a_token_that_is_ruled_out_on_the_way_costs_infinitely_much_on_a_whole_table_too(reverse):
    """One chain as `Dense` and as `Absorbing` in a token of the data, ruled out above the first row."""
    betas = [0.3, 0.4, 1.0]
    network = Table(
        3, 3, lambda label: torch.stack([torch.zeros_like(label)] * 2 + [torch.where(label > 400, -torch.inf, 0.0)], -1)
    )
    dense = Dense(masking(*([b, 0.0, b] for b in betas), mask=1, size=3), torch.eye(3)[1])
    absorbing = Absorbing(3, torch.tensor(betas), mask=1)
    x0 = torch.full((64, 1), 2)
    for transition in (dense, absorbing):
        code = VariationalBound(Categorical(network, transition, reverse))(
            x0, generator=torch.Generator().manual_seed(0)
        )
        assert math.isinf(float(code.nats.mean())), transition
        assert torch.isfinite(code.data).all()


def test_guidance_where_rates_are_infinite_has_no_integral():
    """Chains of 50, 200, 800 steps grow by a constant each: the bound in continuous time is infinite, and refused."""

    def classifier(hot, t, **cond):
        return (hot[..., 0].sum(-1) * 0.7).to(hot)

    def guided(schedule):
        return ClassifierGuided(Categorical(Table(3, 3), Uniform(3, schedule)), classifier, change=every_neighbor)

    x0, totals = torch.zeros(2048, 1).long(), []
    for steps in (50, 200, 800):
        code = VariationalBound(guided(LogLinearNoise(0.0)), steps=steps)(
            x0, generator=torch.Generator().manual_seed(0)
        )
        totals.append(float(code.nats.mean()))
    assert totals[1] - totals[0] > 0.02
    assert totals[2] - totals[1] == pytest.approx(totals[1] - totals[0], rel=0.3)
    for make in (VariationalBound, ContinuousBound):
        with pytest.raises(UsageError, match="the bound of ClassifierGuided is infinite in continuous time"):
            make(guided(LogLinearNoise(0.0)))
        make(guided(LogLinearNoise(0.05)))
    VariationalBound(ClassifierGuided(Categorical(Table(4, 3), Absorbing(3, LogLinearNoise(0.0))), classifier))


def test_a_strong_classifier_does_not_overflow():
    def classifier(hot, t, **cond):
        return 100.0 * hot[..., 0].sum(-1)

    guided = ClassifierGuided(Categorical(Table(3, 3).float(), Uniform(3, LogLinearNoise(0.1))), classifier)
    assert torch.isfinite(guided.ratio(torch.ones(2, 4).long(), torch.tensor(0.5, dtype=D))).all()


def test_masks_are_revealed_for_good_where_a_grid_meets_row_0_early():
    """0.1 of 3 rows is row 0: the draw into it is the last one, whatever the sampler."""
    denoiser = Categorical(Table(3, 2), Absorbing(2, reciprocal(3)))
    grid = torch.tensor([1.0, 0.1, 0.0], dtype=D)
    for sampler in (
        Ancestral(denoiser),
        Unmasking(denoiser),
        Remasking(denoiser, cap=0.0),
        Remasking(denoiser, cap=1.0),
    ):
        x = sampler(shape=(200, 1), steps=grid, generator=torch.Generator().manual_seed(0))
        assert len(x.unique()) == 1, sampler
        assert int(x[0]) == int(most_likely(denoiser.step_distribution(torch.tensor([[2]]), grid[0], grid[-1])))


@pytest.mark.parametrize(
    "transition",
    [
        Uniform(4, cosine(6)),
        Absorbing(4, cosine(6)),
        DiscretizedGaussian(4, torch.linspace(0.1, 0.9, 6)),
        NearestNeighbor(torch.tensor([[1], [2], [3], [0]]), torch.linspace(0.1, 0.9, 6)),
        Dense(torch.full((6, 4, 4), 0.25)),
        Mixture(
            NearestNeighbor(torch.tensor([[1], [2], [3], [0]]), torch.linspace(0.1, 0.9, 6)), Uniform(4, cosine(6))
        ),
    ],
    ids=lambda transition: type(transition).__name__,
)
def test_strided_bounds_take_fewer_terms_and_conversions_any_integer(transition):
    denoiser = Categorical(Table(transition.states, 4), transition)
    x0, draws = torch.arange(4).repeat(2000)[:, None], torch.Generator().manual_seed(0)
    whole = VariationalBound(denoiser, steps=5)(x0, generator=draws).path
    part = VariationalBound(denoiser, steps=5, terms=2)
    found = torch.stack([part(x0, generator=draws).path.mean() for _ in range(24)])
    assert abs(float(found.mean() - whole.mean())) < 5 * float(found.std()) / 24**0.5 + 0.02
    log_p, t = torch.randn(3, 4, generator=draws).double().log_softmax(-1), torch.tensor(0.5, dtype=D)
    for convert in (to_posterior, to_leave_one_out):
        expected = convert(transition, log_p, torch.tensor([0, 3, 1]), t)
        for dtype in (torch.uint8, torch.int16, torch.int32):
            torch.testing.assert_close(convert(transition, log_p, torch.tensor([0, 3, 1], dtype=dtype), t), expected)
        for token in (-1, transition.states):
            with pytest.raises(UsageError, match=f"token {token}, outside"):
                convert(transition, log_p[:1], torch.tensor([token]), t)


def test_a_conversion_of_the_impossible_is_the_evidence():
    """At token 1 of absorption x_0 is 1, whatever an output says that rules it out."""
    log_p = torch.tensor([[0.5, 0.0, 0.5]], dtype=D).log()
    for convert in (to_posterior, to_leave_one_out):
        p = convert(Absorbing(3, cosine(6)), log_p, torch.tensor([1]), torch.tensor(0.5, dtype=D)).exp()
        assert p.tolist() == [[0.0, 1.0, 0.0]]


def test_rates_take_any_integer():
    denoiser = Categorical(Table(3, 3), Uniform(3, LogLinearNoise(0.1)))
    x, t = torch.tensor([[0, 2, 1]]), torch.tensor(0.5, dtype=D)
    for of in (lambda x: reverse_rates(denoiser, x, t), lambda x: RateCorrector(denoiser).rates(x, t)):
        torch.testing.assert_close(of(x.to(torch.uint8)), of(x))


@pytest.mark.parametrize("real", [[1, 0, 0, 0], [2, 1, 0, 0], [6, 5, 4, 3]])
def test_padded_losses_are_means_over_the_batchs_tokens(real):
    x0 = torch.ones(4, 6).long()
    for row, n in enumerate(real):
        x0[row, n:] = 0
    denoiser, t = Categorical(Table(4, 3), Absorbing(3, cosine(6))), torch.full((4,), 0.5, dtype=D)
    loss = CrossEntropy(denoiser, padding=0).at(x0, t, generator=torch.Generator().manual_seed(0)).total
    x_t = denoiser.corruption.corrupt(x0, t, generator=torch.Generator().manual_seed(0))
    each = denoiser.cross_entropy(x0, x_t, t)
    torch.testing.assert_close(loss.mean(), each[x0 != 0].mean())


def test_a_corrector_of_all_times_acts_at_the_noisiest():
    denoiser = Categorical(Table(3, 3), Uniform(3, LogLinearNoise(0.1)))
    corrector = RateCorrector(denoiser, size=0.2, repeats=1, below=1.0, jumps=single)
    acted = []
    corrector.rates = lambda x, s, **cond: acted.append(float(s)) or torch.zeros(*x.shape, 3)
    grid = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=D)
    CorrectorPredictor(Ancestral(denoiser), corrector)(
        shape=(2, 3), steps=grid, generator=torch.Generator().manual_seed(0)
    )
    assert acted == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: Product(-0.5), "eps=-0.5: give 0"),
        (lambda d: VariationalBound(d, steps=2.0), "steps=2.0: give a whole number"),
        (lambda d: VariationalBound(d, steps=True), "steps=True: give a whole number"),
        (lambda d: VariationalBound(d, steps=[1, 0]), "steps=.*: give a whole number, a grid"),
        (lambda d: VariationalBound(d, terms=1.5), "terms=1.5: give a whole number"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call(Categorical(Table(3, 3), Uniform(3, cosine(6))))
