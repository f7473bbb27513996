"""Objectives of the Gaussian families: stationary at the exact denoiser, with the expectations of their docstrings."""

import math

import gaussian_cells as cells
import pytest
import torch
from gaussian_analytic import (
    CHANGES,
    ONE,
    POINTS,
    SHARES,
    D,
    Nodes,
    Perturbed,
    chain_bound,
    coefficients,
    conditional,
    derivatives,
    gaussian,
    hermite,
    mixture,
    points,
    quadrature,
    reverse_variance,
    wrong,
)
from gaussian_cells import BOUNDING, OBJECTIVES, SCHEDULES, THREE, UNUSUAL, WEIGHTS

from unnoise import continuous as c
from unnoise import sde
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ConditionDropout
from unnoise.shared.gaussian.schedule import TableSchedule
from unnoise.shared.objective import independent

X0, Z, W = quadrature()


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=D), torch.as_tensor(expected, dtype=D), rtol=tolerance, atol=tolerance
    )


def times_of(schedule):
    if isinstance(schedule, TableSchedule):
        rows = sorted({1, 2, schedule.steps // 2 + 1, schedule.steps} & set(range(1, schedule.steps + 1)))
        return [torch.tensor(n / schedule.steps, dtype=D) for n in rows]
    return [torch.tensor(t, dtype=D) for t in (0.2, 0.6, 1.0)]


def resolved(schedule, t):
    """Returns whether 40 nodes per dimension resolve the posterior of the mixture, which is narrow for small noise."""
    alpha, sigma = coefficients(schedule, t)
    return float(sigma / alpha) > 0.25 if alpha > 0 else True


def built(name, denoiser):
    try:
        return OBJECTIVES[name](denoiser)
    except UsageError:
        return None


def expected(objective, t, x0=X0, z=Z, w=W):
    loss = objective.at(x0, t.expand(len(x0)), generator=Nodes(z))
    return (w * loss.total).sum()


def by_formula(name, denoiser, t):
    """Returns the expectation by the formula of the docstring, from the denoiser's estimates at the nodes."""
    schedule = denoiser.corruption
    alpha, sigma = coefficients(schedule, t)
    x = alpha * X0 + sigma * Z
    mean = denoiser(x, t)
    mse = (W * (mean - X0)[:, 0] ** 2).sum()
    snr = (alpha / sigma) ** 2
    factors = {
        "DenoisingLoss.simple": snr,
        "DenoisingLoss(truncated_snr)": max(snr, ONE),
        "DenoisingLoss.min_snr": min(snr, 2 * ONE),
        "DenoisingLoss(OutputError(velocity))": (alpha**2 + sigma**2) / sigma**2,
    }
    if name in factors:
        return factors[name] * mse
    if name in ("DenoisingLoss.score_matching", "DenoisingLoss.likelihood_weighted"):
        score, target = (alpha * mean - x) / sigma**2, -Z / sigma
        g2 = -(sigma**2) * derivatives(schedule, t)[2]
        weight = sigma**2 if name == "DenoisingLoss.score_matching" else g2
        return weight * (W * (score - target)[:, 0] ** 2).sum()
    if name == "DenoisingLoss.edm":
        ratio = sigma / alpha
        return (1 / 0.49 if alpha == 0 else (ratio**2 + 0.49) / (ratio * 0.7) ** 2) * mse
    d_alpha, d_sigma, _ = derivatives(schedule, t)
    assert name == "DenoisingLoss.flow_matching"
    v = d_alpha * mean + d_sigma * (x - alpha * mean) / sigma
    return (W * (v - d_alpha * X0 - d_sigma * Z)[:, 0] ** 2).sum()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*WEIGHTS, *UNUSUAL, "ImportanceSampling(DenoisingLoss.simple)"])
