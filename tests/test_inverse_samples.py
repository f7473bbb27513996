"""Samples of linear inverse problems: exact methods draw the posterior, and of the others the error is measured."""

import functools

import pytest
import torch
from gaussian_posteriors import (
    OPERATORS,
    Shaped,
    conditioned,
    matrix_of,
    mean_and_covariance,
    normal,
    observed,
    problem,
    rng,
)
from helpers import Recorded

from unnoise import sde
from unnoise.continuous import DDIM, Ancestral, DPMSolverPP, UniPC, small
from unnoise.shared.editing import Inpainting
from unnoise.shared.gaussian.inverse import DPS, Masked, MomentMatching, PseudoInverse, Replacement
from unnoise.shared.sampler import counted

NOISE = 0.1
CASES = ("mask of a vector", "uneven gray", "averaged", "dense")
SAMPLERS = {
    "ancestral": (lambda d: Ancestral(d, small), sde.VP),
    "ddim": (DDIM, sde.VP),
    "euler-maruyama": (sde.EulerMaruyama, sde.VP),
    "reverse-diffusion": (sde.ReverseDiffusion, sde.VE),
    "dpm-solver++": (DPMSolverPP, sde.VP),
    "unipc": (UniPC, sde.VE),
}


def errors(name, sampler_of, schedule, method, variance=None, count=4000, steps=200, noise=NOISE):
    """How far the distribution of samples is from the posterior.

    Returns the distance of the means over the root of the posterior's trace, and of the covariances over the norm of
    the posterior's.
    """
    operator, shape, d = problem(name)
    (mean, covariance), a = mean_and_covariance(d, variance), matrix_of(operator, shape)
    # Every number measured lies one of its own standard deviations above its mean.
    y = operator(mean.reshape(1, *shape))
    y = y + ((a @ covariance @ a.T).diagonal() + noise**2 * (a != 0).any(1)).sqrt().reshape(y.shape)
    wanted = conditioned(mean, covariance, a, noise**2 * torch.eye(len(a), dtype=torch.float64), y.flatten(1))
    sampler = method(Shaped(mean, covariance, schedule, shape), sampler_of, operator, y)
    start = sampler.corruption.prior((count, *shape), generator=rng(3)).double()
    x = sampler(start, steps=steps, generator=rng(4)).flatten(1)
    off = float((x.mean(0) - wanted[0]).norm() / wanted[1].trace().sqrt())
    return off, float((x.T.cov() - wanted[1]).norm() / wanted[1].norm())


METHODS = {
    "moment matching": lambda d, sampler, a, y: sampler(MomentMatching(d, a, y, NOISE, 3)),
    "pseudo-inverse": lambda d, sampler, a, y: sampler(PseudoInverse(d, a, y, NOISE, 0.7)),
    "DPS": lambda d, sampler, a, y: DPS(sampler(d), a, y, 0.1),
    "replacement": lambda d, sampler, a, y: Replacement(sampler(d), a, y),
}


@pytest.mark.parametrize(("sampler", "name"), [(s, CASES[(i + j) % 4]) for i, s in enumerate(SAMPLERS) for j in (0, 2)])
def test_samples_of_every_sampler_have_the_posterior_distribution(sampler, name):
    made, schedule = SAMPLERS[sampler]
    mean, covariance = errors(name, made, schedule(), METHODS["moment matching"])
    assert mean < 0.08
    assert covariance < 0.12


@pytest.mark.parametrize("name", CASES)
def test_pseudo_inverse_is_exact_for_white_data(name):
    mean, covariance = errors(name, SAMPLERS["ancestral"][0], sde.VP(), METHODS["pseudo-inverse"], variance=0.49)
    assert mean < 0.05
    assert covariance < 0.1


@functools.cache
def biases(method):
    """The errors of a method for each of `CASES` on correlated data, ancestral sampling in 200 steps."""
    return [errors(name, SAMPLERS["ancestral"][0], sde.VP(), METHODS[method]) for name in CASES]


def bias_table():
    """`biases` in Markdown."""
    rows = [f"| method | {' | '.join(CASES)} |", "| --- |" + " --- |" * len(CASES)]
    return "\n".join(rows + [f"| {m} | {' | '.join(f'{a:.2f} / {b:.2f}' for a, b in biases(m))} |" for m in METHODS])


