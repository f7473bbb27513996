"""Tables, predictions, variances, weights and samplers of the DDPM papers, each against a closed form."""

import math

import pytest
import torch
from helpers import Formula, Recorded
from hypothesis import given
from hypothesis import strategies as st

from unnoise.continuous import (
    DDIM,
    Ancestral,
    Churned,
    Clipped,
    Cosine,
    DenoisingLoss,
    Distillation,
    DPMSolverPP,
    Heun,
    Hybrid,
    ImportanceSampling,
    Learned,
    LogInterpolated,
    MinSNR,
    OutputError,
    PosteriorMean,
    Renoised,
    Shifted,
    Tabulated,
    Thresholded,
    UniPC,
    VariationalBound,
    betas_of,
    clean,
    constant_betas,
    cosine_betas,
    encode,
    karras,
    large,
    learned_diagonal,
    learned_range,
    linear_betas,
    log_spaced,
    noise,
    posterior,
    quadratic,
    quadratic_betas,
    reciprocal_betas,
    resolution_shift,
    sections,
    sigmoid_betas,
    slerp,
    small,
    solvers,
    strided,
    tabulate,
    trailing,
    truncated_snr,
    velocity,
    warmup_betas,
    zero_terminal,
)
from unnoise.continuous.grids import noise_ratio
from unnoise.continuous.posterior import forward_variance
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.weights import snr
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization

TABLE = Tabulated(linear_betas(1000))
ONE = torch.ones((), dtype=torch.float64)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def two_outputs(features=3, seed=0):
    """A network with a second output, none of whose parameters is zero."""
    torch.manual_seed(seed)
    network = MLP(features, 16, 1, outputs=2)
    torch.nn.init.normal_(network.leave.weight, std=0.3)
    return network.double()


# ---- tables


def test_tables_are_their_formulas():
    scaled = 1000 / 500
    for betas, first, middle, last in (
        (linear_betas(500), 1e-4, None, 0.02),
        (quadratic_betas(500), 1e-4, None, 0.02),
        (sigmoid_betas(500), 1e-4 + 0.0199 / (1 + math.exp(6)), None, 1e-4 + 0.0199 / (1 + math.exp(-6))),
        (constant_betas(500), 0.02, 0.02, 0.02),
        (warmup_betas(500, 0.1), 1e-4, 0.02, 0.02),
    ):
        assert betas[[0, -1]].tolist() == pytest.approx([first * scaled, last * scaled])
        if middle:
            assert betas[250] == pytest.approx(middle * scaled)
    roots = quadratic_betas(101).sqrt().diff()
    torch.testing.assert_close(roots, roots[:1].expand(100))
    assert float(sigmoid_betas(1001)[500]) == pytest.approx((1e-4 + 0.02) / 2 * 1000 / 1001)
    rise = warmup_betas(1000, 0.5)
    assert rise[499] == pytest.approx(0.02)
    torch.testing.assert_close(rise[:500], torch.linspace(1e-4, 0.02, 500, dtype=torch.float64))


def test_reciprocal_betas_erase_the_same_power_each_step():
    chain = Tabulated(reciprocal_betas(50))
    torch.testing.assert_close(
        chain.alphas_cumprod, 1 - torch.arange(1, 51, dtype=torch.float64) / 50, rtol=1e-12, atol=1e-14
    )


@given(st.integers(2, 60), st.integers(0, 1000))
def test_any_table_of_alpha_bar(steps, seed):
    table = (
        torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        .mul(0.98)
        .add(0.01)
        .cumprod(0)
    )
    torch.testing.assert_close(Tabulated(betas_of(table)).alphas_cumprod, table, rtol=1e-10, atol=0)


def test_zero_terminal_keeps_the_first_noise_level_and_ends_at_zero_snr():
    before, after = TABLE.alphas_cumprod.sqrt(), Tabulated(zero_terminal(linear_betas(1000))).alphas_cumprod.sqrt()
    assert after[0] == pytest.approx(float(before[0]), rel=1e-12)
    assert after[-1] == 0
    torch.testing.assert_close(after.diff() / after.diff()[0], before.diff() / before.diff()[0], rtol=1e-6, atol=1e-9)


