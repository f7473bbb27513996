"""Objectives and bounds of the DDPM papers, against closed forms, plain loops and entropies."""

import itertools
import math

import pytest
import torch
from helpers import Formula, Recorded

from unnoise.continuous import (
    Clipped,
    Cosine,
    DenoisingLoss,
    Distillation,
    Hybrid,
    ImportanceSampling,
    Learned,
    Tabulated,
    Variational,
    VariationalBound,
    betas_of,
    constant_betas,
    large,
    learned_range,
    linear_betas,
    small,
    velocity,
)
from unnoise.experiments import load
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.guidance import ClassifierFree, ConditionDropout
from unnoise.shared.networks import MLP
from unnoise.shared.objective import antithetic
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training

TABLE = Tabulated(linear_betas(1000))
ONE = torch.ones((), dtype=torch.float64)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def two_outputs(features=3, seed=0):
    """A network with a second output, none of whose parameters is zero."""
    torch.manual_seed(seed)
    network = MLP(features, 16, 1, outputs=2)
    torch.nn.init.normal_(network.leave.weight, std=0.3)
    return network.double()


# ---- objectives


def test_hybrid_trains_the_mean_by_mse_and_the_variance_by_the_bound():
    scale, x0 = (
        Quantization(17),
        Quantization(17).continuous(torch.randint(0, 17, (64, 3), generator=torch.Generator().manual_seed(0))).double(),
    )
    chain = Tabulated(linear_betas(100))
    model = Learned(two_outputs(), chain)
    draws = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = (torch.arange(64) % 20 + 1).double() / 100

    def gradients(objective):
        model.zero_grad()
        objective.at(x0, t, generator=Recorded(draws)).total.mean().backward()
        return model.network.leave.weight.grad.clone()

    hybrid = gradients(Hybrid(model, scale, vlb=0.001))
    model.zero_grad()
    alpha, sigma = (c[:, None] for c in chain(t))
    predicted = model.network(alpha * x0 + sigma * draws, (1000 * t).float())[:, :3]
    (predicted - draws).square().mean().backward()
    simple = model.network.leave.weight.grad.clone()
    pure = gradients(Variational(model, scale, learned_range))
    torch.testing.assert_close(hybrid[:3], simple[:3])
    torch.testing.assert_close(hybrid[3:], 0.001 * pure[3:])
    assert float(simple[3:].abs().max()) == 0
    assert torch.isfinite(hybrid).all()


