"""Samplers and wrappers of the Gaussian families: orders in closed form, identities between them, one estimate."""

import itertools
import math

import cells as categorical_cells
import gaussian_cells as cells
import pytest
import torch
from gaussian_analytic import ONE, D, coefficients, end_of, gaussian, marginal, mixture
from gaussian_cells import BETAS, CORRECTED, OF_THE_FLOW, SCHEDULES, STOCHASTIC, WRAPPERS, ZERO_SNR
from test_gaussian_objectives import close

from unnoise import continuous as c
from unnoise import sde
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierFree, ClassifierGuided, NoisyClassifier
from unnoise.shared.gaussian.schedule import TableSchedule
from unnoise.shared.random import Streams
from unnoise.shared.sampler import CorrectorPredictor

IN_CONTINUOUS_TIME = ("VP", "SubVP", "VE", "EDM", "Straight", "Straight(end=0.999)", "Cosine", "Shifted(Cosine)")
IN_LOG_SNR = [
    n
    for n in (*OF_THE_FLOW, *STOCHASTIC)
    if not n.startswith(("EulerMaruyama", "ProbabilityFlow(time)", "ReverseDiffusion"))
]
PRESERVING = ("VP", "Cosine", "Shifted(Cosine)", "Tabulated, 49 rows")
EXPLODING = ("VE", "EDM", "NoiseLevels, 49 rows")


def built(name, denoiser):
    try:
        return cells.SAMPLERS[name](denoiser)
    except UsageError:
        return None


def spaced(schedule, steps, low=-3.0, high=1.5):
    """Returns times that are even in log-SNR, in a range that all schedules have."""
    return schedule.time(torch.linspace(low, high, steps + 1, dtype=D))


def graded(schedule, steps, low=-3.0, high=1.5):
    """Returns the same times with the first step divided into ten that double in length.

    Otherwise the first steps of multistep methods, which are of lower order, would hide their order.
    """
    even = torch.linspace(low, high, steps + 1, dtype=D)
    start = low + (high - low) / steps * 2.0 ** torch.arange(-10, 0, dtype=D)
    return schedule.time(torch.cat([even[:1], start, even[1:]]))


# ---- the distribution, at the declared order


# Samplers that depend on the log-SNR alone return equal results at equal log-SNRs (a test below), so their order on one
# schedule is that on all.
ORDERS = [
    pytest.param(name, schedule, marks=pytest.mark.slow if name in IN_LOG_SNR and schedule not in ("VP", "VE") else ())
    for name in (*OF_THE_FLOW, *STOCHASTIC, *CORRECTED)
    for schedule in IN_CONTINUOUS_TIME
]


@pytest.mark.parametrize(("name", "schedule"), ORDERS)
def test_the_error_of_the_distribution_falls_at_the_order_of_the_sampler(name, schedule):
    """From q(x_t) to q(x_s) for Gaussian data, with mean and variance in closed form and no random draws."""
    there = SCHEDULES[schedule]()
    sampler = built(name, gaussian(there, mean=0.0))
    if sampler is None:
        assert schedule in ZERO_SNR
        return
    order = sampler.order or 1
    counts = {1: (64, 128), 2: (80, 160), 3: (60, 120), 4: (80, 160)}[order]
    errors = []
    for steps in counts:
        grid = graded(there, steps) if sampler.looks_back else spaced(there, steps)
        _, start = marginal(there, grid[0], 0.0)
        noise = 0 if name in OF_THE_FLOW else 3 * len(grid)
        mean, variance = end_of(sampler, grid, noise, float(start.sqrt()))
        _, goal = marginal(there, grid[-1], 0.0)
        close(mean, 0.0, 1e-12)
        errors.append(abs(float(variance / goal) - 1))
    assert errors[-1] < (0.1 if order == 1 else 1e-3), errors
    assert math.log2(errors[0] / errors[1]) > order - 0.35, errors