def test_continuous_cosine():
    t = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    wide = Cosine(-60, 60)
    torch.testing.assert_close(wide(t)[0], torch.cos(math.pi * t / 2), rtol=1e-9, atol=1e-12)
    cut = Cosine(-20, 20)
    assert float(cut.log_snr(ONE)) == pytest.approx(-20, abs=1e-6)
    assert float(cut.log_snr(ONE * 1e-12)) == pytest.approx(20, abs=1e-3)
    # Half of the time lies at either side of log-SNR 0, and lambda has the density sech(lambda / 2) / (2 pi).
    assert float(cut.log_snr(ONE / 2)) == pytest.approx(0, abs=1e-12)
    slope = (cut.log_snr(t + 1e-6) - cut.log_snr(t - 1e-6)) / 2e-6
    torch.testing.assert_close(-1 / slope, 1 / (2 * math.pi * torch.cosh(cut.log_snr(t) / 2)), rtol=1e-3, atol=1e-6)
    assert torch.equal(cut.grid(8)[::2], cut.grid(4))
    moved = Shifted(cut, resolution_shift(64, 256))
    torch.testing.assert_close(moved.log_snr(t), cut.log_snr(t) - 2 * math.log(4))
    chain = tabulate(cut, 50)
    torch.testing.assert_close(chain.log_snr(chain.grid(50)[:-1]), cut.log_snr(cut.grid(50)[:-1]), rtol=1e-9, atol=1e-9)


def test_grids():
    assert (strided(4, 8) * 8).tolist() == [7, 5, 3, 1, 0]
    assert (sections([2, 3], 10) * 10).tolist() == [10, 8, 6, 5, 1, 0]
    assert (trailing(4, 10) * 10).round().tolist() == [10, 8, 5, 2, 0]
    ends = noise_ratio(TABLE, float64(1.0, 0.001))  # exactly those of the table, not of its times in single precision
    for grid in (karras(5, TABLE), log_spaced(5, TABLE)):
        torch.testing.assert_close(noise_ratio(TABLE, grid)[[0, -2]], ends, rtol=1e-12, atol=0)
    quad = quadratic(10, 1000) * 1000
    assert quad.round().tolist()[:2] == [math.floor(math.sqrt(800) ** 2 + 1e-9) + 1, math.floor((8 / 9) ** 2 * 800) + 1]
    assert quad[-2:].tolist() == [1, 0]


# ---- predictions, variances, weights


def test_posterior_mean_prediction():
    """x_0 follows from mu-tilde and x_n; at the first row mu-tilde is x_0."""
    n = torch.tensor([1.0, 2.0, 500.0, 1000.0], dtype=torch.float64)
    x0, x_t = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, _ = posterior(TABLE, x_t, x0, n / 1000, (n - 1) / 1000)
    c_skip, c_out = PosteriorMean(TABLE)(*TABLE(n / 1000))
    torch.testing.assert_close(c_skip[:, None] * x_t + c_out[:, None] * mean, x0, rtol=1e-8, atol=1e-8)
    assert (float(c_skip[0]), float(c_out[0])) == (0, 1)


def test_reverse_variances_between_small_and_large():
    t, s, v = float64(0.5), float64(0.25), torch.tensor([[[-1.0, 1.0, 0.0]]], dtype=torch.float64)
    low, high = small(TABLE, t, s, None), large(TABLE, t, s, None)
    assert float(low) < float(high)
    between = learned_range(TABLE, t, s, v)
    torch.testing.assert_close(between.flatten(), torch.cat([low, high, (low * high).sqrt()]))
    torch.testing.assert_close(LogInterpolated(0.3)(TABLE, t, s), low**0.7 * high**0.3)
    torch.testing.assert_close(learned_diagonal(TABLE, t, s, v), v.exp())


