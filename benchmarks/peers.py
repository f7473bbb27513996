"""Samplers of other libraries around the same trivial network, where these libraries are installed.

Each is called as its documentation has it: the scheduler's loop of diffusers, the sampling functions of k-diffusion,
the samplers of azula. Grids of times differ from library to library, so only their times are compared.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .floors import Network, VPFlow
from .timing import Work

DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ancestral": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "UniPC": ("UniPCMultistepScheduler", {"solver_order": 3}),
}
KARRAS = {"ancestral": "sample_euler_ancestral", "DDIM": "sample_euler", "DPM-Solver++ 2M": "sample_dpmpp_2m"}
LIBRARIES = ("diffusers", "k-diffusion", "azula")
AZULA = {"ancestral": "DDPMSampler", "DDIM": "DDIMSampler"}


def samplers(name: str, x: Tensor, steps: int, only: tuple[str, ...] = LIBRARIES) -> dict[str, Work]:
    """Returns the runs of a method by the libraries that are installed and have it, by library."""
    found: dict[str, Work] = {}
    if name in DIFFUSERS and "diffusers" in only and find_spec("diffusers"):
        scheduler, options = DIFFUSERS[name]
        found["diffusers"] = diffusers(scheduler, options, x, steps)
    if name in KARRAS and "k-diffusion" in only and find_spec("k_diffusion"):
        found["k-diffusion"] = karras(KARRAS[name], x, steps)
    if name in AZULA and "azula" in only and find_spec("azula"):
        found["azula"] = azula(AZULA[name], x, steps)
    return found


def diffusers(scheduler: str, options: dict[str, Any], x: Tensor, steps: int) -> Work:
    """Returns the loop of a scheduler of diffusers."""
    import diffusers as library

    steady = getattr(library, scheduler)(beta_schedule="linear", **options)

    @torch.no_grad()
    def work() -> Tensor:
        state, generator = x, torch.Generator(x.device).manual_seed(1)
        steady.set_timesteps(steps)
        extra = {"generator": generator} if scheduler == "DDPMScheduler" else {}
        for t in steady.timesteps:
            state = steady.step(state * 0.5, t, state, **extra).prev_sample
        return state

    return work


def karras(function: str, x: Tensor, steps: int) -> Work:
    """Returns a sampling function of k-diffusion, whose model returns x_0 from x and sigma."""
    from k_diffusion import sampling  # pyright: ignore[reportMissingImports]

    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return x * 0.5

    return lambda: getattr(sampling, function)(model, x, sampling.get_sigmas_karras(steps, 0.01, 50.0), disable=True)


def azula(sampler: str, x: Tensor, steps: int) -> Work:
    """Returns a sampler of azula, around a denoiser that returns half of its input as x_0."""
    from azula import denoise, noise, sample  # pyright: ignore[reportMissingImports]

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return denoise.DiracPosterior(mean=x_t * 0.5)

    run = getattr(sample, sampler)(Denoiser(), steps=steps, silent=True)
    return lambda: run(x)


def scipy_flow(flow: VPFlow, network: Network, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """Solves the flow as score_sde does, by SciPy's RK45 on the flattened batch, and returns x_0 and evaluations."""
    from scipy.integrate import solve_ivp

    def slope(t: float, flat: Any) -> Any:
        state = torch.from_numpy(flat.reshape(x.shape)).to(torch.float32)
        of_x, of_out = flow.slope(t)
        return (state * of_x + network(state) * of_out).numpy().reshape(-1)

    with torch.no_grad():
        found: Any = solve_ivp(
            slope, (1.0, flow.last), x.numpy().reshape(-1), rtol=tolerance, atol=tolerance, method="RK45"
        )
        last = torch.from_numpy(found.y[:, -1].reshape(x.shape)).to(torch.float32)
        end = flow.point(flow.last)
        return (last - end.sigma * network(last)) / end.alpha, found.nfev + 1
