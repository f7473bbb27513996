"""Ends and edges of the score SDEs: where a solver looks beyond them, rounding falls on the wrong side, or parts do not belong together."""

import math

import pytest
import torch

from unnoise import continuous, sde
from unnoise.sde.sde import rates
from unnoise.shared.errors import UsageError
from unnoise.shared.inverse import Dense, MomentMatching
from unnoise.shared.oracle import GaussianOracle
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector

MEAN, COVARIANCE = torch.tensor([0.6, -0.3], dtype=torch.float64), torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def oracle(schedule):
    return GaussianOracle(MEAN, COVARIANCE, schedule)


@pytest.mark.parametrize("chart", ["angle", "clock"])
@pytest.mark.parametrize("make", [sde.VP, sde.SubVP, sde.VE, sde.EDM, sde.Straight])
def test_a_solver_may_look_beyond_the_ends(make, chart, generator):
    """torchdiffeq tries its first step without a look at where the interval ends: near the data that is beyond angle and time 0."""
    flow = sde.ProbabilityFlow(oracle(make()), sde.TorchDiffEq(rtol=1e-3, atol=1e-3), getattr(sde, chart))
    assert flow(shape=(20, 2), steps=40, generator=generator).isfinite().all()


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("make", [sde.VP, sde.SubVP])
def test_churn_stays_below_the_noisiest_level(make, gamma, generator):
    sampler = continuous.Churned(continuous.Heun(oracle(make())), gamma)
    assert sampler(shape=(20, 2), steps=40, generator=generator).isfinite().all()


def test_the_first_row_of_levels_has_a_rate():
    """`sigma' = sigma N log ratio` at row 1 for every N, on whichever side of it rounding puts t = 1 / N."""
    for n in range(2, 120):
        slope = rates(sde.Levels(sde.geometric_sigmas(0.01, 1.0, n)), torch.tensor(1 / n, dtype=torch.float64))[1]
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
    posterior = MomentMatching(oracle(sde.VP()), Dense(torch.eye(2)), torch.zeros(1, 2), iterations=6)
    short = MomentMatching(oracle(sde.VP()), Dense(torch.eye(2)), torch.zeros(1, 2), iterations=1)
    residual, spread = torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)
    shifts = [p.shift(residual, lambda u: spread * u, torch.ones(()), torch.ones(())) for p in (posterior, short)]
    torch.testing.assert_close(*shifts)


@pytest.mark.parametrize("both", [PredictorCorrector, CorrectorPredictor])
def test_predictor_and_corrector_share_a_process(both):
    vp, again, ve = oracle(sde.VP()), oracle(sde.VP()), oracle(sde.VE())
    both(sde.ReverseDiffusion(vp), sde.Langevin(again))
    for corrector in (sde.Langevin(ve), sde.Langevin(oracle(sde.VP(beta_max=10.0)))):
        with pytest.raises(UsageError, match="belong to different schedules: build both from one denoiser"):
            both(sde.ReverseDiffusion(vp), corrector)
