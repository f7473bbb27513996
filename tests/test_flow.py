"""The probability flow: its coordinates, its closed form for Gaussian data, encodings, and float32 throughout."""

import math

import pytest
import torch
from helpers import Formula
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from unnoise import continuous, sde
from unnoise.experiments.time_grids import whole
from unnoise.sde.integrators import Adaptive, FixedSteps, SciPy, TorchDiffEq
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.schedule import TableSchedule
from unnoise.shared.networks import MLP

# ---- coordinates

MEAN = torch.tensor([0.6, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
SCHEDULES = {
    "vp": sde.VP,
    "sub-vp": sde.SubVP,
    "ve": sde.VE,
    "edm": sde.EDM,
    "straight": sde.Straight,
    "straight-0.999": lambda: sde.Straight(0.999),
    "tabulated": lambda: continuous.Tabulated(continuous.linear_betas(25)),
    "zero-terminal": lambda: continuous.Tabulated(continuous.zero_terminal(continuous.linear_betas(25))),
    "cosine": continuous.Cosine,
    "noise-levels": lambda: sde.NoiseLevels(sde.geometric_sigmas(0.01, 30.0, 25)),
}
COORDINATES = {"angle": sde.angle_coordinates, "time": sde.time_coordinates}
PRECISE = Adaptive(1e-8, 1e-8, 100_000)
ONE = torch.ones((), dtype=torch.float64)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]()


@pytest.mark.parametrize("coordinates", COORDINATES.values(), ids=COORDINATES)
def test_coefficients_are_those_of_the_flow(schedule, coordinates, generator):
    """Along `alpha x_0 + sigma epsilon`, `dz / d tau = of_x x + of_clean x_0` for z = x / r, by finite differences."""
    x0, epsilon = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    for t in (0.0831, 0.2333, 0.5171, 0.9069, 0.9911):
        h = 1e-6
        z, tau = [], []
        for moment in torch.tensor([t - h, t + h], dtype=torch.float64):
            alpha, sigma = schedule(moment)
            z.append((alpha * x0 + sigma * epsilon) / coordinates.scale(schedule, moment))
            tau.append(coordinates.variable(schedule, moment))
        time = torch.tensor(t, dtype=torch.float64)
        (here,) = coordinates.coefficients(schedule, [coordinates.variable(schedule, time)])
        assert float(here.t) == pytest.approx(t, abs=1e-9)
        assert here.t.dtype == torch.float64
        assert here.scale == pytest.approx(float(coordinates.scale(schedule, time)), rel=1e-8)
        alpha, sigma = schedule(time)
        rate = here.of_x * (alpha * x0 + sigma * epsilon) + here.of_clean * x0
        torch.testing.assert_close(rate, (z[1] - z[0]) / (tau[1] - tau[0]), rtol=1e-5, atol=1e-6)


def mixture(schedule):
    weights, variances = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.02, 0.05, 0.1])
    means = torch.tensor([[-1.0, 0.0], [0.5, 0.8], [1.0, -0.7]])
    return AnalyticMixture(weights.double(), means.double(), variances.double(), schedule)


def test_all_coordinates_and_integrators_reach_the_same_point(schedule, generator):
    oracle = mixture(schedule)
    t, s = torch.tensor([0.97, 0.21], dtype=torch.float64)
    x = schedule.corrupt(torch.randn(4, 2, generator=generator, dtype=torch.float64), t, generator=generator)
    end = sde.ProbabilityFlow(oracle, TorchDiffEq("dopri8", 1e-10, 1e-10)).transport(x, t, s)
    scipy = SciPy("RK45", 1e-8, 1e-8)
    for integrator, coordinates in [(PRECISE, c) for c in finite(schedule)] + [(scipy, sde.angle_coordinates)]:
        # In t the slope jumps at each row of a table, and an error estimate may miss a jump; in the angle it does not.
        wide = coordinates is sde.time_coordinates and isinstance(schedule, TableSchedule)
        there = sde.ProbabilityFlow(oracle, integrator, coordinates).transport(x, t, s)
        torch.testing.assert_close(there, end, rtol=0, atol=2e-4 if wide else 2e-6)
    back = sde.ProbabilityFlow(oracle, PRECISE).transport(end, s, t)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


