"""Bounds and likelihoods of the Gaussian families against the distributions that their samplers draw from."""

import itertools
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
    chain_distribution,
    coefficients,
    conditional,
    gaussian,
    hermite,
    marginal,
    mean_and_variance,
    mixture,
    points,
    reverse_variance,
    wrong,
)
from gaussian_cells import SCHEDULES, THREE
from test_gaussian_objectives import TABLES, close, rows_of, variance_output

from unnoise import continuous as c
from unnoise import sde
from unnoise.shared.gaussian.guidance import ClassifierFree

DENOISERS = {
    "exact": points,
    "wrong": lambda s: Perturbed(points(s), CHANGES[2], 0.4),
    "clipped": lambda s: c.Clipped(Perturbed(points(s), CHANGES[0], 0.7)),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("variance", cells.VARIANCES)
@pytest.mark.parametrize("model", DENOISERS)
def test_a_bound_is_of_the_chain_that_ancestral_draws(model, variance, table):
    """Each part equals its definition by quadrature, and their sum is at least `-log P(k)` of the chain and decoder."""
    schedule = TABLES[table]()
    if variance in cells.LEARNED:
        base = Perturbed(points(schedule), CHANGES[2], 0.4, v=variance_output)
        denoiser = c.Clipped(base) if model == "clipped" else base
    else:
        denoiser = DENOISERS[model](schedule)
    bound = c.VariationalBound(denoiser, THREE, variance=cells.VARIANCES[variance])
    times, (z, w) = rows_of(schedule), hermite(200)
    probabilities = chain_distribution(denoiser, variance, times)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
    total = []
    for k in range(3):
        x0 = POINTS[k].expand(200, 1)
        with torch.no_grad():
            terms = [(w * bound.term(x0, t, generator=Nodes(z[:, None]))).sum() for t in times[:-1]]
        prior, path, data = chain_bound(denoiser, variance, times, k)
        close(bound.prior(POINTS[k][None])[0], prior)
        close(sum(terms[:-1]), path, 1e-8)
        close(terms[-1], data, 1e-8)
        total.append(float(prior + sum(terms)))
        assert total[-1] >= -float(probabilities[k].log()) - 1e-6
    assert sum(math.exp(-nats) for nats in total) <= 1 + 1e-6


@pytest.mark.parametrize("table", TABLES)
def test_the_call_adds_prior_path_and_data(table):
    schedule = TABLES[table]()
    bound = c.VariationalBound(DENOISERS["wrong"](schedule), THREE)
    z = torch.randn(1, 1, dtype=D, generator=torch.Generator().manual_seed(0))
    code = bound(POINTS[:1], generator=Nodes(z))
    terms = [bound.term(POINTS[:1], t, generator=Nodes(z)) for t in rows_of(schedule)[:-1]]
    close(code.path, sum(terms[:-1]) if len(terms) > 1 else torch.zeros(1, dtype=D))
    close(code.data, terms[-1])
    close(code.prior, bound.prior(POINTS[:1]))
    curve = bound.rate_distortion(POINTS[:1], generator=Nodes(z))
    close(curve.rate[-1] * math.log(2), code.prior + code.path)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("variance", cells.VARIANCES)
def test_ancestral_samples_that_chain(variance, table):
    """Mean and variance of its steps are those of the chain, and its start is the prior."""
    schedule = TABLES[table]()
    denoiser = Perturbed(points(schedule), CHANGES[2], 0.4, v=variance_output if variance in cells.LEARNED else None)
    sampler, x = c.Ancestral(denoiser, cells.VARIANCES[variance]), torch.linspace(-2, 2, 9, dtype=D)
    times = rows_of(schedule)
    for t, s in itertools.pairwise(times):
        with torch.no_grad():
            mean, var = sampler.distribution(x[:, None], t, s)
            estimate, v = mean_and_variance(denoiser, x[:, None], t)
        if s > 0:
            of_x0, of_x, _ = conditional(schedule, t, s)
            close(mean, of_x0 * estimate + of_x * x[:, None])
        else:
            close(mean, estimate)
        own = reverse_variance(variance, schedule, t, s, v)
        close(torch.as_tensor(var).expand(9, 1), torch.as_tensor(own, dtype=D).expand(9, 1))
    start = sampler.start((200_000, 1), ONE, generator=torch.Generator().manual_seed(0))
    assert float(start.std()) == pytest.approx(float(coefficients(schedule, ONE)[1]), rel=0.01)


@pytest.mark.parametrize("variance", [*cells.FIXED, "learned_range"])
def test_the_last_variance_of_a_stride_is_that_of_the_respaced_table(variance):
    """It scales the guidance of the last step, and depends on the grid's step above, as in the published code."""
    whole = c.Tabulated(c.linear_betas(1000))
    v = variance_output if variance == "learned_range" else None
    for steps in (5, 250):
        grid = whole.grid(steps)
        denoiser = Perturbed(points(whole), CHANGES[2], v=v)
        denoiser.has_variance_output = True  # so that the variance of the last step is computed
        sampler = c.Ancestral(denoiser, cells.VARIANCES[variance])
        seen, method, x = [], sampler.distribution, torch.full((1, 1), 0.3, dtype=D)
        sampler.distribution = lambda *args, **more: seen.append(method(*args, **more)) or seen[-1]  # noqa: B023
        with torch.no_grad():
            sampler(x, steps=grid, generator=torch.Generator().manual_seed(0))
            _, variance_of_run = seen[-1] if v is None else method(x, grid[-2], grid[-1], above=grid[-3])
        of_net = None if v is None else variance_output(x, grid[-2])
        expected = reverse_variance(variance, whole.respaced(grid), torch.tensor(1 / steps, dtype=D), 0 * ONE, of_net)
        close(torch.as_tensor(variance_of_run).flatten(), expected.flatten(), 1e-9)
    assert float(
        cells.c.small(whole.respaced(whole.grid(250)), torch.tensor(1 / 250, dtype=D), 0 * ONE)
    ) == pytest.approx(8.57e-5, rel=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.25])
