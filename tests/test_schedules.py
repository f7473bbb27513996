"""Schedules as values, their closed forms, their SDEs, and denoisers on other schedules than that of training."""

import copy
import dataclasses
import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unnoise.continuous import (
    BetaTable,
    ConstantBetas,
    Cosine,
    CosineBetas,
    Learned,
    LinearBetas,
    PosteriorMean,
    QuadraticBetas,
    ReciprocalBetas,
    Shifted,
    SigmoidBetas,
    Tabulated,
    WarmupBetas,
    ZeroTerminal,
    clean,
    constant_betas,
    cosine_betas,
    linear_betas,
    noise,
    posterior,
    quadratic_betas,
    reciprocal_betas,
    sigmoid_betas,
    velocity,
    warmup_betas,
    zero_terminal,
)
from unnoise.sde import EDM, SDE, VE, VP, NoiseLevels, Straight, SubVP, geometric_sigmas, vp_betas
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.gaussian.schedule import Schedule
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

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


# ---- schedules as values

VALUES = {  # a schedule, its notation, and a change of one field
    "Tabulated": (Tabulated(linear_betas(1000)), "betas=tensor of shape (1000,)", {"betas": cosine_betas(1000)}),
    "short Tabulated": (Tabulated([0.25, 0.5]), "betas=[0.25, 0.5]", {"betas": torch.tensor([0.25, 0.75])}),
    "NoiseLevels": (NoiseLevels([0.5, 2.0]), "sigmas=[0.5, 2.0]", {"sigmas": geometric_sigmas(0.1, 2.0, 5)}),
    "VP": (VP(), "", {"beta_max": 10.0}),
    "SubVP": (SubVP(beta_min=0.5), "beta_min=0.5", {"beta_max": 10.0}),
    "VE": (VE(sigma_max=90.0), "sigma_max=90.0", {"sigma_min": 0.02}),
    "EDM": (EDM(rho=5.0, mean=-1.0), "rho=5.0, mean=-1.0", {"sigma_max": 40.0}),
    "Straight": (Straight(0.999), "end=0.999", {"end": 1.0}),
    "Cosine": (Cosine(-15), "low=-15", {"high": 15.0}),
    "LinearBetas": (LinearBetas(stop=0.01), "stop=0.01", {"steps": 50}),
    "QuadraticBetas": (QuadraticBetas(100), "steps=100", {"start": 1e-3}),
    "SigmoidBetas": (SigmoidBetas(), "", {"stop": 0.01}),
    "ConstantBetas": (ConstantBetas(30, 0.01), "steps=30, value=0.01", {"value": 0.02}),
    "WarmupBetas": (WarmupBetas(100, 0.5), "steps=100, share=0.5", {"share": 0.1}),
    "ReciprocalBetas": (ReciprocalBetas(), "", {"steps": 10}),
    "CosineBetas": (CosineBetas(s=0.02), "s=0.02", {"s": 0.008}),
    "ZeroTerminal": (
        ZeroTerminal(LinearBetas(50, stop=0.01)),
        "schedule=LinearBetas(steps=50, stop=0.01)",
        {"schedule": CosineBetas(10)},
    ),
    "Shifted": (Shifted(VP(beta_min=0.2), -1.5), "schedule=VP(beta_min=0.2), shift=-1.5", {"shift": 0.5}),
}


@pytest.mark.parametrize("name", VALUES)
def test_schedules_are_values(name):
    """Equal fields make equal schedules, with equal hashes; `replace` changes a field, and nothing else can."""
    schedule, arguments, change = VALUES[name]
    same, other = dataclasses.replace(schedule), dataclasses.replace(schedule, **change)
    assert same is not schedule
    assert same == schedule
    assert hash(same) == hash(schedule)
    assert {schedule: 1}[same] == 1
    assert other != schedule
    assert schedule != "VP()"
    assert type(other) is type(schedule)
    unchanged = [f.name for f in dataclasses.fields(schedule) if f.init and f.name not in change]
    assert all(getattr(other, field) == getattr(schedule, field) for field in unchanged)
    assert dataclasses.replace(other, **{field: getattr(schedule, field) for field in change}) == schedule
    assert repr(schedule) == f"{type(schedule).__name__}({arguments})"
    assert copy.deepcopy(schedule) is schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule  # noqa: S301