@pytest.mark.parametrize("variance", [large, learned_range])
def test_the_variational_loss_is_the_bound_less_its_prior(variance):
    """The mean over all n of T L_n is the sum of the path and the decoder, for the same noise."""
    scale, chain = Quantization(17), Tabulated(linear_betas(40))
    x0 = scale.continuous(torch.randint(0, 17, (5, 3), generator=torch.Generator().manual_seed(0))).double()
    model = Learned(two_outputs() if variance is learned_range else MLP(3, 16, 1).double(), chain)
    draws = torch.randn(40, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    n = torch.arange(1, 41).double()
    each = [
        Variational(model, scale, variance).at(x0, (m / 40).expand(5), generator=Recorded(z)).total
        for m, z in zip(n, draws, strict=True)
    ]
    bound = VariationalBound(model, scale, variance=variance)
    with torch.no_grad():
        terms = sum(bound.term(x0, m / 40, generator=Recorded(z)) for m, z in zip(n, draws, strict=True))
    torch.testing.assert_close(torch.stack(each).mean(0), terms / (3 * math.log(2)))


class Plain(torch.nn.Module):
    """The published bookkeeping of the loss-second-moment sampler, one loss after the other."""

    def __init__(self, steps, history):
        super().__init__()
        self.losses = [[] for _ in range(steps)]
        self.history = history

    def record(self, index, losses):
        for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
            self.losses[i] = [*self.losses[i], loss][-self.history :]

    def probabilities(self, uniform):
        if any(len(kept) < self.history for kept in self.losses):
            return torch.full((len(self.losses),), 1 / len(self.losses), dtype=torch.float64)
        root = torch.tensor(
            [math.sqrt(sum(v**2 for v in kept) / len(kept)) for kept in self.losses], dtype=torch.float64
        )
        return (1 - uniform) * root / root.sum() + uniform / len(root)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_importance_remembers_as_published(batch, generator):
    steps, history = 5, 3
    objective = ImportanceSampling(
        DenoisingLoss.simple(Learned(MLP(2), Tabulated(constant_betas(steps, 1e-3)))), history=history, uniform=0.01
    )
    plain = Plain(steps, history)
    for _ in range(60):
        index, losses = (
            torch.randint(0, steps, (batch,), generator=generator),
            torch.rand(batch, generator=generator).double(),
        )
        objective.record(index, losses)
        plain.record(index, losses)
        torch.testing.assert_close(objective.probabilities(), plain.probabilities(0.01))
    assert float(objective.probabilities().sum()) == pytest.approx(1)
    again = ImportanceSampling(
        DenoisingLoss.simple(Learned(MLP(2), Tabulated(constant_betas(steps, 1e-3)))), history=history, uniform=0.01
    )
    again.load_state_dict(objective.state_dict())
    torch.testing.assert_close(again.probabilities(), objective.probabilities())


def test_importance_leaves_out_losses_that_are_not_finite():
    inner = DenoisingLoss.simple(Learned(MLP(2), Tabulated(constant_betas(2, 1e-3))))
    objective, expected = ImportanceSampling(inner, history=2), ImportanceSampling(inner, history=2)
    nan, inf = float("nan"), float("inf")
    objective.record(torch.tensor([0, 0, 1, 1, 0, 1]), float64(1, nan, 2, inf, 3, 4))
    expected.record(torch.tensor([0, 1, 0, 1]), float64(1, 2, 3, 4))
    assert torch.equal(objective.probabilities(), expected.probabilities())
    assert torch.equal(objective.counts, expected.counts)
    assert float(objective.probabilities()[1]) > 0.5


def test_importance_is_unbiased(generator):
    """With any probabilities, the expectation of the weighted loss is the mean over the steps."""
    chain = Tabulated(constant_betas(4, 1e-3))
    inner = DenoisingLoss.simple(Learned(Formula(lambda x, label: 0.01 * label[:, None].expand_as(x).double()), chain))
    objective = ImportanceSampling(inner, history=2).train()
    objective.record(torch.arange(4).repeat(2), float64(1, 2, 3, 10, 1, 2, 3, 10))
    x0 = torch.zeros(40_000, 1, dtype=torch.float64)
    p = objective.probabilities()
    assert float(p[3]) > 0.6
    objective.eval()
    loss = objective(x0, generator=generator)
    each = [
        float(inner.at(x0, torch.full((len(x0),), n / 4).double(), generator=generator).total.mean())
        for n in range(1, 5)
    ]
    error = float(loss.total.std()) / 200
    assert abs(float(loss.total.mean()) - sum(each) / 4) < 4 * error
    counts = torch.bincount((loss.t * 4).round().long() - 1, minlength=4) / len(x0)
    torch.testing.assert_close(counts.double(), p, rtol=0, atol=0.02)


def test_antithetic_times_pair_up(generator):
    t = TABLE.training_time(antithetic(10, generator))
    torch.testing.assert_close(t[:5] + t[5:], torch.full((5,), 1.001, dtype=torch.float64))


# ---- bounds with an exact denoiser


class Strata(Recorded):
    """Normal draws `(blocks * rows * values, 1)`.

    In each block those for one value fall into equal strata, so means have little error.
    """

    def __init__(self, blocks, rows, values):
        self.shape, self.source = (blocks, rows, values), torch.Generator().manual_seed(0)

    def normal(self, shape, dtype, device):
        u = torch.rand(self.shape, dtype=dtype, generator=self.source)
        ranks = torch.rand(self.shape, generator=self.source).argsort(1)
        return torch.special.ndtri((ranks + u) / self.shape[1]).view(shape)

    def uniform(self, shape, dtype, device):
        return torch.full(tuple(shape), 0.5, dtype=dtype)  # every step is taken


DATA = {
    "points": (torch.tensor([0, 3, 8, 9, 15]), torch.full((5,), 0.2, dtype=torch.float64)),
    "gaussian": (
        torch.arange(17),
        torch.softmax(-0.5 * Quantization(17).continuous(torch.arange(17)).double() ** 2 / 0.1, 0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
def test_the_bound_stays_above_the_entropy_and_its_gap_falls_as_1_over_steps(data):
    """Exact denoisers of five quantization levels, and of a Gaussian rounded to 17 of them, on tables even in log-SNR.

    The gap is what Gaussian steps cost, in nats. On the linear table of 100 steps single steps are too coarse near the
    data for the limit.
    """
    (k, weights), scale, gaps = DATA[data], Quantization(17), []
    where = scale.continuous(k).double()[:, None]
    entropy = float(-(weights * weights.log()).sum())
    for steps, rows in ((100, 500), (400, 300), (1600, 120)):
        shape = (3, rows)
        even = betas_of(torch.linspace(9, -9, steps, dtype=torch.float64).sigmoid())
        oracle = AnalyticMixture(weights, where, torch.zeros(len(k), dtype=torch.float64), Tabulated(even))
        bound = VariationalBound(oracle, scale, variance=small)
        nats = bound(where.repeat(math.prod(shape), 1), generator=Strata(*shape, len(k))).nats.view(*shape, -1)
        blocks = nats.mean(1) @ weights - entropy
        assert float(blocks.mean()) > 3 * float(blocks.std()) / math.sqrt(3), (steps, blocks)
        gaps.append(float(blocks.mean()))
    for coarse, fine in itertools.pairwise(gaps):
        assert 3 < coarse / fine < 5, gaps


def test_distortion_is_what_the_posterior_leaves(generator):
    """For a Gaussian the squared error of the exact estimate is the variance of x_0 given x_t; the rate only grows."""
    variance = 0.25
    chain = Tabulated(linear_betas(50))
    oracle = AnalyticGaussian(
        torch.zeros(1, dtype=torch.float64), torch.full((1, 1), variance, dtype=torch.float64), chain
    )
    bound, x0 = (
        VariationalBound(oracle, Quantization(256, -4.0, 4.0)),
        0.5 * torch.randn(20_000, 1, dtype=torch.float64, generator=generator),
    )
    curve = bound.rate_distortion(x0, generator=generator)
    alpha, sigma = chain(curve.t)
    left = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    measured = (curve.rmse.square().mean(1) * bound.quantization.spacing**2).sqrt()
    torch.testing.assert_close(measured, left.sqrt(), rtol=0.03, atol=0)
    rate = curve.rate.mean(1)
    assert (rate.diff() > 0).all()
    torch.testing.assert_close(rate[0], bound.prior(x0).mean() / math.log(2))


# ---- what training needs is in the checkpoint


class Own(torch.nn.Module):
    """A network that is not of this package, so a checkpoint cannot rebuild it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, time, label=None):
        return self.layer(x)


def distillation():
    torch.manual_seed(0)
    student, teacher = Own(), Own()
    return Distillation(Learned(student, Cosine(), velocity), Clipped(Learned(teacher, Cosine(), velocity)), 4)


OBJECTIVES = {
    "importance": lambda: ImportanceSampling(
        Variational(Learned(MLP(2, 8, 1, outputs=2), Tabulated(linear_betas(40))), Quantization(17), learned_range), 2
    ),
    "hybrid+dropout": lambda: ConditionDropout(
        Hybrid(Learned(MLP(2, 8, 1, 3, 2), Tabulated(linear_betas(40))), Quantization(17)), p=0.5
    ),
    "distillation": distillation,
    "guided teacher": lambda: Distillation(
        Learned(MLP(2, 8, 1, 3), Cosine(), velocity),
        ClassifierFree(Learned(MLP(2, 8, 1, 3), Cosine(), velocity), 1.0),
        4,
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_equals_one_that_was_not_stopped(name, tmp_path):
    def batches():
        source = torch.Generator().manual_seed(5)
        while True:
            yield {
                "x0": torch.rand(32, 2, generator=source) * 2 - 1,
                "label": torch.randint(0, 3, (32,), generator=source),
            }

    def fit(folder, steps, resume=False, skip=0):
        torch.manual_seed(0)
        stream = batches() if name not in ("importance", "distillation") else ({"x0": b["x0"]} for b in batches())
        for _ in range(skip):
            next(stream)
        config = Training(steps=steps, learning_rate=1e-2, warmup=1, ema=0.9, save_every=10, log_every=10)
        return Trainer(OBJECTIVES[name](), config, folder=tmp_path / folder).fit(stream, resume=resume)

    whole = fit("a", 40)
    fit("b", 20)
    resumed = fit("b", 40, resume=True, skip=20)
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    loaded = load(tmp_path / "b", network=Own() if name == "distillation" else None).average
    for (key, a), b in zip(whole.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    if name == "distillation":
        assert not torch.equal(loaded.denoiser.network.layer.weight, loaded.teacher.denoiser.network.layer.weight)
