"""Objectives of the Gaussian families.

Stationary at the exact denoiser, and in expectation what they say, for wrong ones too.
"""

import math

import gaussian_cells as cells
import pytest
import torch
from gaussian_cells import BOUNDING, OBJECTIVES, SCALE, SCHEDULES, UNUSUAL, WEIGHTS
from gaussian_oracle import (
    CHANGES,
    ONE,
    POINTS,
    SHARES,
    D,
    Moved,
    Nodes,
    chain_bound,
    conditional,
    gaussian,
    hermite,
    levels,
    mixture,
    points,
    quadrature,
    reverse_variance,
    speeds,
    wrong,
)

from unnoise import continuous as c
from unnoise import sde
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ConditionDropout
from unnoise.shared.objective import independent

X0, Z, W = quadrature()


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=D), torch.as_tensor(expected, dtype=D), rtol=tolerance, atol=tolerance
    )


def times_of(schedule):
    if hasattr(schedule, "steps"):
        rows = sorted({1, 2, schedule.steps // 2 + 1, schedule.steps} & set(range(1, schedule.steps + 1)))
        return [torch.tensor(n / schedule.steps, dtype=D) for n in rows]
    return [torch.tensor(t, dtype=D) for t in (0.2, 0.6, 1.0)]


def resolved(schedule, t):
    """Whether 40 nodes a dimension see the posterior of the mixture, whose shape is as fine as the noise is small."""
    alpha, sigma = levels(schedule, t)
    return float(sigma / alpha) > 0.25 if alpha > 0 else True


def built(name, denoiser):
    try:
        return OBJECTIVES[name](denoiser)
    except UsageError:
        return None


def expected(objective, t, x0=X0, z=Z, w=W):
    loss = objective.at(x0, t.expand(len(x0)), generator=Nodes(z))
    return (w * loss.total).sum()


def meaning(name, denoiser, t):
    """What the docstring says, from the denoiser's estimates at the nodes."""
    schedule = denoiser.corruption
    alpha, sigma = levels(schedule, t)
    x = alpha * X0 + sigma * Z
    mean = denoiser(x, t)
    mse = (W * (mean - X0)[:, 0] ** 2).sum()
    snr = (alpha / sigma) ** 2
    if name.startswith("Simple"):
        factor = {"Simple": snr, "Simple(truncated_snr)": max(snr, ONE), "Simple(MinSNR)": min(snr, 2 * ONE)}
        return (factor | {"Simple(PlainError(velocity))": (alpha**2 + sigma**2) / sigma**2})[name] * mse
    if name.startswith("ScoreMatching"):
        score, target = (alpha * mean - x) / sigma**2, -Z / sigma
        g2 = -(sigma**2) * speeds(schedule, t)[2]
        return (sigma**2 if name == "ScoreMatching" else g2) * (W * (score - target)[:, 0] ** 2).sum()
    if name == "EDMLoss":
        ratio = sigma / alpha
        return (1 / 0.49 if alpha == 0 else (ratio**2 + 0.49) / (ratio * 0.7) ** 2) * mse
    d_alpha, d_sigma, _ = speeds(schedule, t)
    assert name == "FlowMatching"
    v = d_alpha * mean + d_sigma * (x - alpha * mean) / sigma
    return (W * (v - d_alpha * X0 - d_sigma * Z)[:, 0] ** 2).sum()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*WEIGHTS, "Implicit", "Sliced", "MaximumLikelihood", "Importance(Simple)"])
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
                denoiser = Moved(Moved(mixture(there), CHANGES[2], theta), change)
                found.append(abs(float(torch.autograd.grad(expected(built(name, denoiser), t), denoiser.theta)[0])))
    assert all(math.isfinite(slope) for found in slopes.values() for slope in found), slopes
    assert max(slopes[0.0]) < 2e-7 * max(1.0, max(slopes[0.3])), slopes
    assert max(slopes[0.3]) > 1e-4, slopes


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_losses_are_the_weighted_errors_that_they_say(name, schedule):
    there = SCHEDULES[schedule]()
    if built(name, mixture(there)) is None:
        return
    for make in (mixture, wrong):
        for t in times_of(there):
            denoiser = make(there)
            slow = name in ("FlowMatching", "ScoreMatching(likelihood_weight)")  # against differences, which cancel
            close(
                expected(built(name, denoiser), t).detach(), meaning(name, denoiser, t).detach(), 2e-4 if slow else 1e-9
            )