@pytest.mark.parametrize(
    "schedule", [s if s not in IN_CONTINUOUS_TIME else pytest.param(s, marks=pytest.mark.slow) for s in SCHEDULES]
)
@pytest.mark.parametrize("name", [*OF_THE_FLOW, *STOCHASTIC])
def test_the_mean_follows_the_schedule(name, schedule):
    """From `N(alpha_t m, ..)` the mean goes to alpha_s m, approximately after 60 steps, on every schedule and table."""
    there = SCHEDULES[schedule]()
    sampler = built(name, gaussian(there))
    if sampler is None or schedule in ("Tabulated, 3 rows", "Tabulated, 1 row"):
        return
    grid = there.grid(20) if isinstance(there, TableSchedule) else spaced(there, 60)
    grid = grid[grid > 0] if isinstance(there, TableSchedule) else grid
    mean, variance = marginal(there, grid[0])
    x = mean + variance.sqrt() * torch.tensor([[-1.0], [0.0], [1.0]], dtype=D)
    out = sampler(x, steps=grid, generator=Zero())
    goal, _ = marginal(there, grid[-1])
    assert abs(float(out[1] - goal)) < 0.12 * (1 + abs(float(goal))), (out, goal)


class Zero(Streams):
    """A source of zeros."""

    def __init__(self):
        pass

    def normal(self, shape, dtype, device):
        return torch.zeros(tuple(shape), dtype=dtype)


# ---- equal log-SNRs


@pytest.mark.parametrize("family", [PRESERVING, EXPLODING], ids=["preserving", "exploding"])
@pytest.mark.parametrize("name", [*OF_THE_FLOW, *STOCHASTIC])
def test_equal_log_snrs_give_equal_results(name, family):
    """On all schedules of a family, for samplers that do not depend on t itself."""
    results = []
    for schedule in family:
        there = SCHEDULES[schedule]()
        sampler = built(name, mixture(there))
        low, high = (-2.5, 1.0) if family is PRESERVING else (-3.0, 2.5)
        grid = spaced(there, 12, low, high)
        close(there.log_snr(grid), torch.linspace(low, high, 13, dtype=D), 1e-9)
        x = coefficients(there, grid[0])[1] * torch.linspace(-2, 2, 7, dtype=D)[:, None]
        results.append(sampler(x, steps=grid, generator=torch.Generator().manual_seed(0)))
    if name not in IN_LOG_SNR and not name.startswith("ReverseDiffusion"):
        return
    for other in results[1:]:
        close(other, results[0], 1e-6)


# ---- identities


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samplers_that_are_equal(schedule):
    """At every step of the schedule's own grid, down to x_0."""
    there = SCHEDULES[schedule]()
    denoiser, zero_snr = mixture(there), schedule in ZERO_SNR
    grid = there.grid(min(6, getattr(there, "steps", 6)))
    pairs = {("Ancestral(small)", "DDIM(1)"): 1e-9} | (
        {} if zero_snr else {("Ancestral(small)", "Renoised(DDIM)"): 1e-6}
    )
    for (one, other), tolerance in pairs.items():
        for t, s in itertools.pairwise(grid):
            scale = torch.hypot(*coefficients(there, t))
            x = scale * torch.linspace(-2, 2, 7, dtype=D)[:, None]
            z = torch.randn(7, 1, dtype=D, generator=torch.Generator().manual_seed(1))
            a, b = (cells.SAMPLERS[n](denoiser).step(x, t, s, generator=Same(z)) for n in (one, other))
            close(a, b, tolerance)
    for t, s in itertools.pairwise(grid):
        x = torch.hypot(*coefficients(there, t)) * torch.linspace(-2, 2, 7, dtype=D)[:, None]
        plain = c.DDIM(denoiser).step(x, t, s)
        close(
            plain,
            coefficients(there, s)[0] * denoiser(x, t)
            + coefficients(there, s)[1] * (x - coefficients(there, t)[0] * denoiser(x, t)) / coefficients(there, t)[1],
        )
        if not zero_snr:
            close(c.Churned(c.DDIM(denoiser), 0.0).step(x, t, s), plain)
            close(c.Renoised(c.DDIM(denoiser), 0.0).step(x, t, s), plain)


