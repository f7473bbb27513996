"""Objectives of the score SDEs: definitions computed by hand, expectations in closed form, minima."""

import dataclasses
import math

import pytest
import torch
from helpers import Formula
from scipy.integrate import quad

from unnoise import continuous, sde
from unnoise.sde import SDE, DenoisingLoss, MaximumLikelihood, likelihood_weight
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.schedule import rates
from unnoise.shared.gaussian.weights import OutputError
from unnoise.shared.networks import MLP
from unnoise.shared.objective import Stratified, independent
from unnoise.shared.random import normal_like

SCHEDULES = {
    "vp": sde.VP,
    "sub-vp": sde.SubVP,
    "ve": sde.VE,
    "edm": sde.EDM,
    "straight-0.999": lambda: sde.Straight(0.999),
    "tabulated": lambda: continuous.Tabulated(continuous.linear_betas(1000)),
}
PREDICTIONS = {p.__name__: p for p in (sde.noise, sde.clean, sde.velocity, sde.straight)} | {
    "preconditioned": sde.Preconditioned(0.7)
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]()


def network(seed=0):
    torch.manual_seed(seed)
    return MLP(3, width=16, depth=1).double()


def learned(schedule, predicts=sde.velocity):
    return sde.Learned(network(), schedule, predicts)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def noisy(schedule, x0, t):
    """Returns x_t and what it was made of, as an objective with the generator `seeded()` draws them."""
    epsilon = normal_like(x0, seeded())
    alpha, sigma = (c[:, None] for c in schedule(t))
    return alpha * x0 + sigma * epsilon, epsilon, alpha, sigma


def batch(schedule, generator):
    x0 = torch.randn(40, 3, dtype=torch.float64, generator=generator)
    return x0, schedule.training_time(torch.linspace(0.02, 0.999, 40, dtype=torch.float64))


# ---- by hand


