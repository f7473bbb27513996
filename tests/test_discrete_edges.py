"""Where parts of categorical diffusion meet: what is left over, ruled out, padded, smoothed or met twice."""

import itertools
import math

import pytest
import torch
from enumeration import JOINT, ONE, ZERO, Both, JointOracle, as_module, at_time, joint, pairs, walk

from unnoise.discrete import (
    Absorbing,
    AnalyticCategorical,
    Ancestral,
    BandDiagonal,
    Categorical,
    ClassifierGuided,
    ContinuousBound,
    CosineNoise,
    CrossEntropy,
    D3PMLoss,
    Dense,
    DiscretizedGaussian,
    Euler,
    FirstHitting,
    GeometricNoise,
    Infilling,
    LogLinearNoise,
    Marginal,
    NearestNeighbor,
    Product,
    RateCorrector,
    Remasking,
    ScoreEntropyDenoiser,
    TopP,
    Uniform,
    Unmasking,
    VariationalBound,
    cosine,
    every_neighbor,
    reciprocal,
    single,
    to_leave_one_out,
    to_posterior,
    unscaled,
)
from unnoise.shared.editing import Inpainting
from unnoise.shared.errors import UsageError
from unnoise.shared.objective import Stratified
from unnoise.shared.random import categorical
from unnoise.shared.sampler import PredictorCorrector

D = torch.float64
RING = torch.tensor([[1], [2], [0]])
BETAS = torch.tensor([0.1, 0.35, 0.2, 0.6], dtype=D)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=D), torch.as_tensor(expected, dtype=D), rtol=tolerance, atol=tolerance
    )


# ---- the two readings