class Same(Zero):
    """A source that returns the same noise at every draw."""

    def __init__(self, z):
        self.z = z

    def normal(self, shape, dtype, device):
        return self.z.expand(tuple(shape)).to(dtype)


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s not in ZERO_SNR])
@pytest.mark.parametrize("snr", [0.05, 0.2])
def test_the_stationary_variance_of_langevin_dynamics(schedule, snr):
    """That of `AnnealedLangevin` in closed form, `v / (1 - e / (2 v))` with `e = 2 a^2 (snr sigma)^2`."""
    there = SCHEDULES[schedule]()
    oracle = gaussian(there, mean=0.0)
    for t in (0.3, 0.9):
        t = torch.ceil(torch.tensor(t * getattr(there, "steps", 100), dtype=D)) / getattr(there, "steps", 100)
        corrector = sde.AnnealedLangevin(oracle, snr, repeats=1)
        above = (t + 0.01).clamp(max=1.0) if t < 1 else t + 0.01
        _, sigma = coefficients(there, t)
        _, v = marginal(there, t, 0.0)
        a2 = (coefficients(there, t)[0] / coefficients(there, (2 * t - above).clamp(min=0))[0]) ** 2
        e = 2 * a2 * (snr * sigma) ** 2
        variance = v / (1 - e / (2 * v))
        x = torch.zeros(3, 1, dtype=D)
        x[1] = 1

        class One(Zero):
            def normal(self, shape, dtype, device):
                z = torch.zeros(tuple(shape), dtype=dtype)
                z[2] = 1
                return z

        out = corrector.step(x, above, t, generator=One())[:, 0]
        close((out[1] - out[0]) ** 2 * variance + (out[2] - out[0]) ** 2, variance, 1e-9)


def test_annealed_langevin_ends_at_the_variance_of_its_last_time():
    there = sde.NoiseLevels(sde.geometric_sigmas(0.1, 10.0, 49))
    sampler = CorrectorPredictor(
        sde.NoPredictor(gaussian(there, mean=0.0), denoise=False),
        sde.AnnealedLangevin(gaussian(there, mean=0.0), 0.3, 60),
    )
    grid = there.grid(49)
    mean, variance = end_of(sampler, grid[:-1], 60 * 48, 10.0)
    _, goal = marginal(there, grid[-2], 0.0)
    assert float(variance / goal) == pytest.approx(1, abs=0.05)


# ---- one estimate


