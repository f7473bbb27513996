"""google-research d3pm/images, 256 categories and the logistic head as in its published configurations, in float64."""

import math

import pytest
import torch
from helpers import Fixture, assert_close

from unnoise.discrete import (
    Absorbing,
    Categorical,
    DiscretizedGaussian,
    Product,
    Uniform,
    VariationalBound,
    cosine,
    linear,
    logistic,
    reciprocal,
)
from unnoise.discrete.transition.base import CLEAN

FIXTURE = Fixture("d3pm_images_256")
READS = (
    "t|x_start|loc|log_scale|uniform_noise|logits_from_logistic",
    r"(uniform|gaussian|absorbing)\.(q_onestep|q_cumulative)\.rows",
    r"(uniform|gaussian|absorbing)\.(x_t|q_posterior_logits_from_x0|p_logits|vb_terms_bpd|prior_bpd)",
)
LEVELS, STEPS, EPS = 256, 20, 1e-6
KINDS = {
    "uniform": lambda: Uniform(LEVELS, cosine(STEPS)),
    "gaussian": lambda: DiscretizedGaussian(LEVELS, linear(STEPS, 0.02, 1.0)),
    "absorbing": lambda: Absorbing(LEVELS, reciprocal(STEPS), mask=128),
}
N = FIXTURE["t"].long() + 1
T, S = N.double() / STEPS, (N - 1).double() / STEPS
SOURCES = torch.tensor([0, 1, 64, 128, 255])


@pytest.fixture(params=KINDS)
def case(request):
    return request.param, KINDS[request.param]()


def test_rows_of_matrices(case):
    key, transition = case
    from_source = torch.eye(LEVELS, dtype=torch.float64)[SOURCES]
    for row, index in enumerate((0, 9, 19)):
        s, t = (torch.tensor(n / STEPS, dtype=torch.float64) for n in (index, index + 1))
        assert_close(transition.pushforward(from_source, s, t), FIXTURE[f"{key}.q_onestep.rows"][row], 1e-9)
        assert_close(transition.pushforward(from_source, CLEAN, t), FIXTURE[f"{key}.q_cumulative.rows"][row], 1e-9)
        assert_close(
            transition.likelihood(torch.arange(LEVELS), s, t).T[SOURCES], FIXTURE[f"{key}.q_onestep.rows"][row], 1e-9
        )
        assert_close(
            transition.likelihood(torch.arange(LEVELS), CLEAN, t).T[SOURCES],
            FIXTURE[f"{key}.q_cumulative.rows"][row],
            1e-9,
        )


def leaky_logistic(raw, x, transition):
    """The peer's head.

    1e-6 is added inside `log1p(-exp(b - a))`, where a is the logarithm of the upper distribution function.
    """
    values = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)
    center = torch.tanh(raw[..., :1] + (x.double() / 127.5 - 1)[..., None])
    log_upper = torch.nn.functional.logsigmoid((values - center + 1 / 255) * torch.exp(2 - raw[..., 1:]))
    return log_upper + torch.log((logistic(raw, x, transition) - log_upper).exp() + EPS)


class Fixed(torch.nn.Module):
    """A network whose output gives a fixed center and scale for every x_t: the head's tanh and its x_t are undone."""

    def forward(self, x, label):
        return torch.stack([torch.atanh(FIXTURE["loc"]) - (x.double() / 127.5 - 1), FIXTURE["log_scale"]], -1)


def test_logistic_head():
    x = torch.randint(0, LEVELS, FIXTURE["loc"].shape, generator=torch.Generator().manual_seed(0))
    assert_close(leaky_logistic(Fixed()(x, None), x, KINDS["uniform"]()), FIXTURE["logits_from_logistic"], 1e-9)


def test_draws_posterior_model_and_bound(case):
    key, transition = case
    x0, x_t = FIXTURE["x_start"].long(), FIXTURE[f"{key}.x_t"].long()
    clean = transition.one_hot(x0, torch.float64)
    distribution = transition.pushforward(clean, torch.zeros_like(T), T)
    noise = FIXTURE["uniform_noise"].clamp(min=torch.finfo(torch.float64).tiny)
    assert torch.equal(((distribution + EPS).log() - torch.log(-torch.log(noise))).argmax(-1), x_t)
    denoiser = Categorical(Fixed(), transition, Product(eps=EPS), head=leaky_logistic)
    later = N > 1  # at the first step the peer's logits are those of x_0, not normalized
    truth = denoiser.reverse(transition, x_t, clean, T, S)
    for ours, theirs in ((denoiser.step_distribution(x_t, T, S), "p_logits"), (truth, "q_posterior_logits_from_x0")):
        rows = later if theirs != "p_logits" else later | True
        assert_close(ours.log().where(ours > 0, 0.0)[rows], FIXTURE[f"{key}.{theirs}"].log_softmax(-1)[rows], 1e-9)
    bits = denoiser.divergence(x0, x_t, T, S).divergence.mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(bits, FIXTURE[f"{key}.vb_terms_bpd"], 1e-9)
    # The peer adds 1e-6 inside both logarithms of the prior's KL.
    last = transition.pushforward(clean, CLEAN, torch.ones_like(CLEAN))
    leaky = (last * ((last + EPS).log() - (transition.stationary() + EPS).log())).sum(-1).mean(
        dim=(1, 2, 3)
    ) / math.log(2)
    assert (leaky - FIXTURE[f"{key}.prior_bpd"]).abs().max() < 1e-9 * FIXTURE[
        f"{key}.prior_bpd"
    ].abs().max() + 2e-13  # rounding of 256 logarithms
    ours = VariationalBound(denoiser).prior(x0) / (x0[0].numel() * math.log(2))
    assert (ours >= leaky - 1e-12).all()