def finite(schedule):
    """Returns the coordinates in which the velocity is finite at t = 1."""
    return [
        c for c in COORDINATES.values() if math.isfinite(c.coefficients(schedule, [c.variable(schedule, ONE)])[0].of_x)
    ]


def gaussian(schedule):
    return AnalyticGaussian(MEAN, COVARIANCE, schedule)


def moved(oracle, x, t, s):
    """Returns x_s by the flow of `N(mean, C)`: along each axis of C it scales with the standard deviation."""
    (a, b), (c, d) = oracle.corruption(t), oracle.corruption(s)
    stretch = ((c**2 * oracle.variances + d**2) / (a**2 * oracle.variances + b**2)).sqrt()
    return c * oracle.mean + ((x - a * oracle.mean) @ oracle.axes * stretch) @ oracle.axes.T


def ends_of(schedule):
    return ONE, torch.tensor(schedule.t_last, dtype=torch.float64)


def test_encodings_are_the_flow_run_backwards(schedule, generator):
    """An encoding goes from `alpha x_0` at t_last to the noisiest time of a grid."""
    oracle, (one, last) = gaussian(schedule), ends_of(schedule)
    x0 = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    low = schedule(last)[0] * x0
    for coordinates in [sde.angle_coordinates] if isinstance(schedule, TableSchedule) else finite(schedule):
        flow = sde.ProbabilityFlow(oracle, PRECISE, coordinates)
        code = flow.encode(x0)
        torch.testing.assert_close(code, moved(oracle, low, last, one), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(flow(code, steps=whole(schedule)), oracle(low, last), rtol=1e-5, atol=2e-6)
        grid = schedule.grid(4)[1:]
        torch.testing.assert_close(flow.encode(x0, steps=grid), moved(oracle, low, last, grid[0]), rtol=1e-5, atol=1e-6)
    # With fixed steps, on any grid, approximately.
    fixed = sde.ProbabilityFlow(oracle, FixedSteps(sde.rk4))
    log_snrs = torch.linspace(
        max(float(schedule.log_snr(one)), -15.0), float(schedule.log_snr(last)), 60, dtype=torch.float64
    )
    grid = torch.cat([schedule.time(log_snrs), torch.zeros(1)])
    torch.testing.assert_close(fixed(fixed.encode(x0, steps=grid), steps=grid), oracle(low, last), rtol=1e-3, atol=1e-3)


def test_encodings_of_gaussian_data_are_the_prior(schedule, generator):
    oracle, (one, last) = gaussian(schedule), ends_of(schedule)
    data = MEAN + torch.randn(4000, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).T
    noisy = schedule.corrupt(data, last, generator=generator)
    code = sde.ProbabilityFlow(oracle, Adaptive()).encode(noisy / schedule(last)[0])
    alpha, sigma = (float(c) for c in schedule(one))
    if alpha < 0.5 or sigma > 20:  # a short table ends before x_1 is pure noise
        for axis in range(2):
            centered = (code[:, axis] - alpha * MEAN[axis]) / math.sqrt(sigma**2 + alpha**2 * COVARIANCE[axis, axis])
            assert stats.kstest(centered.numpy(), stats.norm.cdf).statistic < 0.03
    assert abs(float(torch.corrcoef(code.T)[0, 1])) < 0.05 + 2 * alpha**2 / sigma**2


def test_temperature_and_slerp_in_a_linear_flow(schedule, generator):
    """For Gaussian data a start r times as far from the mean ends r times as far from it.

    The flow of an isotropic Gaussian scales x, and so commutes with slerp.
    """
    (one, last) = ends_of(schedule)
    flow = sde.ProbabilityFlow(gaussian(schedule), PRECISE)
    z = schedule.prior((5, 2), generator=generator).double()
    cold, warm, center = (flow(r * z, steps=whole(schedule)) for r in (0.7, 1.0, 0.0))
    torch.testing.assert_close(cold - center, 0.7 * (warm - center), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(warm, flow.denoiser(moved(flow.denoiser, z, one, last), last), rtol=1e-5, atol=1e-6)
    round_oracle = AnalyticGaussian(
        torch.zeros(6, dtype=torch.float64), 0.3 * torch.eye(6, dtype=torch.float64), schedule
    )
    flow = sde.ProbabilityFlow(round_oracle, PRECISE)
    x, y = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    share = torch.tensor([0.0, 0.3, 1.0])
    between = flow(sde.slerp(flow.encode(x), flow.encode(y), share), steps=whole(schedule))
    torch.testing.assert_close(
        between, round_oracle(schedule(last)[0] * sde.slerp(x, y, share), last), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(sde.slerp(x, y, share)[[0, 2]], torch.stack([x[0], y[2]]))


def test_only_the_last_step_denoises(generator):
    oracle = gaussian(sde.VP())
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    *_, before, last = sde.ProbabilityFlow(oracle).trajectory(x, steps=5)
    assert torch.equal(last, oracle(before, ends_of(oracle.corruption)[1]))


def test_what_the_flow_refuses():
    class Root(sde.Straight):
        """A schedule whose alpha is a square root, so that its slope at t = 1 is infinite."""

        def __call__(self, t):
            return (1 - t).sqrt(), t

    with pytest.raises(UsageError, match="take coordinates=angle_coordinates, or DDIM"):
        sde.ProbabilityFlow(gaussian(Root()), coordinates=sde.time_coordinates)
    with pytest.raises(UsageError, match="encoding goes from t=0.001 to the noisiest time of the grid"):
        sde.ProbabilityFlow(gaussian(sde.VP())).encode(torch.zeros(1, 2), steps=torch.tensor([5e-4, 0.0]))
    broken = sde.Learned(Formula(lambda x, time: x * math.nan), sde.VP())
    with pytest.raises(UsageError, match="NaN"):
        sde.ProbabilityFlow(broken, Adaptive())(shape=(2, 3), steps=2)


# ---- float32 stays float32


class NoDoubles(TorchDispatchMode):
    """Fails where an operation returns float64 data, which some devices do not support."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor) and part.dtype == torch.float64 and part.ndim >= 2:
                raise AssertionError(f"{func} gave float64 of shape {tuple(part.shape)}")
        return out


IN_FLOAT32 = {
    "ddim": lambda d: continuous.DDIM(d, 0.5),
    "ancestral": lambda d: continuous.Ancestral(d, continuous.small),
    "dpm-solver++": continuous.DPMSolverPP,
    "unipc": continuous.UniPC,
    "flow": sde.ProbabilityFlow,
    "flow-time": lambda d: sde.ProbabilityFlow(d, FixedSteps(sde.rk4), sde.time_coordinates),
    "flow-adaptive": lambda d: sde.ProbabilityFlow(d, Adaptive(1e-3, 1e-3)),
    "euler-maruyama": sde.EulerMaruyama,
    "reverse-diffusion": sde.ReverseDiffusion,
    "predictor-corrector": lambda d: sde.PredictorCorrector(sde.ReverseDiffusion(d), sde.Langevin(d)),
    "annealed": lambda d: sde.CorrectorPredictor(sde.NoPredictor(d), sde.AnnealedLangevin(d)),
}


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_float32_data_stay_float32(name, generator):
    torch.manual_seed(0)
    for home in (sde.VP(), sde.VE(), sde.Straight(0.999)):
        denoiser = sde.Learned(MLP(16, width=8, depth=1), home, sde.velocity)
        for denoiser_there in (denoiser, denoiser.on(sde.SubVP())):
            with NoDoubles():
                x = IN_FLOAT32[name](denoiser_there)(shape=(2, 16), steps=3, generator=generator)
            assert x.dtype == torch.float32
            t = torch.tensor([0.3, 0.9], dtype=torch.float64)  # a time for each example is float64 itself
            with NoDoubles():
                noisy = denoiser_there.corruption.corrupt(x, t, generator=generator)
                assert denoiser_there.score(noisy, t).dtype == torch.float32
                assert (
                    sde.DenoisingLoss.flow_matching(denoiser_there).at(x, t, generator=generator).total.dtype
                    == torch.float32
                )
    with pytest.raises(AssertionError, match="float64"), NoDoubles():
        torch.zeros(2, 3).double()
