"""Energy-based denoisers: the score as a gradient, the log-density, and the normalizing constant."""

import math

import pytest
import torch
from torch import nn

from unnoise.sde import (
    VE,
    VP,
    Adaptive,
    AnnealedLangevin,
    ChangeOfVariables,
    CorrectorPredictor,
    DenoisingLoss,
    ExactTrace,
    NoiseLevels,
    NoPredictor,
    ProbabilityFlow,
    SubVP,
    annealing,
    geometric_sigmas,
)
from unnoise.sde.annealing import log_normalizing_constant
from unnoise.sde.energy import EnergyDenoiser, Potential
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticMixture
from unnoise.shared.networks import MLP
from unnoise.shared.random import normal
from unnoise.shared.sampler import counted
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.tensors import exact, like

WEIGHTS = torch.tensor([0.7, 0.3], dtype=torch.float64)
MEANS = torch.tensor([[-1.2, 0.3], [1.0, -0.6]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.15], dtype=torch.float64)
TABLE = NoiseLevels(geometric_sigmas(0.1, 8.0, 12))
SCHEDULES = {"vp": VP(), "sub-vp": SubVP(), "ve": VE(), "noise-levels": TABLE}


def at(t):
    return torch.tensor(t, dtype=torch.float64)


class OfMixture(nn.Module):
    """The U with which `EnergyDenoiser` is the exact denoiser of a mixture, with any log Z, from its definition."""

    def __init__(self, log_z=0.0):
        super().__init__()
        self.oracle, self.log_z = AnalyticMixture(WEIGHTS, MEANS, VARIANCES, VP()), log_z

    def forward(self, y, time):
        t = time.double() / 1000  # VP is variance preserving, so y is x
        alpha, sigma = (c.to(y) for c in self.oracle.corruption(t))
        return sigma / alpha * (-self.oracle.log_prob(y, t) - self.log_z - 0.5 * (y**2).sum(1))


def mixture(log_z=0.0):
    return EnergyDenoiser(OfMixture(log_z), VP())


def learned(seed=0, width=32):
    torch.manual_seed(seed)
    return EnergyDenoiser(Potential(MLP(2, width, 2)), VP()).double()


