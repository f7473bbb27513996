"""Linear measurements, and denoisers of their posterior: exact for Gaussian data."""

import json
import math

import pytest
import torch
from gaussian_posteriors import (
    LARGE,
    OPERATORS,
    SCHEDULES,
    THIRD,
    Shaped,
    conditioned,
    exact_denoised,
    matrix_of,
    mean_and_covariance,
    normal,
    observed,
    problem,
    rng,
)
from helpers import Formula, mean_and_variance

from unnoise import sde
from unnoise.continuous import DDIM, Clipped, Learned, Tabulated, UniPC, linear_betas, zero_terminal
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.analytic import AnalyticGaussian, AnalyticMixture
from unnoise.shared.gaussian.inverse import (
    DPS,
    Averaged,
    Gray,
    Masked,
    MatrixOperator,
    MomentMatching,
    PseudoInverse,
    Replacement,
)
from unnoise.shared.gaussian.prediction import velocity
from unnoise.shared.networks import MLP, UNet
from unnoise.shared.sampler import counted
from unnoise.shared.serialization import deserialize, serialize

# ---- operators


@pytest.mark.parametrize("name", [*OPERATORS, *(f"large {n}" for n in LARGE)])
def test_adjoint_and_pseudo_inverse(name):
    operator, shape = LARGE[name.removeprefix("large ")] if name.startswith("large") else problem(name)[:2]
    x = normal(2, *shape)
    y = operator(normal(2, *shape, seed=1)) + operator(normal(2, *shape, seed=2)) ** 2
    torch.testing.assert_close((operator(x) * y).sum(), (x * operator.adjoint(y)).sum())
    back = operator.pseudo_inverse(operator(x))
    torch.testing.assert_close(operator(back), operator(x))  # A A+ A = A
    torch.testing.assert_close(operator.pseudo_inverse(operator(back)), back)  # A+ A A+ = A+
    torch.testing.assert_close((back * x).sum(), (back * back).sum())  # A+ A is an orthogonal projection
    torch.testing.assert_close(operator.residual(y, x), y - operator(x))
    assert operator(x.float()).dtype == operator.adjoint(y.float()).dtype == torch.float32


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("name", OPERATORS)
def test_solve_is_that_of_the_matrix(name, noise):
    operator, shape, d = problem(name)
    a, r = matrix_of(operator, shape), operator(normal(3, *shape))
    prior = torch.tensor([0.5, 1.3, 2.0], dtype=torch.float64)
    ours = operator.solve(r, prior, torch.full((3,), noise, dtype=torch.float64))
    for i in range(3):
        inverse = torch.linalg.pinv(prior[i] * a @ a.T + noise * torch.eye(len(a), dtype=torch.float64), rtol=1e-10)
        torch.testing.assert_close(ours[i].flatten(), inverse @ r[i].flatten())
        row = slice(i, i + 1)
        torch.testing.assert_close(operator.solve(r[row], float(prior[i]), noise), ours[row])
    torch.testing.assert_close(operator.pseudo_inverse(r).flatten(1), r.flatten(1) @ torch.linalg.pinv(a).T)


