"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020, arXiv 2006.11239)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..continuous import Ancestral, Clipped, Learned, Simple, Tabulated, VariationalBound, linear_betas, small
from ..shared.denoiser import Denoiser
from ..shared.describe import described
from ..shared.objective import Objective, Stratified
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.scale import Scale
from . import budgets
from .experiment import CodelengthOf, Experiment, at_most


@described
@dataclass(frozen=True)
class DDPM(Experiment):
    """Noise prediction with the simple loss on a linear table of betas."""

    steps: int = 1000
    """T; beta runs from first_beta to 0.02, both scaled by 1000 / T."""
    first_beta: float = 1e-4
    """beta_1 at T = 1000."""
    bound_terms: int = 100
    """Terms of the bound to evaluate, stratified over the steps."""
    time_power: float = 1.0
    """Training times are u^time_power: 1 for the papers' uniform times, more to visit small noise more."""

    loss_unit = "MSE of the noise"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        return scale.continuous(k, generator)

    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        return scale.quantise(x)

    def objective(self, shape: tuple[int, ...], scale: Scale) -> Objective:
        return Simple(
            Learned(self.network.build(shape, classes=self.data.classes), Tabulated(linear_betas(self.steps, self.first_beta))),
            times=Stratified(self.time_power),
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(Clipped(denoiser), small)

    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        bound = VariationalBound(Clipped(denoiser), scale, variance=small, terms=self.bound_terms)
        return lambda k, generator, progress, **cond: bound(scale.continuous(k), generator=generator, progress=progress, **cond)


def digits() -> DDPM:
    """8 x 8 digits of 17 levels.

    The first noise level is 0.06, half of the spacing of the levels. With the published 0.01, made for 256 levels, half of the bound would
    go to telling apart what rounding tells already.
    """
    return DDPM(**budgets.digits(), steps=100, first_beta=4e-4)


def mnist() -> DDPM:
    """28 x 28 digits of 256 levels."""
    return DDPM(**budgets.mnist())


def smoke() -> DDPM:
    """Seconds, to see that the whole path runs."""
    return DDPM(**budgets.smoke(), steps=100, bound_terms=4)
