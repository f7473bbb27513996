"""Code lengths by the change of variables: exact for a mixture on every schedule, calibrated errors, refusals."""

import math

import pytest
import torch
from helpers import Formula

from unnoise import continuous, sde
from unnoise.sde import ChangeOfVariables, ExactTrace, Hutchinson
from unnoise.sde.integrators import Adaptive, FixedSteps, SciPy, TorchDiffEq
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.denoiser import Estimate
from unnoise.shared.gaussian.schedule import TableSchedule
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, normal_like, rademacher_like
from unnoise.shared.sampler import counted

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.0, 0.4], [0.5, 0.8, -0.2], [0.9, -0.7, 0.1]], dtype=torch.float64)
VARIANCES = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64)
DIMS = 3
SCHEDULES = {
    "vp": sde.VP,
    "sub-vp": sde.SubVP,
    "ve": sde.VE,
    "edm": sde.EDM,
    "straight": sde.Straight,
    "tabulated": lambda: continuous.Tabulated(continuous.linear_betas(100)),
    "cosine": continuous.Cosine,
    "noise-levels": lambda: sde.NoiseLevels(sde.geometric_sigmas(0.002, 50.0, 60)),
}
ONE = torch.ones((), dtype=torch.float64)


def mixture(schedule):
    return AnalyticMixture(WEIGHTS, MEANS, VARIANCES, schedule)


def data(count, generator):
    component = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    return MEANS[component] + VARIANCES[component, None].sqrt() * torch.randn(
        count, DIMS, dtype=torch.float64, generator=generator
    )


def exact_length(oracle, x0):
    """Returns `-log q(x)` at t_min, with the noise of the schedule there: it matters for VE and tables alone."""
    return -oracle.log_prob(x0, torch.tensor(oracle.corruption.t_min, dtype=torch.float64))