def test_predictions_by_their_definitions():
    """`x_0 = c_skip x_t + c_out F` for the F of each prediction, at any alpha and sigma."""
    x0, epsilon = torch.randn(2, 9, dtype=D, generator=torch.Generator().manual_seed(0))
    alpha, sigma = torch.rand(2, 9, dtype=D, generator=torch.Generator().manual_seed(1)) + 0.1
    x_t, scale, s = alpha * x0 + sigma * epsilon, torch.hypot(alpha, sigma), 0.7
    edm = (alpha**2 * s**2 + sigma**2).sqrt()
    table, n = c.Tabulated(BETAS), torch.tensor([2, 3, 2, 3, 2, 3, 2, 3, 2], dtype=D)
    a, b = table(n / 3)
    mean = c.posterior(table, a * x0 + b * epsilon, x0, n / 3, (n - 1) / 3)[0]
    for predicts, target, (one, other), x in (
        (c.noise, epsilon, (alpha, sigma), x_t),
        (c.clean, x0, (alpha, sigma), x_t),
        (c.velocity, (alpha * epsilon - sigma * x0) / scale, (alpha, sigma), x_t),
        (sde.straight, epsilon - x0, (alpha, sigma), x_t),
        (sde.Preconditioned(s), (sigma * x0 / s - alpha * s * epsilon) / edm, (alpha, sigma), x_t),
        (c.PosteriorMean(table), mean, (a, b), a * x0 + b * epsilon),
    ):
        c_skip, c_out = predicts(one, other)
        close(c_skip * x + c_out * target, x0, 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", cells.PREDICTIONS)
def test_predictions_are_one_estimate(prediction, schedule):
    """A network F computed from the exact denoiser is that denoiser, on the schedule of training and on others."""
    there = SCHEDULES[schedule]()
    oracle = mixture(there)
    try:
        predicts = cells.PREDICTIONS[prediction](there)
        c.Learned(torch.nn.Identity(), there, predicts)
    except UsageError:
        assert schedule in ZERO_SNR or prediction == "PosteriorMean"
        return
    sigma_data = getattr(predicts, "sigma_data", 1.0)

    class Exact(torch.nn.Module):
        def forward(self, x, time):
            t = time.double()[:1].squeeze() / 1000
            alpha, sigma = coefficients(there, t)
            x_t = x * torch.sqrt(alpha**2 * sigma_data**2 + sigma**2)
            c_skip, c_out = predicts(alpha, sigma)
            return (oracle(x_t, t) - c_skip * x_t) / c_out

    learned = c.Learned(Exact(), there, predicts)
    others = [there] if isinstance(there, TableSchedule) else [there, sde.SubVP(), sde.EDM()]
    for other in others:
        for log_snr in (-2.0, 0.5):
            t = other.time(torch.tensor(log_snr, dtype=D))
            if isinstance(other, TableSchedule):
                t = torch.round(t * other.steps) / other.steps
            x = torch.hypot(*coefficients(other, t)) * torch.linspace(-2, 2, 7, dtype=D)[:, None]
            denoiser = learned.on(other) if other is not there else learned
            close(denoiser(x, t), oracle.on(other)(x, t), 1e-3)  # time inputs are float32
            assert_one_estimate(denoiser, x, t, {}, 1e-4)


def assert_one_estimate(denoiser, x, t, cond, tolerance=1e-8):
    """Asserts that `combined` and `score` are the functions of the mean that they should be."""
    mean = denoiser(x, t, **cond)
    alpha, sigma = coefficients(denoiser.corruption, t)
    estimate = denoiser.estimate(x, t, **cond)
    close(estimate.mean(x), mean, tolerance)
    close(estimate.combined(x, 0.7, -1.3), 0.7 * x - 1.3 * mean, tolerance)
    close(denoiser.score(x, t, **cond), (alpha * mean - x) / sigma**2, tolerance)
    close(estimate.a * x + estimate.b * estimate.out, mean, tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_one_estimate(wrapper, schedule):
    there = SCHEDULES[schedule]()
    try:
        denoiser = WRAPPERS[wrapper](cells.build(schedule))
    except UsageError:
        assert schedule in ZERO_SNR
        return
    cond = {"label": torch.tensor([0, 1] * 4)[:7]}
    for t in (1.0, 0.5, 0.04):
        t = torch.ceil(torch.tensor(t * getattr(there, "steps", 100), dtype=D)) / getattr(there, "steps", 100)
        x = torch.hypot(*coefficients(there, t)) * torch.linspace(-2, 2, 14, dtype=D).view(7, 2)
        with torch.no_grad():
            assert_one_estimate(denoiser, x, t, cond)
            batched = denoiser(x, t.expand(7), **cond)
            close(batched, denoiser(x, t, **cond), 1e-8)
            same = denoiser.on(SCHEDULES[schedule]())
            close(same(x, t, **cond), denoiser(x, t, **cond), 1e-5)  # time inputs are float32


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_guided_denoisers_by_their_definitions(schedule):
    there = SCHEDULES[schedule]()
    oracle, label = mixture(there), torch.ones(7).long()
    t = torch.ceil(torch.tensor(0.6 * getattr(there, "steps", 100), dtype=D)) / getattr(there, "steps", 100)
    x = torch.hypot(*coefficients(there, t)) * torch.linspace(-2, 2, 7, dtype=D)[:, None]
    one, none = oracle(x, t, label=label), oracle(x, t, label=0 * label)
    close(ClassifierFree(oracle, 1.5, null=0)(x, t, label=label), 2.5 * one - 1.5 * none)
    if schedule in ZERO_SNR:
        return

    class Perfect(NoisyClassifier):
        def __init__(self, schedule):
            torch.nn.Module.__init__(self)
            self.corruption, self.conditions = schedule, ()

        def forward(self, x_t, t, **cond):
            return mixture(self.corruption).log_label(x_t, t)

        def on(self, schedule):
            return Perfect(schedule)

    blind = mixture(there)
    blind.conditions = ()  # the label reaches the classifier alone
    close(ClassifierGuided(blind, Perfect(there))(x, t, label=label), one, 1e-6)


EDGES = {  # the two times of a guidance interval
    "VP": (0.25, 0.75),
    "EDM": (0.01, 0.3),
    "VE": (0.25, 0.75),
    "Straight": (0.25, 0.75),
    "Tabulated, 49 rows": (10 / 49, 30 / 49),
    "NoiseLevels, 49 rows": (10 / 49, 30 / 49),
}


@pytest.mark.parametrize("schedule", EDGES)
def test_intervals_are_ranges_of_log_snr(schedule):
    there, (low, high) = SCHEDULES[schedule](), EDGES[schedule]
    denoiser = ClassifierFree(cells.build(schedule), 1.0, low=low, high=high)
    at = lambda v: torch.tensor(v, dtype=D)  # noqa: E731
    same = denoiser.on(SCHEDULES[schedule]())
    there_and_back = denoiser.on(sde.VP()).on(sde.EDM()).on(SCHEDULES[schedule]())
    for one in (denoiser, same, there_and_back):
        assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high))
        assert not bool(one.acts(at(low)))
        assert bool(one.acts(at(high)))
        assert bool(one.acts(at((low + high) / 2)))
        assert not bool(one.acts(at(high) * (1 + 1e-4)))
        for rounded in (1 - 1e-12, 1 + 1e-12):
            assert bool(one.acts(at(high) * rounded))
            assert not bool(one.acts(at(low) * rounded))
    assert there is not None