@pytest.mark.parametrize("name", VALUES)
def test_schedules_do_not_change(name):
    schedule, _, change = VALUES[name]
    before = schedule.log_snr(TIMES)
    for field in dataclasses.fields(schedule):
        with pytest.raises(dataclasses.FrozenInstanceError, match=field.name):
            setattr(schedule, field.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError, match=field.name):
            delattr(schedule, field.name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.something_new = 1
    assert torch.equal(schedule.log_snr(TIMES), before)
    assert not torch.allclose(dataclasses.replace(schedule, **change).log_snr(TIMES), before)


def test_schedules_of_different_classes_are_not_equal():
    schedules = [schedule for schedule, _, _ in VALUES.values()]
    for i, a in enumerate(schedules):
        assert [a == b for b in schedules] == [i == j for j in range(len(schedules))]
    assert VP() != SubVP()
    assert Tabulated([0.25, 0.5]) != NoiseLevels([0.25, 0.5])
    assert Shifted(VP(), 1.0) != Shifted(SubVP(), 1.0)
    assert Tabulated(torch.tensor([0.25, 0.5])) == Tabulated([0.25, 0.5])  # tables are float64, whatever was given


@pytest.mark.parametrize("make", [Tabulated, NoiseLevels])
def test_a_table_has_its_own_memory(make):
    given = torch.tensor([0.25, 0.5], dtype=torch.float64)
    schedule = make(given)
    given += 0.1
    assert schedule == make([0.25, 0.5])


# ---- tables of betas by their settings

BETAS = {  # a schedule, and its betas
    "LinearBetas": (LinearBetas(), linear_betas(1000)),
    "LinearBetas, given": (LinearBetas(40, 1e-3, 0.01), linear_betas(40, 1e-3, 0.01)),
    "QuadraticBetas": (QuadraticBetas(), quadratic_betas(1000)),
    "QuadraticBetas, given": (QuadraticBetas(40, 1e-3, 0.01), quadratic_betas(40, 1e-3, 0.01)),
    "SigmoidBetas": (SigmoidBetas(), sigmoid_betas(1000)),
    "SigmoidBetas, given": (SigmoidBetas(40, 1e-3, 0.01), sigmoid_betas(40, 1e-3, 0.01)),
    "ConstantBetas": (ConstantBetas(), constant_betas(1000)),
    "ConstantBetas, given": (ConstantBetas(30, 0.01), constant_betas(30, 0.01)),
    "WarmupBetas": (WarmupBetas(), warmup_betas(1000, 0.1)),
    "WarmupBetas, given": (WarmupBetas(40, 0.5, 1e-3, 0.01), warmup_betas(40, 0.5, 1e-3, 0.01)),
    "ReciprocalBetas": (ReciprocalBetas(), reciprocal_betas(1000)),
    "ReciprocalBetas, given": (ReciprocalBetas(7), reciprocal_betas(7)),
    "CosineBetas": (CosineBetas(), cosine_betas(1000)),
    "CosineBetas, given": (CosineBetas(30, 0.05), cosine_betas(30, 0.05)),
    "ZeroTerminal": (ZeroTerminal(LinearBetas(40)), zero_terminal(linear_betas(40))),
    "ZeroTerminal of a table": (
        ZeroTerminal(Tabulated([0.1, 0.3])),
        zero_terminal(torch.tensor([0.1, 0.3], dtype=torch.float64)),
    ),
}


@pytest.mark.parametrize("name", BETAS)
def test_a_table_by_its_settings_is_the_table_of_its_betas(name):
    schedule, betas = BETAS[name]
    table = Tabulated(betas)
    assert isinstance(schedule, BetaTable)
    assert schedule.steps == len(betas) == table.steps
    assert type(schedule.steps) is int
    t = torch.cat(
        [torch.linspace(0, 1, 301, dtype=torch.float64), torch.arange(1, schedule.steps + 1) / schedule.steps]
    )
    log_snr = torch.linspace(-30, 12, 100, dtype=torch.float64)
    grid = schedule.grid(min(schedule.steps, 5))
    for found, expected in (
        (schedule.betas, betas),
        (schedule.alphas_cumprod, table.alphas_cumprod),
        (schedule(t)[0], table(t)[0]),
        (schedule(t)[1], table(t)[1]),
        (schedule.log_snr(t), table.log_snr(t)),
        (schedule.time(log_snr), table.time(log_snr)),
        (schedule.training_time(t / 2), table.training_time(t / 2)),
        (grid, table.grid(min(schedule.steps, 5))),
        (schedule.respaced(grid).betas, table.respaced(grid).betas),
    ):
        assert torch.equal(found, expected)
    assert (schedule.t_min, schedule.t_last) == (table.t_min, table.t_last)
    assert type(schedule.respaced(grid)) is Tabulated
    assert schedule != table  # the settings decide, not the numbers
    read = deserialize(json.loads(json.dumps(serialize(schedule))))
    assert read == schedule
    assert torch.equal(read.betas, schedule.betas)


def test_serialized_settings_of_tables():
    assert serialize(ZeroTerminal(CosineBetas(10, s=0.02))) == {
        "class": "continuous.ZeroTerminal",
        "arguments": {"schedule": {"class": "continuous.CosineBetas", "arguments": {"steps": 10, "s": 0.02}}},
    }


@pytest.mark.parametrize("s", [0.008, 0.0, 0.03, 0.5])
def test_cosine_betas_follow_their_formula(s):
    steps = 20
    f = [math.cos((n / steps + s) / (1 + s) * math.pi / 2) ** 2 for n in range(steps + 1)]
    expected = [min(1 - f[n] / f[n - 1], 0.999) for n in range(1, steps + 1)]
    torch.testing.assert_close(CosineBetas(steps, s).betas, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)
    alpha = CosineBetas(steps, s)(torch.arange(1, steps).double() / steps)[0]  # the last beta is 0.999
    torch.testing.assert_close(alpha**2, torch.tensor(f[1:-1]).double() / f[0], rtol=1e-6, atol=1e-8)


def test_a_zero_terminal_table_ends_in_noise_and_keeps_its_start():
    schedule, before = ZeroTerminal(LinearBetas(100)), LinearBetas(100)
    alpha, sigma = schedule(torch.tensor([0.01, 1.0], dtype=torch.float64))
    torch.testing.assert_close(alpha[0], before(torch.tensor(0.01, dtype=torch.float64))[0])
    assert (float(alpha[1]), float(sigma[1])) == (0.0, 1.0)


def test_a_table_of_two_steps_to_zero_snr_starts_with_the_clean_signal():
    alpha, sigma = ReciprocalBetas(2)(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(alpha**2, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(sigma**2, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))


def test_tables_by_their_settings_are_tables_for_the_posterior_mean():
    alpha, sigma = LinearBetas(40)(torch.tensor([0.25, 0.75], dtype=torch.float64))
    found, expected = (PosteriorMean(s)(alpha, sigma) for s in (LinearBetas(40), Tabulated(linear_betas(40))))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: LinearBetas(20),
            "steps=20: beta would reach 1, and must stay below 1: take more than 20 steps, or a sma",
        ),
        (lambda: LinearBetas(start=-1e-4), r"LinearBetas\(start=-0.0001\): betas\[0\]=-0.0001: betas must lie between"),
        (lambda: LinearBetas(start=0), r"LinearBetas\(start=0\): betas\[0\]=0: betas must lie between"),
        (lambda: LinearBetas(0), "steps=0: a table needs at least one step"),
        (lambda: LinearBetas(1000.5), "steps=1000.5: give a whole number of steps"),
        (lambda: CosineBetas("many"), "steps=.?many.?: give a whole number of steps"),
        (lambda: SigmoidBetas(stop="large"), "stop=.?large.?: give a number"),
        (lambda: QuadraticBetas(start=math.nan), "start=nan: give a number"),
        (lambda: QuadraticBetas(start=-0.1), "start=-0.1, stop=0.02: betas must lie between 0 and 1"),
        (lambda: ConstantBetas(50, 0.06), "steps=50: beta would reach 1.2, .* more than 60 steps, or a smaller value"),
        (lambda: ConstantBetas(value=0.0), r"ConstantBetas\(value=0.0\): betas\[0\]=0: betas must lie between"),
        (lambda: WarmupBetas(share=1.5), "share=1.5: give the fraction of the steps over which beta rises"),
        (lambda: WarmupBetas(share=None), "share=None: give a number"),
        (lambda: ReciprocalBetas(1), r"ReciprocalBetas\(steps=1\): betas\[0\]=1: .* only the last of several may be 1"),
        (lambda: CosineBetas(s=-0.1), "s=-0.1: give 0 or more, such as the published 0.008"),
        (lambda: ZeroTerminal(VP()), r"schedule=VP\(\): give a table of betas, such as LinearBetas"),
        (lambda: ZeroTerminal(CosineBetas(1)), "a table of one step cannot keep its first noise level"),
    ],
)
def test_bad_settings_of_tables_are_refused(make, words):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


