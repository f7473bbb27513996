"""UDLM and Duo in float64: the continuous-time bound of uniform noise and its gradient, chains, posteriors, psi
steps."""

import math

import pytest
import torch
from helpers import Fixture, Formula, assert_close

from unnoise.discrete import Categorical, ContinuousBound, LogLinearNoise, NoiseSchedule, Product, Uniform, to_posterior
from unnoise.discrete.transition.base import CLEAN
from unnoise.shared.tensors import exact

FIXTURE = Fixture("uniform_continuous")
READS = (
    "t",
    r"k(5|27)\.(x0|zt|logits)",
    r"k(5|27)\.udlm\.(nelbo|nelbo_gradient|recon|T20|T1000)",
    r"k(5|27)\.posterior\.(given_x0|predicted)",
    r"k(5|27)\.duo\.linear\.nelbo",
    r"k(5|27)\.duo\.(loglinear_eps|cosine_eps)\.(alpha|dalpha|alpha_s|nelbo)",
    r"k(5|27)\.duo\.(loglinear_eps|cosine_eps)\.(posterior_predicted|posterior_at_0|psi)",
)
D = torch.float64
T, S = FIXTURE["t"], 0.8 * FIXTURE["t"]
EPS = 1e-3


class CosineEps(NoiseSchedule):
    """Duo's cosine: `alpha = 1 - cos(pi / 2 (1 - (1 - eps) t))`."""

    def total(self, t):
        return -torch.log(1 - torch.cos(math.pi / 2 * (1 - (1 - EPS) * exact(t))))

    def rate(self, t):
        inside = math.pi / 2 * (1 - (1 - EPS) * exact(t))
        return math.pi / 2 * (1 - EPS) * torch.sin(inside) / (1 - torch.cos(inside))

    def time(self, total):
        raise NotImplementedError


SCHEDULES = {
    "udlm": LogLinearNoise(0.0),
    "duo.linear": LogLinearNoise(0.0),
    "duo.loglinear_eps": LogLinearNoise(EPS),
    "duo.cosine_eps": CosineEps(),
}


def of(k, name):
    return FIXTURE[f"k{k}.{name}"]


@pytest.fixture(params=[5, 27])
def k(request):
    return request.param


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_in_continuous_time(k, name):
    """The peer's derivative of the cosine alpha lacks the factor 1 - eps."""
    transition = Uniform(k, SCHEDULES[name])
    rate = transition.path_rate(Product(), of(k, "logits"), of(k, "x0"), of(k, "zt"), T).divergence
    assert_close(rate / (1 - EPS) if "cosine" in name else rate, of(k, f"{name}.nelbo"), 1e-9)
    if name.startswith("duo") and name != "duo.linear":
        assert_close(torch.exp(-transition.noise.total(T)), of(k, f"{name}.alpha"), 1e-9)
        assert_close(torch.exp(-transition.noise.total(S)), of(k, f"{name}.alpha_s"), 1e-9)
        slope = -transition.noise.rate(T) * torch.exp(-transition.noise.total(T))
        assert_close(slope / (1 - EPS) if "cosine" in name else slope, of(k, f"{name}.dalpha"), 1e-9)


def test_its_gradient(k):
    logits = of(k, "logits").requires_grad_()
    rate = Uniform(k, LogLinearNoise(0.0)).path_rate(Product(), logits, of(k, "x0"), of(k, "zt"), T).divergence
    assert_close(torch.autograd.grad(rate.sum(), logits)[0], of(k, "udlm.nelbo_gradient"), 1e-9)


def test_the_objective_is_that_bound(k):
    """As users call it: the mean over positions, over times from t_min to 1."""
    transition, logits = Uniform(k, LogLinearNoise(0.0)), of(k, "logits")
    objective = ContinuousBound(Categorical(Formula(lambda x, label: logits), transition))
    transition.corrupt = lambda x0, t, generator=None: of(k, "zt")
    assert_close(objective.at(of(k, "x0"), T).total / (1 - transition.t_min), of(k, "udlm.nelbo").mean(1), 1e-9)


@pytest.mark.parametrize("steps", [20, 1000])
def test_chains(k, steps):
    """T times the divergence of one step; the peer adds 1e-12 inside the logarithm of the true posterior."""
    transition, x0, x_t, logits = Uniform(k, LogLinearNoise(0.0)), of(k, "x0"), of(k, "zt"), of(k, "logits")
    s = T - 1 / steps
    kl = transition.divergence(Product(), logits, x0, x_t, T, s).divergence
    q = transition.posterior(x_t, transition.one_hot(x0, D), T, s)
    leak = (q * torch.log1p(1e-12 / q.clamp(min=1e-300))).sum(-1)
    assert_close(steps * (kl + leak), of(k, f"udlm.T{steps}"), 1e-9)


def test_posteriors(k):
    transition, x0, x_t, p0 = Uniform(k, LogLinearNoise(0.0)), of(k, "x0"), of(k, "zt"), of(k, "logits").softmax(-1)
    assert_close(transition.posterior(x_t, transition.one_hot(x0, D), T, S), of(k, "posterior.given_x0"), 1e-9)
    assert_close(Product()(transition, x_t, p0, T, S), of(k, "posterior.predicted"), 1e-9)
    assert_close(-p0.log().gather(-1, x0[..., None])[..., 0], of(k, "udlm.recon"), 1e-9)  # the network at t = 0


@pytest.mark.parametrize("name", ["duo.loglinear_eps", "duo.cosine_eps"])
def test_psi_steps(k, name):
    """The posterior at 0 noised forward to s, and its mixture with the posterior at s."""
    transition, x_t, kappa = Uniform(k, SCHEDULES[name]), of(k, "zt"), 0.35
    p0 = of(k, "logits").softmax(-1)
    at_s = Product()(transition, x_t, p0, T, S)
    assert_close(at_s, of(k, f"{name}.posterior_predicted"), 1e-9)
    at_0 = to_posterior(transition, p0.log(), x_t, T).exp()
    assert_close(at_0, of(k, f"{name}.posterior_at_0"), 1e-9)
    assert_close(kappa * at_s + (1 - kappa) * transition.pushforward(at_0, CLEAN, S), of(k, f"{name}.psi"), 1e-9)
