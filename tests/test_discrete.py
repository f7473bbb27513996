"""Closed forms against definitions, draws against laws; objectives, refusals and descriptions of categorical diffusion."""

import json
import math

import pytest
import torch
from helpers import Formula

from unnoise import discrete
from unnoise.discrete import (
    Absorbing,
    Ancestral,
    BandDiagonal,
    Categorical,
    CategoricalOracle,
    Constant,
    ContinuousBound,
    CrossEntropy,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    Hybrid,
    LogLinear,
    Marginal,
    Mixture,
    NearestNeighbor,
    Product,
    ScoreEntropyDenoiser,
    Steps,
    Uniform,
    VariationalBound,
    cosine,
    fused,
    linear,
    mutual_information,
    nearest,
    reciprocal,
)
from unnoise.discrete.transition.base import CLEAN
from unnoise.discrete.transition.plain import log_clean, plain_divergence, plain_path_rate
from unnoise.shared.describe import build, describe
from unnoise.shared.errors import UsageError
from unnoise.shared.random import Streams

D = torch.float64


def at(n, steps):
    return torch.as_tensor(n, dtype=D) / steps


def seeded(seed, *shape):
    return torch.rand(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


RESAMPLING = {
    "uniform": lambda schedule: Uniform(5, schedule),
    "two": lambda schedule: Uniform(2, schedule),
    "mask": lambda schedule: Absorbing(5, schedule),
    "level": lambda schedule: Absorbing(5, schedule, mask=2),
}


def every_pair(transition, repeats=1):
    """All (x_0, x_t) that can meet half-way, `(N,)`, and logits `(N, levels)`."""
    x0, x_t = torch.cartesian_prod(torch.arange(transition.levels), torch.arange(transition.states)).T.repeat(1, repeats)
    half = torch.tensor(0.5, dtype=D)
    meet = transition.likelihood(x_t, CLEAN, half).gather(-1, x0[:, None])[:, 0] > 0
    x0, x_t = x0[meet], x_t[meet]
    return x0, x_t, 3 * torch.randn(len(x0), transition.levels, dtype=D, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", RESAMPLING)
@pytest.mark.parametrize("reverse", [Product(), Marginal(), Product(eps=1e-6)], ids=str)
def test_closed_forms_are_the_definitions(kind, reverse, monkeypatch):
    monkeypatch.setattr(fused, "ON_CPU", 4)  # several blocks
    transition = RESAMPLING[kind](reciprocal(8))
    x0, x_t, logits = every_pair(transition)
    for n, m in ((1, 0), (2, 1), (5, 2), (7, 6), (4, 0)):
        pair = (at(n, 8), at(m, 8))
        for t, s in (pair, tuple(time.expand(len(x0)) for time in pair)):
            for closed, plain in zip(
                transition.divergence(reverse, logits, x0, x_t, t, s),
                plain_divergence(transition, reverse, logits, x0, x_t, t, s),
                strict=True,
            ):
                close(closed, plain)
    each = torch.arange(len(x0)) % 7 + 1  # another step for each row, the first among them
    t, s = at(each, 8), at(each - 1, 8)
    closed, plain = transition.divergence(reverse, logits, x0, x_t, t, s), plain_divergence(transition, reverse, logits, x0, x_t, t, s)
    meets = transition.likelihood(x_t, CLEAN, t).gather(-1, x0[:, None])[:, 0] > 0
    close(closed.divergence[meets], plain.divergence[meets])
    assert (closed.divergence[meets] >= -1e-12).all()


@pytest.mark.parametrize("kind", RESAMPLING)
def test_the_closed_rate_of_the_path_is_its_definition_and_the_limit_of_divergences(kind, monkeypatch):
    monkeypatch.setattr(fused, "ON_CPU", 4)
    transition = RESAMPLING[kind](LogLinear(eps=0.01))
    x0, x_t, logits = every_pair(transition)
    for t in (torch.tensor(0.4, dtype=D), torch.linspace(0.001, 1, len(x0), dtype=D)):
        closed, plain = transition.path_rate(logits, x0, x_t, t), plain_path_rate(transition, logits, x0, x_t, t)
        close(closed.divergence, plain.divergence)
        close(closed.cross_entropy, plain.cross_entropy)
    t, h = torch.tensor(0.4, dtype=D), 1e-6
    divergence = transition.divergence(Marginal(), logits, x0, x_t, t, t - h).divergence
    close(divergence / h, transition.path_rate(logits, x0, x_t, t).divergence, 1e-4)


@pytest.mark.parametrize("kind", RESAMPLING)
def test_gradients_of_closed_forms(kind, monkeypatch):
    monkeypatch.setattr(fused, "ON_CPU", 4)
    transition, process = RESAMPLING[kind](reciprocal(8)), RESAMPLING[kind](LogLinear())
    x0, x_t, logits = every_pair(transition)
    logits.requires_grad_()
    t, s, now = at(5, 8), at(4, 8), torch.tensor(0.4, dtype=D)
    weight = seeded(3, 2, len(x0))
    for closed, plain in (
        (process.path_rate(logits, x0, x_t, now), plain_path_rate(process, logits, x0, x_t, now)),
        *(
            (transition.divergence(r, logits, x0, x_t, t, s), plain_divergence(transition, r, logits, x0, x_t, t, s))
            for r in (Product(), Marginal())
        ),
    ):
        ours, theirs = (torch.autograd.grad((torch.stack(list(terms)) * weight).sum(), logits)[0] for terms in (closed, plain))
        close(ours, theirs)
    own, u = 0.1 + 0.9 * seeded(1, len(x0)), 5 * seeded(2, len(x0))
    seen = x_t.clamp(max=transition.levels - 1)
    assert torch.autograd.gradcheck(lambda v: fused.resampled_sums(v, seen, x0, u, own), logits)
    assert torch.autograd.gradcheck(lambda v: fused.cross_entropy(v, x0), logits)
    assert len(list(fused._blocks(logits))) > 1


@pytest.mark.parametrize("kind", ["uniform", "mask"])
@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
def test_small_steps_over_a_large_vocabulary_in_float32(kind, reverse):
    """K = 50257 and steps of 1e-5: where x_t = x_0 the KL is 1e-5 nats or less, and all but its last digits would cancel."""
    size = 50257
    transition = Uniform(size, cosine(1000)) if kind == "uniform" else Absorbing(size, cosine(1000))
    x0 = torch.randint(0, size, (8,), generator=torch.Generator().manual_seed(0))
    x_t = torch.where(torch.arange(8) < 4, x0, (x0 + 5) % size if kind == "uniform" else size)
    logits = 3 * torch.randn(8, size, dtype=D, generator=torch.Generator().manual_seed(1))
    for n in (2, 999):
        exact = transition.divergence(reverse, logits, x0, x_t, at(n, 1000), at(n - 1, 1000)).divergence
        for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            rough = transition.divergence(reverse, logits.to(dtype), x0, x_t, at(n, 1000), at(n - 1, 1000)).divergence
            assert rough.dtype == torch.float32
            assert ((rough - exact).abs() <= bound * exact + 1e-6).all()


@pytest.mark.parametrize("kind", RESAMPLING)
def test_bfloat16_logits(kind):
    """Losses are float32 and gradients bfloat16, and both are those of the rounded logits in float64."""
    transition, process = RESAMPLING[kind](reciprocal(8)), RESAMPLING[kind](LogLinear())
    x0, x_t, logits = every_pair(transition)
    rough = logits.bfloat16().requires_grad_()
    exact = rough.detach().double().requires_grad_()
    for loss in (
        lambda v: transition.divergence(Marginal(), v, x0, x_t, at(5, 8), at(4, 8)),
        lambda v: transition.divergence(Product(), v, x0, x_t, at(5, 8), at(4, 8)),
        lambda v: process.path_rate(v, x0, x_t, at(1, 2)),
    ):
        ours, theirs = torch.stack(list(loss(rough))), torch.stack(list(loss(exact)))
        assert ours.dtype == torch.float32
        close(ours, theirs.float(), 1e-4)
        of_ours, of_theirs = (torch.autograd.grad(v.sum(), w)[0] for v, w in ((ours, rough), (theirs, exact)))
        assert of_ours.dtype == torch.bfloat16
        assert (of_ours - of_theirs).abs().max() < 0.02 * of_theirs.abs().max()


class Even(Streams):
    """All quantiles, evenly, in place of chance."""

    def __init__(self) -> None:
        pass

    def uniform(self, shape, dtype, device):
        return ((torch.arange(shape[0], dtype=D) + 0.5) / shape[0]).to(dtype).reshape(-1, *[1] * (len(shape) - 1)).expand(tuple(shape))


@pytest.mark.parametrize("reverse", [Product(), Marginal(), Product(eps=1e-3)], ids=str)
@pytest.mark.parametrize("kind", RESAMPLING)
def test_draws_follow_their_law(kind, reverse):
    """One uniform number a position: over all of them each symbol comes as often as its chance, to the width of the grid."""
    transition, count = RESAMPLING[kind](reciprocal(8)), 40_000
    logits = 2 * torch.randn(transition.levels, dtype=D, generator=torch.Generator().manual_seed(3))
    denoiser = Categorical(Formula(lambda x, label: logits.expand(*x.shape, -1)), transition, reverse)
    for n, m in ((8, 7), (8, 2), (5, 4), (2, 1)):
        for x in transition.likelihood(torch.arange(transition.states), CLEAN, at(n, 8)).sum(-1).nonzero()[:, 0].tolist():
            x_t = torch.full((count,), x)
            drawn = denoiser.draw(x_t, at(n, 8), at(m, 8), generator=Even())
            law = denoiser.step_law(x_t[:1], at(n, 8), at(m, 8))[0]
            assert (torch.bincount(drawn, minlength=transition.states) / count - law).abs().max() < 1e-4
    clean, later = (torch.tensor(v, dtype=D) for v in (0.25, 0.75))
    for x in range(transition.levels):
        for draw, low in ((transition.corrupt, None), (transition.diffuse, clean)):
            drawn = draw(torch.full((count,), x), *(() if low is None else (low,)), later, generator=Even())
            law = transition.likelihood(torch.arange(transition.states), CLEAN if low is None else low, later)[:, x]
            assert (torch.bincount(drawn, minlength=transition.states) / count - law).abs().max() < 1e-4
    start = transition.prior((count,), generator=Even())
    assert (torch.bincount(start, minlength=transition.states) / count - transition.stationary()).abs().max() < 1e-4


class Table(torch.nn.Module):
    """A network whose logits are a table over x_t and the time: enough to be wrong in every way."""

    def __init__(self, states, levels):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(states, levels, dtype=D, generator=torch.Generator().manual_seed(1)))

    def forward(self, x, label):
        return self.table[x] + 0.001 * label.reshape(-1, *[1] * x.ndim)[: len(x)] * torch.arange(self.table.shape[1])


def test_an_objective_is_the_mean_of_its_terms_over_what_is_real():
    """`L_n + lambda CE`, the rate times the length of time, and cross-entropy alone; positions of padding count for nothing."""
    x0 = torch.randint(0, 4, (6, 3, 2), generator=torch.Generator().manual_seed(0))
    x0[2], x0[:, 0, 0] = 0, 1  # 0 is padding; one example has little else
    table, process = Absorbing(4, reciprocal(6)), Uniform(4, LogLinear())
    for transition, make in (
        (table, lambda d, **more: Hybrid(d, 0.25, **more)),
        (process, lambda d, **more: ContinuousBound(d, 0.25, **more)),
        (table, CrossEntropy),
        (process, CrossEntropy),
    ):
        denoiser = Categorical(Table(transition.states, transition.states), transition)
        t = torch.arange(1, 7).double() / 6
        x_t = transition.corrupt(x0, t, generator=torch.Generator().manual_seed(5))
        s = t - 1 / 6 if transition is table else torch.zeros_like(t)
        terms = denoiser.divergence(x0, x_t, t, s)
        if make is CrossEntropy:
            each = terms.cross_entropy
        elif transition is table:
            each = terms.divergence + 0.25 * terms.cross_entropy
        else:
            each = (1 - 1e-3) * denoiser.path_rate(x0, x_t, t).divergence + 0.25 * terms.cross_entropy
        for padding in (None, 0):
            real = torch.ones_like(x0, dtype=D) if padding is None else (x0 != 0).double()
            expected = (each * real).flatten(1).sum(1) / real.flatten(1).sum(1)
            loss = make(denoiser, padding=padding).at(x0, t, generator=torch.Generator().manual_seed(5))
            close(loss.total, expected)
            if "bits_per_dim" in loss.parts:
                plain = terms.divergence * 6 if transition is table else (1 - 1e-3) * denoiser.path_rate(x0, x_t, t).divergence
                close(loss.parts["bits_per_dim"], (plain * real).flatten(1).sum(1) / real.flatten(1).sum(1) / math.log(2))
    close(-log_clean(transition, denoiser.logits(x_t, t)).gather(-1, x0[..., None])[..., 0], each)


def test_a_mask_is_never_predicted():
    transition = Absorbing(4, reciprocal(5))
    denoiser = Categorical(Table(5, 5), transition)
    p = denoiser(torch.tensor([[4, 1]]), torch.tensor(0.6, dtype=torch.float64)).exp()
    assert (p[..., 4] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 2, dtype=p.dtype))
    assert (Ancestral(denoiser)(shape=(50, 6), steps=5, generator=torch.Generator().manual_seed(0)) < 4).all()


