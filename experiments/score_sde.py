"""Score-based generative modelling through SDEs (Song et al. 2021, arXiv 2011.13456)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sde import VP, ChangeOfVariables, Langevin, Learned, PredictorCorrector, ReverseDiffusion, ScoreMatching
from ..shared.denoiser import Denoiser
from ..shared.describe import described
from ..shared.objective import Objective, Stratified
from ..shared.random import Source
from ..shared.sampler import Sampler
from ..shared.scale import Scale
from . import budgets
from .experiment import CodelengthOf
from .images import ImageExperiment


@described
@dataclass(frozen=True)
class ScoreSDE(ImageExperiment):
    """Denoising score matching on the VP SDE, trained on dequantised data so that its density has a meaning."""

    snr: float = 0.1
    """Signal-to-noise ratio of the Langevin corrector."""
    t_last: float = 1e-3
    """Last noisy time of the sampler, whose last step denoises."""
    tolerance: float = 1e-5
    """rtol and atol of the likelihood's solver (RK45)."""
    time_power: float = 1.0
    """Training times are u^time_power: 1 for the papers' uniform times, more to visit small noise more."""

    codelength_kind = "exact up to dequantisation"
    loss_unit = "sigma² MSE of the score"

    def form(self, scale: Scale, k: Tensor, generator: Source = None) -> Tensor:
        return scale.dequantised(k, generator)

    def levels(self, scale: Scale, x: Tensor) -> Tensor:
        return scale.cell_of(x)

    def objective(self, shape: tuple[int, ...], scale: Scale) -> Objective:
        return ScoreMatching(
            Learned(self.network.build(shape, classes=self.data.classes), VP(t_last=self.t_last)), times=Stratified(self.time_power)
        )

    def sampler(self, denoiser: Denoiser) -> Sampler:
        return PredictorCorrector(ReverseDiffusion(denoiser), Langevin(denoiser, self.snr))

    def codelength(self, denoiser: Denoiser, scale: Scale) -> CodelengthOf:
        exact = ChangeOfVariables(denoiser, scale, rtol=self.tolerance, atol=self.tolerance)
        return lambda k, generator, progress, **cond: exact(k, generator=generator, **cond)


def digits() -> ScoreSDE:
    """8 x 8 digits of 17 levels; the sampler denoises from t = 0.01, a noise of 0.045 and so less than half of a cell."""
    return ScoreSDE(**budgets.digits() | {"sampling_steps": 50}, time_power=1.5, t_last=0.01, tolerance=1e-3)


def mnist() -> ScoreSDE:
    """28 x 28 digits of 256 levels."""
    return ScoreSDE(**budgets.mnist())


def smoke() -> ScoreSDE:
    """Seconds, to see that the whole path runs."""
    return ScoreSDE(**budgets.smoke(), tolerance=0.1)
