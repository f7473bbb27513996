"""Single steps, bound terms and losses of openai/guided-diffusion with fixed variances."""

import math

import pytest
import torch
from helpers import Fixture, Formula, Recorded, assert_close

from unnoise.continuous import (
    DDIM,
    Ancestral,
    Clipped,
    Learned,
    Simple,
    Tabulated,
    VariationalBound,
    clean,
    cosine_betas,
    large,
    linear_betas,
    noise,
    posterior,
    small,
)
from unnoise.shared.scale import Scale

FIXTURE = Fixture("gaussian_steps")
SCHEDULES = {"linear_1000": linear_betas(1000), "cosine_1000": cosine_betas(1000), "cosine_4000": cosine_betas(4000)}
OUT, X0, NOISE, Z = (FIXTURE[k] for k in ("model_out", "x_start", "noise", "step_noise"))


@pytest.fixture(params=SCHEDULES)
def name(request):
    return request.param


def times(name):
    steps = len(SCHEDULES[name])
    n = FIXTURE[f"{name}.t"].long() + 1
    return n.double() / steps, (n - 1).double() / steps


def denoiser(name, predicts, clip, only=None):
    out = OUT if only is None else OUT[only : only + 1]
    inner = Learned(Formula(lambda x, label: out), Tabulated(SCHEDULES[name]), predicts)
    return Clipped(inner) if clip else inner


def close(actual, key, clip=True):
    assert_close(actual, FIXTURE[key], 1e-10 if clip or "linear" in key else 1e-8)


def test_forward_process(name):
    schedule, (t, s) = Tabulated(SCHEDULES[name]), times(name)
    x_t = schedule.corrupt(X0, t, generator=Recorded(NOISE))
    close(x_t, f"{name}.x_t")
    alpha, sigma = schedule(t)
    close(alpha[:, None, None, None] * X0, f"{name}.q_mean_variance.mean")
    close((sigma**2)[:, None, None, None].expand_as(FIXTURE[f"{name}.q_mean_variance.variance"]), f"{name}.q_mean_variance.variance")
    mean, variance = posterior(schedule, x_t, X0, t, s)
    close(mean, f"{name}.q_posterior.mean")
    close(variance[:, None, None, None].expand_as(FIXTURE[f"{name}.q_posterior.variance"]), f"{name}.q_posterior.variance")
    bound = VariationalBound(denoiser(name, noise, False), Scale(256))
    # At the cosine end the peer's own formula cancels (it is 3e-9 off the closed form below), hence the tolerance of that end.
    prior = bound.prior(X0) / (48 * math.log(2))
    assert_close(prior, FIXTURE[f"{name}.prior_bpd"], 1e-10 if "linear" in name else 1e-8)
    alpha2 = schedule.alphas_cumprod[-1]
    closed = 0.5 * (alpha2 * X0**2 - alpha2 - torch.log1p(-alpha2)).mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(prior, closed, 1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("kind", "variance"), [("FIXED_SMALL", small), ("FIXED_LARGE", large)])
@pytest.mark.parametrize(("mean_kind", "predicts"), [("EPSILON", noise), ("START_X", clean)])
def test_reverse_step_and_bound_terms(name, mean_kind, predicts, kind, variance, clip):
    key = f"{name}.{mean_kind}.{kind}.{'clip' if clip else 'noclip'}"
    model, (t, s) = denoiser(name, predicts, clip), times(name)
    schedule, x_t = model.corruption, FIXTURE[f"{name}.x_t"]
    x0 = model(x_t, t)
    close(x0, f"{key}.pred_xstart", clip)
    mean, _ = posterior(schedule, x_t, x0, t, s)
    close(mean, f"{key}.mean", clip)
    bound = VariationalBound(model, Scale(256), variance=variance, tanh=True)
    sampler = Ancestral(model, variance)
    samples, terms = [], []
    for i in range(len(t)):  # one at a time: a sampler's times are scalars
        sampler.denoiser = bound.denoiser = denoiser(name, predicts, clip, i)
        samples.append(sampler.step(x_t[i : i + 1], t[i], s[i], generator=Recorded(Z[i : i + 1])))
        term = bound.term(X0[i : i + 1], t[i : i + 1], generator=Recorded(NOISE[i : i + 1])) if s[i] > 0 else None
        terms.append(bound.data(X0[i : i + 1], generator=Recorded(NOISE[i : i + 1])) if term is None else term)
    close(torch.cat(samples), f"{key}.p_sample", clip)
    close(torch.cat(terms) / (48 * math.log(2)), f"{key}.vb_terms_bpd", clip)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", ["0", "0.5", "1"])
def test_ddim(name, eta, clip):
    (t, s), x_t = times(name), FIXTURE[f"{name}.x_t"]
    steps = []
    for i in range(len(t)):
        sampler = DDIM(denoiser(name, noise, clip, i), float(eta))
        steps.append(sampler.step(x_t[i : i + 1], t[i], s[i], generator=Recorded(Z[i : i + 1])))
    close(torch.cat(steps), f"{name}.EPSILON.{'clip' if clip else 'noclip'}.ddim_eta{eta}", clip)


def test_simple_loss_is_the_mean_squared_error_of_the_noise(name):
    (t, _), model = times(name), denoiser(name, noise, False)
    loss = Simple(model, times=lambda batch, generator: t - 0.5 / model.corruption.steps)(X0, generator=Recorded(NOISE))
    expected = ((OUT - NOISE) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(loss.t, t)
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-5, atol=0)