def test_a_certain_network_does_not_lose_the_symbol(generator):
    """Where p0 gives no chance to anything that leads to x_t, an unmasked symbol stays what it is."""
    transition = Absorbing(4, reciprocal(5))
    p0 = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    for reverse in (Product(), Marginal()):
        torch.testing.assert_close(reverse(transition, torch.tensor([1]), p0, t, s), torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]))


def test_the_oracle_is_bayes_rule():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    transition = Uniform(3, cosine(4))
    t = torch.tensor(0.5, dtype=torch.float64)
    q = transition.likelihood(torch.arange(3), torch.zeros_like(t), t).T
    expected = p[:, None] * q / (p[:, None] * q).sum(0)
    torch.testing.assert_close(CategoricalOracle(p, transition)(torch.arange(3), t).exp(), expected.T)


NEAR = torch.tensor([[1], [2], [3], [0]])
TRANSITIONS = [
    lambda: Uniform(4, cosine(5)),
    lambda: Uniform(4, LogLinear()),
    lambda: Absorbing(4, reciprocal(5)),
    lambda: Absorbing(4, discrete.Cosine(), mask=1),
    lambda: DiscretizedGaussian(4, linear(5)),
    lambda: BandDiagonal(4, cosine(5), band=2),
    lambda: GaussianTarget(4, discrete.Exponential(), reach=2.0, width=3.0),
    lambda: NearestNeighbor(NEAR, Steps(linear(5))),
    lambda: NearestNeighbor(NEAR, discrete.Geometric()),
    lambda: Mixture(NearestNeighbor(NEAR, Constant(2.0)), Absorbing(4, LogLinear())),
    lambda: Dense(torch.full((3, 4, 4), 0.25), torch.tensor([0.1, 0.2, 0.3, 0.4]), levels=3),
]