@pytest.fixture
def x(generator):
    return torch.randn(7, 2, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_an_exact_energy_is_the_exact_denoiser(schedule, x):
    """Mean, score and log-density on every schedule, of a network that was trained on VP."""
    oracle = AnalyticMixture(WEIGHTS, MEANS, VARIANCES, schedule)
    denoiser = mixture(1.5).on(schedule)
    t = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    x = x * schedule(t)[1][:, None]
    # Time inputs are float32, so t has seven digits.
    torch.testing.assert_close(denoiser(x, t), oracle(x, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoiser.score(x, t), oracle.score(x, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoiser.log_density(x, t), oracle.log_prob(x, t) + 1.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_score_is_the_gradient_of_the_log_density(schedule, x):
    """For any network; the mean follows by Tweedie's formula, with and without gradients enabled."""
    denoiser = learned().on(schedule)
    t = torch.linspace(0.2, 1.0, 7, dtype=torch.float64)
    inputs = x.requires_grad_()
    (slope,) = torch.autograd.grad(denoiser.log_density(inputs, t).sum(), inputs)
    torch.testing.assert_close(denoiser.score(x.detach(), t), slope)
    alpha, sigma = (like(c, x) for c in schedule(t))
    with torch.no_grad():
        mean = denoiser(x, t)
        assert not mean.requires_grad
    torch.testing.assert_close(mean, (x + sigma**2 * slope).detach() / alpha)


def test_the_score_is_accurate_near_the_data():
    """At sigma = 1e-4 the mean is x up to 1e-7, so the score must not be computed as their difference."""
    denoiser, t = learned().on(VE(1e-4, 50.0)), at(1e-5)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    coarse, fine = denoiser.float().score(x, t), denoiser.double().score(x.double(), t)
    torch.testing.assert_close(coarse.double(), fine, rtol=1e-4, atol=1e-3)


def test_without_a_network_the_data_are_standard_normal(x):
    """U = 0 is the energy of standard normal data at every time, with log Z = D log(2 pi) / 2."""
    denoiser = EnergyDenoiser(Potential(Zero()), VE())
    for t in (at(0.1), at(0.9)):
        variance = 1 + VE()(t)[1] ** 2
        torch.testing.assert_close(denoiser.score(x, t), -x / variance)
        log_density = torch.distributions.Normal(0, variance.sqrt()).log_prob(x).sum(1)
        torch.testing.assert_close(denoiser.log_density(x, t) - math.log(2 * math.pi), log_density)


class Zero(nn.Module):
    def forward(self, x, time):
        return 0 * x


def test_gradients_reach_the_weights_and_the_input(x):
    denoiser, t = learned(), at(0.4)
    weight = denoiser.network.inner.enter.weight

    def loss():
        return denoiser(x, t).square().sum()

    (slope,) = torch.autograd.grad(loss(), weight)
    step = torch.zeros_like(weight)
    step[3, 1] = 1e-6
    with torch.no_grad():
        weight += step
        above = loss()
        weight -= 2 * step
        below = loss()
    assert float(slope[3, 1]) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)
    assert torch.autograd.gradcheck(lambda x: denoiser.score(x, t), x[:2].detach().requires_grad_())
    with torch.no_grad():
        assert (
            ChangeOfVariables(denoiser, trace=ExactTrace(), integrator=Adaptive(1e-2, 1e-2))(x[:2].detach())
            .nats.isfinite()
            .all()
        )


def test_one_evaluation_is_one_call_of_the_network():
    denoiser = learned().float()
    for run, expected in (
        (ProbabilityFlow(denoiser), 9),
        (CorrectorPredictor(NoPredictor(denoiser), AnnealedLangevin(denoiser, 0.2, 2)), 11),
    ):
        with counted(denoiser) as count:
            assert run(shape=(3, 2), steps=5).isfinite().all()
        assert count.calls == expected


def test_what_it_refuses(x):
    with pytest.raises(
        UsageError, match=r"gave \(7, 2\) for 7 examples, and an energy is one number for each, \(7,\): .*Potential"
    ):
        EnergyDenoiser(MLP(2, 8, 1).double(), VP())(x, at(0.5))


def test_it_is_serializable():
    denoiser = EnergyDenoiser(Potential(MLP(2, 8, 1, classes=3)), TABLE)
    assert denoiser.conditions == ("label",)
    assert deserialize(serialize(denoiser)).network.inner.classes == 3


class Unnormalized(nn.Module):
    """The log-density of a mixture plus a constant that depends on the time."""

    def __init__(self, schedule, log_z):
        super().__init__()
        self.oracle, self.corruption, self.log_z = AnalyticMixture(WEIGHTS, MEANS, VARIANCES, schedule), schedule, log_z

    def log_density(self, x_t, t, **cond):
        return self.oracle.log_prob(x_t, t) + self.log_z * (1 + float(exact(t)))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_normalizing_constant_of_a_mixture(schedule, generator):
    """Within three standard errors, which are small, at t_min and at another time, for two step sizes."""
    for t, snr in ((None, 0.5), (0.6, 1.0)):
        found = log_normalizing_constant(
            Unnormalized(schedule, 3.0), (600, 2), t=t, distributions=60, snr=snr, generator=generator
        )
        expected = 3.0 * (1 + (schedule.t_min if t is None else t))
        assert found.error < 0.06
        assert abs(found.log_z - expected) < 3 * found.error
        assert found.effective_sample_size > 100
        assert 0.2 < found.acceptance_rate < 0.99


def test_the_normalizing_constant_of_an_energy(generator):
    found = log_normalizing_constant(mixture(-2.0), (600, 2), distributions=60, generator=generator)
    assert found.error < 0.06
    assert abs(found.log_z + 2.0) < 3 * found.error


def test_the_weighted_chains_are_samples(generator):
    found = log_normalizing_constant(Unnormalized(VE(), 1.0), (3000, 2), distributions=60, generator=generator)
    weight = found.log_w.softmax(0)
    torch.testing.assert_close(weight @ found.x, WEIGHTS @ MEANS, rtol=0, atol=0.1)
    assert float(weight @ (found.x[:, 0] < 0).double()) == pytest.approx(0.7, abs=0.05)
    right = found.x[:, 0] > 0
    variance = weight[right] @ (found.x[right] - MEANS[1]) ** 2 / weight[right].sum()
    torch.testing.assert_close(variance, VARIANCES[1].expand(2), rtol=0.15, atol=0)
    # at another time x has the scale of that time
    noisy = log_normalizing_constant(Unnormalized(VE(), 1.0), (3000, 2), t=0.7, distributions=60, generator=generator)
    sigma2 = float(VE()(at(0.7))[1] ** 2)
    assert float(noisy.log_w.softmax(0) @ (noisy.x[:, 1] ** 2)) == pytest.approx(sigma2 + 0.25, rel=0.15)


def test_the_error_is_that_of_repeated_runs():
    runs = [
        log_normalizing_constant(
            Unnormalized(VP(), 0.0), (100, 2), distributions=12, generator=torch.Generator().manual_seed(i)
        )
        for i in range(60)
    ]
    off = torch.tensor([run.log_z for run in runs])
    error = sum(run.error for run in runs) / len(runs)
    assert float(off.std()) == pytest.approx(error, rel=0.3)
    assert sum(run.effective_sample_size for run in runs) / len(runs) == pytest.approx(
        100 / (1 + 100 * error**2), rel=0.25
    )


def test_without_moves_it_is_importance_sampling(generator):
    """With one distribution and no move the weights are the ratio of the density to that of the start."""
    found = log_normalizing_constant(
        Unnormalized(VP(), 0.0), (50, 2), t=0.3, distributions=1, moves=0, generator=torch.Generator().manual_seed(1)
    )
    y = normal((50, 2), torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = Unnormalized(VP(), 0.0).log_density(y, at(0.3)) - torch.distributions.Normal(0, 1).log_prob(y).sum(1)
    torch.testing.assert_close(found.log_w, expected)
    assert found.log_z == pytest.approx(float(expected.exp().mean().log()))


@pytest.mark.parametrize("broken", ["unadjusted", "flipped", "without the kernel"])
def test_what_is_not_adjusted_is_biased(broken, monkeypatch):
    """With long steps the adjusted chain is right within its error, and one with another acceptance rule is not."""

    def estimate():
        return log_normalizing_constant(
            Unnormalized(VP(), 0.0),
            (3000, 2),
            distributions=40,
            moves=2,
            snr=1.0,
            generator=torch.Generator().manual_seed(4),
        )

    found = estimate()
    assert abs(found.log_z) < 3 * found.error
    if broken == "unadjusted":
        monkeypatch.setattr(annealing, "uniform", lambda shape, *_, **__: torch.zeros(shape, dtype=torch.float64))
    elif broken == "flipped":
        kernel = annealing.log_kernel
        monkeypatch.setattr(annealing, "log_kernel", lambda *given: -kernel(*given))
    else:
        monkeypatch.setattr(
            annealing, "log_kernel", lambda to, start, slope, size: torch.zeros(len(to), dtype=torch.float64)
        )
    wrong = estimate()
    assert abs(wrong.log_z) > 4 * wrong.error or wrong.effective_sample_size < 30


def test_what_annealing_refuses():
    for given, words in (
        ({"shape": (1, 2)}, "two or more chains"),
        ({"shape": (4, 2), "distributions": 0}, "distributions=0"),
        ({"shape": (4, 2), "snr": 0.0}, "positive snr"),
        ({"shape": (4, 2), "t": 0.0}, "t_min=1e-05"),
    ):
        with pytest.raises(UsageError, match=words):
            log_normalizing_constant(Unnormalized(VP(), 0.0), **given)


def test_a_learned_energy_is_the_log_density_up_to_a_constant(generator):
    """After some seconds of denoising score matching; annealing finds the constant.

    The components are near each other, since score matching cannot learn the weights of components far apart.
    """
    means = 0.6 * MEANS
    torch.manual_seed(0)
    denoiser = EnergyDenoiser(Potential(MLP(2, 64, 2)), VP(t_min=0.02))
    objective = DenoisingLoss.score_matching(denoiser)
    oracle = AnalyticMixture(WEIGHTS, means, VARIANCES, VP())
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    steps = 800
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / steps)

    def draw(n):
        component = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
        z = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return means[component] + VARIANCES[component, None].sqrt() * z

    for _ in range(steps):
        optimizer.zero_grad()
        objective(draw(256).float(), generator=generator).total.mean().backward()
        optimizer.step()
        rate.step()
    for t in (at(0.05), at(0.3)):
        x = oracle.corruption.corrupt(draw(2000), t.expand(2000), generator=generator)
        with torch.no_grad():
            off = denoiser.log_density(x.float(), t).double() - oracle.log_prob(x, t)
        assert oracle.log_prob(x, t).std() > 0.9
        # the KL divergence is about half of the variance of `off`, so its mean is below log Z by about 0.04
        assert off.std() < 0.35
        found = log_normalizing_constant(
            denoiser, (400, 2), t=float(t), distributions=80, generator=generator, dtype=torch.float32
        )
        assert abs(found.log_z - float(off.mean())) < 0.1 + 3 * found.error
        assert found.error < 0.05
