"""Closed forms against definitions, draws against distributions.

Objectives, refusals and descriptions of categorical diffusion.
"""

import json
import math

import pytest
import torch
from helpers import Formula

from unnoise import discrete
from unnoise.discrete import (
    Absorbing,
    AnalyticCategorical,
    Ancestral,
    BandDiagonal,
    Categorical,
    ConstantNoise,
    ContinuousBound,
    CrossEntropy,
    D3PMLoss,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    LogLinearNoise,
    Marginal,
    Mixture,
    NearestNeighbor,
    Product,
    ScoreEntropyDenoiser,
    TabulatedNoise,
    Uniform,
    cosine,
    fused,
    linear,
    reciprocal,
)
from unnoise.discrete.transition.base import CLEAN
from unnoise.discrete.transition.generic import generic_divergence, generic_path_rate
from unnoise.shared.random import Streams
from unnoise.shared.serialization import deserialize, serialize

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
    """All (x_0, x_t) that can meet half-way, `(N,)`, and logits `(N, categories)`."""
    x0, x_t = torch.cartesian_prod(torch.arange(transition.categories), torch.arange(transition.states)).T.repeat(
        1, repeats
    )
    half = torch.tensor(0.5, dtype=D)
    meet = transition.likelihood(x_t, CLEAN, half).gather(-1, x0[:, None])[:, 0] > 0
    x0, x_t = x0[meet], x_t[meet]
    return x0, x_t, 3 * torch.randn(len(x0), transition.categories, dtype=D, generator=torch.Generator().manual_seed(7))


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
                generic_divergence(transition, reverse, logits, x0, x_t, t, s),
                strict=True,
            ):
                close(closed, plain)
    each = torch.arange(len(x0)) % 7 + 1  # another step for each row, the first among them
    t, s = at(each, 8), at(each - 1, 8)
    closed, plain = (
        transition.divergence(reverse, logits, x0, x_t, t, s),
        generic_divergence(transition, reverse, logits, x0, x_t, t, s),
    )
    meets = transition.likelihood(x_t, CLEAN, t).gather(-1, x0[:, None])[:, 0] > 0
    close(closed.divergence[meets], plain.divergence[meets])
    assert (closed.divergence[meets] >= -1e-12).all()


@pytest.mark.parametrize("kind", RESAMPLING)
@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
def test_the_closed_rate_of_the_path_is_its_definition_and_the_limit_of_divergences(kind, reverse, monkeypatch):
    monkeypatch.setattr(fused, "ON_CPU", 4)
    monkeypatch.setattr(fused, "SMALL", 0)
    transition = RESAMPLING[kind](LogLinearNoise(eps=0.01))
    x0, x_t, logits = every_pair(transition)
    for t in (torch.tensor(0.4, dtype=D), torch.linspace(0.001, 1, len(x0), dtype=D)):
        closed, plain = (
            transition.path_rate(reverse, logits, x0, x_t, t),
            generic_path_rate(transition, reverse, logits, x0, x_t, t),
        )
        close(closed.divergence, plain.divergence)
        close(closed.cross_entropy, plain.cross_entropy)
    t, h = torch.tensor(0.4, dtype=D), 1e-6
    divergence = transition.divergence(reverse, logits, x0, x_t, t, t - h).divergence
    close(divergence / h, transition.path_rate(reverse, logits, x0, x_t, t).divergence, 1e-4)