def test_the_exact_denoiser_is_a_stationary_point(name, schedule):
    """Its derivative along any change is 0; that of a wrong denoiser is not."""
    there = SCHEDULES[schedule]()
    if built(name, mixture(there)) is None:
        return
    slopes = {0.0: [], 0.3: []}
    for t in times_of(there):
        if not resolved(there, t):
            continue
        for theta, found in slopes.items():
            for change in CHANGES:
                denoiser = Perturbed(Perturbed(mixture(there), CHANGES[2], theta), change)
                found.append(abs(float(torch.autograd.grad(expected(built(name, denoiser), t), denoiser.theta)[0])))
    assert all(math.isfinite(slope) for found in slopes.values() for slope in found), slopes
    assert max(slopes[0.0]) < 2e-7 * max(1.0, max(slopes[0.3])), slopes
    assert max(slopes[0.3]) > 1e-4, slopes


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_losses_are_the_weighted_errors_of_their_docstrings(name, schedule):
    there = SCHEDULES[schedule]()
    if built(name, mixture(there)) is None:
        return
    for make in (mixture, wrong):
        for t in times_of(there):
            denoiser = make(there)
            # derivatives of the schedule are finite differences here, with few digits
            rough = name in ("DenoisingLoss.flow_matching", "DenoisingLoss.likelihood_weighted")
            found, formula = expected(built(name, denoiser), t).detach(), by_formula(name, denoiser, t).detach()
            close(found, formula, 2e-4 if rough else 1e-9)


@pytest.mark.parametrize("name", ["ImplicitScoreMatching", "SlicedScoreMatching"])
@pytest.mark.parametrize("schedule", ["VP", "SubVP", "VE", "Cosine", "NoiseLevels, 49 rows", "Tabulated, 3 rows"])
def test_implicit_losses_are_half_the_squared_score_plus_its_derivative(name, schedule):
    there = SCHEDULES[schedule]()
    for t in times_of(there):
        denoiser, (alpha, sigma) = wrong(there), coefficients(there, t)
        x, h = alpha * X0 + sigma * Z, 1e-5
        score = lambda x: ((alpha * denoiser(x, t) - x) / sigma**2)[:, 0]  # noqa: B023, E731
        own = sigma**2 * (0.5 * score(x) ** 2 + (score(x + h) - score(x - h)) / (2 * h))
        close(expected(built(name, denoiser), t).detach(), (W * own).sum().detach(), 1e-5)


TABLES = {
    "3 rows": lambda: c.Tabulated(cells.BETAS),
    "1 row": lambda: c.Tabulated(cells.BETAS[1:2]),
    "zero SNR": lambda: c.Tabulated(torch.tensor([0.1, 0.4, 1.0], dtype=D)),
    "noise levels": lambda: sde.NoiseLevels(torch.tensor([0.3, 0.8, 2.0], dtype=D)),
    "respaced": lambda: c.Tabulated(torch.linspace(0.1, 0.5, 6, dtype=D)).respaced(
        torch.tensor([6, 3, 2, 0], dtype=D) / 6
    ),
}


def rows_of(schedule):
    return [torch.tensor(n / schedule.steps, dtype=D) for n in range(schedule.steps, -1, -1)]


def variance_output(x, t):
    return torch.tanh(x + exact_number(t)) - 0.8


def exact_number(t):
    return t.view(-1, *[1]) if t.ndim else t


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("variance", cells.VARIANCES)
def test_terms_of_the_variational_loss_sum_to_the_bound(variance, table):
    """The mean over n of `T L_(n-1)` in bits, in expectation, is path plus data of the bound by quadrature."""
    schedule = TABLES[table]()
    z, w = hermite(200)
    denoiser = Perturbed(points(schedule), CHANGES[2], 0.2, v=variance_output if variance in cells.LEARNED else None)
    objective = c.Variational(denoiser, THREE, cells.VARIANCES[variance])
    for k in range(3):
        _, path, data = chain_bound(denoiser, variance, rows_of(schedule), k)
        each = [
            expected(objective, t, POINTS[k].expand(200, 1), z[:, None], w).detach() for t in rows_of(schedule)[:-1]
        ]
        close(torch.stack(each).mean(), (path + data) / math.log(2), 1e-8)


@pytest.mark.parametrize("name", BOUNDING)
def test_the_exact_denoiser_is_a_stationary_point_of_the_path(name):
    """Of the KL divergences of the steps; the decoder's optimum is not the mean, but the best code of the data."""
    schedule = TABLES["3 rows"]()
    z, w = hermite(200)
    for theta, low, high in ((0.0, 0.0, 1e-9), (0.3, 1e-3, math.inf)):
        slopes = []
        for change in CHANGES:
            denoiser = Perturbed(Perturbed(points(schedule), CHANGES[2], theta), change)
            objective = OBJECTIVES[name](denoiser)
            for t in rows_of(schedule)[:-2]:
                loss = sum(
                    SHARES[k] * expected(objective, t, POINTS[k].expand(200, 1), z[:, None], w) for k in range(3)
                )
                slopes.append(abs(float(torch.autograd.grad(loss, denoiser.theta)[0])))
        assert low <= max(slopes) < high, (theta, slopes)


