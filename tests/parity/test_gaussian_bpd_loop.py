"""The variational bound of openai/guided-diffusion over 50 respaced steps."""

import math

import pytest
import torch
from helpers import Fixture, Formula, Recorded, assert_close

from unnoise.continuous import (
    Clipped,
    Learned,
    Tabulated,
    VariationalBound,
    cosine_betas,
    large,
    learned_range,
    linear_betas,
    strided,
)
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import step_index

FIXTURE = Fixture("gaussian_bpd_loop")
READS = (
    "x_start|noise",
    r"(linear_1000\.ddim50|cosine_4000\.50)\.(FIXED_LARGE|LEARNED_RANGE)\.(total_bpd|prior_bpd|vb|xstart_mse|mse)",
)
DIMS = 27


class Replay(Recorded):
    """The loop's noise, from the last time to the first; all terms are evaluated, so uniform numbers do not matter."""

    def uniform(self, shape, dtype, device):
        return torch.full(tuple(shape), 0.5, dtype=dtype)


def network(outputs):
    """Returns the fixture's network, a formula of x and the original index, with or without a second output."""

    def formula(x, time):
        eps = 0.9 * x + 0.05 * torch.sin(time.double() / 100)[:, None, None, None]
        return eps if outputs == 1 else torch.cat([eps, 0.5 * torch.sin(5 * x)], dim=1)

    net = Formula(formula)
    net.outputs = outputs
    return net


@pytest.mark.parametrize(
    ("kind", "variance", "outputs"), [("FIXED_LARGE", large, 1), ("LEARNED_RANGE", learned_range, 2)]
)
@pytest.mark.parametrize(
    ("name", "betas", "grid"),
    [("linear_1000.ddim50", linear_betas(1000), strided(50, 1000)), ("cosine_4000.50", cosine_betas(4000), None)],
)
def test_bound(name, betas, grid, kind, variance, outputs):
    whole = Tabulated(betas)
    respaced = whole.respaced(whole.grid(50) if grid is None else grid)
    # The network keeps the table of training, so it is called at the original index.
    denoiser = Clipped(Learned(network(outputs), whole, time_input=step_index).on(respaced))
    bound = VariationalBound(denoiser, Quantization(256), variance=variance, tanh=True)
    x0, noise, key = FIXTURE["x_start"], FIXTURE["noise"], f"{name}.{kind}"
    code = bound(x0, generator=Replay(*noise))
    assert_close(code.bits_per_dim(DIMS), FIXTURE[f"{key}.total_bpd"], 1e-9)
    times = torch.arange(50, 0, -1, dtype=torch.float64) / 50
    terms = [bound.term(x0, t.expand(2), generator=Recorded(z)) for t, z in zip(times, noise, strict=True)]
    assert_close(torch.stack(terms, dim=1) / (DIMS * math.log(2)), FIXTURE[f"{key}.vb"], 1e-9)
    curve = bound.rate_distortion(x0, generator=Recorded(*noise))
    assert_close((curve.rmse.T * Quantization(256).spacing) ** 2, FIXTURE[f"{key}.xstart_mse"], 1e-9)
    noises = []
    for t, z in zip(times, noise, strict=True):
        x_t = respaced.corrupt(x0, t, generator=Recorded(z))
        alpha, sigma = respaced(t)
        noises.append((((x_t - alpha * denoiser(x_t, t)) / sigma - z) ** 2).mean(dim=(1, 2, 3)))
    assert_close(torch.stack(noises, dim=1), FIXTURE[f"{key}.mse"], 1e-9)
    spent = FIXTURE[f"{key}.prior_bpd"] + FIXTURE[f"{key}.vb"][:, :-1].sum(1)
    assert_close(curve.rate[-1], spent, 1e-9)
    # The reference codes x_T with N(0, I), this package with N(0, sigma_T^2), from which sampling starts. Both are in
    # closed form here, with which the reference agrees up to cancellation in its own formula.
    prior, alpha2 = code.prior / (DIMS * math.log(2)), respaced.alphas_cumprod[-1]
    published = 0.5 * (alpha2 * x0**2 - alpha2 - torch.log1p(-alpha2)).mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(published, FIXTURE[f"{key}.prior_bpd"], 1e-9 if "linear" in name else 1e-8)
    assert_close(prior, 0.5 * (alpha2 / (1 - alpha2) * x0**2).mean(dim=(1, 2, 3)) / math.log(2), 1e-9)
    assert float((prior - published).abs().max()) < alpha2**2