def test_the_last_step_takes_the_small_variance_of_the_step_above():
    first, zero = float64(0.001), float64(0.0)
    above = small(TABLE, 2 * first, first)
    for variance in (small, large, LogInterpolated(0.7)):
        torch.testing.assert_close(variance(TABLE, first, zero, None), above)
    v = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(learned_range(TABLE, first, zero, v)[0], forward_variance(TABLE, first, zero))
    assert float(forward_variance(TABLE, first, zero)) == pytest.approx(1e-4)
    single = Tabulated(float64(0.4))
    assert float(small(single, ONE, ONE * 0)) == pytest.approx(0.4)


def test_weights_of_the_papers_are_one_weight_of_x0():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    alpha, sigma = TABLE(t)
    ratio = (alpha / sigma) ** 2
    torch.testing.assert_close(snr(TABLE, t), ratio)
    torch.testing.assert_close(OutputError(noise)(TABLE, t), ratio)
    torch.testing.assert_close(OutputError(clean)(TABLE, t), torch.ones_like(t))
    torch.testing.assert_close(OutputError(velocity)(TABLE, t), ratio + 1)
    for gamma in (1.0, 5.0):
        weight = MinSNR(gamma)(TABLE, t)
        torch.testing.assert_close(weight / OutputError(noise)(TABLE, t), (gamma / ratio).clamp(max=1))
        torch.testing.assert_close(weight / OutputError(velocity)(TABLE, t), ratio.clamp(max=gamma) / (ratio + 1))
    torch.testing.assert_close(truncated_snr(TABLE, t), torch.where(ratio > 1, ratio, 1.0))
    n = torch.arange(2.0, 1000, 97, dtype=torch.float64) / 1000
    of_x0 = posterior(TABLE, torch.zeros_like(n), torch.ones_like(n), n, n - 0.001)[0]
    torch.testing.assert_close(OutputError(PosteriorMean(TABLE))(TABLE, n), of_x0**2, rtol=1e-7, atol=0)
    to_zero = Tabulated(zero_terminal(linear_betas(100)))
    for weight in (snr, MinSNR(), OutputError(velocity), truncated_snr):
        assert torch.isfinite(weight(to_zero, ONE))


# ---- samplers: identities between them


