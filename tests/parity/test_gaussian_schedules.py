"""Noise schedules and posteriors of openai/guided-diffusion."""

import pytest
import torch
from helpers import Fixture, assert_close

from unnoise.continuous import Tabulated, cosine_betas, linear_betas, posterior, small

FIXTURE = Fixture("gaussian_schedules")
READS = (
    r"(linear_1000|cosine_1000|cosine_4000)\.(betas|alphas_cumprod|alphas_cumprod_prev|alphas_cumprod_next)",
    r"(linear_1000|cosine_1000|cosine_4000)\.(log_one_minus_alphas_cumprod|sqrt_recipm1_alphas_cumprod)",
    r"(linear_1000|cosine_1000|cosine_4000)\.posterior_(mean_coef1|mean_coef2|variance|log_variance_clipped)",
)
CASES = {
    "linear_1000": (linear_betas, 1000, 1e-12),
    "cosine_1000": (cosine_betas, 1000, 1e-9),
    "cosine_4000": (cosine_betas, 4000, 1e-9),
}


@pytest.fixture(params=CASES)
def case(request):
    betas, steps, tolerance = CASES[request.param]
    return request.param, Tabulated(betas(steps)), tolerance


def times(schedule, first=1):
    return torch.arange(first, schedule.steps + 1, dtype=torch.float64) / schedule.steps


def test_betas_and_products(case):
    name, schedule, tolerance = case
    assert_close(schedule.betas, FIXTURE[f"{name}.betas"], 1e-12)
    alpha, sigma = schedule(times(schedule))
    assert_close(alpha**2, FIXTURE[f"{name}.alphas_cumprod"], tolerance)
    assert_close(schedule.alphas_cumprod, FIXTURE[f"{name}.alphas_cumprod"], tolerance)
    assert_close((sigma**2).log(), FIXTURE[f"{name}.log_one_minus_alphas_cumprod"], 1e-9)
    assert_close(sigma / alpha, FIXTURE[f"{name}.sqrt_recipm1_alphas_cumprod"], tolerance)
    clean, _ = schedule(times(schedule, first=0))
    assert_close(clean[:-1] ** 2, FIXTURE[f"{name}.alphas_cumprod_prev"], tolerance)
    # The reference's table of the next step ends with 0: a further step with beta = 1.
    longer, _ = Tabulated(torch.cat([schedule.betas, torch.ones(1)]))(
        times(schedule) * schedule.steps / (schedule.steps + 1)
    )
    assert_close(longer[1:] ** 2, FIXTURE[f"{name}.alphas_cumprod_next"][:-1], tolerance)
    assert FIXTURE[f"{name}.alphas_cumprod_next"][-1] == 0


def test_posterior(case):
    name, schedule, tolerance = case
    t = times(schedule)
    s = t - 1 / schedule.steps
    s[0] = 0
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    of_x0, variance = posterior(schedule, zero, one, t, s)
    of_x_t, _ = posterior(schedule, one, zero, t, s)
    assert_close(of_x0, FIXTURE[f"{name}.posterior_mean_coef1"], tolerance)
    assert_close(of_x_t, FIXTURE[f"{name}.posterior_mean_coef2"], tolerance)
    assert_close(variance, FIXTURE[f"{name}.posterior_variance"], tolerance)
    assert_close(small(schedule, t, s).log(), FIXTURE[f"{name}.posterior_log_variance_clipped"], 1e-9)