@pytest.mark.parametrize("coordinates", [sde.angle_coordinates, sde.time_coordinates], ids=["angle", "time"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_code_length_is_the_negative_log_density(name, coordinates, generator):
    """Within 0.005 bits/dim at the default tolerances, except for the difference of the prior to `q(x_1)`."""
    oracle = mixture(SCHEDULES[name]())
    if coordinates is sde.time_coordinates and isinstance(oracle.corruption, TableSchedule):
        pytest.skip("in t the slope of a table jumps")
    x0 = data(64, generator)
    likelihood = ChangeOfVariables(oracle, trace=ExactTrace(), integrator=Adaptive(1e-5, 1e-5), coordinates=coordinates)
    code, x1 = likelihood(x0), likelihood.transport(x0, likelihood.trace.probes(x0))[0]
    mismatch = code.prior + oracle.log_prob(x1, ONE)
    assert float(mismatch.abs().max()) < 0.2
    difference = (code.nats - mismatch - exact_length(oracle, x0)) / (DIMS * math.log(2))
    assert float(difference.abs().max()) < 0.005
    if name not in ("ve", "noise-levels"):
        assert float(difference.abs().max() + mismatch.abs().max() / (DIMS * math.log(2))) < 0.01
    assert not code.error.any()
    assert not code.data.any()


INTEGRATORS = (Adaptive(1e-9, 1e-9), TorchDiffEq("dopri5", 1e-9, 1e-9), SciPy("RK45", 1e-9, 1e-9))


@pytest.mark.parametrize(
    ("name", "integrator"),
    [
        pytest.param(name, i, id=f"{name}-{type(i).__name__}", marks=pytest.mark.slow if n and name != "vp" else ())
        for name in ("vp", "ve", "edm", "straight", "noise-levels")
        for n, i in enumerate(INTEGRATORS)
    ],
)
def test_the_volume_is_that_of_the_flow(name, integrator, generator):
    """`log q_1(x_1) + log-volume = log q_min(x_0)` with the true q_1, to the integrator's precision."""
    oracle, x0 = mixture(SCHEDULES[name]()), data(8, generator)
    likelihood = ChangeOfVariables(oracle, trace=ExactTrace(), integrator=integrator)
    x1, gained = likelihood.transport(x0, likelihood.trace.probes(x0))
    truth = -oracle.log_prob(x1, ONE) - gained[0]
    torch.testing.assert_close(truth, exact_length(oracle, x0), rtol=0, atol=1e-5)
    # The prior of the code length is the normal distribution with standard deviation sigma_1.
    code = likelihood(x0)
    sigma = float(oracle.corruption(ONE)[1])
    prior = -torch.distributions.Normal(torch.zeros_like(x1), sigma).log_prob(x1).sum(1)
    torch.testing.assert_close(code.prior, prior, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(code.path, -gained[0], rtol=1e-9, atol=1e-9)


def test_tolerances_are_in_nats_per_dimension(generator):
    """In 64 dimensions the error in bits/dim is that in 2, with as many evaluations."""
    counts, errors = [], []
    for dims in (2, 64):
        oracle = AnalyticGaussian(
            torch.zeros(dims, dtype=torch.float64), 0.09 * torch.eye(dims, dtype=torch.float64), sde.VP()
        )
        x0 = 0.3 * torch.randn(16, dims, generator=generator, dtype=torch.float64)
        exact = -torch.distributions.Normal(0.0, 0.3).log_prob(x0).sum(1)
        with counted(oracle) as count:
            # the Jacobian is a multiple of the identity, for which random signs are exact
            code = ChangeOfVariables(oracle, integrator=Adaptive(1e-4, 1e-4))(x0, generator=generator)
        assert count.calls > 20
        counts.append(count.calls)
        errors.append(float((code.nats - exact).abs().mean()) / dims)
    assert abs(counts[0] - counts[1]) <= 14
    assert max(errors) < 1e-3


@pytest.mark.parametrize("draw", [rademacher_like, normal_like])
@pytest.mark.parametrize("count", [8, 40])
def test_the_standard_error_is_calibrated(draw, count, generator):
    """Deviations from the exact trace are unbiased, as large as reported, and divided by that, Student's t."""
    x0 = data(600, generator)
    exact, estimate = (
        # with fixed steps, so that only the probes differ
        ChangeOfVariables(mixture(sde.VP()), trace=trace, integrator=FixedSteps(sde.rk4))(x0, generator=generator)
        for trace in (ExactTrace(), Hutchinson(count, draw))
    )
    deviation = estimate.nats - exact.nats
    assert float(deviation.std()) > 0.05
    assert abs(float(deviation.mean())) < 4 * float(deviation.std()) / math.sqrt(len(x0))
    assert 0.85 < float(estimate.error.square().mean() / deviation.square().mean()) < 1.18
    if count == 40:  # a few signs in three dimensions are often all alike
        t = deviation / estimate.error
        assert 0.75 < float(t.var()) * (count - 3) / (count - 1) < 1.35


def test_one_probe_is_unbiased_and_has_no_error(generator):
    oracle, x0 = mixture(sde.SubVP()), data(1, generator).expand(4000, DIMS)
    exact = ChangeOfVariables(oracle, trace=ExactTrace(), integrator=FixedSteps(sde.heun3))(x0[:1]).nats
    for draw in (rademacher_like, normal_like):
        code = ChangeOfVariables(oracle, trace=Hutchinson(1, draw), integrator=FixedSteps(sde.heun3))(
            x0, generator=generator
        )
        assert code.error is None
        assert abs(float(code.nats.mean() - exact)) < 4 * float(code.nats.std()) / math.sqrt(len(x0))
        deviation = float(code.nats.std())
        assert deviation > 1e-3
        # n probes are n independent estimates: the standard deviation falls with their root.
        four = ChangeOfVariables(oracle, trace=Hutchinson(4, draw), integrator=FixedSteps(sde.heun3))(
            x0, generator=generator
        )
        assert float(four.nats.std()) == pytest.approx(deviation / 2, rel=0.1)


@pytest.mark.parametrize(
    "trace",
    [Hutchinson(), Hutchinson(8), Hutchinson(3, normal_like), ExactTrace()],
    ids=["one", "eight", "gaussian", "exact"],
)
def test_each_evaluation_calls_the_network_once(trace, generator):
    torch.manual_seed(0)
    learned = sde.Learned(MLP(DIMS, 8, 1), sde.VP())
    for denoiser in (learned, mixture(sde.VP())):
        for method in (sde.euler, sde.heun2, sde.rk4):
            with counted(denoiser) as count:
                code = ChangeOfVariables(denoiser, trace=trace, integrator=FixedSteps(method))(
                    data(5, generator).float(), generator=generator
                )
            assert count.calls == len(method.nodes)
            assert code.nats.shape == (5,)
            assert code.nats.dtype == torch.float64


def test_code_lengths_do_not_depend_on_the_batch(generator):
    oracle, x0 = mixture(sde.VP()), data(12, generator)
    whole, part = (
        ChangeOfVariables(oracle, trace=Hutchinson(2))(x0[rows], generator=Streams(3, rows)).nats
        for rows in (range(12), [7, 2, 2, 11])
    )
    torch.testing.assert_close(part, whole[[7, 2, 2, 11]], rtol=0, atol=0.005 * DIMS * math.log(2))
    whole, part = (
        ChangeOfVariables(oracle, trace=Hutchinson(2), integrator=FixedSteps(sde.rk4))(
            x0[rows], generator=Streams(3, rows)
        ).nats
        for rows in (range(12), [7, 2])
    )
    torch.testing.assert_close(part, whole[[7, 2]], rtol=1e-9, atol=1e-9)


PREDICTIONS = {p.__name__: p for p in (sde.noise, sde.clean, sde.velocity, sde.straight)} | {
    "preconditioned": sde.Preconditioned(0.5)
}


@pytest.mark.parametrize("predicts", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("name", ["vp", "ve", "straight-0.999"])
def test_an_exact_network_has_the_code_length_of_the_exact_denoiser(name, predicts, generator):
    """The network F is computed from the exact mean; Jacobian, scales and both coordinates then agree to rounding."""
    schedule = SCHEDULES.get(name, lambda: sde.Straight(0.999))()
    oracle, asked = mixture(schedule), []

    def function(x, time):
        times = asked[-1].reshape(-1)  # of all stages of a step
        t = times[(times.float() - time[0]).abs().argmin()]
        alpha, sigma = schedule(t)
        x = x * (0.25 * alpha**2 + sigma**2).sqrt()
        c_skip, c_out = predicts(alpha, sigma)
        return (oracle(x, t) - c_skip * x) / c_out

    def time_input(schedule, t):
        asked.append(t)  # the times themselves, before they are rounded to float32
        return t

    learned, x0 = sde.Learned(Formula(function), schedule, predicts, time_input, sigma_data=0.5), data(10, generator)
    for coordinates in (sde.angle_coordinates, sde.time_coordinates):
        a, b = (
            ChangeOfVariables(d, trace=ExactTrace(), integrator=Adaptive(1e-6, 1e-6), coordinates=coordinates)(x0)
            for d in (learned, oracle)
        )
        for part, expected in zip(a, b, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=2e-4)


def test_the_code_length_of_quantized_data_includes_the_volume_of_the_bin(generator):
    """It is that of the dequantized data minus the log of the bin's width: 7 bits/dim for 8 bits on [-1, 1]."""
    oracle = mixture(sde.VP())
    for scale, offset in (
        (Quantization(), 7.0),
        (Quantization(256, 0.0, 1.0), 8.0),
        (Quantization(17), math.log2(17 / 2)),
    ):
        k = scale.quantize(data(20, generator))
        code = ChangeOfVariables(oracle, sde.UniformDequantization(scale), trace=ExactTrace())
        quantized = code(k, generator=torch.Generator().manual_seed(5))
        x0, gain = sde.UniformDequantization(scale)(k, torch.Generator().manual_seed(5))
        real = ChangeOfVariables(oracle, trace=ExactTrace())(x0)
        torch.testing.assert_close(quantized.bits_per_dim(DIMS), real.bits_per_dim(DIMS) + offset, rtol=1e-9, atol=1e-6)
        torch.testing.assert_close(
            quantized.data / (DIMS * math.log(2)), torch.full((20,), offset, dtype=torch.float64), rtol=1e-6, atol=0
        )


def test_conditions_reach_the_denoiser(generator):
    """Given its component as a class label, an example has the code length of that Gaussian."""
    oracle, label = mixture(sde.VP()), torch.arange(30) % 3
    x0 = MEANS[label] + VARIANCES[label, None].sqrt() * torch.randn(30, DIMS, dtype=torch.float64, generator=generator)
    code = ChangeOfVariables(oracle, trace=ExactTrace())(x0, label=label)
    exact = -torch.distributions.Normal(MEANS[label], VARIANCES[label, None].sqrt()).log_prob(x0).sum(1)
    assert float((code.bits_per_dim(DIMS) - exact / (DIMS * math.log(2))).abs().max()) < 0.01


def test_the_shape_of_the_data_does_not_matter(generator):
    """An image has the code length of the vector of its pixels."""

    class Reshaped(AnalyticMixture):
        def estimate(self, x_t, t, **cond):
            return Estimate.of_mean(super().estimate(x_t.flatten(1), t).out.reshape(x_t.shape))

    x0 = data(4, generator)
    flat = ChangeOfVariables(mixture(sde.VP()), trace=ExactTrace())(x0)
    image = ChangeOfVariables(Reshaped(WEIGHTS, MEANS, VARIANCES, sde.VP()), trace=ExactTrace())(x0.reshape(4, 1, 3, 1))
    torch.testing.assert_close(image.nats, flat.nats)


def test_weights_get_no_gradient(generator):
    learned = sde.Learned(MLP(DIMS, 8, 1), sde.VP())
    nats = ChangeOfVariables(learned, integrator=FixedSteps())(data(2, generator).float(), generator=generator).nats
    assert not nats.requires_grad
    assert all(p.grad is None for p in learned.parameters())


EIGHT = Quantization(8)


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (
            torch.tensor([[0, 8, 3]]),
            r"x0 has levels outside of 0\.\.7: give the dequantizer the quantization of the data",
        ),
        (torch.tensor([[0, -1, 3]]), r"levels outside of 0\.\.7"),
        (torch.tensor([[0.0, 2.5, 3.0]]), "x0 has fractions: give quantization levels, whole numbers"),
    ],
)
def test_data_outside_of_the_quantization_levels_are_refused(k, words):
    with pytest.raises(UsageError, match=words):
        ChangeOfVariables(mixture(sde.VP()), sde.UniformDequantization(EIGHT))(k)


def test_integers_need_a_dequantizer():
    with pytest.raises(
        UsageError, match=r"x0 is torch.int64, and a density needs real numbers.*dequantizer=UniformDequantization"
    ):
        ChangeOfVariables(mixture(sde.VP()))(torch.tensor([[0, 1, 3]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_that_are_not_finite_are_refused(bad):
    with pytest.raises(UsageError, match="the data contain NaN or infinity"):
        ChangeOfVariables(mixture(sde.VP()))(torch.tensor([[0.0, bad, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    "integrator", [Adaptive(), SciPy(), TorchDiffEq(), FixedSteps()], ids=lambda i: type(i).__name__
)
def test_a_network_that_is_nan_is_refused(integrator):
    broken = sde.Learned(Formula(lambda x, time: x * math.nan), sde.VP())
    with pytest.raises(UsageError, match="look for NaN in the"):
        ChangeOfVariables(broken, integrator=integrator)(torch.zeros(2, DIMS))


def test_what_is_refused_when_built():
    with pytest.raises(UsageError, match="count=0: give 1 probe or more"):
        Hutchinson(0)
    with pytest.raises(UsageError, match=r"dequantizer=Quantization.*: give UniformDequantization\(quantization\)"):
        ChangeOfVariables(mixture(sde.VP()), EIGHT)
