"""Distributions, not shapes: samplers return known distributions, solvers have their order, bounds are entropies."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from unnoise import continuous, discrete, sde
from unnoise.discrete.transition.generic import categorical_kl
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import counted

MEAN = torch.tensor([0.6, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.0], [0.5, 0.8], [1.0, -0.7]], dtype=torch.float64)
VARIANCES = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64)

SCHEDULES = {
    "linear": lambda: continuous.Tabulated(continuous.linear_betas(1000)),
    "cosine": lambda: continuous.Tabulated(continuous.cosine_betas(1000)),
    "vp": sde.VP,
    "sub-vp": sde.SubVP,
    "ve": sde.VE,
    "continuous-cosine": continuous.Cosine,
    "shifted": lambda: continuous.Shifted(continuous.Tabulated(continuous.cosine_betas(1000)), -1.0),
    "zero-terminal": lambda: continuous.Tabulated(continuous.zero_terminal(continuous.linear_betas(1000))),
    "edm": sde.EDM,
    "straight": sde.Straight,
    "straight-0.999": lambda: sde.Straight(0.999),
    "noise-levels": lambda: sde.NoiseLevels(sde.geometric_sigmas(0.01, 50.0, 1000)),
}


def langevin(denoiser, snr=0.1):
    # in two dimensions the norm of one score varies too much to set a step size
    return sde.Langevin(denoiser, snr, norms=sde.batch_norms)


SAMPLERS = {
    "ancestral-large": lambda d: continuous.Ancestral(d, continuous.large),
    "ancestral-small": lambda d: continuous.Ancestral(d, continuous.small),
    "ancestral-between": lambda d: continuous.Ancestral(d, continuous.LogInterpolated(0.3)),
    "ddim-0": lambda d: continuous.DDIM(d),
    "ddim-0.5": lambda d: continuous.DDIM(d, 0.5),
    "ddim-1": lambda d: continuous.DDIM(d, 1.0),
    "heun": continuous.Heun,
    "dpm-solver-2": continuous.DPMSolver,
    "dpm-solver-3": lambda d: continuous.DPMSolver(d, 3),
    "dpm-solver++2s": continuous.DPMSolverPPSingle,
    "dpm-solver++2m": continuous.DPMSolverPP,
    "dpm-solver++3m": lambda d: continuous.DPMSolverPP(d, continuous.curved),
    "dpm-solver++2m-sde": lambda d: continuous.DPMSolverPP(d, eta=1.0),
    "dpm-solver++3m-sde": lambda d: continuous.DPMSolverPP(d, continuous.curved, eta=1.0),
    "unipc-2": lambda d: continuous.UniPC(d, 2),
    "unipc-3": continuous.UniPC,
    "lms": continuous.LMS,
    "renoised-2s": lambda d: continuous.Renoised(continuous.DPMSolverPPSingle(d)),
    "churned-heun": lambda d: continuous.Churned(continuous.Heun(d), 0.1, low=0.05, high=50.0),
    "euler-maruyama": sde.EulerMaruyama,
    "euler-maruyama-0.5": lambda d: sde.EulerMaruyama(d, 0.5),
    "reverse-diffusion": sde.ReverseDiffusion,
    "reverse-diffusion+langevin": lambda d: sde.PredictorCorrector(sde.ReverseDiffusion(d), langevin(d)),
    "langevin+reverse-diffusion": lambda d: sde.CorrectorPredictor(sde.ReverseDiffusion(d), langevin(d)),
    "reverse-diffusion-0": lambda d: sde.ReverseDiffusion(d, 0.0),
    "ancestral+langevin": lambda d: sde.PredictorCorrector(continuous.Ancestral(d, continuous.small), langevin(d)),
    "ddim+langevin": lambda d: sde.PredictorCorrector(continuous.DDIM(d), langevin(d)),
    "flow-heun": lambda d: sde.ProbabilityFlow(d),
    "flow-rk4": lambda d: sde.ProbabilityFlow(d, sde.FixedSteps(sde.rk4)),
    "flow-adaptive": lambda d: sde.ProbabilityFlow(d, sde.Adaptive(1e-4, 1e-4)),
    "flow-adaptive-time": lambda d: sde.ProbabilityFlow(d, sde.Adaptive(1e-4, 1e-4), sde.time_coordinates),
    "flow-time": lambda d: sde.ProbabilityFlow(d, coordinates=sde.time_coordinates),
}
OF_THE_FLOW = (
    *("ddim-0", "heun", "dpm-solver-2", "dpm-solver-3", "dpm-solver++2s"),
    *("dpm-solver++2m", "dpm-solver++3m", "unipc-2", "unipc-3", "lms"),
)
# Not every sampler on every schedule: one of each kind, and from zero SNR those that do not divide by alpha.
FEW = ("ancestral-small", "ddim-0", "ddim-0.5", "dpm-solver++2m", "dpm-solver++3m-sde", "unipc-3")
SOME = {
    **dict.fromkeys(("continuous-cosine", "shifted", "zero-terminal"), FEW),
    "edm": ("ddim-0.5", "churned-heun", "reverse-diffusion", "flow-adaptive", "flow-time"),
    "straight": (
        "ancestral-small",
        "ddim-0",
        "unipc-3",
        "flow-heun",
        "flow-adaptive",
        "flow-adaptive-time",
        "flow-time",
    ),
    "straight-0.999": ("ddim-0.5", "euler-maruyama", "reverse-diffusion", "flow-adaptive-time"),
    "noise-levels": ("ddim-0.5", "langevin+reverse-diffusion", "flow-adaptive"),
}
THERE = {
    "langevin+reverse-diffusion": ("ve", "noise-levels"),
    "ancestral+langevin": ("linear",),
    "reverse-diffusion-0": ("vp",),
    **dict.fromkeys(("flow-adaptive-time", "flow-time"), ("vp", "ve", "edm", "straight", "straight-0.999")),
}
PAIRS = [
    (sampler, schedule)
    for schedule in SCHEDULES
    for sampler in SAMPLERS
    if sampler in SOME.get(schedule, SAMPLERS) and schedule in THERE.get(sampler, SCHEDULES)
]
COUNT, STEPS = 3000, 400


def marked(pairs):
    """Marks all but the first schedule of each sampler as slow."""
    samplers, found = set(), []
    for sampler, schedule in pairs:
        found.append(pytest.param(sampler, schedule, marks=pytest.mark.slow if sampler in samplers else ()))
        samplers.add(sampler)
    return found


PAIRS = marked(PAIRS)


def samples(sampler_name, schedule_name, oracle, generator):
    sampler = SAMPLERS[sampler_name](oracle(SCHEDULES[schedule_name]()))
    steps = STEPS if (sampler.order or 1) == 1 else 100
    if "adaptive" in sampler_name:
        # an adaptive method integrates to t_last at once, and then denoises
        steps = torch.tensor([1, sampler.corruption.t_last, 0], dtype=torch.float64)
    if sampler_name == "reverse-diffusion-0":
        steps = 4 * STEPS  # without noise errors do not decay
    if (sampler_name, schedule_name) == ("euler-maruyama-0.5", "cosine"):
        # The table's last beta is 0.999, too much for one Euler step, and with little noise the error does not decay.
        steps = torch.cat([torch.linspace(0.98, 0.001, STEPS), torch.zeros(1)])
    start = sampler.corruption.prior((COUNT, 2), generator=generator).double()
    return sampler(start, steps=steps, generator=generator)


def ks(x, cdf):
    return stats.kstest(x.numpy(), cdf).statistic


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_gaussian_data(sampler, schedule, generator):
    x = samples(sampler, schedule, lambda s: AnalyticGaussian(MEAN, COVARIANCE, s), generator)
    assert torch.allclose(x.mean(0), MEAN, atol=0.035)
    assert torch.allclose(torch.cov(x.T), COVARIANCE, atol=0.035)
    for axis in range(2):
        assert ks(x[:, axis], stats.norm(float(MEAN[axis]), float(COVARIANCE[axis, axis]) ** 0.5).cdf) < 0.035


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_mixture_data(sampler, schedule, generator):
    x = samples(sampler, schedule, lambda s: AnalyticMixture(WEIGHTS, MEANS, VARIANCES, s), generator)
    mean = WEIGHTS @ MEANS
    covariance = (MEANS - mean).T @ torch.diag(WEIGHTS) @ (MEANS - mean) + (WEIGHTS @ VARIANCES) * torch.eye(2)
    assert torch.allclose(x.mean(0), mean, atol=0.05)
    assert torch.allclose(torch.cov(x.T), covariance, atol=0.06)
    for axis in range(2):

        def cdf(v, axis=axis):
            means, scales = MEANS[:, axis].numpy(), VARIANCES.sqrt().numpy()
            return stats.norm(means, scales).cdf(np.asarray(v)[..., None]) @ WEIGHTS.numpy()

        assert ks(x[:, axis], cdf) < 0.04


@pytest.mark.parametrize("dims", [64, 256])
def test_langevin_with_the_norms_of_each_sample(dims, generator):
    """Steps `e ~ 1 / ||score||^2` have the stationary distribution p / e, for a Gaussian 1 + 2 / d times its variance.

    Finite steps add 1 %.
    """
    oracle = AnalyticGaussian(
        torch.zeros(dims, dtype=torch.float64), 0.5 * torch.eye(dims, dtype=torch.float64), sde.VP()
    )
    x = sde.PredictorCorrector(sde.ReverseDiffusion(oracle), sde.Langevin(oracle, snr=0.1))(
        shape=(400, dims), steps=400, generator=generator
    )
    assert abs(float(x.mean())) < 0.01
    assert float(x.var()) == pytest.approx(0.5 * (1 + 2 / dims), rel=0.03)


def test_evaluations_are_counted():
    oracle = AnalyticMixture(WEIGHTS, MEANS, VARIANCES, sde.VP())
    learned = continuous.Learned(MLP(2, 8, 1), continuous.Tabulated(continuous.linear_betas(40)))
    for denoiser in (oracle, learned, continuous.Clipped(learned), learned.on(sde.VP())):
        for sampler, expected in (
            (continuous.DDIM(denoiser), 10),
            (continuous.Heun(denoiser), 19),
            (continuous.DPMSolver(denoiser, 3), 28),
            (continuous.DPMSolverPP(denoiser), 10),
            (continuous.UniPC(denoiser), 10),
            (sde.EulerMaruyama(denoiser), 10),
            (sde.ProbabilityFlow(denoiser), 19),  # two per Heun step, one for the last
            (sde.PredictorCorrector(sde.ReverseDiffusion(denoiser), langevin(denoiser)), 19),
        ):
            with counted(denoiser) as count:
                sampler(shape=(16, 2), steps=10)
            assert count.calls == expected


ODE_SAMPLERS = {
    **{name: make for name, make in SAMPLERS.items() if name in OF_THE_FLOW},
    **{
        f"{method}-{name}": lambda d, m=method, c=coordinates: sde.ProbabilityFlow(
            d, sde.FixedSteps(getattr(sde, m)), c
        )
        for method in ("euler", "midpoint_rule", "heun2", "heun3", "rk4")
        for name, coordinates in (("angle", sde.angle_coordinates), ("time", sde.time_coordinates))
    },
    "reverse-diffusion-0": SAMPLERS["reverse-diffusion-0"],
}


@pytest.mark.parametrize(
    "schedule", ["vp", *(pytest.param(s, marks=pytest.mark.slow) for s in ("sub-vp", "ve", "continuous-cosine"))]
)
@pytest.mark.parametrize("sampler", ODE_SAMPLERS)
def test_order_of_convergence(sampler, schedule):
    """The slope of the error against the step size, on a mixture, from t = 0.9 to 0.2.

    The first of n steps is taken in ten, each twice as long as the one before, so that the start of multistep methods
    does not hide their order.
    """
    oracle = AnalyticMixture(WEIGHTS, MEANS, VARIANCES, SCHEDULES[schedule]())
    start = (
        torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * oracle.corruption(torch.tensor(0.9))[1]
    )

    def end(s, steps):
        grid = torch.linspace(0.9, 0.2, steps + 1, dtype=torch.float64)
        graded = 0.9 - 0.7 / steps * 2.0 ** torch.arange(-10, 0, dtype=torch.float64)
        return s(start, steps=torch.cat([grid[:1], graded, grid[1:]]))

    exact = sde.ProbabilityFlow(oracle, sde.TorchDiffEq("dopri8", 1e-12, 1e-12))(
        start, steps=torch.tensor([0.9, 0.2], dtype=torch.float64)
    )
    tested = ODE_SAMPLERS[sampler](oracle)
    fine = isinstance(tested, continuous.solvers.Multistep)  # one evaluation per step
    counts = {1: (256, 512), 2: (256, 512) if fine else (64, 128), 3: (128, 256), 4: (256, 512) if fine else (32, 64)}[
        tested.order
    ]
    errors = [(end(tested, n) - exact).abs().mean() for n in counts]
    slope = float(torch.log2(errors[0] / errors[1]))
    assert abs(slope - tested.order) < 0.3, slope


def test_samples_do_not_depend_on_the_batch():
    """Sample i depends on (seed, i) alone."""
    from unnoise.shared.random import Streams

    oracle = AnalyticGaussian(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64), sde.VP())
    for make in (
        continuous.Ancestral,
        sde.EulerMaruyama,
        lambda d: sde.PredictorCorrector(sde.ReverseDiffusion(d), sde.Langevin(d)),
    ):
        whole = make(oracle)(shape=(6, 16), steps=20, generator=Streams(7, range(6)))
        part = make(oracle)(shape=(2, 16), steps=20, generator=Streams(7, [4, 1]))
        torch.testing.assert_close(part, whole[[4, 1]])


# ---- categorical

FREQUENCIES = torch.tensor([0.4, 0.1, 0.25, 0.2, 0.05], dtype=torch.float64)
K, T = 5, 24
TRANSITIONS = {
    "uniform": lambda: discrete.Uniform(K, discrete.cosine(T)),
    "absorbing-mask": lambda: discrete.Absorbing(K, discrete.reciprocal(T)),
    "absorbing-category": lambda: discrete.Absorbing(K, discrete.reciprocal(T), mask=K // 2),
    "gaussian": lambda: discrete.DiscretizedGaussian(K, discrete.linear(T, 0.05, 1.0)),
}


def oracle_on(name):
    transition = TRANSITIONS[name]()
    p = torch.cat([FREQUENCIES, torch.zeros(transition.states - K, dtype=torch.float64)])
    return discrete.AnalyticCategorical(p, transition)


def at(n):
    return torch.tensor(n / T, dtype=torch.float64)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_bound_equals_entropy_by_enumeration(name):
    """With the exact denoiser every step of the reverse chain is exact, so the bound is H(x_0) + KL(q(x_T) || p(x_T)),
    to rounding.
    """
    oracle = oracle_on(name)
    transition, p = oracle.corruption, oracle.p
    states = torch.arange(transition.states)
    bound = discrete.VariationalBound(oracle)
    total = (p[:K] * bound.prior(states[:K, None])).sum()
    for n in range(1, T + 1):
        for x0, x_t in itertools.product(range(K), range(transition.states)):
            weight = p[x0] * transition.likelihood(states[x_t], at(0), at(n))[x0]
            if weight > 0:
                one, here = torch.tensor([x0]), torch.tensor([x_t])
                truth = oracle.reverse(transition, here, transition.one_hot(one, torch.float64), at(n), at(n - 1))
                model = oracle.step_distribution(here, at(n), at(n - 1))
                total = total + weight * categorical_kl(truth, model)[0]
    entropy = -(FREQUENCIES * FREQUENCIES.log()).sum()
    last = transition.pushforward(p, at(0), at(T))
    start = categorical_kl(last, transition.stationary())
    torch.testing.assert_close(total, entropy + start, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_bound_as_estimated(name, generator):
    """The mean of `VariationalBound` over draws is the same entropy, within its standard error."""
    oracle = oracle_on(name)
    x0 = torch.multinomial(FREQUENCIES, 20_000, replacement=True, generator=generator)[:, None]
    last = oracle.corruption.pushforward(oracle.p, at(0), at(T))
    start = categorical_kl(last, oracle.corruption.stationary())
    expected = float(-(FREQUENCIES * FREQUENCIES.log()).sum() + start)
    for terms in (None, 6):
        nats = discrete.VariationalBound(oracle, terms=terms)(x0, generator=generator).nats
        error = float(nats.std() / math.sqrt(len(nats)))
        assert error < 0.02
        assert abs(float(nats.mean()) - expected) < 4 * error


@pytest.mark.parametrize("steps", [T, 7, 1])
@pytest.mark.parametrize("name", TRANSITIONS)
def test_the_reverse_chain_returns_the_distribution_of_the_data(name, steps, generator):
    """Exactly by enumeration of the reverse steps from q(x_T), strided ones too; and the sampler draws from it."""
    oracle = oracle_on(name)
    transition = oracle.corruption
    states = torch.arange(transition.states)
    marginal = transition.pushforward(oracle.p, at(0), at(T))
    for t, s in itertools.pairwise(transition.grid(steps)):
        marginal = marginal @ torch.nan_to_num(oracle.step_distribution(states, t, s))
    torch.testing.assert_close(marginal, oracle.p, rtol=1e-10, atol=1e-12)
    from unnoise.shared.random import categorical

    x = discrete.Ancestral(oracle, last=categorical)(shape=(20_000, 1), steps=steps, generator=generator)
    start = transition.stationary()
    for t, s in itertools.pairwise(transition.grid(steps)):
        start = start @ torch.nan_to_num(oracle.step_distribution(states, t, s))
    counts = torch.bincount(x.flatten(), minlength=transition.states)[:K]
    assert stats.chisquare(counts.numpy(), (start[:K] / start[:K].sum() * len(x)).numpy()).pvalue > 1e-4


# ---- code lengths of real-valued data


def test_change_of_variables_equals_the_exact_density(generator):
    oracle = AnalyticMixture(WEIGHTS, MEANS, VARIANCES, sde.VP())
    component = torch.multinomial(WEIGHTS, 64, replacement=True, generator=generator)
    noise = torch.randn(64, 2, dtype=torch.float64, generator=generator)
    x0 = MEANS[component] + VARIANCES[component, None].sqrt() * noise
    exact = -oracle.log_prob(x0, torch.zeros(()))
    for name in ("vp", "sub-vp", "ve"):
        code = sde.ChangeOfVariables(oracle.on(SCHEDULES[name]()), trace=sde.ExactTrace())(x0)
        # VE's prior is N(0, sigma_max^2) in place of N(mean, C + sigma_max^2), and sigma is 0.01 at its t_min.
        tolerance = 0.005 if name != "ve" else 0.02
        assert (code.bits_per_dim(2) - exact / (2 * math.log(2))).abs().mean() < tolerance
    estimate = sde.ChangeOfVariables(oracle)(x0.repeat(20, 1), generator=generator).nats.view(20, -1)
    error = estimate.mean(0).std() / 8 + estimate.std(0).mean() / math.sqrt(20 * 64)
    assert abs(float((estimate.mean(0) - exact).mean())) < 3 * float(error)


def test_the_code_length_of_quantized_data_includes_the_offset(generator):
    """Uniform data on 8 quantization levels, as a density on [-1, 1], cost 3 bits per number."""
    scale = Quantization(levels=8)
    wide = AnalyticGaussian(
        torch.zeros(1, dtype=torch.float64), torch.full((1, 1), 1 / 3, dtype=torch.float64), sde.VP()
    )
    k = torch.arange(8).repeat(500)[:, None]
    nats = sde.ChangeOfVariables(wide, sde.UniformDequantization(scale))(k, generator=generator).nats
    # Cross-entropy of uniform on [-1, 1] under N(0, 1/3), minus the log of the bin's width.
    expected = 0.5 * math.log(2 * math.pi / 3) + 0.5 - math.log(scale.cell)
    assert abs(float(nats.mean()) - expected) < 0.01


def test_the_gaussian_bound_is_above_the_entropy_and_close_to_it(generator):
    """For five points on the grid of 17 quantization levels in three dimensions, whose entropy is log 5."""
    scale = Quantization(levels=17)
    k = torch.randint(0, 17, (5, 3), generator=generator)
    points = scale.continuous(k).double()
    excess = []
    for steps in (100, 400):
        schedule = continuous.Tabulated(continuous.linear_betas(steps))
        oracle = AnalyticMixture(
            torch.full((5,), 0.2, dtype=torch.float64), points, torch.zeros(5, dtype=torch.float64), schedule
        )
        bound = continuous.VariationalBound(oracle, scale, variance=continuous.small)
        nats = bound(points.repeat(300, 1), generator=generator).nats
        excess.append(float(nats.mean()) - math.log(5))
        error = float(nats.std() / math.sqrt(len(nats)))
        assert excess[-1] > -3 * error
    assert excess[1] < 0.5 * excess[0]
    assert excess[1] < 0.1