@pytest.mark.parametrize(
    "make",
    [lambda: Uniform(3, cosine(6)), lambda: DiscretizedGaussian(3, cosine(6)), lambda: Uniform(3, LogLinearNoise())],
)
def test_the_conversion_is_exact_in_both_directions(make):
    transition, x, t = make(), pairs(3), torch.full((9,), 0.5, dtype=D)
    log_p = torch.randn(9, 2, 3, dtype=D, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    posterior = to_posterior(transition, log_p, x, t)
    by_hand = log_p.exp() * transition.likelihood(x, ZERO, 0.5 * ONE)
    close(posterior.exp(), by_hand / by_hand.sum(-1, keepdim=True))
    close(to_leave_one_out(transition, posterior, x, t), log_p)
    close(to_posterior(transition, to_leave_one_out(transition, log_p, x, t), x, t), log_p)


def test_converted_outputs_are_one_model():
    """A network read as the posterior, and its conversion read as the leave-one-out posterior, draw the same
    chain."""
    transition, network = Uniform(3, LogLinearNoise()), Both(3, 3)
    by_posterior = Categorical(network, transition, Marginal())

    def left_out(x, label):
        return to_leave_one_out(transition, network(x, label).log_softmax(-1), x, label.double() / 1000)

    converted = Categorical(as_module(left_out), transition, Product())
    for t, s in itertools.pairwise(transition.grid(4)):
        close(
            by_posterior.step_distribution(pairs(3), t, s), converted.step_distribution(pairs(3), t, s), 1e-6
        )  # labels are float32


# ---- rows that are met twice


TABLES = {
    "uniform": lambda: Uniform(3, BETAS),
    "mask": lambda: Absorbing(3, reciprocal(4)),
    "band": lambda: BandDiagonal(3, BETAS),
    "neighbors": lambda: NearestNeighbor(RING, BETAS),
    "gaussian": lambda: DiscretizedGaussian(3, BETAS),
    "dense": lambda: Dense(torch.eye(3).expand(4, 3, 3) * 0.7 + 0.1),
}


@pytest.mark.parametrize("kind", TABLES)
def test_between_times_of_one_row_nothing_happens(kind):
    transition = TABLES[kind]()
    eye = torch.eye(transition.states, dtype=D)
    for s, t in ((0.5, 0.51), (0.9, 1.0), (0.0, 0.1)):
        s, t = torch.tensor([s, t], dtype=D)
        close(transition.pushforward(eye, s, t), eye)
        close(transition.likelihood(torch.arange(transition.states), s, t), eye)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
def test_a_grid_of_many_times_in_few_rows_draws_what_its_rows_do(kind, reverse):
    transition = TABLES[kind]()
    denoiser = Categorical(Both(transition.states, transition.states), transition, reverse)
    start = joint(transition.stationary().expand(2, -1))
    rows, many = transition.grid(4), torch.tensor([1, 0.97, 0.75, 0.7, 0.5, 0.45, 0.25, 0.12, 0.1, 0], dtype=D)
    # Networks are asked at the times of the grid, so both are held to times of rows.
    denoiser.time_input = lambda corruption, t: 1000 * corruption.row(t) / 4
    ends = [walk(start, denoiser.step_distribution, grid, transition.states) for grid in (rows, many)]
    close(ends[0], ends[1], 1e-6)
    x = Ancestral(denoiser, last=categorical)(shape=(20_000, 2), steps=many, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(x[:, 0] * transition.states + x[:, 1], minlength=transition.states**2) / 20_000
    assert ((found - ends[1]).abs() < 5 * (ends[1] / 20_000).sqrt() + 1e-6).all()


# ---- processes that lose all


@pytest.mark.parametrize("schedule", [LogLinearNoise(0.0), CosineNoise()])
def test_ratios_where_nothing_is_left_at_the_end(schedule):
    """At t = 1 a network's scaled ratios still say p(x_0): `P(k) = (alpha_s - alpha_1) p_k / (1 - alpha_1)`."""
    p, transition = torch.tensor([0.5, 0.3, 0.2], dtype=D), Absorbing(3, schedule)

    def network(x, label):
        return torch.where((x == 3)[..., None], (3 * p).log().expand(*x.shape, 3), torch.zeros(*x.shape, 3, dtype=D))

    denoiser = ScoreEntropyDenoiser(as_module(network), transition)
    for n in (2, 10, 1000):
        s = torch.tensor(1 - 1 / n, dtype=D)
        alpha = torch.exp(-schedule.total(s))
        distribution = denoiser.step_distribution(torch.tensor([[3]]), ONE, s)[0, 0]
        close(distribution, torch.cat([alpha * p, 1 - alpha[None]]), 1e-9)
    x0 = torch.multinomial(p, 4000, replacement=True, generator=torch.Generator().manual_seed(0))[:, None]
    bound = VariationalBound(denoiser, steps=10)(x0, generator=torch.Generator().manual_seed(0)).nats
    assert abs(float(bound.mean()) + float((p * p.log()).sum())) < 5 * float(bound.std()) / 4000**0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScoreEntropyDenoiser(Both(3, 3), Uniform(3, LogLinearNoise(0.0))),
        lambda: ScoreEntropyDenoiser(Both(3, 3), Uniform(3, CosineNoise())),
        lambda: ScoreEntropyDenoiser(Both(4, 4), Absorbing(3, CosineNoise()), offset=unscaled),
    ],
)
def test_ratios_that_say_nothing_are_refused(make):
    with pytest.raises(UsageError, match="leaves nothing of the data by t = 1"):
        make()


def test_rates_that_are_infinite_in_theory_are_refused():
    """The cosine's rate at t = 1 is a tangent at a right angle, which floating point puts at 1e16."""
    denoiser = Categorical(Both(3, 3), Uniform(3, CosineNoise()))
    with pytest.raises(UsageError, match="infinite at t=1"):
        Euler(denoiser)(shape=(2, 2), steps=3)
    assert float(CosineNoise().rate(ONE)) == math.inf
    assert ScoreEntropyDenoiser(Both(3, 3), Uniform(3, GeometricNoise()))


# ---- samplers that decide ahead


def test_what_changes_the_chance_to_be_revealed_is_refused():
    transition = Absorbing(3, LogLinearNoise())
    denoiser = Categorical(Both(4, 4), transition)
    guided = ClassifierGuided(denoiser, lambda hot, t: hot.sum((1, 2)), 3.0, every_neighbor)
    for make in (Unmasking, FirstHitting, Remasking):
        for other in (guided, ScoreEntropyDenoiser(Both(4, 4), transition)):
            with pytest.raises(
                UsageError, match=f"{make.__name__} reveals masks with the probabilities of the schedule"
            ):
                make(other)


