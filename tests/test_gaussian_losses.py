"""Losses and weights against the equations of the papers, computed in float64 without the package's formulas."""

import math

import pytest
import torch
from helpers import Recorded

from unnoise import sde
from unnoise.shared.gaussian import (
    DenoisingLoss,
    Learned,
    MinSNR,
    OutputError,
    Preconditioned,
    Schedule,
    clean,
    likelihood_weight,
    noise,
    scaled_score,
    snr,
    straight,
    truncated_snr,
    velocity,
    velocity_weight,
)

T = torch.tensor([0.03, 0.2, 0.5, 0.77, 0.98], dtype=torch.float64)
S = 0.6


def draws(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X0, EPSILON = S * draws(5, 2, 3, seed=0), draws(5, 2, 3, seed=1)


class Own(Schedule):
    """`alpha = exp(-t)`, `sigma = t (1 + t)`: neither variance preserving nor exploding."""

    def __call__(self, t):
        return torch.exp(-t), t * (1 + t)


def vp():
    """Song et al. 2021, appendix B: beta(t) from 0.1 to 20."""
    beta, integral = 0.1 + 19.9 * T, 0.1 * T + 9.95 * T**2
    alpha, sigma = torch.exp(-integral / 2), (1 - torch.exp(-integral)).sqrt()
    return alpha, sigma, -beta * alpha / 2, beta * alpha**2 / (2 * sigma), beta


def ve():
    """Song et al. 2021, appendix C: sigma from 0.01 to 50, g^2 = d sigma^2 / dt."""
    rate = math.log(5000)
    sigma = 0.01 * 5000**T
    return torch.ones_like(T), sigma, torch.zeros_like(T), rate * sigma, 2 * rate * sigma**2


def straight_path():
    """Liu et al. 2023 with time reversed, up to sigma = 0.999; g^2 = d sigma^2 / dt - 2 (alpha' / alpha) sigma^2."""
    alpha, sigma, rate = 1 - 0.999 * T, 0.999 * T, torch.full_like(T, 0.999)
    return alpha, sigma, -rate, rate, 2 * sigma * rate + 2 * rate / alpha * sigma**2


def own():
    """d sigma^2 / dt = 2 t (1 + t) (1 + 2 t), and alpha' / alpha = -1."""
    alpha, sigma, rate = torch.exp(-T), T * (1 + T), 1 + 2 * T
    return alpha, sigma, -alpha, rate, 2 * sigma * rate + 2 * sigma**2


PATHS = {
    "vp": (lambda: sde.VP(), vp),
    "ve": (lambda: sde.VE(0.01, 50.0), ve),
    "straight": (lambda: sde.Straight(end=0.999), straight_path),
    "own": (Own, own),
}
# x_0 of the output F, solved by hand for it.
CLEAN = {
    "clean": (clean, lambda x, f, alpha, sigma: f),
    "noise": (noise, lambda x, f, alpha, sigma: (x - sigma * f) / alpha),
    "scaled score": (scaled_score, lambda x, f, alpha, sigma: (x + sigma * f) / alpha),
    "velocity": (
        velocity,
        lambda x, f, alpha, sigma: (alpha * x / (alpha**2 + sigma**2)) - sigma * f / (alpha**2 + sigma**2).sqrt(),
    ),
    "straight": (straight, lambda x, f, alpha, sigma: (x - sigma * f) / (alpha + sigma)),
}


class Net(torch.nn.Module):
    """A smooth function of signal and time input, in float64."""

    conditions = ()

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(draws(2, 2, seed=2))

    def forward(self, x, time):
        return torch.sin(torch.einsum("ij,bjd->bid", self.weight, x) + time.double()[:, None, None] / 700)


def wide(*coefficients):
    return [c[:, None, None] for c in coefficients]


def mean_square(error):
    """Mean over the dimensions of each example."""
    return (error**2).sum((1, 2)) / 6


@torch.no_grad()
def loss_of(make, denoiser):
    return make(denoiser).at(X0, T, generator=Recorded(EPSILON)).total


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", CLEAN)
@torch.no_grad()
def test_losses_are_those_of_the_papers(path, prediction):
    schedule, by_hand = PATHS[path]
    predicts, solved = CLEAN[prediction]
    network = Net()
    denoiser = Learned(network, schedule(), predicts)
    *_, g2 = by_hand()
    alpha, sigma, d_alpha, d_sigma = wide(*by_hand()[:4])
    x_t = alpha * X0 + sigma * EPSILON
    f = network(x_t / (alpha**2 + sigma**2).sqrt(), (1000 * T).float())
    x0 = solved(x_t, f, alpha, sigma)
    epsilon = (x_t - alpha * x0) / sigma
    score, target = -epsilon / sigma, -(x_t - alpha * X0) / sigma**2  # grad log N(x_t; alpha x_0, sigma^2 I)
    moving, along = d_alpha * x0 + d_sigma * epsilon, d_alpha * X0 + d_sigma * EPSILON
    ratio = (by_hand()[0] / by_hand()[1]) ** 2
    expected = {
        DenoisingLoss.simple: mean_square(epsilon - EPSILON),  # Ho et al. 2020, eq. 14
        DenoisingLoss.score_matching: by_hand()[1] ** 2 * mean_square(score - target),  # Song et al. 2021, eq. 7
        DenoisingLoss.likelihood_weighted: g2 * mean_square(score - target),  # Song et al. 2021b, corollary 1
        DenoisingLoss.flow_matching: mean_square(moving - along),  # Lipman et al. 2023, eq. 14
        DenoisingLoss.min_snr: ratio.clamp(max=5) * mean_square(x0 - X0),  # Hang et al. 2023, section 3.4
    }
    for make, value in expected.items():
        torch.testing.assert_close(loss_of(make, denoiser), value, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_outputs_that_are_trained_directly():
    """The loss is the squared error of the network's output, without any coefficient."""
    alpha, sigma, *_ = wide(*vp())
    x_t, network, time = alpha * X0 + sigma * EPSILON, Net(), (1000 * T).float()
    torch.testing.assert_close(
        loss_of(DenoisingLoss.simple, Learned(network, sde.VP())),
        mean_square(network(x_t, time) - EPSILON),
        rtol=1e-9,
        atol=0,
    )
    t = T[:, None, None]
    x_t = (1 - t) * X0 + t * EPSILON
    torch.testing.assert_close(
        loss_of(DenoisingLoss.flow_matching, Learned(network, sde.Straight(), straight)),
        mean_square(network(x_t / (t**2 + (1 - t) ** 2).sqrt(), time) - (EPSILON - X0)),
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize("path", ["ve", "own"])
@torch.no_grad()
def test_the_loss_of_edm_is_that_of_table_1(path):
    """Karras et al. 2022, eq. 7, eq. 8 and table 1; where alpha is not 1, of x_t / alpha with sigma / alpha."""
    schedule, by_hand = PATHS[path]
    network, (alpha, scale, *_) = Net(), wide(*by_hand())
    sigma, noisy = scale / alpha, X0 + scale / alpha * EPSILON
    c_skip, c_out = S**2 / (sigma**2 + S**2), sigma * S / (sigma**2 + S**2).sqrt()
    c_in = 1 / (sigma**2 + S**2).sqrt()
    denoised = c_skip * noisy + c_out * network(c_in * noisy, (1000 * T).float())
    weight = ((sigma**2 + S**2) / (sigma * S) ** 2).flatten()
    denoiser = Learned(network, schedule(), Preconditioned(S))
    expected = weight * mean_square(denoised - X0)
    torch.testing.assert_close(loss_of(DenoisingLoss.edm, denoiser), expected, rtol=1e-9, atol=0)
    other = loss_of(lambda d: DenoisingLoss.edm(d, sigma_data=S), Learned(network, schedule(), clean, sigma_data=1.0))
    plain = network((alpha * X0 + scale * EPSILON) / (alpha**2 + scale**2).sqrt(), (1000 * T).float())
    torch.testing.assert_close(other, weight * mean_square(plain - X0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_weights_are_their_formulas(path):
    schedule, by_hand = PATHS[path]
    process, (alpha, sigma, d_alpha, d_sigma, g2) = schedule(), by_hand()
    ratio = alpha**2 / sigma**2
    expected = {
        snr: ratio,
        truncated_snr: ratio.clamp(min=1),
        MinSNR(3.0): ratio.clamp(max=3),
        # Kingma et al. 2021, eq. 15: minus the derivative of the SNR.
        likelihood_weight: -(2 * alpha * d_alpha / sigma**2 - 2 * alpha**2 * d_sigma / sigma**3),
        velocity_weight: (d_alpha - alpha * d_sigma / sigma) ** 2,
        OutputError(clean): torch.ones_like(T),
        OutputError(noise): ratio,
        OutputError(velocity): ratio + 1,
        OutputError(Preconditioned(S)): ratio + 1 / S**2,
    }
    for weight, value in expected.items():
        torch.testing.assert_close(weight(process, T), value, rtol=1e-9, atol=0)
    torch.testing.assert_close(likelihood_weight(process, T), g2 * alpha**2 / sigma**4, rtol=1e-9, atol=0)
    h = 1e-6
    slope = (snr(process, T + h) - snr(process, T - h)) / (2 * h)
    torch.testing.assert_close(likelihood_weight(process, T), -slope, rtol=1e-6, atol=0)
