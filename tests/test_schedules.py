"""Schedules, their SDEs, and the bridge between families."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unnoise.continuous import (
    Cosine,
    Learned,
    Shifted,
    Tabulated,
    clean,
    cosine_betas,
    linear_betas,
    noise,
    posterior,
    reciprocal_betas,
    velocity,
    zero_terminal,
)
from unnoise.sde import SDE, VE, VP, SubVP
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization

SCHEDULES = [
    Tabulated(linear_betas(1000)),
    Tabulated(cosine_betas(400)),
    VP(),
    SubVP(),
    VE(),
    Cosine(),
    Shifted(Cosine(), -1.5),
]
TO_ZERO_SNR = [Tabulated(zero_terminal(linear_betas(100))), Tabulated(reciprocal_betas(100))]
ids = [type(s).__name__ for s in SCHEDULES]
TIMES = torch.linspace(0.01, 1, 200, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=ids)
def test_log_snr_decreases_and_time_inverts_it(schedule):
    log_snr = schedule.log_snr(TIMES)
    alpha, sigma = schedule(TIMES)
    torch.testing.assert_close(log_snr, 2 * (alpha / sigma).log(), rtol=1e-6, atol=1e-8)
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.time(log_snr), TIMES, rtol=1e-7, atol=1e-9)
    zero = torch.zeros(1, dtype=torch.float64)
    assert [float(c) for c in schedule(zero)] == [1.0, 0.0]
    assert schedule.log_snr(zero) == torch.inf


@pytest.mark.parametrize("schedule", TO_ZERO_SNR)
def test_a_table_may_end_in_noise(schedule):
    """At t = 1 alpha is exactly 0; above the row before, alpha / sigma falls linearly, and `time` inverts it."""
    one = torch.ones((), dtype=torch.float64)
    assert [float(c) for c in schedule(one)] == [0.0, 1.0]
    assert float(schedule.log_snr(one)) == -torch.inf
    assert float(schedule.kept(one / 2, one)) == 0
    t = torch.linspace(0.02, 0.9999, 500, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    assert float(schedule.time(torch.tensor(-torch.inf, dtype=torch.float64))) == 1
    last = torch.tensor([0.99, 0.9925, 0.995, 0.9975], dtype=torch.float64)
    alpha, sigma = schedule(last)
    torch.testing.assert_close(
        (alpha / sigma) / (alpha / sigma)[0], torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64)
    )


@pytest.mark.parametrize("schedule", SCHEDULES[2:], ids=ids[2:])
def test_sde_coefficients_by_finite_differences(schedule):
    """The variance of x_t given x_0 obeys d(sigma^2)/dt = 2 f sigma^2 + g^2, the mean d(alpha)/dt = f alpha."""
    t, h = torch.linspace(0.1, 0.9, 9, dtype=torch.float64), 1e-6
    (a0, s0), (a1, s1) = schedule(t - h), schedule(t + h)
    f, g2 = SDE(schedule).coefficients(t)
    alpha, sigma = schedule(t)
    torch.testing.assert_close((a1 - a0) / (2 * h), f * alpha, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((s1**2 - s0**2) / (2 * h), 2 * f * sigma**2 + g2, rtol=1e-6, atol=1e-8)


def test_sde_of_vp_is_the_published_one():
    beta = 0.1 + TIMES * 19.9
    f, g2 = SDE(VP()).coefficients(TIMES)
    torch.testing.assert_close(f, -beta / 2)
    torch.testing.assert_close(g2, beta)
    growth = 1 - torch.exp(-2 * (0.1 * TIMES + 19.9 * TIMES**2 / 2))
    torch.testing.assert_close(SDE(SubVP()).coefficients(TIMES)[1], beta * growth)


def test_a_long_table_has_the_sde_of_its_limit():
    table, limit = Tabulated(linear_betas(20_000)), VP()
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    for a, b in zip(SDE(table).coefficients(t), SDE(limit).coefficients(t), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("steps", [7, 50, 100, 1000, 4000])
def test_the_sde_of_a_table_at_its_own_rows(steps):
    """At t = n / T the coefficients are those of the step that leaves n, also where rounding puts t T just above n."""
    schedule = Tabulated(linear_betas(steps, stop=min(0.02, 9e-4 * steps)))
    n = torch.arange(2, steps + 1, dtype=torch.float64)
    _, g2 = SDE(schedule).coefficients(n / steps)
    _, sigma = schedule(n / steps)
    slope = (schedule.log_snr(n / steps) - schedule.log_snr((n - 1) / steps)) * steps
    torch.testing.assert_close(g2, -(sigma**2) * slope, rtol=1e-6, atol=0)


def test_times_outside_a_schedule_are_its_ends():
    for schedule in SCHEDULES:
        ends = schedule.time(torch.tensor([torch.inf, 900.0, -900.0, -torch.inf], dtype=torch.float64)).tolist()
        assert ends == pytest.approx([schedule.t_min, schedule.t_min, 1, 1], rel=1e-6)


@given(st.integers(0, 6), st.floats(0.02, 0.9), st.floats(0.01, 0.95))
def test_posterior_is_bayes_rule(index, s, share):
    """q(x_s | x_t, x_0) from the two conditionals by completing the square."""
    schedule = SCHEDULES[index]
    s, t = torch.tensor(s, dtype=torch.float64), torch.tensor(s + share * (1 - s), dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    a = alpha_t / alpha_s
    noise2 = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / noise2
    x_t, x0 = torch.tensor([0.7], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    mean, variance = posterior(schedule, x_t, x0, t, s)
    torch.testing.assert_close(variance, 1 / precision, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, (alpha_s * x0 / sigma_s**2 + a * x_t / noise2) / precision, rtol=1e-6, atol=1e-9)


def test_a_network_on_another_schedule_is_the_same_denoiser():
    """At equal log-SNR the clean estimate of a rescaled signal is the same, for every prediction: learned or exact."""
    torch.manual_seed(0)
    network = MLP(3)
    torch.nn.init.normal_(network.leave.weight)
    x = torch.randn(16, 3, dtype=torch.float64)
    oracle = AnalyticGaussian(torch.ones(3), torch.eye(3) * 0.3, VP())
    home = VP()
    for predicts in (noise, clean, velocity):
        for denoiser in (Learned(network.double(), home, predicts), oracle):
            for other in (VE(), SubVP(), Tabulated(linear_betas(1000))):
                t = torch.tensor(0.4, dtype=torch.float64)
                there = other.time(home.log_snr(t))
                scale = other(there)[0] / home(t)[0]
                moved = denoiser.on(other)(x * scale, there)
                torch.testing.assert_close(moved, denoiser(x, t), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    denoiser.on(other).score(x * scale, there), denoiser.score(x, t) / scale, rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("predicts", [noise, clean, velocity])
def test_predictions_recover_their_target(predicts):
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    x0, epsilon = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.1, dtype=torch.float64)
    target = {"clean": x0, "noise": epsilon, "velocity": alpha * epsilon - sigma * x0}[predicts.__name__]
    c_skip, c_out = predicts(alpha, sigma)
    torch.testing.assert_close(c_skip * (alpha * x0 + sigma * epsilon) + c_out * target, x0)


def test_bad_input_is_refused_in_one_line():
    for make, words in (
        (lambda: Tabulated(linear_betas(40)).grid(41), "this table has 40 steps"),
        (lambda: linear_betas(20), "beta would reach 1; take more than 20 steps"),
        (lambda: Tabulated(torch.tensor([0.1, 1.0, 0.1])), r"betas\[1\]=1: betas lie between 0 and 1"),
        (lambda: VP().grid(0), "at least one step"),
        (lambda: VP(beta_min=2, beta_max=1), "0 < beta_min < beta_max"),
        (lambda: VE(sigma_min=-1), "0 < sigma_min < sigma_max"),
        (lambda: VP(t_last=5), "t_last=5: give times between 0 and 1"),
        (lambda: SubVP(t_min=0.0), "t_min=0.0, t_last=0.001: give times"),
        (lambda: VE(t_last=1.0), "t_last=1.0: give times"),
        (lambda: Quantization(levels=1), "two levels or more"),
        (lambda: linear_betas(0), "at least one step"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
