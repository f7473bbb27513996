"""google-research d3pm/images in float64: matrices, posteriors, bound terms and losses."""

import math

import pytest
import torch
from helpers import Fixture, Formula, assert_close

from unnoise.discrete import (
    Absorbing,
    BandDiagonal,
    Categorical,
    Dense,
    DiscretizedGaussian,
    Product,
    Uniform,
    VariationalBound,
    cosine,
    linear,
    logistic,
    reciprocal,
)
from unnoise.discrete.transition.generic import categorical_kl

FIXTURE = Fixture("d3pm_images")
READS = (
    r"betas\..+",
    "t|loc|log_scale",
    r"K(8|16)\.(x_start|x0_logits|uniform_noise|logits_from_logistic)",
    r"K(8|16)\.(uniform|uniform_band3|gaussian|gaussian_paper|gaussian_paper_band3|absorbing)\.(q_onestep|q_cumulative|q_probs|x_t|p_sample)",
    r"K(8|16)\.[a-z0-9_]+\.(p_logits|q_posterior_logits_from_logits|q_posterior_logits_from_x0)",
    r"K(8|16)\.[a-z0-9_]+\.(vb_terms_bpd|cross_entropy_x_start|prior_bpd)",
    r"K(8|16)\.gaussian_paper\.logistic_pars\.vb_terms_bpd",
)
STEPS, EPS = 20, 1e-6


def as_coded(k):
    """The peer's own offsets are 255 / (K - 1) too far apart for every K but 256.

    The paper's matrices of smaller betas.
    """
    return DiscretizedGaussian(k, linear(STEPS, 0.02, 1.0) * ((k - 1) / 255) ** 2)


def banded(k, band=3):
    """The paper's weights of the offsets up to `band`, over their own sum.

    Written out, since no transition here has them.
    """
    offset = torch.arange(-band, band + 1)
    weights = (-4 * offset**2 / ((k - 1) ** 2 * linear(STEPS, 0.02, 1.0)[:, None])).softmax(1)
    q = sum(
        torch.diag_embed(w[:, None].expand(-1, k - abs(m)), int(m)) for m, w in zip(offset, weights.T, strict=True) if m
    )
    return Dense(q + torch.diag_embed(1 - q.sum(-1)))