# Errors of mean and covariance, the worst of four operators; sampling itself costs up to 0.05 and 0.15.
MEASURED = {
    "moment matching": ((0.0, 0.05), (0.0, 0.15)),
    "pseudo-inverse": ((0.6, 1.0), (0.1, 0.25)),
    "DPS": ((3.0, 6.0), (0.4, 0.7)),
    "replacement": ((6.0, 9.0), (0.6, 1.0)),
}


SLOW = ("moment matching", "pseudo-inverse", "DPS")


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in METHODS])
def test_how_far_from_the_posterior_the_approximate_methods_are(method):
    """The worst of four operators lies within what is documented: neither worse, nor exact."""
    means, covariances = zip(*biases(method), strict=True)
    for worst, (low, high) in zip((max(means), max(covariances)), MEASURED[method], strict=True):
        assert low <= worst <= high


def test_replacement_is_inpainting_for_masks(generator):
    operator, shape, d = problem("mask")
    known, prior = normal(50, *shape, seed=1), Shaped(*mean_and_covariance(d), sde.VP(), shape)
    start = normal(50, *shape, seed=2)
    for make in (lambda d: Ancestral(d, small), UniPC):
        a = Replacement(make(prior), operator, operator(known))(start, steps=10, generator=rng(1))
        b = Inpainting(make(prior), known, operator.mask)(start, steps=10, generator=rng(1))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", OPERATORS)
def test_replacement_puts_the_measurement_at_the_level_of_the_state(name):
    """`A x_s = alpha_s y + sigma_s A z`, and the rest as the sampler left it."""
    operator, shape, d = problem(name)
    t, s = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    prior, x, z = Shaped(*mean_and_covariance(d), sde.VP(), shape), normal(3, *shape), normal(3, *shape, seed=1)
    y = operator(normal(1, *shape, seed=2))
    sampler = Replacement(DDIM(prior), operator, y)
    moved, (alpha, sigma) = sampler.step(x, t, s, generator=Recorded(z)), prior.corruption(s)
    torch.testing.assert_close(operator(moved), alpha * y + sigma * operator(z))
    change = moved - DDIM(prior).step(x, t, s)
    torch.testing.assert_close(operator.pseudo_inverse(operator(change)), change)
    end = sampler.step(x, s, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(operator(end), y.expand(3, *y.shape[1:]))


def test_a_draw_of_the_measured_part_is_not_the_measurement():
    """Why replacement is not exact.

    One step from x_t toward `x_0 | y` follows `x_t`'s own draw of the measured part, whatever y is.
    """
    prior, operator = Shaped(*mean_and_covariance(2), sde.VP(), (2,)), Masked(torch.tensor([1, 0]))
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    x, unmeasured = normal(3, 2), []
    for y in (-1.0, 2.0):
        moved = Replacement(DDIM(prior), operator, torch.full((1, 2), y).double()).step(x, t, s, generator=rng())
        unmeasured.append(moved[:, 1])
    assert torch.equal(*unmeasured)
    wanted = [
        MomentMatching(prior, operator, torch.full((1, 2), y).double(), iterations=1)(x, t)[:, 1] for y in (-1.0, 2.0)
    ]
    assert float((wanted[1] - wanted[0]).min()) > 0.5


def test_dps_steps_down_the_norm():
    """The gradient in closed form: `- J^T A^T r / |r|`, r the residual, each example by itself."""
    operator, shape, d = problem("averaged")
    (mean, covariance), y = mean_and_covariance(d), observed(operator, shape, 0.1, 3)
    prior, x = Shaped(mean, covariance, sde.VP(), shape), normal(3, *shape)
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = prior.corruption(t)
    a, jacobian = (
        matrix_of(operator, shape),
        alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(d)),
    )
    r = (y - operator(prior(x, t))).flatten(1)
    slope = -(r / r.norm(dim=1, keepdim=True)) @ a @ jacobian
    sampler = DPS(DDIM(prior), operator, y, 0.7)
    wanted = DDIM(prior).step(x, t, s) - 0.7 * slope.reshape(x.shape)
    torch.testing.assert_close(sampler.step(x, t, s), wanted)
    with counted(sampler.denoiser) as count:
        sampler(x, steps=5)
    assert count.calls == 10
    still = DPS(DDIM(prior), operator, operator(prior(x, t)))
    assert torch.equal(still.step(x, t, s), DDIM(prior).step(x, t, s))  # no residual, no step


if __name__ == "__main__":
    print(bias_table())