@pytest.mark.parametrize("kind", RESAMPLING)
def test_gradients_of_closed_forms(kind, monkeypatch):
    monkeypatch.setattr(fused, "ON_CPU", 4)
    monkeypatch.setattr(fused, "SMALL", 0)
    transition, process = RESAMPLING[kind](reciprocal(8)), RESAMPLING[kind](LogLinearNoise())
    x0, x_t, logits = every_pair(transition)
    logits.requires_grad_()
    t, s, now = at(5, 8), at(4, 8), torch.tensor(0.4, dtype=D)
    weight = seeded(3, 2, len(x0))
    for closed, plain in (
        *(
            (process.path_rate(r, logits, x0, x_t, now), generic_path_rate(process, r, logits, x0, x_t, now))
            for r in (Product(), Marginal())
        ),
        *(
            (
                transition.divergence(r, logits, x0, x_t, *pair),
                generic_divergence(transition, r, logits, x0, x_t, *pair),
            )
            for r in (Product(), Marginal())
            for pair in ((t, s), (t, CLEAN), (at(1, 8), CLEAN))
        ),
    ):
        ours, theirs = (
            torch.autograd.grad((torch.stack(list(terms)) * weight).sum(), logits)[0] for terms in (closed, plain)
        )
        close(ours, theirs)
    own, u, excess = 0.1 + 0.9 * seeded(1, len(x0)), 5 * seeded(2, len(x0)), 5 * seeded(3, len(x0))
    seen, constants = x_t.clamp(max=transition.categories - 1), fused.rate_constants(logits.shape[1], u, own, excess)
    row = torch.arange(len(x0))
    assert torch.autograd.gradcheck(lambda v: fused.uniform_rate(v, seen, x0, constants, row), logits)
    assert torch.autograd.gradcheck(lambda v: fused.cross_entropy(v, x0), logits)
    assert len(list(fused._blocks(logits))) > 1


@pytest.mark.parametrize("kind", ["uniform", "mask"])
@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
def test_small_steps_over_a_large_vocabulary_in_float32(kind, reverse):
    """K = 50257 and steps of 1e-5.

    Where x_t = x_0 the KL is 1e-5 nats or less, and all but its last digits would cancel.
    """
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
    transition, process = RESAMPLING[kind](reciprocal(8)), RESAMPLING[kind](LogLinearNoise())
    x0, x_t, logits = every_pair(transition)
    rough = logits.bfloat16().requires_grad_()
    exact = rough.detach().double().requires_grad_()
    for loss in (
        lambda v: transition.divergence(Marginal(), v, x0, x_t, at(5, 8), at(4, 8)),
        lambda v: transition.divergence(Product(), v, x0, x_t, at(5, 8), at(4, 8)),
        lambda v: process.path_rate(Product(), v, x0, x_t, at(1, 2)),
        lambda v: process.path_rate(Marginal(), v, x0, x_t, at(1, 2)),
    ):
        ours, theirs = torch.stack(list(loss(rough))), torch.stack(list(loss(exact)))
        assert ours.dtype == torch.float32
        close(ours, theirs.float(), 1e-4)
        of_ours, of_theirs = (torch.autograd.grad(v.sum(), w)[0] for v, w in ((ours, rough), (theirs, exact)))
        assert of_ours.dtype == torch.bfloat16
        assert (of_ours - of_theirs).abs().max() < 0.02 * of_theirs.abs().max()


class Even(Streams):
    """All quantiles, evenly, in place of probability."""

    def __init__(self) -> None:
        pass

    def uniform(self, shape, dtype, device):
        return (
            ((torch.arange(shape[0], dtype=D) + 0.5) / shape[0])
            .to(dtype)
            .reshape(-1, *[1] * (len(shape) - 1))
            .expand(tuple(shape))
        )


@pytest.mark.parametrize("reverse", [Product(), Marginal(), Product(eps=1e-3)], ids=str)
@pytest.mark.parametrize("kind", RESAMPLING)
def test_draws_follow_their_distribution(kind, reverse):
    """One uniform number a position.

    Over all of them each token comes as often as its probability, to the width of the grid.
    """
    transition, count = RESAMPLING[kind](reciprocal(8)), 40_000
    logits = 2 * torch.randn(transition.categories, dtype=D, generator=torch.Generator().manual_seed(3))
    denoiser = Categorical(Formula(lambda x, label: logits.expand(*x.shape, -1)), transition, reverse)
    for n, m in ((8, 7), (8, 2), (5, 4), (2, 1)):
        for x in (
            transition.likelihood(torch.arange(transition.states), CLEAN, at(n, 8)).sum(-1).nonzero()[:, 0].tolist()
        ):
            x_t = torch.full((count,), x)
            drawn = denoiser.draw(x_t, at(n, 8), at(m, 8), generator=Even())
            distribution = denoiser.step_distribution(x_t[:1], at(n, 8), at(m, 8))[0]
            assert (torch.bincount(drawn, minlength=transition.states) / count - distribution).abs().max() < 1e-4
    clean, later = (torch.tensor(v, dtype=D) for v in (0.25, 0.75))
    for x in range(transition.categories):
        for draw, low in ((transition.corrupt, None), (transition.diffuse, clean)):
            drawn = draw(torch.full((count,), x), *(() if low is None else (low,)), later, generator=Even())
            distribution = transition.likelihood(torch.arange(transition.states), CLEAN if low is None else low, later)[
                :, x
            ]
            assert (torch.bincount(drawn, minlength=transition.states) / count - distribution).abs().max() < 1e-4
    start = transition.prior((count,), generator=Even())
    assert (torch.bincount(start, minlength=transition.states) / count - transition.stationary()).abs().max() < 1e-4


