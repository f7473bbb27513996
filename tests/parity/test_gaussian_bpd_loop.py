"""The whole bound of openai/guided-diffusion over 50 respaced steps."""

import math

import pytest
import torch
from helpers import Fixture, Formula, Recorded, assert_close

from unnoise.continuous import Clipped, Learned, Tabulated, VariationalBound, cosine_betas, large, linear_betas
from unnoise.shared.scale import Scale

FIXTURE = Fixture("gaussian_bpd_loop")
DIMS = 27


class Replay(Recorded):
    """The loop's draws, from the last time to the first; the choice of levels needs no luck, since every level is taken."""

    def uniform(self, shape, dtype, device):
        return torch.full(tuple(shape), 0.5, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "betas", "rows"),
    [
        ("linear_1000.ddim50", linear_betas(1000), torch.arange(0, 1000, 20)),
        ("cosine_4000.50", cosine_betas(4000), (Tabulated(cosine_betas(4000)).grid(50)[:-1] * 4000).round().long().flip(0) - 1),
    ],
)
def test_fixed_large(name, betas, rows):
    whole = Tabulated(betas)
    kept = torch.cat([torch.zeros(1), (rows + 1).double()]) / whole.steps
    respaced = Tabulated(large(whole, kept[1:], kept[:-1]))

    def label(schedule, t):  # the network sees the original index
        return rows[(t * 50).round().long() - 1].double()

    network = Formula(lambda x, label: 0.9 * x + 0.05 * torch.sin(label.double() / 100)[:, None, None, None])
    bound = VariationalBound(Clipped(Learned(network, respaced, label=label)), Scale(256), tanh=True)
    x0, noise, key = FIXTURE["x_start"], FIXTURE["noise"], f"{name}.FIXED_LARGE"
    code = bound(x0, generator=Replay(*noise))
    assert_close(code.bits_per_dim(DIMS), FIXTURE[f"{key}.total_bpd"], 1e-9)
    times = torch.arange(50, 1, -1, dtype=torch.float64) / 50
    terms = [bound.term(x0, t.expand(2), generator=Recorded(z)) for t, z in zip(times, noise[:-1], strict=True)]
    assert_close(torch.stack([*terms, code.data], dim=1) / (DIMS * math.log(2)), FIXTURE[f"{key}.vb"], 1e-9)
    # At the cosine end the peer's own prior cancels, as in test_gaussian_steps; the closed form stands in.
    prior, alpha2 = code.prior / (DIMS * math.log(2)), respaced.alphas_cumprod[-1]
    assert_close(prior, FIXTURE[f"{key}.prior_bpd"], 1e-9 if "linear" in name else 1e-8)
    assert_close(prior, 0.5 * (alpha2 * x0**2 - alpha2 - torch.log1p(-alpha2)).mean(dim=(1, 2, 3)) / math.log(2), 1e-9)
