"""Ends and edges of the score SDEs.

Where a solver looks beyond them, rounding falls on the wrong side, or parts do not belong together.
"""

import math

import pytest
import torch

from unnoise import continuous, sde
from unnoise.shared.editing import RePaint
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.inverse import MatrixOperator, MomentMatching
from unnoise.shared.gaussian.schedule import rates
from unnoise.shared.networks import MLP
from unnoise.shared.objective import Stratified
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector
from unnoise.shared.serialization import serialize
from unnoise.shared.time_inputs import step_index

MEAN, COVARIANCE = (
    torch.tensor([0.6, -0.3], dtype=torch.float64),
    torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64),
)


def oracle(schedule):
    return AnalyticGaussian(MEAN, COVARIANCE, schedule)


@pytest.mark.parametrize("coordinates", [sde.angle_coordinates, sde.time_coordinates], ids=["angle", "time"])
@pytest.mark.parametrize("make", [sde.VP, sde.SubVP, sde.VE, sde.EDM, sde.Straight])
def test_a_solver_may_evaluate_beyond_the_ends(make, coordinates, generator):
    """torchdiffeq tries a first step of any length: near the data it evaluates at angles and times below 0."""
    flow = sde.ProbabilityFlow(oracle(make()), sde.TorchDiffEq(rtol=1e-3, atol=1e-3), coordinates)
    assert flow(shape=(20, 2), steps=40, generator=generator).isfinite().all()


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("make", [sde.VP, sde.SubVP])
def test_churn_stays_below_the_noisiest_level(make, gamma, generator):
    sampler = continuous.Churned(continuous.Heun(oracle(make())), gamma)
    assert sampler(shape=(20, 2), steps=40, generator=generator).isfinite().all()


def test_the_first_row_of_levels_has_a_rate():
    """`sigma' = sigma N log ratio` at row 1 for every N, on whichever side of it rounding puts t = 1 / N."""
    for n in range(2, 120):
        slope = rates(sde.NoiseLevels(sde.geometric_sigmas(0.01, 1.0, n)), torch.tensor(1 / n, dtype=torch.float64))[1]
        assert float(slope) == pytest.approx(0.01 * n * math.log(100) / (n - 1), rel=1e-9)


def test_no_step_grows_right_after_one_that_failed():
    attempts = []

    def field(times):
        if len(times) == 6:
            step = (times[-1] - times[0]) / 0.8  # the first of the six lies at a fifth of the step
            attempts.append((times[-1] - step, step))
        return [lambda state, t=t: (torch.full_like(state[0], 40.0 if t > 0.7 else 0.1),) for t in times]

    sde.Adaptive(1e-6, 1e-6)(field, (torch.zeros(3, dtype=torch.float64),), 0.0, 2.0)
    failed = [i for i in range(len(attempts) - 2) if attempts[i + 1][0] == pytest.approx(attempts[i][0], abs=1e-12)]
    assert failed
    assert all(attempts[i + 2][1] <= attempts[i + 1][1] * (1 + 1e-6) for i in failed)


def test_moment_matching_ends_where_the_jacobian_is_not_positive():
    posterior = MomentMatching(oracle(sde.VP()), MatrixOperator(torch.eye(2)), torch.zeros(1, 2), iterations=6)
    short = MomentMatching(oracle(sde.VP()), MatrixOperator(torch.eye(2)), torch.zeros(1, 2), iterations=1)
    residual, factor = torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)
    shifts = [p.shift(residual, lambda u: factor * u, torch.ones(()), torch.ones(())) for p in (posterior, short)]
    torch.testing.assert_close(*shifts)


@pytest.mark.parametrize("both", [PredictorCorrector, CorrectorPredictor])
def test_predictor_and_corrector_share_a_process(both):
    vp, again, ve = oracle(sde.VP()), oracle(sde.VP()), oracle(sde.VE())
    both(sde.ReverseDiffusion(vp), sde.Langevin(again))
    for corrector in (sde.Langevin(ve), sde.Langevin(oracle(sde.VP(beta_max=10.0)))):
        with pytest.raises(UsageError, match="have different schedules: build both from one denoiser"):
            both(sde.ReverseDiffusion(vp), corrector)


def one(schedule):
    return sde.Learned(MLP(1, 8, 1), schedule, sde.velocity)


