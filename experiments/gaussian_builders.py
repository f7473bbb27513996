"""Samplers and schedules with the settings that papers give, as parts of recipes."""

from __future__ import annotations

import math

from ..continuous import Churned, Heun
from ..sde import AnnealedLangevin, CorrectorPredictor, NoiseLevels, NoPredictor, geometric_sigmas, snr_of
from ..shared.errors import UsageError
from ..shared.gaussian.denoiser import GaussianDenoiser
from ..shared.gaussian.schedule import Schedule
from ..shared.sampler import Sampler
from ..shared.serialization import serializable

MOST = math.sqrt(2) - 1
"""The largest relative growth of the noise by churn (Karras et al. 2022, algorithm 2)."""


@serializable("experiments.churned_heun")
def churned_heun(
    denoiser: GaussianDenoiser,
    sampling_steps: int,
    churn: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    noise: float = 1.003,
) -> Sampler[GaussianDenoiser, Schedule]:
    """Returns the stochastic sampler of EDM: Heun's method with churn (Karras et al. 2022, algorithm 2).

    Args:
        denoiser: the denoiser to sample from.
        sampling_steps: the number of steps of the recipe, by which the churn is divided.
        churn: S_churn: before a step the noise grows by the factor 1 + churn / steps; 0 adds no noise.
        low: S_min, the smallest noise level with churn.
        high: S_max, the largest noise level with churn.
        noise: S_noise, the standard deviation of the added noise.

    Raises:
        UsageError: for a negative churn.
    """
    if churn < 0:
        raise UsageError(f"churn={churn}: give S_churn of 0 or more, such as 40")
    heun = Heun(denoiser)
    return heun if churn == 0 else Churned(heun, min(churn / sampling_steps, MOST), low=low, high=high, noise=noise)


@serializable("experiments.annealed_langevin")
def annealed_langevin(
    denoiser: GaussianDenoiser, epsilon: float, repeats: int = 5, denoise: bool = True
) -> Sampler[GaussianDenoiser, Schedule]:
    """Returns annealed Langevin dynamics with the published step size (Song & Ermon 2020, algorithm 1).

    Args:
        denoiser: a denoiser on `NoiseLevels`.
        epsilon: step size e at the smallest noise level, as in the published code: x + e s + sqrt(2 e) z.
        repeats: number of Langevin steps at each noise level, T of the paper.
        denoise: whether a last step removes the noise of the smallest noise level from the samples.

    Raises:
        UsageError: for another schedule, and for a step size above which the chain diverges, twice the square of the
            smallest noise level.
    """
    schedule = denoiser.corruption
    if not isinstance(schedule, NoiseLevels):
        raise UsageError(f"annealed_langevin is for the schedule NoiseLevels, not {schedule}: give Langevin instead")
    low = float(schedule.sigmas.min())
    if not 0 < epsilon < 2 * low**2:
        raise UsageError(
            f"epsilon={epsilon}: give a step size between 0 and {2 * low**2:g} = 2 low^2, above which the chain "
            "diverges"
        )
    return CorrectorPredictor(NoPredictor(denoiser, denoise), AnnealedLangevin(denoiser, snr_of(epsilon, low), repeats))


@serializable("experiments.geometric_noise_levels")
def geometric_noise_levels(low: float = 0.01, high: float = 50.0, steps: int = 232) -> NoiseLevels:
    """Returns noise levels in geometric progression (Song & Ermon 2019, section 4.1).

    Args:
        low: the smallest noise level sigma.
        high: the largest noise level sigma.
        steps: the number of noise levels.

    Raises:
        UsageError: unless 0 < low < high and steps is 2 or more.
    """
    return NoiseLevels(geometric_sigmas(low, high, steps))
