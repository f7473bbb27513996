"""What Gaussian diffusion in discrete and in continuous time share.

Schedules, denoisers, the denoising loss, guidance.
"""

from .analytic import AnalyticGaussian, AnalyticMixture
from .denoiser import Clipped, DenoiserWrapper, Estimate, GaussianDenoiser, Learned, Thresholded
from .dequantization import Dequantized, Dequantizer, UniformDequantization, VariationalDequantization
from .guidance import (
    ClassifierFree,
    ClassifierGradient,
    ClassifierGuided,
    ConditionDropout,
    NoisyClassifier,
    Recognition,
)
from .interpolation import slerp
from .loss import DenoisingLoss
from .prediction import Preconditioned, clean, noise, scaled_score, straight, velocity
from .schedule import Schedule, TableSchedule
from .weights import MinSNR, OutputError, Weight, likelihood_weight, snr, truncated_snr, velocity_weight

__all__ = [
    "AnalyticGaussian",
    "AnalyticMixture",
    "ClassifierFree",
    "ClassifierGradient",
    "ClassifierGuided",
    "Clipped",
    "ConditionDropout",
    "DenoiserWrapper",
    "DenoisingLoss",
    "Dequantized",
    "Dequantizer",
    "Estimate",
    "GaussianDenoiser",
    "Learned",
    "MinSNR",
    "NoisyClassifier",
    "OutputError",
    "Preconditioned",
    "Recognition",
    "Schedule",
    "TableSchedule",
    "Thresholded",
    "UniformDequantization",
    "VariationalDequantization",
    "Weight",
    "clean",
    "likelihood_weight",
    "noise",
    "scaled_score",
    "slerp",
    "snr",
    "straight",
    "truncated_snr",
    "velocity",
    "velocity_weight",
]