TO_ZERO = continuous.Tabulated(torch.tensor([0.1, 0.3, 0.6, 1.0]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: continuous.ImportanceSampling(
                sde.MaximumLikelihood(one(continuous.Tabulated(continuous.linear_betas(50))))
            ),
            "MaximumLikelihood samples times in a way of its own",
        ),
        (lambda: sde.MaximumLikelihood(one(continuous.Tabulated(torch.tensor([0.3])))), "a table of one row"),
        (
            lambda: sde.DenoisingLoss.flow_matching(one(continuous.Tabulated(torch.tensor([0.3])))),
            "weight=velocity_weight is not positive at t = 1.*table of .* row",
        ),
        (
            lambda: sde.DenoisingLoss.score_matching(one(TO_ZERO)),
            "weight=snr is not positive at t = 1, so the denoiser would not be trained where sampling starts",
        ),
        (
            lambda: continuous.DDIM(one(TO_ZERO))(shape=(2, 1), steps=torch.tensor([1.0, 0.5, 0.1, 0.0])),
            "below the first row",
        ),
        (lambda: TO_ZERO.respaced(torch.tensor([1.0, 0.5])), "the grid ends at t=0.5"),
        (lambda: continuous.Ancestral(one(sde.VP()), "small"), "variance='small': give a function"),
        (
            lambda: continuous.Churned(continuous.Heun(one(sde.VP())), 0.1, low=2.0, high=1.0),
            "give the smaller noise level as low",
        ),
        (lambda: Stratified(0.0), "power=0.0: give a positive number"),
        (lambda: step_index(sde.VP(), torch.ones(1)), "VP runs in continuous time, without steps to count"),
        (lambda: continuous.PosteriorMean(sde.VP()), "schedule=VP: .*give a Tabulated"),
        (
            lambda: sde.Langevin(one(sde.VP())).step(torch.zeros(64, 1), torch.tensor(0.6), torch.tensor(0.5)),
            "AnnealedLangevin",
        ),
        (
            lambda: sde.Langevin(one(sde.VP()), norms=sde.batch_norms).step(
                torch.zeros(4, 1), torch.tensor(0.6), torch.tensor(0.5)
            ),
            "give a larger batch",
        ),
        (
            lambda: serialize(continuous.DenoisingLoss.simple(one(sde.VP()).on(sde.VE()))),
            "cannot contain a Learned on another schedule than that of training",
        ),
    ],
)
def test_what_is_refused_in_one_line(call, words):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_flows_end_at_zero_snr_with_a_slope():
    """alpha / sigma falls as a straight line over a table's last step.

    `alpha' = -r T`, `sigma' = 0` at t = 1, and losses are finite.
    """
    r = float(TO_ZERO(torch.tensor(0.75, dtype=torch.float64))[0] / TO_ZERO(torch.tensor(0.75, dtype=torch.float64))[1])
    d_alpha, d_sigma = rates(TO_ZERO, torch.ones((), dtype=torch.float64))
    assert float(d_alpha) == pytest.approx(-4 * r, rel=1e-12)
    assert float(d_sigma) == 0
    for schedule in (TO_ZERO, continuous.Shifted(sde.Straight(), 1.0), continuous.tabulate(sde.Straight(), 50)):
        loss = sde.DenoisingLoss.flow_matching(one(schedule)).at(torch.randn(8, 1), torch.ones(8, dtype=torch.float64))
        assert bool(torch.isfinite(loss.total).all())


def test_time_coordinates_on_a_table_take_the_slope_of_their_step():
    """Steps from row to row converge at Heun's order as tables grow; with the slope of the row below they do not."""
    errors = []
    for rows in (49, 98, 196):
        there = continuous.Tabulated(continuous.linear_betas(rows))
        exact = AnalyticGaussian(torch.zeros(1, dtype=torch.float64), 0.5 * torch.eye(1, dtype=torch.float64), there)
        grid = there.grid(rows)[:-1]
        x = sde.ProbabilityFlow(exact, coordinates=sde.time_coordinates)(
            torch.ones(1, 1, dtype=torch.float64), steps=grid
        )
        stds = [(a**2 * 0.5 + s**2).sqrt() for a, s in (there(grid[0]), there(grid[-1]))]
        errors.append(abs(float(x * stds[0] / stds[1]) - 1))
    assert errors[0] < 3e-3
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3, errors


def test_the_last_variance_is_the_same_within_wrappers():
    """The variance of the last step is that of the grid, whatever wraps the sampler."""
    table = continuous.Tabulated(continuous.linear_betas(1000))
    exact = AnalyticGaussian(torch.zeros(2), torch.eye(2), table)
    exact.has_variance_output = True  # the variance of the last step is computed where a step may need it
    seen = []

    def ancestral():
        sampler = continuous.Ancestral(exact, continuous.small)
        method = sampler.distribution
        sampler.distribution = lambda *args, **more: seen.append(method(*args, **more)[1]) or method(*args, **more)
        return sampler

    still = sde.AnnealedLangevin(exact, repeats=0)
    for wrapped in (
        ancestral(),
        sde.CorrectorPredictor(ancestral(), still),
        continuous.Churned(ancestral(), 0.0),
        RePaint(ancestral(), torch.zeros(3, 2), torch.tensor([1, 0]), repeats=1),
    ):
        wrapped(shape=(3, 2), steps=10, generator=torch.Generator().manual_seed(0))
        assert float(seen[-1]) == pytest.approx(9.993e-5, rel=1e-3), wrapped


def test_a_denoiser_that_does_not_depend_on_x_has_a_likelihood():
    """Its mean is 0, so the flow scales x by sigma_1 / sigma_(t_min)."""

    class Nothing(GaussianDenoiser):
        corruption = sde.VE(0.1, 10.0)

        def estimate(self, x_t, t, **cond):
            return Estimate.of_mean(torch.zeros_like(x_t))

    x = torch.tensor([[0.05], [0.3]], dtype=torch.float64)
    sigma = float(sde.VE(0.1, 10.0)(torch.tensor(1e-5, dtype=torch.float64))[1])
    expected = 0.5 * (x[:, 0] / sigma) ** 2 + 0.5 * math.log(2 * math.pi * sigma**2)
    found = sde.ChangeOfVariables(Nothing(), trace=sde.ExactTrace(), integrator=sde.Adaptive(1e-7, 1e-7))(x).nats
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
