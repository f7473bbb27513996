"""Continuous-time Gaussian diffusion: score SDEs, predictor-corrector sampling, the probability flow, likelihoods.

Also noise-conditional score networks (NCSN), EDM, rectified flow and energy-based denoisers.
"""

from ..shared.gaussian import (
    Clipped,
    DenoisingLoss,
    Learned,
    MinSNR,
    OutputError,
    Preconditioned,
    Schedule,
    Thresholded,
    UniformDequantization,
    VariationalDequantization,
    clean,
    likelihood_weight,
    noise,
    slerp,
    snr,
    straight,
    truncated_snr,
    velocity,
    velocity_weight,
)
from ..shared.sampler import CorrectorPredictor, PredictorCorrector
from .annealing import NormalizingConstant, log_normalizing_constant
from .correctors import AnnealedLangevin, Langevin, batch_norms, own_norms, snr_of
from .energy import EnergyDenoiser, Potential
from .flow import ProbabilityFlow
from .flow_coordinates import FlowCoordinates, angle_coordinates, time_coordinates
from .implicit import ImplicitScoreMatching, SlicedScoreMatching
from .integrators import Adaptive, FixedSteps, Integrator, SciPy, TorchDiffEq
from .likelihood import ChangeOfVariables, ExactTrace, Hutchinson, Trace
from .noise_levels import best_epsilon, geometric_sigmas, largest_sigma, level_count, level_ratio
from .objectives import MaximumLikelihood
from .predictors import EulerMaruyama, NoPredictor, ReverseDiffusion
from .schedules import EDM, VE, VP, NoiseLevels, Straight, SubVP, vp_betas
from .sde import SDE
from .tableaus import bogacki_shampine, dormand_prince, euler, heun2, heun3, midpoint_rule, rk4

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Adaptive",
    "AnnealedLangevin",
    "ChangeOfVariables",
    "Clipped",
    "CorrectorPredictor",
    "DenoisingLoss",
    "EnergyDenoiser",
    "EulerMaruyama",
    "ExactTrace",
    "FixedSteps",
    "FlowCoordinates",
    "Hutchinson",
    "ImplicitScoreMatching",
    "Integrator",
    "Langevin",
    "Learned",
    "MaximumLikelihood",
    "MinSNR",
    "NoPredictor",
    "NoiseLevels",
    "NormalizingConstant",
    "OutputError",
    "Potential",
    "Preconditioned",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Schedule",
    "SciPy",
    "SlicedScoreMatching",
    "Straight",
    "SubVP",
    "Thresholded",
    "TorchDiffEq",
    "Trace",
    "UniformDequantization",
    "VariationalDequantization",
    "angle_coordinates",
    "batch_norms",
    "best_epsilon",
    "bogacki_shampine",
    "clean",
    "dormand_prince",
    "euler",
    "geometric_sigmas",
    "heun2",
    "heun3",
    "largest_sigma",
    "level_count",
    "level_ratio",
    "likelihood_weight",
    "log_normalizing_constant",
    "midpoint_rule",
    "noise",
    "own_norms",
    "rk4",
    "slerp",
    "snr",
    "snr_of",
    "straight",
    "time_coordinates",
    "truncated_snr",
    "velocity",
    "velocity_weight",
    "vp_betas",
]