@pytest.mark.parametrize("make", TRANSITIONS)
def test_descriptions_rebuild_what_they_describe(make):
    transition = make()
    network = Table(transition.states, transition.states)
    heads = (discrete.direct, discrete.residual, discrete.carried, discrete.logistic)
    denoisers = [Categorical(network, transition, r, head=h) for r, h in zip((Product(1e-6), Marginal(), None, None), heads, strict=True)]
    objective = (lambda d: Hybrid(d, 0.01, padding=3)) if transition.steps else (lambda d: ContinuousBound(d, 0.01, padding=3))
    things = [transition, *denoisers, objective(denoisers[0]), CrossEntropy(denoisers[1])]
    if not transition.steps and isinstance(transition, Uniform | Absorbing):
        things.append(ContinuousBound(ScoreEntropyDenoiser(network, transition, offset=discrete.scaled_by_noise)))
    for thing in things:
        text = json.dumps(describe(thing))
        again = build(json.loads(text), network)
        assert json.dumps(describe(again)) == text
    again = build(json.loads(json.dumps(describe(transition))))
    states, t = torch.arange(transition.states), torch.ones((), dtype=D)
    for a, b in (
        (transition.likelihood(states, CLEAN, t), again.likelihood(states, CLEAN, t)),
        (transition.stationary(), again.stationary()),
    ):
        assert torch.equal(a, b)


