"""Even respacing of openai/guided-diffusion. `ddimN` and section counts come with the samplers that use them."""

import pytest
import torch
from helpers import Fixture, assert_close

from unnoise.continuous import Tabulated, cosine_betas, large, linear_betas, small

FIXTURE = Fixture("gaussian_respacing")
CASES = [("linear_1000", n) for n in (100, 250, 50, 25, 7)] + [("cosine_4000", n) for n in (100, 250, 4000)]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_even_spacing(name, steps):
    schedule = Tabulated(linear_betas(1000) if name == "linear_1000" else cosine_betas(4000))
    grid = schedule.grid(steps)
    rows = torch.round(grid * schedule.steps).long().flip(0)
    assert rows[0] == 0
    assert torch.equal(rows[1:] - 1, FIXTURE[f"{name}.{steps}.timesteps"].long())
    t, s = grid.flip(0)[1:], grid.flip(0)[:-1]
    alpha, _ = schedule(t)
    tolerance = 1e-12 if name == "linear_1000" else 1e-9
    assert_close(alpha**2, FIXTURE[f"{name}.{steps}.alphas_cumprod"], tolerance)
    assert_close(large(schedule, t, s), FIXTURE[f"{name}.{steps}.betas"], tolerance)
    assert_close(small(schedule, t, s), FIXTURE[f"{name}.{steps}.posterior_variance"], tolerance)
