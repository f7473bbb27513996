"""Structured denoising diffusion in discrete state spaces, on images (Austin et al. 2021, arXiv 2107.03006)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..discrete import Ancestral, Categorical, DiscretizedGaussian, Hybrid, Marginal, VariationalBound, linear
from ..shared.denoiser import Denoiser
from ..shared.describe import described
from ..shared.objective import Objective, Stratified
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.scale import Scale
from . import budgets
from .experiment import CodelengthOf, at_most
from .images import ImageExperiment


@described
@dataclass(frozen=True)
class D3PM(ImageExperiment):
    """Discretised-Gaussian transitions with the hybrid loss."""

    steps: int = 1000
    """T; beta runs from 1e-4 to 0.02, both scaled by 1000 / T."""
    ce: float = 0.001
    """Weight lambda of the cross-entropy beside one term of the bound."""
    bound_terms: int = 100
    """Terms of the bound to evaluate, stratified over the steps."""
    time_power: float = 1.0
    """Training times are u^time_power: 1 for the papers' uniform times, more to visit small noise more."""

    loss_unit = "L_n + lambda CE, nats/dim"

    def __post_init__(self) -> None:
        at_most("sampling_steps", self.sampling_steps, "steps", self.steps)

    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        return scale.quantised(k, generator)

    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        return x

    def objective(self, shape: tuple[int, ...], scale: Scale) -> Objective:
        transition = DiscretizedGaussian(scale.levels, linear(self.steps, 0.1 / self.steps, 20 / self.steps))
        return Hybrid(
            Categorical(self.network.build(shape, levels=scale.levels, classes=self.data.classes), transition, Marginal()),
            self.ce,
            times=Stratified(self.time_power),
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return Ancestral(denoiser)

    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        bound = VariationalBound(denoiser, terms=self.bound_terms)
        return lambda k, generator, progress, **cond: bound(k.long(), generator=generator, progress=progress, **cond)


def digits() -> D3PM:
    """8 x 8 digits of 17 levels; the published 1e-4 of T = 1000 would not move a symbol between 17 levels at all."""
    return D3PM(**budgets.digits(), steps=100, ce=0.02)


def mnist() -> D3PM:
    """28 x 28 digits of 256 levels."""
    return D3PM(**budgets.mnist())


def smoke() -> D3PM:
    """Seconds, to see that the whole path runs."""
    return D3PM(**budgets.smoke(), steps=100, bound_terms=4)