@pytest.mark.parametrize("variance", cells.LEARNED)
def test_the_optimal_learned_variance_is_that_of_x_s(variance):
    """The KL divergence is stationary at `Var(x_s | x_t)`, the posterior's variance plus that of the estimate."""
    schedule = TABLES["3 rows"]()
    t, s = rows_of(schedule)[:2]
    z, w = hermite(200)

    def moments(x):
        alpha, sigma = coefficients(schedule, t)
        log_joint = SHARES.log() - (x - alpha * POINTS[:, 0]) ** 2 / (2 * sigma**2)
        p = log_joint.softmax(-1)
        mean = (p * POINTS[:, 0]).sum(-1, keepdim=True)
        return (p * POINTS[:, 0] ** 2).sum(-1, keepdim=True) - mean**2

    of_x0, _, true = conditional(schedule, t, s)
    low, high = (reverse_variance(n, schedule, t, s) for n in ("small", "large"))

    def best(x, _):
        target = (true + of_x0**2 * moments(x)).log()
        return target if variance == "learned_diagonal" else 2 * (target - low.log()) / (high.log() - low.log()) - 1

    for theta, small, large in ((0.0, 0.0, 1e-8), (0.4, 1e-3, math.inf)):
        slopes = []
        for change in CHANGES:
            denoiser = Perturbed(points(schedule), torch.zeros_like)
            denoiser.has_variance_output = True
            denoiser.v = lambda x, t: best(x, t) + theta * torch.cos(x) + denoiser.theta * change(x)  # noqa: B023
            for objective in (
                c.Variational(denoiser, THREE, cells.LEARNED[variance]),
                c.Hybrid(denoiser, THREE, 1.0, cells.LEARNED[variance]),
            ):
                loss = sum(
                    SHARES[k] * expected(objective, t, POINTS[k].expand(200, 1), z[:, None], w) for k in range(3)
                )
                slopes.append(abs(float(torch.autograd.grad(loss, denoiser.theta)[0])))
        assert small <= max(slopes) < large, (theta, slopes)