class Table(torch.nn.Module):
    """A network whose logits are a table over x_t and the time: enough to be wrong in every way."""

    def __init__(self, states, categories):
        super().__init__()
        self.table = torch.nn.Parameter(
            torch.randn(states, categories, dtype=D, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, x, label):
        return self.table[x] + 0.001 * label.reshape(-1, *[1] * x.ndim)[: len(x)] * torch.arange(self.table.shape[1])


def test_an_objective_is_the_mean_of_its_terms_over_what_is_real():
    """`L_n + lambda CE`, the rate times the length of time, and cross-entropy alone.

    Positions of padding count for nothing.
    """
    x0 = torch.randint(0, 4, (6, 3, 2), generator=torch.Generator().manual_seed(0))
    x0[2], x0[:, 0, 0] = 0, 1  # 0 is padding; one example has little else
    table, process = Absorbing(4, reciprocal(6)), Uniform(4, LogLinearNoise())
    for transition, make in (
        (table, lambda d, **more: D3PMLoss(d, 0.25, **more)),
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
            tokens = real.sum() / len(x0)  # of an example, in the mean: a batch's loss is the mean over its tokens
            loss = make(denoiser, padding=padding).at(x0, t, generator=torch.Generator().manual_seed(5))
            close(loss.total, (each * real).flatten(1).sum(1) / tokens)
            close(loss.total.mean(), (each * real).sum() / real.sum())
            if make is not CrossEntropy:
                name, plain = ("path_and_data_bits_per_dim", terms.divergence * 6)
                if transition is process:
                    name, plain = ("path_bits_per_dim", (1 - 1e-3) * denoiser.path_rate(x0, x_t, t).divergence)
                close(loss.parts[name], (plain * real).flatten(1).sum(1) / tokens / math.log(2))
    close(-denoiser.step_distribution(x_t, t, s).gather(-1, x0[..., None])[..., 0].log(), each)  # at s = 0


def test_a_mask_is_never_predicted():
    transition = Absorbing(4, reciprocal(5))
    denoiser = Categorical(Table(5, 5), transition)
    p = denoiser(torch.tensor([[4, 1]]), torch.tensor(0.6, dtype=torch.float64)).exp()
    assert (p[..., 4] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 2, dtype=p.dtype))
    assert (Ancestral(denoiser)(shape=(50, 6), steps=5, generator=torch.Generator().manual_seed(0)) < 4).all()


def test_a_certain_network_does_not_lose_the_symbol(generator):
    """Where p0 gives no probability to anything that leads to x_t, an unmasked token stays what it is."""
    transition = Absorbing(4, reciprocal(5))
    p0 = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    for reverse in (Product(), Marginal()):
        torch.testing.assert_close(
            reverse(transition, torch.tensor([1]), p0, t, s), torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]])
        )


def test_the_oracle_is_bayes_rule():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    transition = Uniform(3, cosine(4))
    t = torch.tensor(0.5, dtype=torch.float64)
    q = transition.likelihood(torch.arange(3), torch.zeros_like(t), t).T
    expected = p[:, None] * q / (p[:, None] * q).sum(0)
    torch.testing.assert_close(AnalyticCategorical(p, transition)(torch.arange(3), t).exp(), expected.T)


