"""Noise levels, steps and paths of crowsonkb/k-diffusion, and the sampler of NVlabs/edm, on an exact denoiser."""

import math

import pytest
import torch
from helpers import Fixture, Recorded, assert_close

from unnoise.continuous import (
    DDIM,
    LMS,
    Churned,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSingle,
    Heun,
    Renoised,
    curved,
    exponential,
    karras,
    log_spaced,
)
from unnoise.continuous.grids import noise_ratio
from unnoise.sde import VE, VP
from unnoise.shared.gaussian.analytic import AnalyticGaussian

FIXTURE = Fixture("karras_samplers")
READS = (
    "m|s|start|noise",
    r"sigmas\.(karras|exponential|polyexponential_rho2|vp)\.n.+",
    r"step\.(euler|heun|dpm_2)\.5_to_(3|0|3\.churn)",
    r"path\.(euler|heun|dpm_2|lms|dpmpp_2m|euler_ancestral|dpmpp_2s_ancestral)",
    r"path\.(dpmpp_2m_sde\.(midpoint|heun)|dpmpp_3m_sde)",
    r"edm\.(plain|churn)\.(end|sigma_of_each_call|x_of_each_call)",
)
M, S, START, NOISE = (FIXTURE[k] for k in ("m", "s", "start", "noise"))
WIDE = VE(1e-12, 500.0, t_min=1e-12)
SAMPLERS = {
    "euler": DDIM,
    "heun": Heun,
    "dpm_2": DPMSolver,
    "dpmpp_2m": DPMSolverPP,
    "euler_ancestral": lambda d: Renoised(DDIM(d)),
    "dpmpp_2s_ancestral": lambda d: Renoised(DPMSolverPPSingle(d)),
    "dpmpp_2m_sde.midpoint": lambda d: DPMSolverPP(d, eta=1.0),
    "dpmpp_2m_sde.heun": lambda d: DPMSolverPP(d, exponential, eta=1.0),
    "dpmpp_3m_sde": lambda d: DPMSolverPP(d, curved, eta=1.0),
}


def denoiser():
    """`(s^2 x + sigma^2 m) / (s^2 + sigma^2)`, in float64 throughout."""
    return AnalyticGaussian(M, torch.diag(S**2), WIDE)


def time(sigma):
    return WIDE.time(torch.tensor(-2 * math.log(sigma), dtype=torch.float64)) if sigma else torch.zeros(())


def times(sigmas):
    return torch.stack([time(float(s)) for s in sigmas])


def path(make, sigmas, x, noise):
    states, source = [x], Recorded(*noise)
    sampler = make(denoiser())
    states += sampler.trajectory(x, steps=times(sigmas), generator=source)
    return torch.stack(states)


@pytest.mark.parametrize("name", ["n5_0.002_80", "n10_0.002_80", "n18_0.002_80", "n40_0.03_14.6"])
def test_karras_noise_levels(name):
    n, low, high = name[1:].split("_")
    schedule = VE(float(low), float(high), t_min=1e-12, t_last=1e-12)
    assert_close(noise_ratio(schedule, karras(int(n), schedule)), FIXTURE[f"sigmas.karras.{name}"], 1e-10)


def test_other_noise_levels():
    schedule = VE(0.002, 80, t_min=1e-12, t_last=1e-12)
    assert_close(noise_ratio(schedule, log_spaced(10, schedule)), FIXTURE["sigmas.exponential.n10_0.002_80"], 1e-10)
    assert_close(
        noise_ratio(schedule, log_spaced(10, schedule, rho=2)),
        FIXTURE["sigmas.polyexponential_rho2.n10_0.002_80"],
        1e-10,
    )
    vp = VP(0.1, 20.0)
    assert_close(noise_ratio(vp, vp.grid(10)), FIXTURE["sigmas.vp.n10"], 1e-10)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_steps(name):
    x = 5 * START
    for to in (3, 0):
        assert_close(path(SAMPLERS[name], [5, to], x, [])[-1], FIXTURE[f"step.{name}.5_to_{to}"], 1e-10)
    churned = path(lambda d: Churned(SAMPLERS[name](d), 0.3, noise=1.01), [5, 3], x, NOISE)
    assert_close(churned[-1], FIXTURE[f"step.{name}.5_to_3.churn"], 1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_paths(name):
    sigmas = FIXTURE["sigmas.karras.n10_0.002_80"]
    assert_close(path(SAMPLERS[name], sigmas, sigmas[0] * START, NOISE), FIXTURE[f"path.{name}"], 1e-10)


def test_path_of_lms():
    """The reference's last step goes to sigma = 0 by its polynomial, and here it denoises; so it goes to 1e-10."""
    sigmas = FIXTURE["sigmas.karras.n10_0.002_80"].clone()
    sigmas[-1] = 1e-10
    assert_close(path(LMS, sigmas, sigmas[0] * START, []), FIXTURE["path.lms"], 1e-6)


@pytest.mark.parametrize("kind", ["plain", "churn"])
def test_edm(kind):
    """18 steps with churn between sigma = 0.05 and 50; gamma and the range follow from the reference's noise levels.

    S_noise is that of its first churned state.
    """
    asked = FIXTURE[f"edm.{kind}.sigma_of_each_call"]
    inner, sigmas, states = denoiser(), [], []

    def note(module, arguments):
        states.append(arguments[0])
        sigmas.append(WIDE(arguments[1])[1])

    inner.register_forward_pre_hook(note)
    gamma = float(asked[4] / FIXTURE["edm.plain.sigma_of_each_call"][4] - 1) if kind == "churn" else 0.0
    grid = [*FIXTURE["sigmas.karras.n18_0.002_80"]]
    within = [
        float(s)
        for s, c in zip(FIXTURE["edm.plain.sigma_of_each_call"][0::2], asked[0::2], strict=True)
        if c > s * 1.01
    ]
    sampler = Churned(
        Heun(inner), gamma, low=min(within, default=0) * 0.99, high=max(within, default=0) * 1.01, noise=CHURN_NOISE
    )
    # The reference draws noise at every step, this package only where it churns.
    draws = [NOISE[i] for i, s in enumerate(grid[:-1]) if any(abs(float(s) / w - 1) < 1e-6 for w in within)]
    x = sampler(float(grid[0]) * START, steps=times(grid), generator=Recorded(*draws))
    assert_close(torch.stack(sigmas), asked, 1e-10)
    assert_close(torch.stack(states), FIXTURE[f"edm.{kind}.x_of_each_call"], 1e-10)
    assert_close(x, FIXTURE[f"edm.{kind}.end"], 1e-10)


CHURN_NOISE = 1.003