def test_the_hybrid_trains_the_mean_by_its_error_alone():
    schedule = TABLES["3 rows"]()
    t = rows_of(schedule)[1]
    denoiser = Perturbed(mixture(schedule), CHANGES[2], 0.3, v=variance_output)
    objective = c.Hybrid(denoiser, THREE, 0.7)
    loss = objective.at(X0, t.expand(len(X0)), generator=Nodes(Z))
    snr = torch.exp(schedule.log_snr(t))
    plain = Perturbed(mixture(schedule), CHANGES[2], 0.3)
    close((W * loss.parts["mse"]).sum(), expected(c.DenoisingLoss.simple(plain), t).detach())
    bits = c.Variational(denoiser, THREE, c.learned_range).at(X0, t.expand(len(X0)), generator=Nodes(Z)).total
    close((W * loss.total).sum().detach(), (W * (loss.parts["mse"] + 0.7 * bits)).sum().detach())
    (slope,) = torch.autograd.grad((W * loss.total).sum(), denoiser.theta)
    x = coefficients(schedule, t)[0] * X0 + coefficients(schedule, t)[1] * Z  # x has unit variance scale on a table
    close(slope, (W * 2 * snr * ((denoiser(x, t) - X0) * CHANGES[2](x))[:, 0]).sum().detach())


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s not in (*cells.ZERO_SNR, "Tabulated, 1 row")])
@pytest.mark.parametrize("model", ["wrong", pytest.param("exact", marks=pytest.mark.slow)])
def test_maximum_likelihood_bounds_the_reverse_sdes_density(schedule, model):
    """Its mean over log-SNRs is at least the cross-entropy of the noisy data at t_min and the model of the reverse SDE.

    With equality at the exact denoiser; the SDE of a wrong one is linear, so its moments are known too.
    """
    there = SCHEDULES[schedule]()
    data = (0.4, 0.5)
    denoiser = gaussian(there, *(data if model == "exact" else (0.1, 0.8)))
    objective, (nodes, w) = sde.MaximumLikelihood(denoiser), hermite(30)
    x0, z = torch.meshgrid(data[0] + math.sqrt(data[1]) * nodes, nodes, indexing="ij")
    weight = (w[:, None] * w).flatten()
    u, du = (torch.from_numpy(v) for v in __import__("numpy").polynomial.legendre.leggauss(60))
    low, high = (float(there.log_snr(torch.tensor(v, dtype=D))) for v in (1.0, there.t_min))
    bound = 0.0
    for share, step in zip((u + 1) / 2, du / 2, strict=True):
        t = there.time(high - (high - low) * share)
        total = objective.at(x0.reshape(-1, 1), t.expand(900), generator=Nodes(z.reshape(-1, 1))).total
        bound = bound + step * (weight * total).sum()
    alpha, sigma = coefficients(there, torch.tensor(there.t_min, dtype=D))
    (_, sigma_1), lam = coefficients(there, ONE), torch.linspace(low, high, 8001, dtype=D)
    # The model: x from N(0, sigma_1^2) along the reverse SDE in log-SNR, y = x / alpha; its mean and variance by
    # Euler's rule.
    a_1 = coefficients(there, ONE)[0]
    mean, var = torch.zeros((), dtype=D), (sigma_1 / a_1) ** 2
    means, variances = (0.4, 0.5) if model == "exact" else (0.1, 0.8)
    r2 = torch.exp(-lam)  # (sigma / alpha)^2
    for i in range(len(lam) - 1):
        middle, step = ((r2[i] + r2[i + 1]) / 2), r2[i] - r2[i + 1]  # dy = -(D - y) / r2 d(r2) + noise of d(r2)
        gain = middle / (variances + middle)  # D - y = gain (m - y)
        k = step / middle * gain
        mean, var = (
            mean + (1 - torch.exp(-k)) * (means - mean),
            var * torch.exp(-2 * k) + step * (1 - torch.exp(-2 * k)) / (2 * k),
        )
    mean, var = alpha * mean, alpha**2 * var
    data_mean, data_var = alpha * data[0], alpha**2 * data[1] + sigma**2
    nll = 0.5 * (math.log(2 * math.pi) + var.log() + (data_var + (data_mean - mean) ** 2) / var)
    own = 0.5 * math.log(2 * math.pi * math.e * float(data_var))
    prior_gap = 0.5 * ((a_1**2 * (data[1] + data[0] ** 2) + sigma_1**2) / sigma_1**2 - 1) - 0.5 * math.log1p(
        float(a_1**2 * data[1] / sigma_1**2)
    )
    assert float(bound) >= float(nll) - 2e-4
    if model == "exact":
        close(bound.detach(), own + prior_gap, 1e-5)
    else:
        assert float(bound) > own + 1e-3


@pytest.mark.parametrize(("p", "label"), [(0.2, 0), (0.3, 2)])
def test_a_dropped_condition_is_its_null(p, label):
    """The source of noise returns 0.25 for every uniform number, so the condition is dropped if p is above that."""
    denoiser, t = cells.build("VP"), torch.full((len(X0),), 0.4, dtype=D)
    loss = (
        ConditionDropout(c.DenoisingLoss.simple(denoiser), p)
        .at(X0, t, generator=Nodes(Z), label=torch.zeros(len(X0)).long())
        .total
    )
    close(
        loss.detach(),
        c.DenoisingLoss.simple(denoiser)
        .at(X0, t, generator=Nodes(Z), label=torch.full((len(X0),), label))
        .total.detach(),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_times_of_objectives_are_drawn_from_the_process(name):
    """`forward` calls `at` at training times of the schedule."""
    for schedule in ("VP", "Tabulated, 49 rows", "Cosine"):
        for outputs in (1, 2):
            denoiser = cells.build(schedule, outputs=outputs)
            objective = built(name, denoiser)
            if objective is None:
                continue
            cond = {"label": torch.zeros(64).long()} if name == "ConditionDropout(DenoisingLoss.simple)" else {}
            loss = objective(X0[:64], generator=torch.Generator().manual_seed(0), **cond)
            assert loss.total.shape == (64,)
            assert bool((loss.t > 0).all())
            assert bool((loss.t <= 1).all())
            if getattr(objective, "times", independent) is independent and "Distillation" not in name:
                assert 0.2 < float((loss.t > median_time(denoiser.corruption, name)).double().mean()) < 0.8


def median_time(schedule, name):
    """Returns the median of the training times; for times even in log-SNR, that of the middle log-SNR."""
    if name != "MaximumLikelihood":
        return 0.5
    low, high = (float(schedule.log_snr(torch.tensor(v, dtype=D))) for v in (1.0, schedule.t_min))
    return float(schedule.time(torch.tensor((low + high) / 2, dtype=D)))