def test_what_changes_between_planned_steps_is_refused():
    denoiser = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()))
    known, mask = torch.tensor([0, 1]), torch.tensor([True, False])
    for make in (Unmasking, FirstHitting):
        planned = make(denoiser)
        for wrap in (
            lambda s: PredictorCorrector(s, RateCorrector(denoiser, jumps=single)),
            lambda s: Inpainting(s, known, mask),
            lambda s: PredictorCorrector(Infilling(s, known, mask), RateCorrector(denoiser, jumps=single)),
        ):
            with pytest.raises(UsageError, match="decides at its first step|changes between its"):
                wrap(planned)


# ---- eps, padding, parts, types


def test_the_bound_takes_the_exact_posterior_and_the_objective_the_smoothed_one():
    """An eps smooths the model alone in a bound, so it stays above the entropy; in the loss it smooths both, as
    published."""
    p, eps = torch.tensor([0.98, 0.015, 0.005], dtype=D), 1e-2
    transition = Uniform(3, torch.full((20,), 0.2, dtype=D))
    oracle = AnalyticCategorical(p, transition)
    smoothed = Categorical(
        as_module(lambda x, label: oracle.logits(x, label.double() / 1000)), transition, Product(eps)
    )
    x = torch.arange(3)[:, None]
    for n in (5, 20):
        t, s = torch.tensor([n / 20, (n - 1) / 20], dtype=D)
        model = smoothed.step_distribution(x, t, s)[:, 0]
        for x0 in range(3):
            rows = torch.full_like(x, x0)
            truth = transition.posterior(x, transition.one_hot(rows, D), t, s)[:, 0]
            back, ahead = (
                transition.likelihood(x, s, t)[:, 0],
                transition.pushforward(transition.one_hot(rows, D), ZERO, s)[:, 0],
            )
            leaky = (back + eps) * (ahead + eps)
            leaky = leaky / leaky.sum(-1, keepdim=True)
            kl = [(q * (q / model).log()).sum(-1) for q in (truth, leaky)]
            close(smoothed.exact_divergence(rows, x, t, s, dtype=D).divergence[:, 0], kl[0], 1e-6)
            close(smoothed.divergence(rows, x, t, s).divergence[:, 0], kl[1], 1e-6)
    x0 = torch.multinomial(p, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))[:, None]
    nats = VariationalBound(smoothed)(x0, generator=torch.Generator().manual_seed(1)).nats
    assert float(nats.mean()) > -float((p * p.log()).sum())


def padded_distribution():
    """Texts of one or two of the tokens 0 and 1, filled up by 2."""
    return torch.tensor([[0.30, 0.05, 0.15], [0.05, 0.20, 0.25], [0.0, 0.0, 0.0]], dtype=D)