def test_the_named_special_cases_are_one_formula(generator):
    oracle = AnalyticGaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64) * 0.3, TABLE)
    x, z = torch.randn(2, 8, 2, dtype=torch.float64, generator=generator)
    t, s = float64(0.6)[0], float64(0.4)[0]

    def step(sampler):
        return sampler.step(x, t, s, generator=Recorded(z))

    torch.testing.assert_close(step(Ancestral(oracle, small)), step(DDIM(oracle, 1.0)))
    torch.testing.assert_close(step(Renoised(DDIM(oracle))), step(DDIM(oracle, 1.0)))
    # sigma-hat of Song et al. (2020): the noise of the large variance, the direction of eta = 1.
    bar_t, bar_s = TABLE(t)[0] ** 2, TABLE(s)[0] ** 2
    x0 = oracle(x, t)
    epsilon = (x - bar_t.sqrt() * x0) / (1 - bar_t).sqrt()
    eta1 = (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
    hat = bar_s.sqrt() * x0 + (1 - bar_s - eta1).sqrt() * epsilon + (1 - bar_t / bar_s).sqrt() * z
    torch.testing.assert_close(step(Ancestral(oracle, large)), hat)


def test_encoding_inverts_sampling():
    """Encode and decode: what is lost falls with the step size."""
    oracle = AnalyticMixture(
        float64(0.5, 0.5), torch.tensor([[-0.6, 0.2], [0.5, -0.4]], dtype=torch.float64), float64(0.05, 0.1), TABLE
    )
    x0 = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = x0 * oracle.variances.sqrt()[torch.arange(64) % 2, None] + oracle.means[torch.arange(64) % 2]
    errors = []
    for steps in (50, 200, 1000):
        latent = encode(oracle, x0, steps)
        errors.append(float((DDIM(oracle)(latent, steps=steps) - x0).square().mean().sqrt()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.01
    assert abs(float(latent.square().mean()) - 1) < 0.3


def test_slerp_stays_on_the_sphere():
    x, y = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = y / y.flatten(1).norm(dim=1)[:, None, None] * x.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(slerp(x, y, 0.0), x)
    torch.testing.assert_close(slerp(x, y, 1.0), y)
    middle = slerp(x, y, 0.5)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    path = torch.stack([slerp(x, y, float(a)) for a in shares])
    cosines = torch.nn.functional.cosine_similarity(path[:-1].flatten(2), path[1:].flatten(2), dim=2)
    torch.testing.assert_close(cosines, cosines[:1].expand_as(cosines))  # equal angles
    torch.testing.assert_close(slerp(x, x, 0.3), x)


def test_dynamic_thresholding():
    model = Thresholded(Learned(Formula(lambda x, time: 3 * x), TABLE, clean), p=0.5)
    x = float64(0.1, 0.2, 0.3, 2.0, -2.0).expand(1, 5)
    out = model(x, float64(0.5)[0])
    torch.testing.assert_close(out, float64(0.3, 0.6, 0.9, 1.0, -1.0).expand(1, 5))
    out = Thresholded(Learned(Formula(lambda x, time: 3 * x), TABLE, clean), p=1.0)(x, float64(0.5)[0])
    torch.testing.assert_close(out, x / 2)


def test_a_distilled_step_lands_where_two_teacher_steps_do():
    oracle = AnalyticMixture(
        float64(0.4, 0.6), torch.tensor([[-0.6], [0.5]], dtype=torch.float64), float64(0.02, 0.05), Cosine()
    )
    teacher, steps = Clipped(oracle), 4
    objective = Distillation(Learned(MLP(1), Cosine(), velocity), teacher, steps)
    x = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for n in range(1, steps + 1):
        t, middle, s = (float64((n - k / 2) / steps)[0] for k in range(3))
        two = DDIM(teacher)(x, steps=torch.stack([t, middle, s]))
        target = objective.target(x, t.expand(6))
        one = DDIM(Learned(Formula(lambda x, time, target=target: target), Cosine(), clean)).step(x, t, s)
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    times = objective(torch.zeros(4000, 1), generator=torch.Generator().manual_seed(0)).t
    assert sorted(set(times.tolist())) == [0.25, 0.5, 0.75, 1.0]
    assert not any(p.requires_grad for p in objective.teacher.parameters())


# ---- refusals


def test_wrong_combinations_are_refused_when_built():
    to_zero = Tabulated(zero_terminal(linear_betas(100)))
    one_output = Learned(MLP(2), TABLE)
    for make, words in (
        (
            lambda: Learned(MLP(2), to_zero, noise),
            "noise prediction does not determine x_0: give predicts=velocity, clean or straight",
        ),
        (lambda: one_output.on(to_zero), "zero SNR"),
        (
            lambda: Heun(Learned(MLP(2), to_zero, velocity)),
            "would divide by alpha = 0: give a denoiser on another schedule",
        ),
        (lambda: karras(5, to_zero), "a step in log-SNR is infinite: take steps=N"),
        (lambda: Ancestral(one_output, learned_range), "needs a network with a second output"),
        (lambda: VariationalBound(one_output, Quantization(17), variance=learned_diagonal), "outputs=2"),
        (lambda: Hybrid(one_output, Quantization(17)), "second output"),
        (lambda: DDIM(one_output)(shape=(1, 2), steps=1001), "this table has 1000 steps"),
        (
            lambda: strided(1001, 1000),
            "no integer stride visits exactly 1001 of 1000 rows; the nearest possible numbers are 500 and 1000",
        ),
        (lambda: sections([400, 700], 1000), "section 2 has 500 rows, ask for 1 to 500, not 700"),
        (lambda: betas_of(float64(0.5, 0.6)), "must decrease at every step"),
        (lambda: Thresholded(one_output, p=0), "p=0: give the quantile"),
        (lambda: ImportanceSampling(DenoisingLoss.simple(one_output), history=0), "history=0"),
        (lambda: Distillation(one_output, one_output, 0), "at least one step"),
        (lambda: Distillation(Learned(MLP(2), TABLE, velocity), Learned(MLP(2), TABLE, velocity), 4), "take Cosine"),
        (
            lambda: Distillation(Learned(MLP(2), Cosine()), Learned(MLP(2), Cosine()), 4),
            "noise prediction cannot be distilled",
        ),
        (
            lambda: Distillation(Learned(MLP(2), Cosine(), clean), Learned(MLP(2), Cosine(-9), clean), 4),
            "different schedules",
        ),
        (
            lambda: DenoisingLoss.simple(Learned(two_outputs(), TABLE)),
            "does not train the network's variance output: build the network with outputs=1",
        ),
        (lambda: DenoisingLoss.simple(Learned(MLP(2), to_zero, velocity)), "denoiser would not be trained"),
        (lambda: DenoisingLoss(Learned(MLP(2), to_zero, velocity), weight=MinSNR()), "denoiser would not be trained"),
        (lambda: Hybrid(Learned(two_outputs(), TABLE), Quantization(17), variance=small), "this one is fixed"),
        (
            lambda: VariationalBound(one_output, Quantization(17))(torch.zeros(1, 2, dtype=torch.int64)),
            r"x0 is torch.int64: give real numbers in \[-1, 1\]",
        ),
        (
            lambda: VariationalBound(one_output, Quantization(17))(torch.full((1, 2), 7.0)),
            "x0 has values outside of the quantization's range: give real numbers",
        ),
        (
            lambda: VariationalBound(Learned(MLP(2), Cosine()), Quantization(17)),
            r"Cosine is a schedule in continuous time.*take denoiser.on\(tabulate",
        ),
        (
            lambda: ImportanceSampling(DenoisingLoss.simple(Learned(MLP(2), Cosine()))),
            "Cosine runs in continuous time, but importance sampling",
        ),
        (lambda: Churned(DDIM(Learned(MLP(2), to_zero, velocity)), 0.1), "would divide by alpha = 0"),
        (lambda: Churned(UniPC(one_output), 0.1), "UniPC looks back at earlier steps"),
        (lambda: Renoised(DPMSolverPP(one_output)), "DPMSolverPP looks back"),
        (lambda: encode(one_output, torch.zeros(1, 2), 1), "two steps or more"),
        (lambda: strided(1, 1000), "no integer stride"),
        (lambda: zero_terminal(float64(0.5)), "two steps or more"),
        (lambda: cosine_betas(0), "at least one step"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
    DenoisingLoss(Learned(MLP(2), to_zero, velocity), weight=truncated_snr)
    wrong = Learned(two_outputs(), TABLE)
    wrong.network.outputs, wrong.has_variance_output = 1, False
    with pytest.raises(UsageError, match=r"the network returned 6 channels for x_t \(1, 3\), but 3 are expected"):
        wrong(torch.zeros(1, 3, dtype=torch.float64), ONE)


def test_outputs_that_would_amplify_errors_are_left_out():
    """On an even grid of 10 steps of a table, three outputs amplify their errors 41 times in the step to row 1."""
    table = Tabulated(linear_betas(1000, 4e-4))
    lambdas = [float(table.log_snr(t)) / 2 for t in table.grid(10)[:-1]]
    for i in range(2, len(lambdas) - 1):
        nodes = tuple(lambdas[i - 2 : i + 1][::-1])
        jump = i == len(lambdas) - 2  # to row 1
        assert len(solvers.stable_weights(nodes, lambdas[i], lambdas[i + 1])) == (2 if jump else 3)