KINDS = {
    "uniform": lambda k: Uniform(k, cosine(STEPS)),
    "uniform_band3": lambda k: BandDiagonal(k, cosine(STEPS), band=3),
    "gaussian": as_coded,
    "gaussian_paper_band3": banded,
    "gaussian_paper": lambda k: DiscretizedGaussian(k, linear(STEPS, 0.02, 1.0)),
    "absorbing": lambda k: Absorbing(k, reciprocal(STEPS), mask=k // 2),
}
N = FIXTURE["t"].long() + 1
T, S = N.double() / STEPS, (N - 1).double() / STEPS


def test_betas():
    assert_close(linear(STEPS, 0.02, 1.0), FIXTURE["betas.linear"], 1e-9)
    assert_close(cosine(STEPS), FIXTURE["betas.cosine"], 1e-9)
    assert_close(reciprocal(STEPS), FIXTURE["betas.jsd"], 1e-9)


@pytest.fixture(params=[(k, kind) for k in (8, 16) for kind in KINDS], ids=str)
def case(request):
    k, kind = request.param
    return k, f"K{k}.{kind}", KINDS[kind](k)


def test_matrices(case):
    k, key, transition = case
    states = torch.arange(k)
    for n in range(1, STEPS + 1):
        zero, s, t = (torch.tensor(m / STEPS, dtype=torch.float64) for m in (0, n - 1, n))
        assert_close(transition.likelihood(states, s, t).T, FIXTURE[f"{key}.q_onestep"][n - 1], 1e-9)
        assert_close(transition.likelihood(states, zero, t).T, FIXTURE[f"{key}.q_cumulative"][n - 1], 1e-9)
        assert_close(
            transition.pushforward(torch.eye(k, dtype=torch.float64), zero, t),
            FIXTURE[f"{key}.q_cumulative"][n - 1],
            1e-9,
        )


def test_forward_distribution_and_draws(case):
    k, key, transition = case
    x0 = FIXTURE[f"K{k}.x_start"].long()
    distribution = transition.pushforward(transition.one_hot(x0, torch.float64), torch.zeros_like(T), T)
    assert_close(distribution, FIXTURE[f"{key}.q_probs"], 1e-9)
    noise = FIXTURE[f"K{k}.uniform_noise"].clamp(min=torch.finfo(torch.float64).tiny)
    drawn = ((distribution + EPS).log() - torch.log(-torch.log(noise))).argmax(-1)
    assert torch.equal(drawn, FIXTURE[f"{key}.x_t"].long())


def logits_of(p, like_logits):
    """The peer does not normalize: compare up to a constant for each position."""
    return p.log() - p.log().logsumexp(-1, keepdim=True), like_logits - like_logits.logsumexp(-1, keepdim=True)


def test_reverse_model_and_bound(case):
    k, key, transition = case
    x0, x_t, logits = (FIXTURE[name] for name in (f"K{k}.x_start", f"{key}.x_t", f"K{k}.x0_logits"))
    x0, x_t = x0.long(), x_t.long()
    denoiser = Categorical(Formula(lambda x, label: logits), transition, Product(eps=EPS))
    for name in ("p_logits", "q_posterior_logits_from_logits"):  # one number by two ways
        assert_close(*logits_of(denoiser.step_distribution(x_t, T, S), FIXTURE[f"{key}.{name}"]), 1e-9)
    first = N == 1
    truth = denoiser.reverse(transition, x_t, transition.one_hot(x0, torch.float64), T, S)
    assert_close(*logits_of(truth[~first], FIXTURE[f"{key}.q_posterior_logits_from_x0"][~first]), 1e-9)
    terms = categorical_kl(truth, denoiser.step_distribution(x_t, T, S)).mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(terms, FIXTURE[f"{key}.vb_terms_bpd"], 1e-9)
    ce = -denoiser(x_t, T).gather(-1, x0[..., None]).squeeze(-1).mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(ce, FIXTURE[f"{key}.cross_entropy_x_start"], 1e-9)
    prior = VariationalBound(denoiser).prior(x0) / (x0[0].numel() * math.log(2))
    # The peer adds 1e-6 inside both logarithms of the prior's KL, which is nearly all there is of it.
    distribution = transition.pushforward(
        transition.one_hot(x0, torch.float64), torch.zeros_like(T), torch.ones_like(T)
    )
    stationary = transition.stationary().expand_as(distribution)
    leaky = (distribution * ((distribution + EPS).log() - (stationary + EPS).log())).sum(-1).mean(
        dim=(1, 2, 3)
    ) / math.log(2)
    expected = FIXTURE[
        f"{key}.prior_bpd"
    ]  # 3e-16 for absorbing and 3e-8 for uniform, where the rounding of numbers near one shows
    assert (leaky - expected).abs().max() < 1e-9 * expected.abs().max() + 2e-15
    assert (prior - leaky).abs().max() < k * EPS / math.log(2)


def test_sampling_step(case):
    k, key, transition = case
    x_t, logits = FIXTURE[f"{key}.x_t"].long(), FIXTURE[f"K{k}.x0_logits"]
    distribution = Categorical(Formula(lambda x, label: logits), transition, Product(eps=EPS)).step_distribution(
        x_t, T, S
    )
    noise = FIXTURE[f"K{k}.uniform_noise"].clamp(min=torch.finfo(torch.float64).tiny)
    gumbel = -torch.log(-torch.log(noise)) * (N > 1)[:, None, None, None, None]
    assert torch.equal((distribution.log() + gumbel).argmax(-1), FIXTURE[f"{key}.p_sample"].long())


@pytest.mark.parametrize("k", [8, 16])
def test_logistic_head(k):
    """The peer adds 1e-6 inside `log1p(-exp(b - a))`; its a is the logarithm of the upper distribution function."""
    x, loc, scale = FIXTURE[f"K{k}.x_start"].long(), FIXTURE["loc"], FIXTURE["log_scale"]
    inside = loc.abs() < 1  # which a tanh can be
    raw = torch.atanh(torch.where(inside, loc, 0.0)) - (2 * x.double() / (k - 1) - 1)
    ours = logistic(torch.stack([raw, scale], -1), x, KINDS["uniform"](k))
    values = torch.linspace(-1, 1, k, dtype=torch.float64)
    log_upper = torch.nn.functional.logsigmoid(
        (values - loc[..., None] + 1 / (k - 1)) * torch.exp(2 - scale)[..., None]
    )
    leaky = log_upper + torch.log((ours - log_upper).exp() + EPS)
    assert_close(leaky[inside], FIXTURE[f"K{k}.logits_from_logistic"][inside], 1e-9)


@pytest.mark.parametrize("k", [8, 16])
def test_bound_of_the_logistic_head(k):
    x0, x_t = FIXTURE[f"K{k}.x_start"].long(), FIXTURE[f"K{k}.gaussian_paper.x_t"].long()
    logits = FIXTURE[f"K{k}.logits_from_logistic"]
    denoiser = Categorical(Formula(lambda x, label: logits), KINDS["gaussian_paper"](k), Product(eps=EPS))
    bits = denoiser.divergence(x0, x_t, T, S).divergence.mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(bits, FIXTURE[f"K{k}.gaussian_paper.logistic_pars.vb_terms_bpd"], 1e-9)
