"""Respacing of openai/guided-diffusion: even, by integer strides, and by counts in sections."""

import pytest
import torch
from helpers import Fixture, Formula, assert_close

from unnoise.continuous import Learned, Tabulated, cosine_betas, linear_betas, posterior, sections, strided
from unnoise.shared.time_inputs import step_index, thousandths

FIXTURE = Fixture("gaussian_respacing")
READS = (
    r"(linear_1000|cosine_4000)\.[a-z0-9_]+\.(timesteps|betas|alphas_cumprod|posterior_variance)",
    r"cosine_4000\.100\.t_given_to_network(_rescaled)?",
)
SCHEDULES = {"linear_1000": Tabulated(linear_betas(1000)), "cosine_4000": Tabulated(cosine_betas(4000))}
SPECS = {
    "linear_1000": ("7", "25", "50", "100", "250", "10_15_20", "ddim25", "ddim30", "ddim50", "ddim250"),
    "cosine_4000": ("100", "250", "4000", "ddim50"),
}
CASES = [(name, spec) for name, specs in SPECS.items() for spec in specs]


def grid_of(schedule, spec):
    if spec.startswith("ddim"):
        return strided(int(spec[4:]), schedule.steps)
    counts = [int(n) for n in spec.split("_")]
    return sections(counts, schedule.steps) if len(counts) > 1 else schedule.grid(counts[0])


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_spacing(name, spec):
    schedule = SCHEDULES[name]
    grid = grid_of(schedule, spec)
    rows = torch.round(grid * schedule.steps).long().flip(0)
    assert rows[0] == 0
    assert torch.equal(rows[1:] - 1, FIXTURE[f"{name}.{spec}.timesteps"].long())
    tolerance = 1e-12 if name == "linear_1000" else 1e-9
    chain = schedule.respaced(grid)
    assert_close(chain.betas, FIXTURE[f"{name}.{spec}.betas"], tolerance)
    assert_close(chain.alphas_cumprod, FIXTURE[f"{name}.{spec}.alphas_cumprod"], tolerance)
    t, s = grid.flip(0)[1:], grid.flip(0)[:-1]
    zero = torch.zeros_like(t)
    assert_close(posterior(schedule, zero, zero, t, s)[1], FIXTURE[f"{name}.{spec}.posterior_variance"], tolerance)


@pytest.mark.parametrize("spec", ["100", "250", "50"])
def test_one_section_is_even_spacing(spec):
    assert torch.equal(sections([int(spec)], 1000), SCHEDULES["linear_1000"].grid(int(spec)))


@pytest.mark.parametrize(
    ("time_input", "key"), [(step_index, "t_given_to_network"), (thousandths, "t_given_to_network_rescaled")]
)
def test_the_network_is_called_at_its_own_index(time_input, key):
    """A network of 4000 steps on the chain of 100 of them.

    With rescaled time inputs the reference feeds 1000 (n - 1) / T, one step below this package.
    """
    whole, seen = SCHEDULES["cosine_4000"], []
    denoiser = Learned(Formula(lambda x, time: seen.append(time) or x), whole, time_input=time_input).on(
        whole.respaced(whole.grid(100))
    )
    for i in FIXTURE_INDICES:
        denoiser(torch.zeros(1, 1), torch.tensor((i + 1) / 100, dtype=torch.float64))
    shift = 1000 / 4000 if time_input is thousandths else 0.0
    assert_close(torch.cat(seen).double() - shift, FIXTURE[f"cosine_4000.100.{key}"].double(), 1e-6)


FIXTURE_INDICES = [0, 50, 99]