ROWS = torch.full((3, 4, 4), 0.25)
REFUSED = [
    (lambda: Uniform(4, cosine(5)).corrupt(torch.tensor([[1, 4]]), torch.ones(1)), "x_0 holds the symbol 4, outside the vocabulary 0..3"),
    (lambda: Absorbing(4, cosine(5)).corrupt(torch.tensor([[4]]), torch.ones(1)), "x_0 holds the symbol 4, outside the vocabulary 0..3"),
    (lambda: DiscretizedGaussian(4, cosine(5)).corrupt(torch.tensor([[-1]]), torch.ones(1)), "x_0 holds the symbol -1"),
    (lambda: Dense(ROWS).corrupt(torch.tensor([[4]]), torch.ones(1)), "x_0 holds the symbol 4"),
    (lambda: Uniform(4, cosine(5)).diffuse(torch.tensor([[7]]), at(1, 5), at(2, 5)), "x_s holds the symbol 7"),
    (
        lambda: Categorical(Table(5, 5), Absorbing(4, cosine(5)))(torch.tensor([[5]]), torch.ones(1)),
        "x_t holds the symbol 5, outside .* 0..4",
    ),
    (
        lambda: ScoreEntropyDenoiser(Table(4, 4), Uniform(4, LogLinear())).ratio(torch.tensor([[4]]), torch.ones(1)),
        "x_t holds the symbol 4",
    ),
    (
        lambda: Uniform(4, cosine(5)).corrupt(torch.zeros(2, 2), torch.ones(2)),
        "x_0 is torch.float32: categorical data are integers in 0..3",
    ),
    (lambda: Uniform(4, cosine(5)).corrupt(torch.zeros(2, dtype=torch.bool), torch.ones(2)), "x_0 is torch.bool"),
    (lambda: Absorbing(4, reciprocal(5), mask=4), "mask=4: choose one of the symbols 0..3"),
    (lambda: Uniform(1, reciprocal(5)), "levels=1"),
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
    (lambda: Dense(ROWS, levels=5), "levels=5"),
    (lambda: Dense(ROWS, last=torch.ones(4)), "last must be a law of the 4 symbols"),
    (lambda: NearestNeighbor(torch.tensor([[1], [0], [3], [2]]), Constant()), "falls into 2 parts.*raise k, or mix in Uniform"),
    (lambda: NearestNeighbor(torch.tensor([[1], [4], [3], [2]]), Constant()), "symbols 0..K-1"),
    (lambda: NearestNeighbor(NEAR, reciprocal(5)), "erases all by its end.*mutual_information"),
    (lambda: GaussianTarget(4, LogLinear(eps=0.0)), "erases all by its end"),
    (lambda: GaussianTarget(4, reach=0.0), "reach=0.0"),
    (lambda: nearest(torch.randn(4, 2), 4), "k=4: give the number of neighbours, from 1 to 3"),
    (lambda: BandDiagonal(4, cosine(5), band=4), "band=4: give the reach of a step, from 1 to 3"),
    (lambda: Mixture(NearestNeighbor(NEAR, Constant()), Uniform(5, Constant())), "4 symbols and T=None of the moves do not fit 5 symbols"),
    (lambda: Mixture(NearestNeighbor(NEAR, Constant()), Absorbing(4, Constant(), mask=2)), "the moves change the law"),
    *(
        (lambda flow=flow: flow(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2)), "table of 5 steps has no rate")
        for flow in (
            Uniform(4, cosine(5)).inflow,
            Absorbing(4, cosine(5)).outflow,
            DiscretizedGaussian(4, linear(5)).outflow,
            BandDiagonal(4, cosine(5)).inflow,
            NearestNeighbor(NEAR, Steps(linear(5))).inflow,
            GaussianTarget(4, cosine(5)).outflow,
        )
    ),
    (lambda: Uniform(4, LogLinear()).row(torch.ones(())), "runs in continuous time and has no rows"),
    (
        lambda: DiscretizedGaussian(4, linear(5)).likelihood(
            torch.zeros(2, 1, dtype=torch.int64), at(torch.tensor([1, 2]), 5), torch.ones(2)
        ),
        "one step apart",
    ),
    (lambda: Hybrid(Categorical(Table(4, 4), Uniform(4, LogLinear()))), "continuous time and has no L_n: train it with ContinuousBound"),
    (lambda: ContinuousBound(Categorical(Table(4, 4), Uniform(4, cosine(5)))), "a table has no rates: train it with Hybrid"),
    (lambda: VariationalBound(Categorical(Table(4, 4), Uniform(4, cosine(5))), steps=4), "steps=4: this table has 5 steps"),
    (lambda: mutual_information(lambda n: Uniform(3, n), torch.tensor([0.5, 0.6, -0.1]), 5), "frequencies must be 3 numbers of sum 1"),
    (lambda: mutual_information(lambda n: Uniform(3, n), torch.tensor([0.5, 0.5]), 5), "frequencies must be 3 numbers of sum 1"),
    (lambda: mutual_information(lambda n: Uniform(3, n), torch.full((3,), 1 / 3), 0), "steps=0"),
    (
        lambda: Categorical(Table(4, 4), Uniform(4, cosine(5)), head=discrete.logistic)(
            torch.zeros(1, 2, dtype=torch.int64), torch.ones(1)
        ),
        "two numbers",
    ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