NEAR = torch.tensor([[1], [2], [3], [0]])
TRANSITIONS = [
    lambda: Uniform(4, cosine(5)),
    lambda: Uniform(4, LogLinearNoise()),
    lambda: Absorbing(4, reciprocal(5)),
    lambda: Absorbing(4, discrete.CosineNoise(), mask=1),
    lambda: DiscretizedGaussian(4, linear(5)),
    lambda: BandDiagonal(4, cosine(5), band=2),
    lambda: GaussianTarget(4, discrete.ExponentialNoise(), reach=2.0, width=3.0),
    lambda: NearestNeighbor(NEAR, TabulatedNoise(linear(5))),
    lambda: NearestNeighbor(NEAR, discrete.GeometricNoise()),
    lambda: Mixture(NearestNeighbor(NEAR, ConstantNoise(2.0)), Absorbing(4, LogLinearNoise())),
    lambda: Dense(torch.full((3, 4, 4), 0.25), torch.tensor([0.1, 0.2, 0.3, 0.4]), categories=3),
]


@pytest.mark.parametrize("make", TRANSITIONS)
def test_descriptions_rebuild_what_they_describe(make):
    transition = make()
    network = Table(transition.states, transition.states)
    heads = (
        discrete.direct,
        discrete.residual,
        discrete.carried if transition.unmasked_is_clean else discrete.direct,
        discrete.logistic,
    )
    reverses = (Product(1e-6) if transition.steps else Product(), Marginal(), None, None)
    denoisers = [Categorical(network, transition, r, head=h) for r, h in zip(reverses, heads, strict=True)]
    objective = (
        (lambda d: D3PMLoss(d, 0.01, padding=3))
        if transition.steps
        else (lambda d: ContinuousBound(d, 0.01, padding=3))
    )
    things = [transition, *denoisers, objective(denoisers[0]), CrossEntropy(denoisers[1])]
    if not transition.steps and isinstance(transition, Uniform | Absorbing):
        things.append(ContinuousBound(ScoreEntropyDenoiser(network, transition, offset=discrete.scaled_by_noise)))
    for thing in things:
        text = json.dumps(serialize(thing))
        again = deserialize(json.loads(text), network)
        assert json.dumps(serialize(again)) == text
    again = deserialize(json.loads(json.dumps(serialize(transition))))
    states, t = torch.arange(transition.states), torch.ones((), dtype=D)
    for a, b in (
        (transition.likelihood(states, CLEAN, t), again.likelihood(states, CLEAN, t)),
        (transition.stationary(), again.stationary()),
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("categories", [2, 5])
def test_uniform_is_multinomial_diffusion(categories):
    """Hoogeboom et al. (2021), eq. 11-17, in their logarithms: posterior from `log alpha`, `log (1 - alpha)` and
    K."""
    steps, transition = 8, Uniform(categories, cosine(8))
    alpha = 1 - cosine(8)
    log_alpha, log_total = alpha.log(), alpha.log().cumsum(0)

    def mixed(log_x, log_keep):
        return torch.logaddexp(log_x + log_keep, torch.log1p(-log_keep.exp()) - math.log(categories))

    log_hot = torch.eye(categories, dtype=D).clamp(min=1e-300).log()
    log_p0 = torch.randn(categories, categories, dtype=D, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    x0, x_t = torch.cartesian_prod(torch.arange(categories), torch.arange(categories)).T
    for n in range(2, steps + 1):
        close(
            transition.pushforward(torch.eye(categories, dtype=D), CLEAN, at(n, steps)),
            mixed(log_hot, log_total[n - 1]).exp(),
        )

        def posterior(log_x0, n=n):
            unnormed = mixed(log_hot[x_t], log_alpha[n - 1]) + mixed(log_x0, log_total[n - 2])
            return unnormed - unnormed.logsumexp(-1, keepdim=True)

        q, p = posterior(log_hot[x0]), posterior(log_p0[x_t])
        kl = (q.exp() * (q - p)).sum(-1)
        close(transition.divergence(Product(), log_p0[x_t], x0, x_t, at(n, steps), at(n - 1, steps)).divergence, kl)
        close(Product()(transition, x_t, log_p0[x_t].exp(), at(n, steps), at(n - 1, steps)), p.exp())
