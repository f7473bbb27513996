"""Schedules of the score SDEs: rates, drifts and diffusions in closed form, inverses, grids, the times of training."""

import math

import pytest
import torch
from helpers import Fixture
from scipy import stats

from unnoise.sde import EDM, SDE, VE, VP, Straight, SubVP, vp_betas
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.schedule import rates
from unnoise.shared.serialization import deserialize, serialize

T = torch.tensor([1e-4, 0.01, 0.2, 0.5, 0.77, 1.0], dtype=torch.float64)
INSIDE = T[1:]  # Straight's log-SNR loses digits nowhere, but EDM's times are clamped below sigma_min / sigma_max


def vp(t, low, high):
    beta = low + t * (high - low)
    alpha = torch.exp(-(t**2) * (high - low) / 4 - t * low / 2)
    return alpha, beta


def vp_rates(t, low=0.1, high=20.0):
    """`alpha' = -beta alpha / 2`; from `sigma^2 = 1 - alpha^2` follows `sigma' = beta alpha^2 / (2 sigma)`."""
    alpha, beta = vp(t, low, high)
    return -beta * alpha / 2, beta * alpha**2 / (2 * (1 - alpha**2).sqrt())


def sub_vp_rates(t, low=0.1, high=20.0):
    """`sigma = 1 - alpha^2`, so `sigma' = beta alpha^2`."""
    alpha, beta = vp(t, low, high)
    return -beta * alpha / 2, beta * alpha**2


def sub_vp_diffusion(t, low=0.1, high=20.0):
    """`beta (1 - exp(-2 int beta))` (Song et al. 2021, eq. 27)."""
    return vp(t, low, high)[1] * -torch.expm1(-2 * (low * t + (high - low) * t**2 / 2))