@pytest.mark.parametrize("make", [lambda: Absorbing(3, reciprocal(4)), lambda: Uniform(3, BETAS)])
@pytest.mark.parametrize("padding", [None, 2])
def test_padded_texts_are_coded(make, padding):
    """All texts' costs are a code, with their lengths sent first or with padding as a token; what is given of padding
    is known."""
    transition, distribution = make(), padded_distribution()
    denoiser = JointOracle(distribution.clamp(min=1e-12), transition)
    bound = VariationalBound(denoiser, padding=padding)
    texts = torch.tensor([[0, 2], [1, 2], [0, 0], [0, 1], [1, 0], [1, 1]])
    costs = []
    for x0 in texts:
        total = bound.prior(x0[None])[0] + bound.length_nats(x0[None])
        x_t = pairs(transition.states)
        for n in range(1, 5):
            t = torch.tensor(n / 4, dtype=D)
            m = transition.pushforward(transition.one_hot(x0, D), ZERO, t)
            weight = m[0, x_t[:, 0]] * m[1, x_t[:, 1]]
            terms = denoiser.exact_divergence(x0.expand_as(x_t), x_t, t, t - 0.25, dtype=D).divergence
            total = total + (weight * bound.total(terms, x0.expand_as(x_t)))[weight > 0].sum()
        costs.append(float(total))
    costs = torch.tensor(costs, dtype=D)
    assert float(torch.exp(-costs).sum()) <= 1 + 1e-9
    chance = distribution[texts[:, 0], texts[:, 1]]
    assert float((chance * costs).sum()) >= -float((chance * chance.log()).sum()) - 1e-9
    if padding is not None:
        assert bound.length_nats(texts) == math.log(3)
        given = costs - math.log(3)
        assert float((chance * given).sum()) < -float((chance * chance.log()).sum())  # what padding tells for nothing
        with pytest.raises(UsageError, match="padding=2 is followed by other tokens"):
            bound(torch.tensor([[2, 0]]))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_parts_are_means_over_uniform_times(power):
    """Whatever times a loss prefers, the path that it logs is the integral over all of them."""
    transition = Uniform(3, LogLinearNoise(t_min=0.05))
    denoiser = Categorical(Both(3, 3), transition)
    x0 = torch.multinomial(JOINT.flatten(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    x0 = torch.stack([x0 // 3, x0 % 3], 1)
    loss = ContinuousBound(denoiser, times=Stratified(power))(x0, generator=torch.Generator().manual_seed(3))
    path = VariationalBound(denoiser, terms=64)(x0, generator=torch.Generator().manual_seed(5)).path / (2 * math.log(2))
    found = loss.parts["path_bits_per_dim"]
    assert abs(float(found.mean() - path.mean())) < 5 * float((found.var() / len(x0) + path.var() / len(x0)).sqrt())
    table = Categorical(Both(3, 3), Uniform(3, BETAS))
    steps = D3PMLoss(table, 0.0)(x0, generator=torch.Generator().manual_seed(4)).parts["path_and_data_bits_per_dim"]
    code = VariationalBound(table)(x0, generator=torch.Generator().manual_seed(5))
    whole = (code.path + code.data) / (2 * math.log(2))
    assert abs(float(steps.mean() - whole.mean())) < 5 * float((steps.var() / len(x0) + whole.var() / len(x0)).sqrt())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(3, LogLinearNoise()),
        lambda: Absorbing(3, LogLinearNoise()),
        lambda: DiscretizedGaussian(3, BETAS),
        lambda: Uniform(3, BETAS),
    ],
)
def test_every_integer_type_is_read(make, dtype):
    transition = make()
    denoiser = Categorical(Both(transition.states, transition.states), transition)
    x0, t, s = pairs(3), 0.5 * ONE, 0.25 * ONE

    def everything(x, x_t):
        source = lambda: torch.Generator().manual_seed(0)  # noqa: E731
        yield transition.corrupt(x, t, generator=source())
        yield transition.diffuse(x_t, s, t, generator=source())
        yield denoiser(x_t, t)
        yield denoiser.step_distribution(x_t, t, s)
        yield denoiser.draw(x_t, t, s, generator=source())
        yield denoiser.divergence(x, x_t, t, s).divergence
        yield CrossEntropy(denoiser)(x, generator=source()).total
        yield VariationalBound(denoiser, terms=3)(x, generator=source()).nats
        yield Ancestral(denoiser)(x_t, steps=2, generator=source())
        if transition.steps is None:
            yield denoiser.path_rate(x, x_t, t).divergence
            yield ContinuousBound(denoiser)(x, generator=source()).total
            yield Euler(denoiser)(x_t, steps=2, generator=source())

    for ours, expected in zip(everything(x0.to(dtype), x0.to(dtype)), everything(x0, x0), strict=True):
        assert torch.equal(ours, expected)


def test_a_grid_that_starts_below_one_starts_from_its_own_time():
    """Tokens that the process leaves at t = 0.6 are drawn with the start, and coded."""
    transition = Absorbing(3, LogLinearNoise(0.0))
    oracle, grid = JointOracle(JOINT, transition), torch.tensor([0.6, 0.3, 0.0], dtype=D)
    count = 40_000
    states = list(
        Ancestral(oracle, last=categorical).trajectory(
            shape=(count, 2), steps=grid, generator=torch.Generator().manual_seed(0)
        )
    )
    distribution = at_time(transition, JOINT, 0.3 * ONE)
    found = torch.bincount(states[0][:, 0] * 4 + states[0][:, 1], minlength=16).view(4, 4) / count
    for axis in (0, 1):  # of each token by itself: both that are left were drawn at once
        assert (found.sum(axis) - distribution.sum(axis)).abs().max() < 0.01
    assert isinstance(
        VariationalBound(TopP(Categorical(Both(4, 4), transition), 0.5), steps=grid).prior(pairs(3)), torch.Tensor
    )