@pytest.mark.parametrize("name", ["Implicit", "Sliced"])
@pytest.mark.parametrize("schedule", ["VP", "SubVP", "VE", "Cosine", "Levels, 49 rows", "Tabulated, 3 rows"])
def test_implicit_losses_are_half_the_squared_score_and_its_slope(name, schedule):
    there = SCHEDULES[schedule]()
    for t in times_of(there):
        denoiser, (alpha, sigma) = wrong(there), levels(there, t)
        x, h = alpha * X0 + sigma * Z, 1e-5
        score = lambda x: ((alpha * denoiser(x, t) - x) / sigma**2)[:, 0]  # noqa: B023, E731
        own = sigma**2 * (0.5 * score(x) ** 2 + (score(x + h) - score(x - h)) / (2 * h))
        close(expected(built(name, denoiser), t).detach(), (W * own).sum().detach(), 1e-5)


TABLES = {
    "3 rows": lambda: c.Tabulated(cells.BETAS),
    "1 row": lambda: c.Tabulated(cells.BETAS[1:2]),
    "zero SNR": lambda: c.Tabulated(torch.tensor([0.1, 0.4, 1.0], dtype=D)),
    "levels": lambda: sde.NoiseLevels(torch.tensor([0.3, 0.8, 2.0], dtype=D)),
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
    """`T L_(n-1)` in bits, in expectation; the mean over n is path and data of the oracle's bound."""
    schedule = TABLES[table]()
    z, w = hermite(200)
    denoiser = Moved(points(schedule), CHANGES[2], 0.2, v=variance_output if variance in cells.LEARNED else None)
    objective = c.Variational(denoiser, SCALE, cells.VARIANCES[variance])
    for k in range(3):
        _, path, data = chain_bound(denoiser, variance, rows_of(schedule), k)
        each = [
            expected(objective, t, POINTS[k].expand(200, 1), z[:, None], w).detach() for t in rows_of(schedule)[:-1]
        ]
        close(torch.stack(each).mean(), (path + data) / math.log(2), 1e-8)


@pytest.mark.parametrize("name", BOUNDING)
def test_the_exact_denoiser_is_a_stationary_point_of_the_bounds_path(name):
    """The KLs of steps; the decoder's cells do not ask for the mean, but for what codes the levels best."""
    schedule = TABLES["3 rows"]()
    z, w = hermite(200)
    for theta, low, high in ((0.0, 0.0, 1e-9), (0.3, 1e-3, math.inf)):
        slopes = []
        for change in CHANGES:
            denoiser = Moved(Moved(points(schedule), CHANGES[2], theta), change)
            objective = OBJECTIVES[name](denoiser)
            for t in rows_of(schedule)[:-2]:
                loss = sum(
                    SHARES[k] * expected(objective, t, POINTS[k].expand(200, 1), z[:, None], w) for k in range(3)
                )
                slopes.append(abs(float(torch.autograd.grad(loss, denoiser.theta)[0])))
        assert low <= max(slopes) < high, (theta, slopes)


@pytest.mark.parametrize("variance", cells.LEARNED)
def test_the_best_variance_is_that_of_x_s(variance):
    """Of a learned variance the KL is stationary where it is `Var(x_s | x_t)`, posterior and estimate's error together."""
    schedule = TABLES["3 rows"]()
    t, s = rows_of(schedule)[:2]
    z, w = hermite(200)

    def moments(x):
        alpha, sigma = levels(schedule, t)
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
            denoiser = Moved(points(schedule), torch.zeros_like)
            denoiser.has_variance_output = True
            denoiser.v = lambda x, t: best(x, t) + theta * torch.cos(x) + denoiser.theta * change(x)  # noqa: B023
            for objective in (
                c.Variational(denoiser, SCALE, cells.LEARNED[variance]),
                c.Hybrid(denoiser, SCALE, 1.0, cells.LEARNED[variance]),
            ):
                loss = sum(
                    SHARES[k] * expected(objective, t, POINTS[k].expand(200, 1), z[:, None], w) for k in range(3)
                )
                slopes.append(abs(float(torch.autograd.grad(loss, denoiser.theta)[0])))
        assert small <= max(slopes) < large, (theta, slopes)


def test_the_hybrid_trains_the_mean_by_its_error_alone():
    schedule = TABLES["3 rows"]()
    t = rows_of(schedule)[1]
    denoiser = Moved(mixture(schedule), CHANGES[2], 0.3, v=variance_output)
    objective = c.Hybrid(denoiser, SCALE, 0.7)
    loss = objective.at(X0, t.expand(len(X0)), generator=Nodes(Z))
    snr = torch.exp(schedule.log_snr(t))
    plain = Moved(mixture(schedule), CHANGES[2], 0.3)
    close((W * loss.parts["mse"]).sum(), expected(c.DenoisingLoss.simple(plain), t).detach())
    bits = c.Variational(denoiser, SCALE, c.learned_range).at(X0, t.expand(len(X0)), generator=Nodes(Z)).total
    close((W * loss.total).sum().detach(), (W * (loss.parts["mse"] + 0.7 * bits)).sum().detach())
    (slope,) = torch.autograd.grad((W * loss.total).sum(), denoiser.theta)
    x = levels(schedule, t)[0] * X0 + levels(schedule, t)[1] * Z  # of unit scale on a table
    close(slope, (W * 2 * snr * ((denoiser(x, t) - X0) * CHANGES[2](x))[:, 0]).sum().detach())


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s not in (*cells.ZERO_SNR, "Tabulated, 1 row")])
@pytest.mark.parametrize("model", ["wrong", pytest.param("exact", marks=pytest.mark.slow)])
def test_maximum_likelihood_bounds_the_reverse_sdes_density(schedule, model):
    """Its mean over log-SNR is at least the cross-entropy of the data with noise of t_min to the model of the reverse
    SDE, with equality at the exact denoiser, and where the SDE of a wrong one is linear, by its own moments."""
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
    alpha, sigma = levels(there, torch.tensor(there.t_min, dtype=D))
    (_, sigma_1), lam = levels(there, ONE), torch.linspace(low, high, 8001, dtype=D)
    # The model: x from N(0, sigma_1^2) along the reverse SDE in log-SNR, y = x / alpha; its mean and variance by
    # Euler's rule.
    a_1 = levels(there, ONE)[0]
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
    """The source of noise gives 0.25 for every uniform number: dropped where p is above."""
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
    """`forward` is `at` at times of the schedule, the same with any source of noise."""
    for schedule in ("VP", "Tabulated, 49 rows", "Cosine"):
        for outputs in (1, 2):
            denoiser = cells.build(schedule, outputs=outputs)
            objective = built(name, denoiser)
            if objective is None:
                continue
            cond = {"label": torch.zeros(64).long()} if name == "ConditionDropout(Simple)" else {}
            loss = objective(X0[:64], generator=torch.Generator().manual_seed(0), **cond)
            assert loss.total.shape == (64,)
            assert bool((loss.t > 0).all())
            assert bool((loss.t <= 1).all())
            if getattr(objective, "times", independent) is independent and "Distillation" not in name:
                assert 0.2 < float((loss.t > there_middle(denoiser.corruption, name)).double().mean()) < 0.8


def there_middle(schedule, name):
    """The median time: of times that are even in log-SNR that of its middle."""
    if name != "MaximumLikelihood":
        return 0.5
    low, high = (float(schedule.log_snr(torch.tensor(v, dtype=D))) for v in (1.0, schedule.t_min))
    return float(schedule.time(torch.tensor((low + high) / 2, dtype=D)))


assert UNUSUAL