def test_what_the_operators_measure():
    x = torch.arange(24.0).reshape(1, 3, 2, 4)
    assert torch.equal(Masked(torch.tensor([[1, 0, 0, 0]]))(x)[0, 1], torch.tensor([[8.0, 0, 0, 0], [12, 0, 0, 0]]))
    torch.testing.assert_close(Gray(THIRD)(x), x.mean(1, keepdim=True))
    torch.testing.assert_close(Averaged(2)(x), torch.nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(Averaged((2, 1))(x), x.mean(2, keepdim=True))
    unseen = torch.tensor([[1.0, math.nan]])
    assert torch.equal(Masked(torch.tensor([1, 0])).residual(unseen, torch.zeros(1, 2)), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_stand_in_checkpoints(name):
    operator, shape, _ = problem(name)
    again, x = deserialize(json.loads(json.dumps(serialize(operator)))), normal(2, *shape)
    torch.testing.assert_close(again(x), operator(x))


# ---- denoisers of the posterior


@pytest.mark.parametrize("noise", [0.05, 0.4])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_denoiser_is_that_of_the_posterior(name, schedule, noise):
    """Moment matching for every Gaussian distribution, Pi-GDM where the covariance is a multiple of the identity."""
    operator, shape, d = problem(name)
    a, y = matrix_of(operator, shape), observed(operator, shape, noise)
    for t in (0.01, 0.3, 0.7, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        for variance, make in (
            (None, lambda prior: MomentMatching(prior, operator, y, noise, d + 2)),
            (0.49, lambda prior: PseudoInverse(prior, operator, y, noise, 0.7)),
            (0.49, lambda prior: MomentMatching(prior, operator, y, noise, d)),
        ):
            mean, covariance = mean_and_covariance(d, variance)
            prior = Shaped(mean, covariance, SCHEDULES[schedule](), shape)
            x0 = mean + normal(3, d, seed=11) @ torch.linalg.cholesky(covariance).T
            x_t = prior.corruption.corrupt(x0, t, generator=rng(12))
            alpha, sigma = prior.corruption(t)
            wanted = exact_denoised(mean, covariance, a, noise, y.flatten(1), x_t, alpha, sigma)
            posterior = make(prior)
            got = posterior(x_t.reshape(3, *shape), t)
            torch.testing.assert_close(got.flatten(1), wanted, rtol=1e-8, atol=1e-8)
            score = (alpha * wanted - x_t) / sigma**2
            torch.testing.assert_close(
                posterior.score(x_t.reshape(3, *shape), t).flatten(1), score, rtol=1e-7, atol=1e-7
            )
            rows = posterior(x_t.reshape(3, *shape), t.expand(3))
            torch.testing.assert_close(rows, got)
            assert not got.requires_grad


def test_without_noise_the_measured_part_is_the_measurement():
    for name in OPERATORS:
        operator, shape, d = problem(name)
        y = operator(0.8 * normal(1, *shape, seed=9))
        prior, t = Shaped(*mean_and_covariance(d), sde.VP(), shape), torch.tensor(0.2, dtype=torch.float64)
        x0 = MomentMatching(prior, operator, y, iterations=d + 2)(normal(3, *shape), t)
        torch.testing.assert_close(operator(x0), y.expand(3, *y.shape[1:]), rtol=1e-7, atol=1e-7)


def test_each_iteration_comes_closer_and_too_many_do_no_harm():
    operator, shape, d = problem("dense")
    mean, covariance = mean_and_covariance(d)
    t, x, y = torch.tensor(0.3), normal(4, *shape), observed(operator, shape, 0.1, 4)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        prior = Shaped(mean, covariance, sde.VP(), shape)
        after = [MomentMatching(prior, operator, y, 0.1, n)(x.to(dtype), t).double() for n in (1, 2, 3, 50)]
        off = [float((x0 - MomentMatching(prior, operator, y, 0.1, 8)(x, t)).norm()) for x0 in after]
        assert off[0] > 1.5 * off[1] > 100 * off[2]
        assert off[3] < tolerance
    same = operator(prior(x, t))  # nothing to correct
    assert torch.equal(MomentMatching(prior, operator, same, 0.1)(x, t), prior(x, t))


def test_a_gradient_reaches_the_state():
    """The Jacobian of the posterior's mean is its covariance over `sigma^2 / alpha`, as a likelihood reads it."""
    operator, shape, d = problem("averaged vector")
    mean, covariance = mean_and_covariance(d)
    t, y, noise = torch.tensor(0.3, dtype=torch.float64), observed(operator, shape, 0.3, 1), 0.3
    prior = Shaped(mean, covariance, sde.VP(), shape)
    alpha, sigma = prior.corruption(t)
    identity = torch.eye(d, dtype=torch.float64)
    within = conditioned(mean, covariance, alpha * identity, sigma**2 * identity, mean[None])[1]
    a = matrix_of(operator, shape)
    wanted = conditioned(mean, within, a, noise**2 * torch.eye(len(a), dtype=torch.float64), y)[1] * alpha / sigma**2
    posterior, x = MomentMatching(prior, operator, y, noise, d), normal(1, d)
    torch.testing.assert_close(torch.autograd.functional.jacobian(lambda v: posterior(v, t), x)[0, :, 0], wanted)
    of_score = torch.autograd.functional.jacobian(lambda v: posterior.score(v, t), x)[0, :, 0]
    torch.testing.assert_close(of_score, (alpha * wanted - identity) / sigma**2)


def test_one_evaluation_of_the_network_and_no_lost_digits():
    """The score of a network near t = 0 in float32, with the likelihood's gradient in it."""
    schedule, t = sde.VP(), torch.tensor(1e-4, dtype=torch.float64)
    (alpha, sigma), x0 = schedule(t), 0.7 * normal(4, 6)
    network = Formula(
        lambda x, _: x * float(sigma / (0.49 * alpha**2 + sigma**2))
    )  # the noise in x of N(0, 0.49 I), at this t
    y, x = observed(Averaged(2), (6,), 0.1, 1), alpha * x0 + sigma * normal(4, 6, seed=1)
    for make in (PseudoInverse, MomentMatching):
        posterior = make(Learned(network, schedule), Averaged(2), y, 0.1)
        with counted(posterior) as count:
            coarse = posterior.score(x.float(), t)
        assert count.calls == 1
        torch.testing.assert_close(
            coarse.double(), posterior.score(x, t), rtol=1e-3, atol=1e-4 * float(coarse.abs().max())
        )
        fine = (alpha * posterior(x, t) - x) / sigma**2
        torch.testing.assert_close(posterior.score(x, t), fine, rtol=1e-6, atol=1e-6)


def test_conditions_travel_and_schedules_change():
    means, variances = torch.tensor([[-1.0, 0.5, 0, 0], [1.0, 0, 0.3, 0]]).double(), torch.tensor([0.09, 0.25]).double()
    mixture = AnalyticMixture(torch.tensor([0.5, 0.5]).double(), means, variances, sde.VP())
    operator, t, x = MatrixOperator(normal(2, 4, seed=1)), torch.tensor(0.4, dtype=torch.float64), normal(3, 4)
    y, label = observed(operator, (4,), 0.2), torch.tensor([1, 1, 1])
    posterior = PseudoInverse(mixture, operator, y, 0.2, 0.5)
    assert posterior.conditions == ("label",)
    component = AnalyticGaussian(means[1], 0.25 * torch.eye(4, dtype=torch.float64), sde.VP())
    torch.testing.assert_close(posterior(x, t, label=label), PseudoInverse(component, operator, y, 0.2, 0.5)(x, t))
    there = sde.VE().time(sde.VP().log_snr(t))
    for one in (posterior, MomentMatching(mixture, operator, y, 0.2, 1)):
        moved = one.on(sde.VE())(x / sde.VP()(t)[0], there, label=label)
        torch.testing.assert_close(moved, one(x, t, label=label), rtol=1e-6, atol=1e-6)


def test_what_the_network_says_of_the_variance_is_passed_on():
    network = MLP(2, 8, 1, outputs=2)
    torch.nn.init.normal_(network.leave.weight)
    model, x, t = Learned(network, sde.VP()), torch.randn(3, 2), torch.tensor(0.5, dtype=torch.float64)
    posterior = PseudoInverse(model, Averaged(2), torch.zeros(1, 1))
    assert posterior.has_variance_output
    torch.testing.assert_close(mean_and_variance(posterior, x, t)[1], mean_and_variance(model, x, t)[1])
    assert Clipped(posterior, -0.1, 0.1)(x, t).abs().max() <= 0.1


def test_what_does_not_fit_is_refused():
    prior, model = (
        AnalyticGaussian(*mean_and_covariance(4), sde.VP()),
        Learned(UNet((3, 4, 4), 8, (1,), 1, (), 1), sde.VP()),
    )
    to_zero = Learned(MLP(4), Tabulated(zero_terminal(linear_betas(100))), velocity)
    t, image, one = torch.tensor(0.5), torch.zeros(2, 3, 4, 4), torch.zeros(1, 2)
    for make, words in (
        (
            lambda: Gray(THIRD)(torch.zeros(2, 1, 4, 4)),
            r"3 weights do not fit signals of shape \(2, 1, 4, 4\): give one for each",
        ),
        (lambda: Gray(torch.zeros(3)), "not all of them 0"),
        (lambda: Masked(torch.tensor([0.5])), "the mask has entries other than 0 and 1"),
        (lambda: Masked(torch.ones(5))(image), r"a mask of shape \(5,\) does not fit signals of shape \(2, 3, 4, 4\)"),
        (
            lambda: Averaged(3)(image),
            r"factor=3 does not divide the sizes of signals of shape \(2, 3, 4, 4\): give divisors",
        ),
        (lambda: Averaged((2, 2))(torch.zeros(2, 3, 4)), "give a side for each size"),
        (lambda: Averaged(0), "factor=0: give whole numbers"),
        (
            lambda: MatrixOperator(torch.eye(4))(image),
            r"signals of shape \(2, 3, 4, 4\) do not fit the matrix, which takes \(B, 4\)",
        ),
        (
            lambda: MatrixOperator(torch.eye(4), (3, 4, 4)),
            r"a matrix of shape \(4, 4\) does not fit signals of shape \(3, 4, 4\)",
        ),
        (
            lambda: PseudoInverse(model, Gray(THIRD), image),
            r"a measurement of shape \(2, 3, 4, 4\) has 3 channels: give one, the weighted sum",
        ),
        (
            lambda: PseudoInverse(model, MatrixOperator(torch.eye(48), (3, 4, 4)), torch.zeros(1, 47)),
            r"a measurement of shape \(1, 47\) does not fit the matrix: give \(B, 48\)",
        ),
        (
            lambda: DPS(DDIM(model), Averaged(2), torch.zeros(1, 1, 2, 2)),
            r"measures signals of shape \(1, 4, 4\), but the network models",
        ),
        (lambda: Replacement(DDIM(model), Averaged(2), torch.zeros(1, 3, 2, 2).long()), "give floating-point numbers"),
        (
            lambda: PseudoInverse(model, Averaged(2), torch.zeros(1, 3, 1, 1))(image, t),
            r"sample with shape=\(2, 3, 2, 2\)",
        ),
        (
            lambda: MomentMatching(prior, Averaged(2), torch.zeros(3, 2))(torch.zeros(2, 4), t),
            r"do not fit 3 measurements of signals",
        ),
        (lambda: PseudoInverse(prior, Averaged(2), one, -1.0), "noise=-1.0"),
        (lambda: PseudoInverse(prior, Averaged(2), one, deviation=0.0), "deviation=0.0"),
        (lambda: MomentMatching(prior, Averaged(2), one, iterations=0), "iterations=0"),
        (lambda: DPS(DDIM(prior), Averaged(2), one, 0.0), "zeta=0.0"),
        (lambda: DPS(UniPC(prior), Averaged(2), one), "UniPC looks back"),
        (lambda: PseudoInverse(to_zero, Averaged(2), one), "zero SNR"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