def test_a_grid_starts_with_the_noise_of_its_first_time(schedule, share):
    there = SCHEDULES[schedule]()
    sampler = c.DDIM(gaussian(there))
    start = sampler.start((100_000, 1), share * ONE, generator=torch.Generator().manual_seed(0))
    assert float(start.std()) == pytest.approx(float(coefficients(there, share * ONE)[1]), rel=0.01)


# ---- change of variables

FLOWS = {
    "exact": mixture,
    "wrong": wrong,
    "clipped": lambda s: c.Clipped(mixture(s), -0.6, 0.6),
    "guided": lambda s: ClassifierFree(mixture(s), 0.8, null=0),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", cells.LIKELIHOODS)
def test_the_code_length_of_a_gaussian_is_exact(name, schedule):
    """`-log N(x; alpha m, alpha^2 v + sigma^2)` at t_min, with the prior N(0, sigma_1^2) in place of q(x_1)."""
    there = SCHEDULES[schedule]()
    measure = cells.LIKELIHOODS[name](gaussian(there))
    x = torch.linspace(-1, 2, 7, dtype=D)[:, None]
    code = measure(x, generator=torch.Generator().manual_seed(0))
    mean, variance = marginal(there, torch.tensor(there.t_min, dtype=D))
    mean_1, variance_1 = marginal(there, ONE)
    z = (x[:, 0] - mean) / variance.sqrt()
    x1, s2 = mean_1 + variance_1.sqrt() * z, coefficients(there, ONE)[1] ** 2
    expected = 0.5 * (x1**2 / s2 + torch.log(2 * math.pi * s2)) - 0.5 * torch.log(variance_1 / variance)
    close(code.nats, expected, 1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", ["clipped", "guided", pytest.param("wrong", marks=pytest.mark.slow)])
def test_code_lengths_are_those_of_the_flow(model, schedule):
    """`p_1(x_1) |dx_1 / dx|` by finite differences of the flow, for denoisers that are not a posterior mean."""
    there = SCHEDULES[schedule]()
    denoiser = FLOWS[model](there)
    cond = {"label": torch.ones(9).long()} if model == "guided" else {}
    integrator = sde.Adaptive(1e-8, 1e-8)
    measure = sde.ChangeOfVariables(denoiser, trace=sde.ExactTrace(), integrator=integrator)
    x, h = torch.linspace(-0.9, 0.8, 9, dtype=D)[:, None], 1e-4
    flow, low = sde.ProbabilityFlow(denoiser, integrator), torch.tensor(there.t_min, dtype=D)
    near, three = torch.cat([x + h, x, x - h]), {name: value.repeat(3) for name, value in cond.items()}
    with torch.no_grad():
        up, here, down = flow.transport(near, low, ONE, **three)[:, 0].chunk(3)
    s2 = coefficients(there, ONE)[1] ** 2
    expected = 0.5 * (here**2 / s2 + torch.log(2 * math.pi * s2)) - ((up - down) / (2 * h)).log()
    code = measure(x, generator=torch.Generator().manual_seed(0), **cond).nats
    error = (code - expected).abs()
    error = error.median() if model == "clipped" else error.max()  # finite differences fail at the kinks of a clamp
    assert float(error) < 2e-3, (code, expected)


def test_shares_sum_to_one():
    assert float(SHARES.sum()) == pytest.approx(1)