# ---- log-SNR, and its inverse

CLOSED_FORMS = {
    **{name: schedule for name, (schedule, _, _) in VALUES.items()},
    "cosine table": Tabulated(cosine_betas(400)),
    "VP table": Tabulated(vp_betas()),
    "zero-terminal table": Tabulated(zero_terminal(linear_betas(100))),
    "reciprocal table": Tabulated(reciprocal_betas(100)),
    "table of one row": Tabulated([0.3]),
    "noise levels": NoiseLevels(geometric_sigmas(0.01, 50.0, 232)),
    "one noise level": NoiseLevels([3.0]),
    "Straight to zero SNR": Straight(),
    "steep VP": VP(beta_max=40.0),
    "Cosine without limits": Cosine(-60.0, 60.0),
    "shifted table": Shifted(Tabulated(linear_betas(50)), 2.0),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_of_time_agree_with_bisection(name):
    """The default of `Schedule.time` and each closed form find the time of a log-SNR to 1e-10.

    From t_min on, where the log-SNR determines the time, but for a table's times within 1e-9 of a step of a row, which
    count as the row; beyond the ends both return an end.
    """
    schedule = CLOSED_FORMS[name]
    tolerance = {"rtol": 0, "atol": 1e-10 + 1e-9 / getattr(schedule, "steps", math.inf)}
    even = torch.linspace(schedule.t_min, 1, 997, dtype=torch.float64)
    near_ends = torch.logspace(-9, -1, 60, dtype=torch.float64)
    near_ends = torch.cat([schedule.t_min + near_ends, 1 - near_ends])
    t = torch.cat([even, near_ends[(near_ends >= schedule.t_min) & (near_ends <= 1)]])
    log_snr = schedule.log_snr(t)
    bisected, closed = Schedule.time(schedule, log_snr), schedule.time(log_snr)
    torch.testing.assert_close(closed, bisected, **tolerance)
    torch.testing.assert_close(closed, t, **tolerance)
    beyond = torch.tensor([torch.inf, 900.0, -900.0, -torch.inf], dtype=torch.float64)
    torch.testing.assert_close(Schedule.time(schedule, beyond), schedule.time(beyond), **tolerance)
    assert schedule.time(log_snr.float()).dtype == Schedule.time(schedule, log_snr.float()).dtype == torch.float32


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
    """At t = 1 alpha is exactly 0; over the last step alpha / sigma falls linearly, and `time` inverts it."""
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
        (lambda: linear_betas(20), "beta would reach 1, and must stay below 1: take more than 20 steps"),
        (lambda: Tabulated(torch.tensor([0.1, 1.0, 0.1])), r"betas\[1\]=1: betas must lie between 0 and 1"),
        (lambda: VP().grid(0), "at least one step"),
        (lambda: VP(beta_min=2, beta_max=1), "0 < beta_min < beta_max"),
        (lambda: VE(sigma_min=-1), "0 < sigma_min < sigma_max"),
        (lambda: VP(t_last=5), "t_last=5: give times between 0 and 1"),
        (lambda: SubVP(t_min=0.0), "t_min=0.0, t_last=0.001: give times"),
        (lambda: VE(t_last=1.0), "t_last=1.0: give times"),
        (lambda: Quantization(levels=1), "give at least two levels"),
        (lambda: linear_betas(0), "at least one step"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