def test_an_interval_outside_of_a_schedule_never_acts():
    guided = ClassifierFree(cells.build("VP"), 1.0, low=0.97, high=1.0).on(sde.EDM())
    t = torch.linspace(1e-4, 1, 50, dtype=D)
    assert not bool(guided.acts(t).any())
    whole = ClassifierFree(cells.build("VP"), 1.0).on(sde.EDM())
    assert bool(whole.acts(t).all())
    assert bool(ClassifierFree(cells.build("Tabulated, 3 rows"), 1.0, low=0.1).acts(torch.tensor(1 / 3, dtype=D)))


def test_rounding_of_times_does_not_miss_a_row():
    """`T (1 / T) < 1` in floating point for 82 of the T up to 1000; every row has its log-SNR and a positive g^2."""
    for rows in (3, 49, 98, 103, 107, 161, 187, 196):
        for schedule in (
            c.Tabulated(torch.linspace(0.02, 0.3, rows, dtype=D)),
            sde.NoiseLevels(sde.geometric_sigmas(0.1, 10, rows)),
        ):
            n = torch.arange(1, rows + 1, dtype=D)
            for t in (n / rows, n * (1 / rows)):
                t = t.clamp(max=1.0)
                table = schedule.log_snr(n / rows)
                close(schedule.log_snr(t), table, 1e-12)
                assert bool((sde.SDE(schedule).coefficients(t)[1] > 0).all()), rows
                close(schedule.time(table), n / rows, 1e-9)
    assert len(BETAS) == 3
    assert ONE == 1


def test_every_cell_is_built_or_refused_in_one_line_and_the_page_is_current():
    found = cells.cells()
    assert categorical_cells.PAGE.read_text().endswith(cells.page(found)), (
        "docs/consistency.md is not current: run make consistency"
    )
    assert len({cell[:4] for cell in found}) == len(found)
    for cell in found:
        assert "\n" not in cell.refused
    refused = {cell[1:4] for cell in found if cell.refused}
    for schedule in SCHEDULES:
        for part in cells.WEIGHTS:
            assert (schedule, 2, part) in refused  # a variance output that would stay untrained
        for part in ("Variational, uneven times", "MaximumLikelihood, uneven times"):
            assert (schedule, 1, part) in refused
    for schedule, part in itertools.product(
        ZERO_SNR, ("DenoisingLoss.score_matching", *cells.UNUSUAL, "DenoisingLoss.simple")
    ):
        assert (schedule, 1, part) in refused
