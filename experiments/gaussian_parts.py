"""The parts of Gaussian recipes by kind and name."""

from __future__ import annotations

from .. import continuous, sde
from ..sde.integrators import Integrator
from ..sde.likelihood import Trace
from ..shared.gaussian import guidance, prediction
from ..shared.gaussian.schedule import Schedule
from ..shared.objective import Objective
from ..shared.sampler import Sampler
from . import code_lengths, gaussian_builders, time_grids
from .catalog import BUILDERS, SHARED, Catalog, classes, constants, of_module

BUILDERS.update(
    of_module(gaussian_builders, "churned_heun", "annealed_langevin", "geometric_noise_levels"),
)
GAUSSIAN = Catalog(
    SHARED
    | {
        "Schedule": [*classes(Schedule, continuous, sde), gaussian_builders.geometric_noise_levels],
        "Prediction": [
            *of_module(prediction, "noise", "clean", "velocity", "straight", "scaled_score", "Preconditioned")
        ],
        "Weight": of_module(
            continuous, "snr", "truncated_snr", "MinSNR", "OutputError", "likelihood_weight", "velocity_weight"
        ),
        "ReverseVariance": of_module(
            continuous, "large", "small", "learned_range", "learned_diagonal", "LogInterpolated"
        ),
        "Objective": classes(Objective, continuous, sde),
        "Sampler": [
            *classes(Sampler, continuous, sde),
            gaussian_builders.churned_heun,
            gaussian_builders.annealed_langevin,
        ],
        "DenoiserWrapper": of_module(continuous, "Clipped", "Thresholded"),
        "ClassifierFree": [guidance.ClassifierFree],
        "GaussianDenoiser": [continuous.Learned, sde.EnergyDenoiser],
        "GaussianCodeLength": [code_lengths.Bound, code_lengths.Exact],
        "Spacing": time_grids.SPACINGS,
        "Integrator": classes(Integrator, sde),
        "Tableau": constants("Tableau"),
        "FlowCoordinates": of_module(sde, "angle_coordinates", "time_coordinates"),
        "Correction": of_module(continuous, "midpoint", "exponential", "curved"),
        "Trace": classes(Trace, sde),
        "norms": of_module(sde, "own_norms", "batch_norms"),
    }
)
"""The parts of Gaussian recipes."""