@pytest.mark.parametrize("predicts", PREDICTIONS.values(), ids=PREDICTIONS)
def test_score_matching_by_hand(schedule, predicts, generator):
    denoiser, (x0, t) = learned(schedule, predicts), batch(schedule, generator)
    x_t, epsilon, _, sigma = noisy(schedule, x0, t)
    of_score = (denoiser.score(x_t, t) + epsilon / sigma).square().mean(1)
    of_x0 = (denoiser(x_t, t) - x0).square().mean(1)
    g2 = SDE(schedule).coefficients(t)[1]
    for objective, expected in (
        (DenoisingLoss.score_matching(denoiser), sigma[:, 0] ** 2 * of_score),
        (DenoisingLoss.likelihood_weighted(denoiser), g2 * of_score),
        (DenoisingLoss(denoiser, weight=likelihood_weight), g2 * of_score),
        (DenoisingLoss(denoiser, weight=lambda schedule, t: 3 * t), 3 * t * of_x0),
    ):
        loss = objective.at(x0, t, generator=seeded())
        torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(loss.parts["mse"], expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(loss.t, t)


@pytest.mark.parametrize("times", [None, Stratified(2.0)])
def test_score_matching_and_the_simple_loss_by_hand_on_a_table(times, generator):
    """The squared error of the score times sigma^2 is the squared error of the noise, at the times that are drawn."""
    denoiser = learned(continuous.Tabulated(continuous.linear_betas(100)))
    x0 = torch.randn(64, 3, dtype=torch.float64, generator=generator)
    given = {} if times is None else {"times": times}
    a, b = (
        make(denoiser, **given)(x0, generator=seeded()) for make in (DenoisingLoss.score_matching, DenoisingLoss.simple)
    )
    schedule, drawn = denoiser.corruption, seeded()
    u = (independent if times is None else times)(len(x0), drawn)
    t, epsilon = schedule.training_time(u), torch.randn(x0.shape, dtype=torch.float64, generator=drawn)
    assert torch.equal(a.t, t)
    assert torch.equal(b.t, t)
    alpha, sigma = (c[:, None] for c in schedule(t))
    x_t = alpha * x0 + sigma * epsilon
    score = denoiser.score(x_t, t) - (alpha * x0 - x_t) / sigma**2
    torch.testing.assert_close(a.total, (sigma**2 * score**2).mean(1), rtol=1e-8, atol=1e-10)
    noise = (x_t - alpha * denoiser(x_t, t)) / sigma - epsilon
    torch.testing.assert_close(b.total, (noise**2).mean(1), rtol=1e-8, atol=1e-10)


def test_maximum_likelihood_by_hand(schedule, generator):
    denoiser, (x0, t) = learned(schedule), batch(schedule, generator)
    x_t, epsilon, alpha, sigma = noisy(schedule, x0, t)
    found = (x_t - alpha * denoiser(x_t, t)) / sigma
    (low, high), (a, b), (_, sigma_1) = (
        f(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64)) for f in parts_of(schedule)
    )
    loss = MaximumLikelihood(denoiser).at(x0, t, generator=seeded())
    # Theorem 3 of Song et al. (2021b): -log of the prior at x_1, and the integral of the divergence of
    # f x - g^2 / 2 grad log q(x_t | x_0).
    prior = (
        1.5 * math.log(2 * math.pi) + 3 * sigma_1.log() + ((b * x0).square().sum(1) + 3 * sigma_1**2) / (2 * sigma_1**2)
    )
    constant = prior - 3 * (b / a).log() - 1.5 * (low - high)
    torch.testing.assert_close(
        loss.total, (low - high) / 2 * (found - epsilon).square().sum(1) + constant, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(loss.parts["mse"], (found - epsilon).square().mean(1), rtol=1e-5, atol=1e-6)


def parts_of(schedule):
    return schedule.log_snr, lambda t: schedule(t)[0], lambda t: schedule(t)[1]


def test_times_of_maximum_likelihood_are_even_in_log_snr(schedule, generator):
    t = MaximumLikelihood(learned(schedule), Stratified())(
        torch.zeros(500, 3, dtype=torch.float64), generator=generator
    ).t
    low, high = (float(schedule.log_snr(torch.tensor(s, dtype=torch.float64))) for s in (1.0, schedule.t_min))
    share = (high - schedule.log_snr(t)) / (high - low)  # from the cleanest to the noisiest
    assert float((share - (torch.arange(500) + 0.5) / 500).abs().max()) < 0.5 / 500 + 1e-6


@pytest.mark.parametrize("name", [*SCHEDULES, "straight"])
def test_flow_matching_by_hand(name, generator):
    """The target is the velocity `alpha' x_0 + sigma' epsilon`, the estimate the velocity of the flow in t."""
    schedule = sde.Straight() if name == "straight" else SCHEDULES[name]()
    denoiser, (x0, t) = learned(schedule), batch(schedule, generator)
    x_t, epsilon, alpha, sigma = noisy(schedule, x0, t)
    d_alpha, d_sigma = (c[:, None] for c in rates(schedule, t))
    mean = denoiser(x_t, t)
    v = d_alpha * mean + d_sigma * (x_t - alpha * mean) / sigma
    loss = DenoisingLoss.flow_matching(denoiser).at(x0, t, generator=seeded())
    expected = (v - (d_alpha * x0 + d_sigma * epsilon)).square().mean(1)
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-9)
    # The probability flow of the SDE: f x - g^2 score / 2 (Song et al. 2021, eq. 13).
    if name != "straight":
        flow = SDE(schedule).reverse_drift(x_t, t, denoiser.score(x_t, t), eta=0.0)
        torch.testing.assert_close(v, flow, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("end", [1.0, 0.95])
def test_on_straight_paths_the_network_is_the_velocity(end, generator):
    """The loss is `end^2 E ||F - (epsilon - x_0)||^2`, F the network's output."""
    schedule = sde.Straight(end)
    denoiser, (x0, t) = learned(schedule, sde.straight), batch(schedule, generator)
    x_t, epsilon, _, _ = noisy(schedule, x0, t)
    f = denoiser.estimate(x_t, t).out
    if end == 1:
        expected = (f - (epsilon - x0)).square().mean(1)
        torch.testing.assert_close(
            DenoisingLoss.flow_matching(denoiser).at(x0, t, generator=seeded()).total, expected, rtol=1e-8, atol=1e-10
        )
    else:  # x_0 and epsilon follow from F and x_t, and the velocity is end (epsilon - x_0) still
        mean = (x_t - end * t[:, None] * f) / (1 - end * t[:, None] + end * t[:, None])
        torch.testing.assert_close(denoiser(x_t, t), mean, rtol=1e-8, atol=1e-10)
        expected = end**2 * (f - (epsilon - x0)).square().mean(1)
        torch.testing.assert_close(
            DenoisingLoss.flow_matching(denoiser).at(x0, t, generator=seeded()).total, expected, rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("data", [0.5, 1.3])
def test_the_loss_of_edm_by_hand(schedule, data, generator):
    """`(s^2 + d^2) / (s d)^2 ||D - x_0||^2` with `s = sigma / alpha`, and the plain error of the network's output."""
    denoiser, (x0, t) = (
        sde.Learned(network(), schedule, sde.Preconditioned(data), sigma_data=data),
        batch(schedule, generator),
    )
    x_t, _, alpha, sigma = noisy(schedule, x0, t)
    s = (sigma / alpha)[:, 0]
    error = (denoiser(x_t, t) - x0).square().mean(1)
    loss = DenoisingLoss.edm(denoiser, data).at(x0, t, generator=seeded()).total
    torch.testing.assert_close(loss, (s**2 + data**2) / (s * data) ** 2 * error, rtol=1e-8, atol=1e-12)
    c_skip, c_out = (c[:, None] for c in denoiser.predicts(*schedule(t)))
    f = denoiser.estimate(x_t, t).out
    torch.testing.assert_close(loss, (f - (x0 - c_skip * x_t) / c_out).square().mean(1), rtol=1e-6, atol=1e-9)


# ---- predictions

ALPHA, SIGMA = torch.tensor([[1.0, 0.8, 0.3, 0.05, 1.0], [0.1, 0.6, 0.7, 1.2, 30.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_solve_for_the_signal_at_every_scale(name):
    predicts, x0, epsilon = PREDICTIONS[name], 0.37, -1.21
    target = {
        "noise": epsilon,
        "clean": x0,
        "velocity": (ALPHA * epsilon - SIGMA * x0) / torch.hypot(ALPHA, SIGMA),
        "straight": epsilon - x0,
        "preconditioned": None,
    }[name]
    c_skip, c_out = predicts(ALPHA, SIGMA)
    if target is None:
        # for data of standard deviation 0.7 the target has unit variance, the smallest (Karras et al. 2022, eqs. 114
        # and 118)
        target = (x0 - c_skip * (ALPHA * x0 + SIGMA * epsilon)) / c_out
        variance = ((1 - c_skip * ALPHA) ** 2 * 0.49 + (c_skip * SIGMA) ** 2) / c_out**2
        torch.testing.assert_close(variance, torch.ones_like(variance))
        away = ((1 - (c_skip + 0.01) * ALPHA) ** 2 * 0.49 + ((c_skip + 0.01) * SIGMA) ** 2) / c_out**2
        assert (away > variance).all()
    torch.testing.assert_close(c_skip * (ALPHA * x0 + SIGMA * epsilon) + c_out * target, torch.full_like(ALPHA, x0))
    for k in (0.01, 7.0):
        scaled = predicts(k * ALPHA, k * SIGMA)
        torch.testing.assert_close(scaled[0], c_skip / k)
        torch.testing.assert_close(scaled[1], c_out)


def test_preconditioning_of_unit_data_is_the_velocity():
    (skip, out), (v_skip, v_out) = sde.Preconditioned(1.0)(ALPHA, SIGMA), sde.velocity(ALPHA, SIGMA)
    torch.testing.assert_close(skip, v_skip)
    torch.testing.assert_close(out, -v_out)


# ---- in expectation, for Gaussian data and a denoiser of another Gaussian

MEAN, OTHER = torch.tensor([[0.6, -0.3], [0.1, 0.2]], dtype=torch.float64)
VARIANCE, WRONG = torch.tensor([[0.5, 0.2], [0.8, 0.15]], dtype=torch.float64)


def model(schedule, mean=OTHER, variance=WRONG):
    return AnalyticGaussian(mean, torch.diag(variance), schedule)


def gaussian_data(count, generator):
    return MEAN + VARIANCE.sqrt() * torch.randn(count, 2, dtype=torch.float64, generator=generator)


def marginal(schedule, t, mean, variance):
    alpha, sigma = schedule(torch.as_tensor(t, dtype=torch.float64))
    return alpha * mean, alpha**2 * variance + sigma**2


def kl(schedule, t):
    """`KL(q_t || p_t)`."""
    (m, v), (n, w) = marginal(schedule, t, MEAN, VARIANCE), marginal(schedule, t, OTHER, WRONG)
    return float(0.5 * (v / w + (m - n) ** 2 / w - 1 + (w / v).log()).sum())


def score_error(schedule, t):
    """Returns `E ||s_theta - grad log q(x_t | x_0)||^2` and its minimum, `d / sigma^2 - tr(C_t^-1)`."""
    (m, v), (n, w) = marginal(schedule, t, MEAN, VARIANCE), marginal(schedule, t, OTHER, WRONG)
    least = 2 / schedule(torch.as_tensor(t, dtype=torch.float64))[1] ** 2 - (1 / v).sum()
    # s_theta - s = -(x - n) / w + (x - m) / v at x = m + sqrt(v) z.
    return float(least + ((1 / v - 1 / w) ** 2 * v + ((m - n) / w) ** 2).sum()), float(least)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "edm", "straight-0.999"])
def test_maximum_likelihood_in_expectation(name, generator):
    schedule = SCHEDULES[name]()
    x0 = gaussian_data(200_000, generator)
    totals = {}
    for kind, denoiser in (("model", model(schedule)), ("truth", model(schedule, MEAN, VARIANCE))):
        totals[kind] = MaximumLikelihood(denoiser, Stratified())(x0, generator=seeded()).total

    def integral(which):
        def integrand(log_t):
            t = math.exp(log_t)
            g2 = SDE(schedule).coefficients(torch.tensor(t, dtype=torch.float64))[1]
            return 0.5 * float(g2) * score_error(schedule, t)[which] * t

        return quad(integrand, math.log(schedule.t_min), 0.0, limit=200, epsrel=1e-6)[0]

    # The bound: entropy of the data with the noise of t_min, KL(q_1 || prior), and the error of the score.
    (_, v), (m1, v1) = (marginal(schedule, t, MEAN, VARIANCE) for t in (schedule.t_min, 1.0))
    prior = schedule(torch.ones((), dtype=torch.float64))[1] ** 2
    tight = 0.5 * (torch.log(2 * math.pi * math.e * v) + (v1 + m1**2) / prior - 1 + (prior / v1).log()).sum()
    for kind, expected in (("model", float(tight) + integral(0) - integral(1)), ("truth", float(tight))):
        error = float(totals[kind].std()) / math.sqrt(len(x0))
        assert abs(float(totals[kind].mean()) - expected) < 4 * error
        assert error < 0.1
    # The minimum is the mutual information of x_t and x_0 at t_min less that at 1, log(1 + C SNR) / 2.
    ends = schedule.log_snr(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64)).exp()
    information = 0.5 * torch.log((1 + VARIANCE * ends[0]) / (1 + VARIANCE * ends[1])).sum()
    assert integral(1) == pytest.approx(float(information), rel=1e-5)
    # The excess is the decrease of the KL divergence of the two distributions from t_min to 1: Song et al. (2021b),
    # theorems 1 and 2.
    excess = totals["model"] - totals["truth"]
    divergence = kl(schedule, schedule.t_min) - kl(schedule, 1.0)
    assert divergence > 0.05
    assert integral(0) - integral(1) == pytest.approx(divergence, rel=1e-4)
    assert abs(float(excess.mean()) - divergence) < 4 * float(excess.std()) / math.sqrt(len(x0))


@pytest.mark.parametrize("name", ["vp", "sub-vp", "straight-0.999"])
def test_the_likelihood_weight_has_the_same_expectation(name, generator):
    """Uniform times with weight g^2 and times even in log-SNR estimate one integral over [t_min, 1].

    `1/2 int g^2 E ||.||^2 dt`, here twice that per dimension (Song et al. 2021b, corollary 1).
    """
    schedule = dataclasses.replace(SCHEDULES[name](), t_min=0.05, t_last=0.05)  # below, few draws are most of the sum
    x0 = gaussian_data(200_000, generator)
    objective = DenoisingLoss.likelihood_weighted(model(schedule), Stratified())
    weighted = objective(x0, generator=seeded()).total * (1 - schedule.t_min)
    mse = MaximumLikelihood(model(schedule), Stratified())(x0, generator=seeded()).parts["mse"]
    even = mse * float(schedule.log_snr(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64)).diff().neg())
    error = float(weighted.std() + even.std()) / math.sqrt(len(x0))
    assert error < 0.1
    assert abs(float(weighted.mean() - even.mean())) < 3 * error


class Nudged(GaussianDenoiser):
    """The exact mean, plus `size` times another function of x_t."""

    def __init__(self, denoiser, size):
        super().__init__()
        self.denoiser, self.size, self.corruption = denoiser, size, denoiser.corruption

    def estimate(self, x_t, t, **cond):
        return Estimate.of_mean(self.denoiser(x_t, t) + self.size * torch.cos(2 * x_t + 1))

    def on(self, schedule):
        return Nudged(self.denoiser.on(schedule), self.size)


OBJECTIVES = {
    "score-matching": DenoisingLoss.score_matching,
    "likelihood-weight": lambda d: DenoisingLoss(d, weight=likelihood_weight),
    "maximum-likelihood": MaximumLikelihood,
    "flow-matching": DenoisingLoss.flow_matching,
    "edm": lambda d: DenoisingLoss.edm(d, 0.5),
}


@pytest.mark.parametrize("name", ["vp", "edm", "straight-0.999"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_conditional_mean_is_the_minimum(objective, name, generator):
    """Each loss is a parabola in the nudge; its slope at the exact mean is zero in expectation."""
    schedule = SCHEDULES[name]()
    oracle, x0 = model(schedule, MEAN, VARIANCE), gaussian_data(50_000, generator)
    for t in (0.003, 0.3, 0.8):
        t = torch.full((len(x0),), t, dtype=torch.float64)
        down, exact, up = (
            OBJECTIVES[objective](Nudged(oracle, size)).at(x0, t, generator=seeded()).total for size in (-1.0, 0.0, 1.0)
        )
        slope, bend = (up - down) / 2, (up + down) / 2 - exact
        assert (bend > 0).all()
        assert abs(float(slope.mean())) < 4 * float(slope.std()) / math.sqrt(len(x0))


# ---- precision, refusals


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_float32_and_images_are_images(objective, generator):
    x0 = torch.randn(6, 2, 4, 4, generator=generator)
    denoiser = sde.Learned(Formula(lambda x, time: torch.sin(x).bfloat16()), sde.VP())
    loss = OBJECTIVES[objective](denoiser)(x0, generator=generator)
    assert loss.total.shape == (6,)
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite().all()
    flat = OBJECTIVES[objective](denoiser).at(x0.flatten(1), loss.t, generator=seeded()).total
    torch.testing.assert_close(
        OBJECTIVES[objective](denoiser).at(x0, loss.t, generator=seeded()).total, flat, rtol=1e-4, atol=1e-5
    )


def test_conditions_reach_the_network(generator):
    torch.manual_seed(0)
    denoiser = sde.Learned(MLP(3, 16, 1, classes=2), sde.VP())
    x0, t = torch.randn(8, 3, generator=generator), torch.full((8,), 0.4, dtype=torch.float64)
    for make in OBJECTIVES.values():
        a, b = (make(denoiser).at(x0, t, generator=seeded(), label=torch.full((8,), k)).total for k in (0, 1))
        assert not torch.allclose(a, b)


def test_what_is_refused():
    with pytest.raises(UsageError, match="zero SNR"):
        MaximumLikelihood(model(sde.Straight()))
    with pytest.raises(UsageError, match="sigma_data=0.0"):
        DenoisingLoss.edm(model(sde.EDM()), 0.0)
    with pytest.raises(UsageError, match="sigma_data=None"):
        DenoisingLoss.edm(model(sde.EDM()))
    own = DenoisingLoss.edm(sde.Learned(network(), sde.EDM(), sde.Preconditioned(0.7)))
    assert own.weight == OutputError(sde.Preconditioned(0.7))