RATES = {
    "vp": (VP(), vp_rates),
    "vp-other": (VP(0.4, 7.0), lambda t: vp_rates(t, 0.4, 7.0)),
    "sub-vp": (SubVP(), sub_vp_rates),
    "ve": (VE(), lambda t: (0 * t, 0.01 * 5000**t * math.log(5000))),
    "ve-other": (VE(0.02, 3.0), lambda t: (0 * t, 0.02 * 150**t * math.log(150))),
    "edm": (EDM(), lambda t: (0 * t, 80 + 0 * t)),
    "straight": (Straight(), lambda t: (0 * t - 1, 0 * t + 1)),
    "straight-0.9": (Straight(0.9), lambda t: (0 * t - 0.9, 0 * t + 0.9)),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_in_closed_form(name):
    schedule, expected = RATES[name]
    for found, exact in zip(rates(schedule, T), expected(T), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
        assert found.dtype == torch.float64
    one = rates(schedule, torch.tensor(0.3))
    assert one[0].shape == ()
    assert one[0].dtype == torch.float64


SDES = {
    "vp": (VP(), lambda t: (-vp(t, 0.1, 20.0)[1] / 2, vp(t, 0.1, 20.0)[1])),
    "sub-vp": (SubVP(), lambda t: (-vp(t, 0.1, 20.0)[1] / 2, sub_vp_diffusion(t))),
    "ve": (VE(), lambda t: (0 * t, 2 * math.log(5000) * (0.01 * 5000**t) ** 2)),
    "edm": (EDM(), lambda t: (0 * t, 2 * 80**2 * t)),
    # f = alpha' / alpha and g^2 = 2 sigma sigma' - 2 f sigma^2.
    "straight-0.9": (Straight(0.9), lambda t: (-0.9 / (1 - 0.9 * t), 2 * 0.9**2 * t / (1 - 0.9 * t))),
}


@pytest.mark.parametrize("name", SDES)
def test_drift_and_diffusion_in_closed_form(name):
    schedule, expected = SDES[name]
    for found, exact in zip(SDE(schedule).coefficients(T), expected(T), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-12)
    x, score = torch.randn(2, len(T), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f, g2 = (c[:, None] for c in expected(T))
    for eta in (0.0, 0.5, 1.0):
        drift = SDE(schedule).reverse_drift(x, T, score, eta)
        torch.testing.assert_close(drift, f * x - (1 + eta**2) / 2 * g2 * score, rtol=1e-8, atol=1e-9)


def test_no_sde_from_zero_snr():
    with pytest.raises(UsageError, match="zero SNR"):
        SDE(Straight())


@pytest.mark.parametrize("name", RATES)
def test_time_is_the_inverse_of_log_snr(name):
    schedule = RATES[name][0]
    alpha, sigma = schedule(INSIDE)
    log_snr = schedule.log_snr(INSIDE)
    torch.testing.assert_close(log_snr, 2 * (alpha.log() - sigma.log()), rtol=1e-9, atol=1e-9)
    keep = log_snr.isfinite()
    torch.testing.assert_close(schedule.time(log_snr[keep]), INSIDE[keep], rtol=1e-9, atol=1e-12)
    ends = schedule.time(torch.tensor([1e3, -1e3, math.inf, -math.inf], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([schedule.t_min, 1, schedule.t_min, 1], dtype=torch.float64))


@pytest.mark.parametrize("name", RATES)
def test_numbers_and_their_dtypes(name):
    """float32 times are computed in float64 and rounded once; t = 0 is the clean signal."""
    schedule = RATES[name][0]
    for exact, rounded in zip(schedule(T.float().double()), schedule(T.float()), strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded.double(), exact, rtol=1e-6, atol=1e-7)
    assert schedule.log_snr(T.float()).dtype == schedule.time(torch.zeros(2)).dtype == torch.float32
    assert [float(c) for c in schedule(torch.zeros((), dtype=torch.float64))] == [1, 0]
    assert float(schedule.log_snr(torch.zeros((), dtype=torch.float64))) == math.inf
    x = schedule.prior((20_000, 2), generator=torch.Generator().manual_seed(0))
    assert float(x.std()) == pytest.approx(float(schedule(torch.ones(()))[1]), rel=0.02)


def test_published_ends():
    one = torch.ones((), dtype=torch.float64)
    assert float(VP()(one)[0]) == pytest.approx(math.exp(-(19.9 / 4 + 0.05)))
    assert float(VE()(one)[1]) == pytest.approx(50)
    assert float(VE()(1e-9 * one)[1]) == pytest.approx(0.01)
    assert float(EDM()(one)[1]) == 80
    assert float(EDM()(torch.tensor(EDM().t_last, dtype=torch.float64))[1]) == pytest.approx(0.002)
    assert [float(c) for c in Straight()(one)] == [0, 1]
    assert (VP().t_min, VP().t_last, VE().t_last) == (1e-5, 1e-3, 1e-5)


def test_grids():
    assert Straight().grid(4).tolist() == Straight(0.9).grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    for schedule in (VP(), SubVP(), VE()):
        grid = schedule.grid(11)
        torch.testing.assert_close(
            grid[:-1].diff(), torch.full((10,), -(1 - schedule.t_last) / 10, dtype=torch.float64)
        )
        assert (float(grid[0]), float(grid[-2]), float(grid[-1])) == (1.0, pytest.approx(schedule.t_last), 0.0)
    sigmas = EDM(0.01, 50.0, rho=3.0).grid(8)[:-1] * 50
    torch.testing.assert_close((sigmas ** (1 / 3)).diff(2), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert sigmas.tolist()[::7] == pytest.approx([50.0, 0.01])
    for schedule in (Straight(), EDM(), VP()):
        with pytest.raises(UsageError, match="steps=0: give at least one step"):
            schedule.grid(0)


def test_times_of_training():
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for schedule in (VP(), SubVP(), VE(), Straight()):
        torch.testing.assert_close(schedule.training_time(u), schedule.t_min + (1 - schedule.t_min) * u)
    log_sigma = torch.log(80 * EDM(mean=-1.0, std=1.1).training_time(u))
    assert stats.kstest(log_sigma.numpy(), stats.norm(-1.0, 1.1).cdf).statistic < 1e-3
    assert EDM().training_time(torch.zeros(1)).item() == EDM().t_min


def test_the_chain_of_vp():
    torch.testing.assert_close(vp_betas(), Fixture("score_sde_functions")["vp.discrete_betas"], rtol=1e-12, atol=0)
    assert vp_betas(20, 0.1, 4.0).tolist()[::19] == pytest.approx([0.005, 0.2])


def test_schedules_describe_themselves():
    for schedule in (VP(0.2, 9.0, 1e-4, 1e-2), SubVP(), VE(0.02), EDM(rho=5.0, mean=0.0), Straight(0.9, 1e-4)):
        assert vars(deserialize(serialize(schedule))) == vars(schedule)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Straight(0.0), "end=0.0"),
        (lambda: Straight(1.1), "end=1.1"),
        (lambda: Straight(t_min=0.0), "t_min=0.0"),
        (lambda: Straight(t_min=0.1, t_last=0.01), "0 < t_min <= t_last < 1"),
        (lambda: EDM(0.0), "sigma_min=0.0"),
        (lambda: EDM(90.0), "0 < sigma_min < sigma_max"),
        (lambda: EDM(rho=0.0), "rho=0.0"),
        (lambda: EDM(std=-1.0), "std=-1.0"),
        (lambda: SubVP(3.0, 2.0), "0 < beta_min < beta_max"),
        (lambda: VE(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: vp_betas(0), "steps=0"),
        (lambda: vp_betas(10), "beta_max <= steps"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()
